"""One attempt at a run: what it holds, and each thing the loop does with it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from counterscan import __version__
from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.nets.layout import channels_last
from counterscan.training import distributed, state
from counterscan.training.checkpoint import Checkpoints, read_checkpoint, write_checkpoint
from counterscan.training.config import TrainConfig
from counterscan.training.context import Context
from counterscan.training.ema import EMA
from counterscan.training.feed import Feed
from counterscan.training.guards import Interrupted, Signals
from counterscan.training.logging import RunLog
from counterscan.training.seeding import seed_everything
from counterscan.training.task import Task, TrainResult


class Run:
    """Places the networks, loads the latest intact checkpoint or saves the untrained state, opens the log.

    The state is saved before the first step so that a run killed early repeats from the same weights, and so that a
    folder which cannot be written shows at once.

    Attributes:
        step: steps done.
        ctx: what the task is given.
        best: step, score (more is better) and value (as the task reports it) of the chosen checkpoint.
    """

    def __init__(
        self, task: Task, config: TrainConfig, folder: Path, world: distributed.World, feed: Feed, signals: Signals
    ) -> None:
        self.task, self.config, self.folder, self.world, self.signals = task, config, folder, world, signals
        self.step = 0
        self.best: dict[str, Any] = {"step": None, "score": None, "value": None}
        self.metrics: dict[str, float] = {}
        self._place()
        self.averages = {name: EMA(task.modules[name], config.ema_half_life, config.ema_ramp) for name in task.ema}
        self.ctx = Context(task, config, world, self.averages, feed)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        if world.main:
            self.checkpoints.clear()
        found = self.checkpoints.set_damaged_aside() if world.main else None
        latest = self._from_main(-1 if found is None else found)
        window = self._restore(latest) if latest >= 0 else {}
        self.log = RunLog(folder, config, world, self.step, window)
        if latest < 0:
            self.save(0)
        elif self.step < config.steps:
            self.log.note(f"going on from {self.ctx.last_checkpoint}")

    def _place(self) -> None:
        trained, frozen = self.task.modules.values(), self.task.frozen.values()
        for module in (*trained, *frozen):
            module.to(self.world.device)
        distributed.broadcast(trained, self.world)
        for module in trained:
            module.train()
        for module in frozen:
            module.eval().requires_grad_(False)
        if self.config.channels_last:
            for module in (*trained, *frozen):
                channels_last(module)
        for optimizer in self.task.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    def _restore(self, step: int) -> Mapping[str, list[float]]:
        path = self.checkpoints.path(step)
        tensors, meta = read_checkpoint(path)
        state.restore(self.task, self.averages, tensors, meta, path)
        self.step, self.best, self.metrics, self.ctx.last_checkpoint = step, meta["best"], meta["metrics"], path
        return meta["window"]

    def set_rates(self, step: int) -> None:
        """Learning rates of this step."""
        factor = self.config.rate_factor(step)
        for optimizer in self.task.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def average(self, done: int) -> None:
        """Move the averaged weights; the step now counts as done."""
        distributed.average_buffers(self.task.modules.values(), self.world)
        unit = self.config.batch_size if self.config.ema_unit == "images" else 1
        for average in self.averages.values():
            average.update(elapsed=unit, seen=done * unit)
        self.step = done

    def tell(self, done: int, reported: Mapping[str, Any], *, line: bool) -> None:
        """Take in the step's scalars; write a line of means if it is due."""
        self.log.add({name: sum(values) / len(values) for name, values in self.ctx.metrics.items()})
        self.log.add(reported)
        if line:
            self.log.flush(done, rate=self.config.rate_factor(done - 1))
        self.log.progress(done)

    def validate(self, done: int) -> None:
        """Validate, log, and keep the weights if they are the best so far."""
        with self._evaluating(stream=1):
            self.metrics = {name: float(value) for name, value in self.task.validate(self.ctx).items()}
        if self.metrics:
            self.log.record(done, {f"validation/{name}": value for name, value in self.metrics.items()})
        score, value = self._score()
        if score is not None and math.isfinite(score) and (self.best["score"] is None or score > self.best["score"]):
            self.best = {"step": done, "score": score, "value": value}
            if self.world.main:
                tensors, meta = state.gather_best(self.task, self.averages)
                write_checkpoint(self.checkpoints.path("best"), tensors, self._meta() | meta)

    def sample(self, done: int) -> None:
        """Write image grids."""
        if self.world.main:
            with self._evaluating(stream=2), torch.no_grad():
                grids = self.task.images(self.ctx)
            self.log.images(done, grids)

    def save(self, done: int) -> None:
        """Save everything training goes on from."""
        distributed.check_agreement(self.task.modules.values(), self.world)
        if self.world.main:
            tensors, meta = state.gather(self.task, self.averages)
            meta |= self._meta() | {"window": self.log.window}
            self.checkpoints.save(done, tensors, meta)
        self.ctx.last_checkpoint = self.checkpoints.path(done)
        self._from_main(done)

    def stop_asked(self) -> int:
        """Number of the signal that any process received; 0 for none."""
        if self.world.size == 1:
            return self.signals.received
        received = torch.tensor([self.signals.received], device=self.world.device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)

    def interrupted(self, number: int) -> Interrupted:
        """The way out after a signal."""
        end = Interrupted(number, self.step, self.checkpoints.path(self.step))
        self.log.note(str(end))
        return end

    def finish(self) -> TrainResult:
        """Write the model card and sum up."""
        path = self.checkpoints.path(self.step)
        result = TrainResult(self.folder, self.step, path, self.best["step"], self.best["value"], self.metrics)
        if self.world.main and (card := self.task.card(result)):
            write_text(self.folder / "README.md", card)
        return result

    def _score(self) -> tuple[float | None, float | None]:
        """The validation's score, more being better, and the value behind it."""
        own = self.task.criterion(self.metrics)
        name = self.config.best_metric
        if own is not None or name is None:
            return own, own
        if name not in self.metrics:
            raise InputError(f"validation gives {', '.join(self.metrics) or 'no metrics'}", field="best_metric")
        value = self.metrics[name]
        return (value if self.config.best_mode == "max" else -value), value

    def _meta(self) -> dict[str, Any]:
        return {"format": 1, "version": __version__, "step": self.step, "best": self.best, "metrics": self.metrics}

    @contextlib.contextmanager
    def _evaluating(self, stream: int) -> Iterator[None]:
        """Evaluation mode and noise of its own, then each module as it was."""
        seed_everything(self.config.seed, self.step, self.world.rank, stream)
        modes = {part: part.training for module in self.task.modules.values() for part in module.modules()}
        for module in self.task.modules.values():
            module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode

    def _from_main(self, number: int) -> int:
        """Rank 0's number, on every process; also where they wait for each other."""
        if self.world.size == 1:
            return number
        shared = torch.tensor([number], device=self.world.device)
        torch.distributed.broadcast(shared, src=0)
        return int(shared)
