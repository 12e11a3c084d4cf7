"""What a step has at hand: updates, batches, precision, averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from counterscan.errors import InputError
from counterscan.training.config import TrainConfig
from counterscan.training.distributed import World, average_gradients
from counterscan.training.ema import EMA
from counterscan.training.guards import NonFiniteError, describe
from counterscan.training.precision import autocast

if TYPE_CHECKING:
    from counterscan.training.feed import Feed
    from counterscan.training.task import Task


class Context:
    """Passed to every hook of a task.

    Attributes:
        step: steps done before this one, from 0.
        config: the run's settings.
        world: this process among the others; ``world.device`` is where tensors live.
        last_checkpoint: the file training would go on from.
    """

    def __init__(self, task: Task, config: TrainConfig, world: World, averages: Mapping[str, EMA], feed: Feed) -> None:
        self.task, self.config, self.world = task, config, world
        self.step = 0
        self.last_checkpoint: Path | None = None
        self.metrics: dict[str, list[float]] = {}
        self._averages, self._feed = averages, feed
        self._compiled: dict[int, tuple[nn.Module, Any]] = {}
        self._batches: list[dict[str, Tensor]] = []
        self._unverified: list[tuple[str, Tensor, Tensor]] = []

    @property
    def device(self) -> torch.device:
        """Where the networks and batches are."""
        return self.world.device

    def begin(self, step: int) -> dict[str, Tensor]:
        """Start a step; returns its first batch. For the loop."""
        self.step, self.metrics, self._batches, self._unverified = step, {}, [], []
        return self.next_batch()

    def next_batch(self) -> dict[str, Tensor]:
        """A further batch of this step, from a shuffle of its own: fresh images for each critic update."""
        self._batches.append(self._feed.get(self.step, len(self._batches)))
        return self._batches[-1]

    def update(self, name: str, loss: Tensor | Iterable[Tensor]) -> None:
        """One update of optimizer ``name``: clear, backward, average over processes, check, clip, step.

        Gradients reach the parameters of this optimizer alone, so other networks in the graph need no freezing. Losses
        must be means over the batch for several processes to equal one with the whole batch.

        Args:
            name: key of ``Task.optimizers``.
            loss: a scalar; or several, whose gradients add up, each graph freed before the next is asked for:
                ``(loss_of(part) / n for part in parts)`` accumulates a batch too large for memory.

        Raises:
            NonFiniteError: loss or gradient is not finite (on a GPU raised at the end of the step).
        """
        if name not in self.task.optimizers:
            raise InputError(f"no such optimizer; there are {', '.join(self.task.optimizers)}", field=name)
        optimizer = self.task.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in [loss] if isinstance(loss, Tensor) else loss:
            part.float().backward(inputs=parameters)
            total += part.detach()
        total = average_gradients(parameters, total, self.world)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None]).to(self.device)
        self._unverified.append((name, total, norm))
        if self.device.type == "cpu":
            self.verify()
        if self.config.grad_clip is not None:
            clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        optimizer.step()
        torch.clear_autocast_cache()  # else a step's later passes would see these weights as they were before

    def verify(self) -> None:
        """Look at the losses and gradient norms of the updates since the last call: one wait for the GPU per step."""
        if not self._unverified:
            return
        numbers = torch.stack([torch.stack((loss, norm)) for _, loss, norm in self._unverified]).tolist()
        for (name, _, _), (loss, norm) in zip(self._unverified, numbers, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteError(self._diagnosis(name, loss, norm))
            self.metrics.setdefault(f"{name}/loss", []).append(loss)
            self.metrics.setdefault(f"{name}/grad_norm", []).append(norm)
        self._unverified = []

    def averaged(self, name: str) -> nn.Module:
        """The averaged copy of a module, or the module itself when it is not averaged."""
        return self._averages[name].module if name in self._averages else self.task.modules[name]

    def autocast(self, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 when the run's precision says so; ``autocast(False)`` inside it for parts that need float32 (R1)."""
        return autocast(self.device, self.config.precision, enabled)

    def compile(self, module: nn.Module) -> Any:
        """``torch.compile`` of a module, once, if the run compiles; else the module.

        Use the result for forward passes whose gradient is taken once. A compiled graph cannot be differentiated twice:
        call the module itself where R1 or a gradient penalty is computed. Both share their weights.
        """
        if not self.config.compile:
            return module
        if id(module) not in self._compiled:
            self._compiled[id(module)] = (module, torch.compile(module))
        return self._compiled[id(module)][1]

    def lazy(self, every: int, count: int | None = None) -> int:
        """``every`` when a lazy regulariser is due, else 0: ``if k := ctx.lazy(16): loss = loss + k * r1(...)``.

        Scaling by ``every`` keeps its average strength (StyleGAN2, appendix B).

        Args:
            every: updates between two applications, >= 1.
            count: updates of that network so far; the step number when each step makes one.
        """
        return lazy(self.step if count is None else count, every)

    def _diagnosis(self, name: str, loss: float, norm: float) -> str:
        parameters = {id(p): p for group in self.task.optimizers[name].param_groups for p in group["params"]}
        named = [(f"{m}.{key}", p) for m, module in self.task.modules.items() for key, p in module.named_parameters()]
        bad = [key for key, p in named if id(p) in parameters and p.grad is not None and not p.grad.isfinite().all()]
        which = f"; first gradient that is not finite: {bad[0]} ({len(bad)} of {len(parameters)})" if bad else ""
        rank = f" on rank {self.world.rank}" if self.world.size > 1 else ""
        return (
            f"step {self.step + 1}: loss '{name}' is {loss:.4g}, gradient norm {norm:.4g}{which}. Inputs{rank}:\n"
            f"{describe(self._batches)}\nNothing of it was saved; the last good checkpoint is {self.last_checkpoint}. "
            "If the inputs are sound, lower the learning rate, clip gradients or use fp32"
        )


def lazy(count: int, every: int) -> int:
    """``every`` at counts 0, every, 2 * every, ...; else 0. See ``Context.lazy``."""
    return every if count % every == 0 else 0


def lazy_adam(rate: float, betas: tuple[float, float], every: int) -> dict[str, Any]:
    """Adam's ``lr`` and ``betas`` for a network with a regulariser every ``every`` steps (StyleGAN2, appendix B).

    StyleGAN2 takes the regulariser's step on its own, so that ``every`` steps hold ``every + 1`` updates; the corrected
    values keep the movement and the memory of ``every`` updates. Where the regulariser is added to the loss of one
    update, as ``Context.lazy`` does, no correction is needed.
    """
    share = every / (every + 1)
    return {"lr": rate * share, "betas": (betas[0] ** share, betas[1] ** share)}
