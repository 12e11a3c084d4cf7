"""What a system tells the loop: its networks, its optimizers, and one step."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from counterscan.training.context import Context


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        step: steps done.
        checkpoint: the last full checkpoint.
        best_step, best_value: when the chosen checkpoint was made and its metric; None when nothing chose one.
        metrics: the last validation's.
    """

    folder: Path
    step: int
    checkpoint: Path
    best_step: int | None
    best_value: float | None
    metrics: dict[str, float]


class Task(abc.ABC):
    """One training job: set ``modules`` and ``optimizers`` in the constructor, override ``step`` and what you need.

    Build the networks after ``seed_everything(seed)`` when a run must be repeatable from its start.

    Attributes:
        modules: the networks that are trained, by name; moved to the device, put in train mode for each step, saved.
        optimizers: by name, each over parameters of ``modules``; their learning rates are what the schedule multiplies.
        ema: names of the modules to average.
        frozen: networks that are only used; moved to the device, in evaluation mode, without gradients, not saved.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    ema: tuple[str, ...] = ()
    frozen: Mapping[str, nn.Module] = MappingProxyType({})

    @abc.abstractmethod
    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """Do one step: any sequence of ``ctx.update(optimizer, loss)``. Returns scalars to log.

        Args:
            ctx: updates, further batches (``ctx.next_batch()``), precision, the step number.
            batch: what the data source gave, on the device, with "index" (B,) and "group" (B,) of the sampler.
        """

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Metrics on validation data, with ``ctx.averaged(name)`` weights. Called in evaluation mode on every rank."""
        return {}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """How good these validation metrics are, more being better; None leaves it to ``TrainConfig.best_metric``."""
        return None

    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Images in [-1, 1] for ``samples/``: (N, C, H, W) for a grid, (R, N, C, H, W) for R rows. Rank 0 only."""
        return {}

    def card(self, result: TrainResult) -> str:
        """The model card, Markdown, for the run's README.md; empty for none."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Further state to save: tensors, and values JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        if state:
            raise NotImplementedError(f"{type(self).__name__} saves state and must load it")
