"""What the acceptance gate says of edits; see ``tbsmgan.gate`` for what each criterion asks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Sign = Literal[1, -1]
CRITERIA = ("target", "off-target", "identity", "realism", "new")


@dataclass(frozen=True)
class Judgement:
    """N edits of one finding.

    Attributes:
        finding: what was asked for.
        sign: 1 towards it, -1 away.
        passed: (N, 5) bool, columns as in ``CRITERIA``.
        before, after: (N,) P(finding), mean over the verifiers.
        off_target: (N,) mean |change| of the other findings' P; 0 where there are none.
        shape, change, realism, nearest: (N,) what the limits are for.
        probabilities: (N, C) of the edits, columns as the gate's ``findings``.
        needed: the criteria that an accepted one passes.
    """

    finding: str
    sign: Sign
    passed: Tensor
    before: Tensor
    after: Tensor
    off_target: Tensor
    shape: Tensor
    change: Tensor
    realism: Tensor
    nearest: Tensor
    probabilities: Tensor
    needed: tuple[str, ...] = CRITERIA

    @property
    def accepted(self) -> Tensor:
        """(N,) bool, all needed criteria hold."""
        return self.passed[:, [CRITERIA.index(name) for name in self.needed]].all(1)

    @property
    def reached(self) -> Tensor:
        """(N,) bool, the finding is where it was wanted."""
        return self.passed[:, CRITERIA.index("target")]

    def take(self, rows: Tensor) -> Judgement:
        """Some of them, by number or by a bool for each."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        parts: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **parts)

    def with_rows(self, rows: Tensor, other: Judgement) -> Judgement:
        """With some rows (N,) bool as in another judgement of as many edits."""
        parts: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            own, theirs = getattr(self, name), getattr(other, name)
            if isinstance(own, Tensor):
                parts[name] = torch.where(rows if own.ndim == 1 else rows[:, None], theirs, own)
        return replace(self, **parts)
