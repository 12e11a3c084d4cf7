"""What stops a run in good order: values that are not finite, signals, and a second process in the same folder."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from counterscan.errors import CounterscanError, InputError


class NonFiniteError(CounterscanError):
    """A loss, gradient or weight became infinite or NaN; nothing of it was saved."""


class Interrupted(SystemExit):
    """The run was asked to stop by a signal, finished its step and saved.

    Left uncaught it ends the process with the usual status, 128 + signal number (143 for SIGTERM, 130 for SIGINT).

    Attributes:
        step: steps done.
        checkpoint: where training goes on from.
    """

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        super().__init__(128 + number)
        self.step, self.checkpoint = step, checkpoint

    def __str__(self) -> str:
        return f"stopped after step {self.step}; {self.checkpoint} is where the same command goes on"


class Signals:
    """Remembers SIGTERM or SIGINT instead of dying of it; a second one acts as usual. A context manager.

    Outside the main thread Python cannot take signals, and this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock; the system frees it however the process ends.

    Raises:
        InputError: another process trains there.
    """
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "another process is training here", path=folder, remedy="Wait for it, or choose another folder"
            ) from None
        yield


def describe(batches: Sequence[Mapping[str, Any]]) -> str:
    """Shape, range and NaN count of every tensor in the batches of a step, one line each."""
    lines = []
    for number, batch in enumerate(batches):
        for name, value in batch.items():
            if isinstance(value, Tensor) and value.numel():
                numbers = value.detach().float()
                good = numbers[torch.isfinite(numbers)]
                extent = f"min {good.min():.4g}, max {good.max():.4g}" if good.numel() else "no finite value"
                bad = f"{int(numbers.isnan().sum())} NaN, {int(numbers.isinf().sum())} infinite"
                where = f" (batch {number + 1})" if len(batches) > 1 else ""
                lines.append(f"  {name}{where} {tuple(value.shape)}: {extent}, {bad}")
    return "\n".join(lines)
