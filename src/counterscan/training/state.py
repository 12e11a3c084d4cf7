"""The whole state of a run as named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from counterscan.errors import InputError
from counterscan.training.checkpoint import fit, select
from counterscan.training.guards import NonFiniteError

if TYPE_CHECKING:
    from counterscan.training.ema import EMA
    from counterscan.training.task import Task


def gather(task: Task, averages: Mapping[str, EMA]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that training goes on from.

    Raises:
        NonFiniteError: a weight is not finite, so that it must not be saved.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"optimizers": {}, "task": {}}
    for name, module in task.modules.items():
        refuse_nonfinite(name, module)
        tensors |= {f"model/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"ema/{name}/{key}": value for key, value in average.module.state_dict().items()}
    for name, optimizer in task.optimizers.items():
        flat, meta["optimizers"][name] = flatten_optimizer(optimizer)
        tensors |= {f"optimizer/{name}/{key}": value for key, value in flat.items()}
    _add_own(task, tensors, meta)
    return tensors, meta


def gather_best(task: Task, averages: Mapping[str, EMA]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights for use, averaged where there is an average, and the task's own state."""
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"task": {}}
    for name, module in task.modules.items():
        chosen = averages[name].module if name in averages else module
        refuse_nonfinite(name, chosen)
        tensors |= {f"model/{name}/{key}": value for key, value in chosen.state_dict().items()}
    _add_own(task, tensors, meta)
    return tensors, meta


def _add_own(task: Task, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    for key, value in task.state_dict().items():
        if isinstance(value, Tensor):
            tensors[f"task/{key}"] = value
        else:
            meta["task"][key] = value


def restore(
    task: Task, averages: Mapping[str, EMA], tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path
) -> None:
    """Put back what ``gather`` took.

    Raises:
        InputError: the checkpoint is of a differently built task.
    """
    for name, module in task.modules.items():
        fit(module, select(tensors, f"model/{name}/"), path, name)
    for name, average in averages.items():
        fit(average.module, select(tensors, f"ema/{name}/"), path, f"average of {name}")
    for name, optimizer in task.optimizers.items():
        if name not in meta["optimizers"]:
            raise InputError("the checkpoint has no such optimizer", path=path, field=name)
        unflatten_optimizer(optimizer, select(tensors, f"optimizer/{name}/"), meta["optimizers"][name], path)
    task.load_state_dict({**select(tensors, "task/"), **meta["task"]})


def refuse_nonfinite(name: str, module: torch.nn.Module) -> None:
    """Raise NonFiniteError naming the first weight of ``module`` that is not finite."""
    for key, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(
                f"weight {name}.{key} is not finite and was not saved; the checkpoint before it stands"
            )


def flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimizer state as tensors named ``<parameter>/<quantity>`` and JSON (groups, and state that is no tensor)."""
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in packed["state"].items():
        for key, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}/{key}"] = value
    groups = [{k: v.item() if isinstance(v, Tensor) else v for k, v in g.items()} for g in packed["param_groups"]]
    return tensors, {"groups": groups, "numbers": numbers}


def unflatten_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path
) -> None:
    """Load what ``flatten_optimizer`` gave; tensors take the memory layout of their parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **meta["numbers"]}.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    same = len(groups) == len(meta["groups"]) and all(
        group["params"] == saved["params"] for group, saved in zip(groups, meta["groups"], strict=True)
    )
    if not same:
        raise InputError("optimizer groups differ from the checkpoint's", path=path)
    for group, saved in zip(groups, meta["groups"], strict=True):
        # JSON turns tuples (Adam's betas) into lists.
        group |= {key: tuple(v) if isinstance(group.get(key), tuple) else v for key, v in saved.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for index, quantities in state.items():
        parameter = parameters[index]
        for key, value in quantities.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                laid_out = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
                optimizer.state[parameter][key] = laid_out
