"""How many edits the gate lets through, by finding and criterion; and how far, and where, each body is to be moved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Edited, Editor, Origin
from counterscan.tbsmgan.edits.prompt import Prompt
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.judgement import CRITERIA, Judgement, Sign
from counterscan.transfer import transfer_mask

_LITTLE = 0.05  # change of other findings' probabilities up to which no other editor is asked
MASKS = (0.1, 0.2, 0.35, 0.5)  # thresholds of ``transfer_mask`` that edits are confined to, loose ones first


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
class Fitted:
    """Edits of some of the bodies, all of one strength, with what the gate says of them.

    Attributes:
        rows: (M,) which bodies.
        edited: M edits.
        judged: of these.
    """

    rows: Tensor
    edited: Edited
    judged: Judgement


def fit_strengths(
    editor: Editor,
    prompt: Prompt,
    gate: Gate,
    origin: Origin,
    strengths: Sequence[float] | None = None,
    sign: Sign = 1,
    *,
    own: Tensor | None = None,
) -> Iterator[Fitted]:
    """Move each body until the verifiers see what is wanted, and further where that passes, too.

    Bodies differ in how far they are from a finding, and what else an edit changes grows with its length; but what just
    convinces the verifiers convinces others less often. Every body comes once: ``prompt.further`` strengths beyond the
    smallest at which the gate's "target" holds (one, none for what is called mild, three for severe), or as far on the
    way there as every strength is accepted, or at the largest where it never holds. Then it is confined to where it
    changes most; see ``confined``.

    Args:
        editor, prompt: what is tried.
        gate: what judges.
        origin: N bodies without the finding for sign 1, with it for -1.
        strengths: positive, in standard deviations; None for those of the editor and its usual one.
        sign: 1 towards the prompt, -1 away.
        own: see ``Gate.judge``.

    Raises:
        InputError: no strength, or one that is not positive.
    """
    ladder = sorted({*map(float, (*editor.strengths, editor.usual(prompt)) if strengths is None else strengths)})
    if not ladder or ladder[0] <= 0:
        raise InputError("must be one or more positive numbers", field="strengths")
    origin = origin.shown(editor.gan)
    left, known = torch.arange(len(origin)), None
    spare = torch.full((len(origin),), -1)  # strengths yet to go; -1 until one was enough
    before: tuple[Edited, Judgement] | None = None  # of those that are left, at the strength before
    for strength in ladder:
        edited = editor.edit(origin.take(left), prompt, sign * strength, told=False)
        known = gate.opinions(edited.before) if known is None else known
        judged = gate.judge(
            edited.before,
            edited.after,
            prompt.finding,
            sign,
            also=prompt.also,
            own=None if own is None else own[left],
            known=known,
        )
        going = spare >= 0
        back = going & ~judged.accepted
        spare = torch.where(going, spare - 1, torch.where(judged.reached, prompt.further, -1))
        now = ~back & ((spare == 0) | (strength == ladder[-1]))
        if before is not None and bool(back.any()):
            yield confined(
                Fitted(left[back], before[0].take(back), before[1].take(back)), prompt, gate, own, known[:, back]
            )
        if bool(now.any()):
            yield confined(Fitted(left[now], edited.take(now), judged.take(now)), prompt, gate, own, known[:, now])
        stay = ~(back | now)
        left, known, spare = left[stay], known[:, stay], spare[stay]
        before = edited.take(stay), judged.take(stay)
        if not len(left):
            return


def confined(
    part: Fitted, prompt: Prompt, gate: Gate, own: Tensor | None = None, known: Tensor | None = None
) -> Fitted:
    """Each edit within the one of ``MASKS``, or of none, with which the verifiers see the least else change.

    What a generator changes for one finding, it changes a little everywhere, and that moves other findings. Edits that
    the gate accepts come before those that only reach their target, those before others.

    Args:
        part: edits.
        prompt: what was asked.
        gate: what judges.
        own: of all bodies; see ``Gate.judge``.
        known: of the part's; see ``Gate.judge``.
    """
    edited, best, images = part.edited, part.judged, part.edited.after
    known = gate.opinions(edited.before) if known is None else known
    change = edited.after - edited.before
    for threshold in MASKS:
        after = edited.before + transfer_mask(change, threshold=threshold) * change
        judged = gate.judge(
            edited.before,
            after,
            prompt.finding,
            best.sign,
            also=prompt.also,
            own=None if own is None else own[part.rows],
            known=known,
        )
        better = _cost(judged) < _cost(best)
        images = torch.where(better.view(-1, 1, 1, 1).to(images.device), after, images)
        best = best.with_rows(better, judged)
    return replace(part, edited=replace(edited, after=images), judged=best)


def _cost(judged: Judgement) -> Tensor:
    """(N,) what is to be small; off-target changes are at most 1."""
    return judged.off_target.float() - 2.0 * judged.accepted - 2.0 * judged.reached


def fit_best(
    editors: Sequence[Editor],
    prompt: Prompt,
    gate: Gate,
    origin: Origin,
    strengths: Sequence[float] | None = None,
    sign: Sign = 1,
    *,
    own: Tensor | None = None,
) -> list[Fitted]:
    """Each body by the editor that suits it: what one method entangles in a body, another may not.

    Editors are asked in turn about the bodies for which none before was accepted with little else changed; of all
    answers each body keeps the one that costs least, as in ``confined``.

    Args:
        editors: of one generator, the likeliest first.
        prompt, gate, origin, strengths, sign, own: see ``fit_strengths``.

    Returns:
        Every body once.

    Raises:
        InputError: no editor; see ``fit_strengths``.
    """
    if not editors:
        raise InputError("none is given", field="editors")
    origin = origin.shown(editors[0].gan)
    left, costs, parts = torch.arange(len(origin)), torch.full((len(origin),), float("inf")), list[Fitted]()
    chosen = torch.full((len(origin),), -1)  # which part
    enough = torch.zeros(len(origin), dtype=torch.bool)
    for editor in editors:
        some = None if own is None else own[left]
        for part in fit_strengths(editor, prompt, gate, origin.take(left), strengths, sign, own=some):
            rows = left[part.rows]
            better = _cost(part.judged) < costs[rows]
            costs[rows] = torch.where(better, _cost(part.judged), costs[rows])
            chosen[rows] = torch.where(better, len(parts), chosen[rows])
            enough[rows] |= part.judged.accepted & (part.judged.off_target <= _LITTLE)
            parts.append(replace(part, rows=rows))
        left = torch.nonzero(~enough)[:, 0]
        if not len(left):
            break
    kept = [(part, chosen[part.rows] == number) for number, part in enumerate(parts)]
    return [Fitted(p.rows[mine], p.edited.take(mine), p.judged.take(mine)) for p, mine in kept if bool(mine.any())]


def share_accepted(parts: Iterable[Fitted]) -> float:
    """Share of the bodies of ``fit_best`` whose edits pass the gate."""
    verdicts = torch.cat([part.judged.accepted for part in parts])
    return float(verdicts.double().mean())
