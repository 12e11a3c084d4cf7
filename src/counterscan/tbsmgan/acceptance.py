"""How many edits the gate lets through, by finding and criterion; and the strength at which most pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Editor, Origin
from counterscan.tbsmgan.edits.prompt import Prompt
from counterscan.tbsmgan.gate import CRITERIA, Gate, Judgement, Sign

STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)


def named(finding: str, sign: Sign) -> str:
    """ "Edema (+)" or "Edema (-)"."""
    return f"{finding} ({'+' if sign > 0 else '-'})"


@dataclass
class Tally:
    """Counts that add up over batches and runs.

    Attributes:
        counts: "Edema (+)" -> "tried", "accepted", one count per criterion, and "off_target", the sum of the mean
            changes of the other findings' probabilities.
    """

    counts: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, judged: Judgement) -> None:
        """Count a batch."""
        row = self.counts.setdefault(
            named(judged.finding, judged.sign), dict.fromkeys(("tried", "accepted", *CRITERIA, "off_target"), 0.0)
        )
        row["tried"] += len(judged.passed)
        row["accepted"] += int(judged.accepted.sum())
        for name, count in zip(CRITERIA, judged.passed.sum(0).tolist(), strict=True):
            row[name] += count
        row["off_target"] += float(judged.off_target.sum())

    def table(self) -> list[dict[str, Any]]:
        """One row per finding and sign: "finding", "tried", "accepted", "rate", the share that passes each criterion,
        and the mean "off_target"."""
        rows = []
        for name, row in self.counts.items():
            tried = max(row["tried"], 1.0)
            shares = {criterion: row[criterion] / tried for criterion in CRITERIA}
            rows.append(
                {
                    "finding": name,
                    "tried": int(row["tried"]),
                    "accepted": int(row["accepted"]),
                    "rate": row["accepted"] / tried,
                    **shares,
                    "mean |off-target|": row["off_target"] / tried,
                }
            )
        return rows


@dataclass(frozen=True)
class Chosen:
    """The strength at which most edits pass.

    Attributes:
        strength: signed.
        rates: |strength| -> share of edits that the gate accepts.
    """

    strength: float
    rates: dict[float, float]


def choose_strength(
    editor: Editor,
    prompt: Prompt,
    gate: Gate,
    origin: Origin,
    strengths: Sequence[float] = STRENGTHS,
    sign: Sign = 1,
) -> Chosen:
    """Try strengths on a few bodies; of equally good ones the smallest is taken, since it changes least.

    Args:
        editor, prompt: what is tried.
        gate: what lets through.
        origin: bodies without the finding for sign 1, with it for -1; some dozens.
        strengths: positive, in standard deviations; those of ``usual`` for methods whose unit is a whole change are
            tried too.
        sign: 1 towards the prompt, -1 away.

    Raises:
        InputError: no strength, or one that is not positive.
    """
    if not strengths or min(strengths) <= 0:
        raise InputError("must be one or more positive numbers", field="strengths")
    tried = sorted({*map(float, strengths), float(editor.usual(prompt))})
    rates = {}
    for strength in tried:
        edited = editor.edit(origin, prompt, sign * strength)
        judged = gate.judge(edited.before, edited.after, prompt.finding, sign, also=prompt.also)
        rates[strength] = float(judged.accepted.double().mean())
    best = max(tried, key=lambda s: (rates[s], -s))
    return Chosen(sign * best, rates)
