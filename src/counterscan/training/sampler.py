"""Which images make up a batch, as a pure function of (seed, step, rank): nothing to save, nothing to restore.

A batch is a stretch of an endless sequence of slots. Each slot names a group of images and how often that group came
before; an image is looked up in the group's permutation for that pass. The whole batch does not depend on the number of
processes: each takes its contiguous part of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from counterscan.errors import InputError


class Sampler(Protocol):
    """What the loop asks for; ``stream`` counts the further batches that one step may draw (critic steps)."""

    def batch_indices(self, step: int, rank: int = 0, world: int = 1, stream: int = 0) -> np.ndarray:
        """Rows of this rank's part of the batch, (batch_size / world,) int64."""
        ...

    def batch_groups(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """The group each of those rows was drawn for, (batch_size / world,) int64."""
        ...


class BalancedSampler:
    """Draws from groups of rows in fixed shares, each group in its own shuffled passes.

    Args:
        groups: arrays of row numbers; they may overlap (an image with two findings belongs to both).
        batch_size: images per step over all processes.
        seed: start of the shuffles.
        shares: how many slots of each round a group gets; equal shares when not given.

    Raises:
        InputError: no group, an empty group, or shares that do not fit the groups.
    """

    def __init__(
        self, groups: Sequence[np.ndarray], batch_size: int, seed: int = 0, shares: Sequence[int] | None = None
    ) -> None:
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups]
        self.shares = [1] * len(self.groups) if shares is None else list(shares)
        if not self.groups or any(len(group) == 0 for group in self.groups):
            raise InputError("a group to sample from has no images", remedy="Leave empty groups out")
        if len(self.shares) != len(self.groups) or min(self.shares) < 1:
            raise InputError("shares must be whole numbers >= 1, one per group", field="shares")
        self.batch_size, self.seed = batch_size, seed
        # One round of slots, groups interleaved: shares (2, 1) give 0, 1, 0.
        turns = [(turn / share, group, turn) for group, share in enumerate(self.shares) for turn in range(share)]
        self._round = np.array([(group, turn) for _, group, turn in sorted(turns)], dtype=np.int64)
        self._permutation = functools.lru_cache(maxsize=4 * len(self.groups))(self._shuffle)

    def batch_indices(self, step: int, rank: int = 0, world: int = 1, stream: int = 0) -> np.ndarray:
        """Rows of this rank's part of the batch; see ``Sampler``."""
        slots = self._slots(step, rank, world)
        group, turn = self._round[slots % len(self._round)].T
        drawn = slots // len(self._round) * np.array(self.shares)[group] + turn
        rows = [
            self._permutation(stream, int(k), int(count) // len(self.groups[k]))[int(count) % len(self.groups[k])]
            for k, count in zip(group, drawn, strict=True)
        ]
        return np.array(rows, dtype=np.int64)

    def batch_groups(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Groups of this rank's part of the batch; see ``Sampler``."""
        return self._round[self._slots(step, rank, world) % len(self._round), 0]

    def _slots(self, step: int, rank: int, world: int) -> np.ndarray:
        if self.batch_size % world:
            raise InputError(
                f"{self.batch_size} images cannot be shared equally by {world} processes", field="batch_size"
            )
        local = self.batch_size // world
        return step * self.batch_size + rank * local + np.arange(local)

    def _shuffle(self, stream: int, group: int, number: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, stream, group, number])
        return generator.permutation(self.groups[group])


def uniform_sampler(rows: int, batch_size: int, seed: int = 0) -> BalancedSampler:
    """Every image once per pass, in a new order each pass."""
    return BalancedSampler([np.arange(rows)], batch_size, seed)


def strata_groups(strata: Sequence[object] | np.ndarray) -> list[np.ndarray]:
    """Rows of each distinct value of ``strata`` (N,), in sorted order of the values."""
    _, inverse = np.unique(np.asarray(strata), return_inverse=True)
    return [np.flatnonzero(inverse == value) for value in range(int(inverse.max()) + 1)]


def finding_groups(labels: np.ndarray) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Rows with and without each finding; uncertain (-1) and unmentioned (NaN) labels are in neither.

    Args:
        labels: (N, C) floats, 1, 0, -1 or NaN.

    Returns:
        The non-empty groups, and for each its (finding column, label).
    """
    groups, names = [], []
    for column in range(labels.shape[1]):
        for value in (1, 0):
            rows = np.flatnonzero(labels[:, column] == value)
            if len(rows):
                groups.append(rows)
                names.append((column, value))
    return groups, names
