"""What the acceptance gate says of edits; see ``tbsmgan.gate`` for what each criterion asks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

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

    @property
    def accepted(self) -> Tensor:
        """(N,) bool, all criteria hold."""
        return self.passed.all(1)

    @property
    def reached(self) -> Tensor:
        """(N,) bool, the finding is where it was wanted."""
        return self.passed[:, CRITERIA.index("target")]

    def take(self, rows: Tensor) -> Judgement:
        """Some of them, by number or by a bool for each."""
        parts = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("finding", "sign")}
        return Judgement(finding=self.finding, sign=self.sign, **parts)
