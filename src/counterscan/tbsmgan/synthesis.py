"""Edited studies until enough pass the gate: images, a study table with truthful labels, and what was rejected and why.

Labels are never taken from the prompt alone: an image keeps the labels of what it was made from, but for the finding
that was edited, which is present or absent because the gate's verifiers see it so. Beside the hard label stands their
probability, within [.05, .95], for losses that take soft ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from counterscan.data.findings import canonical_name
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json
from counterscan.png import png
from counterscan.tbsmgan.acceptance import Tally, fit_best, named, share_accepted
from counterscan.tbsmgan.bodies import Bodies, Sampled, Supply
from counterscan.tbsmgan.edits.base import Edited, Editor
from counterscan.tbsmgan.edits.prompt import Prompt
from counterscan.tbsmgan.export import facts_of, quantised
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.generator import PSI, StyleGAN
from counterscan.tbsmgan.judgement import Judgement, Sign

SOFT_PREFIX = "soft:"
LEAST, MOST = 0.05, 0.95  # of soft labels
_TRIED_ON = 48  # bodies that tell whether a finding's edits pass
MOSTLY = 0.5  # share of edits that pass, below which the verifiers' errors choose many of those that do
_STATE, _TABLE = "synthesis.json", "table.csv"

Progress = Callable[[str, int, int], None]  # finding, accepted, wanted


@dataclass(frozen=True)
class SynthesisConfig:
    """How studies are made.

    Attributes:
        sign: 1 brings findings in, -1 takes them out.
        strength: in standard deviations, above 0; None moves each body until the gate's verifiers see the finding.
        tries: at most so many edits for each image that is wanted.
        batch: edits judged at once.
        psi: truncation of the bodies.
        seed: of the bodies.

    Raises:
        InputError: a value is out of range; names the field.
    """

    sign: Sign = 1
    strength: float | None = None
    tries: float = 10.0
    batch: int = 64
    psi: float = PSI
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise InputError("must be 1 or -1", field="sign")
        if self.strength is not None and not 0 < self.strength < float("inf"):
            raise InputError("must be positive; the sign is given apart", field="strength")
        if not self.tries >= 1:
            raise InputError("must be at least 1", field="tries")
        if self.batch < 1:
            raise InputError("must be at least 1", field="batch")
        if not 0 < self.psi <= 1:
            raise InputError("must be above 0 and at most 1", field="psi")

    @property
    def strengths(self) -> tuple[float] | None:
        """As ``fit_strengths`` takes them."""
        return None if self.strength is None else (self.strength,)


@dataclass(frozen=True)
class SynthesisReport:
    """What became of a request.

    Attributes:
        table: path of the study table.
        accepted: finding -> images with it that were written.
        wanted: finding -> how many were wanted.
        tally: tries, accepted ones and criteria; see ``Tally``.
        methods: finding -> the method that most of its images were made by.
        strengths: finding -> signed strength of these, the median.
        short: finding -> why there are fewer than wanted; empty when all came true.
    """

    table: Path
    accepted: dict[str, int]
    wanted: dict[str, int]
    tally: Tally
    methods: dict[str, str]
    strengths: dict[str, float]
    short: dict[str, str]


def synthesize(
    gan: StyleGAN,
    editors: Sequence[Editor],
    gate: Gate,
    prompts: Mapping[str, Prompt],
    findings: Mapping[str, int],
    folder: str | Path,
    config: SynthesisConfig | None = None,
    *,
    supply: Supply | None = None,
    progress: Progress | None = None,
) -> SynthesisReport:
    """Edit, judge, keep what passes; the same call goes on where an interrupted one stopped.

    Writes ``images/``, PNG files that say what they are, and ``table.csv``, a study table in the split "train" with the
    generator's findings and, beside each study, ``soft:<finding>`` of the edited one, "method", "text", "strength",
    "edited" and "synthetic"; and ``synthesis.json`` with rates and settings.

    Args:
        gan: the generator.
        editors: the methods, the likeliest first; see ``acceptance.fit_best``.
        gate: what lets through.
        prompts: finding -> what is asked, from ``Steering.prompt``, which refuses what cannot be had.
        findings: finding -> how many images of it are wanted.
        folder: where to write.
        config: see ``SynthesisConfig``.
        supply: what is edited; new bodies by default.
        progress: called after each batch.

    Raises:
        InputError: nothing wanted, a finding without prompt or unknown to the gate, or a folder of another request.
    """
    config, folder = config or SynthesisConfig(), Path(folder)
    wanted = {canonical_name(name): int(count) for name, count in findings.items()}
    _check(gan, gate, prompts, wanted)
    supply = supply or Sampled(gan, config.psi, config.seed)
    request = {
        "wanted": wanted,
        "texts": {name: prompts[name].text for name in wanted},
        "method": ", ".join(editor.name for editor in editors),
        "bodies": supply.name,
        "generator": gan.checkpoint,
        "verifiers": gate.digests(),
        "config": asdict(config),
    }
    run = _Run(gan, editors, gate, folder, config, request)
    for name, count in wanted.items():
        run.fill(name, prompts[name], count, supply, progress)
    return SynthesisReport(
        folder / _TABLE,
        {name: run.made[name] for name in wanted},
        wanted,
        run.tally,
        run.methods(),
        run.strengths(),
        {name: reason for name, reason in run.short.items() if run.made[name] < wanted[name]},
    )


def _check(gan: StyleGAN, gate: Gate, prompts: Mapping[str, Prompt], wanted: Mapping[str, int]) -> None:
    if not wanted or min(wanted.values()) < 1:
        raise InputError("nothing is wanted", field="findings", remedy='Give numbers, such as {"Edema": 500}')
    for name in wanted:
        if name not in prompts or prompts[name].finding != name:
            raise InputError("there is no prompt for it", field=f"finding {name!r}", remedy="Make one: Steering.prompt")
        for known, who in ((gan.findings, "generator"), (gate.findings, "gate")):
            if name not in known:
                raise InputError(
                    f"the {who} does not know it", field=f"finding {name!r}", remedy=f"It knows {', '.join(known)}"
                )


def passing(
    editors: Sequence[Editor],
    gate: Gate,
    prompts: Mapping[str, Prompt],
    supply: Supply,
    config: SynthesisConfig | None = None,
) -> dict[str, float]:
    """Finding -> share of edits that pass the gate, on a few bodies; 0 where there are none.

    Args:
        editors: the methods, the likeliest first.
        gate: what judges.
        prompts: finding -> what is asked.
        supply: bodies.
        config: sign and strength.
    """
    config, shares = config or SynthesisConfig(), dict.fromkeys(prompts, 0.0)
    for name, prompt in prompts.items():
        bodies = supply(name, config.sign, 0, _TRIED_ON)
        if bodies is not None:
            own = bodies.rows
            parts = fit_best(editors, prompt, gate, bodies.origin, config.strengths, config.sign, own=own)
            shares[name] = share_accepted(parts)
    return shares


class _Run:
    """A request that is being met, with its state on disk after every batch."""

    def __init__(
        self,
        gan: StyleGAN,
        editors: Sequence[Editor],
        gate: Gate,
        folder: Path,
        config: SynthesisConfig,
        request: dict[str, Any],
    ) -> None:
        self.gan, self.editors, self.gate, self.folder, self.config = gan, editors, gate, folder, config
        self.request, self.tally = request, Tally()
        self.rows: list[dict[str, Any]] = []
        self.made: Counter[str] = Counter()
        self.batches: dict[str, int] = {}
        self.short: dict[str, str] = {}
        self._resume()

    def fill(self, name: str, prompt: Prompt, wanted: int, supply: Supply, progress: Progress | None) -> None:
        """Batches until enough are there, the budget is spent, or there is nothing left to edit."""
        config = self.config
        budget = int(config.tries * wanted)
        while self.made[name] < wanted:
            tried = self._tried(name)
            if tried >= budget:
                share = self.made[name] / max(tried, 1)
                self.short[name] = f"the budget of {budget} tries is spent; {share:.1%} of the edits passed the gate"
                break
            number = self.batches.get(name, 0)
            bodies = supply(name, config.sign, number, config.batch)
            if bodies is None:
                self.short[name] = f"all {tried} images that could be edited were tried"
                break
            # Batches are asked for whole and cut here: one of another size would start elsewhere among the images.
            bodies = bodies.take(torch.arange(min(len(bodies), budget - tried)))
            for part in fit_best(
                self.editors, prompt, self.gate, bodies.origin, config.strengths, config.sign, own=bodies.rows
            ):
                self.tally.add(part.judged)
                self._keep(bodies.take(part.rows), part.edited, part.judged, wanted)
            self.batches[name] = number + 1
            self._write()
            if progress is not None:
                progress(name, self.made[name], wanted)
        self._write()

    def _tried(self, name: str) -> int:
        return int(self.tally.counts.get(named(name, self.config.sign), {}).get("tried", 0))

    def methods(self) -> dict[str, str]:
        """See ``SynthesisReport``."""
        used: dict[str, Counter[str]] = {}
        for row in self.rows:
            used.setdefault(row["edited"], Counter())[row["method"]] += 1
        return {name: counts.most_common(1)[0][0] for name, counts in used.items()}

    def strengths(self) -> dict[str, float]:
        """See ``SynthesisReport``."""
        used: dict[str, list[float]] = {}
        methods = self.methods()
        for row in self.rows:
            if row["method"] == methods[row["edited"]]:
                used.setdefault(row["edited"], []).append(float(row["strength"]))
        return {name: float(median(found)) for name, found in used.items()}

    def _keep(self, bodies: Bodies, edited: Edited, judged: Judgement, wanted: int) -> None:
        """Write what passed as images, and note its rows."""
        column = self.gan.findings.index(judged.finding)
        for at in torch.nonzero(judged.accepted)[:, 0].tolist():
            if self.made[judged.finding] == wanted:
                return
            number = len(self.rows)
            image = f"images/edit-{number:06d}.png"
            labels = bodies.labels[at].clone()
            labels[column] = float(judged.sign > 0)
            for name in edited.prompt.also:  # may have come or gone with it: the gate did not ask
                if name in self.gan.findings:
                    labels[self.gan.findings.index(name)] = math.nan
            soft = float(judged.after[at].clamp(LEAST, MOST))
            shown = [f for f, v in zip(self.gan.findings, labels.tolist(), strict=True) if v > 0.5]
            facts = facts_of(
                self.gan,
                shown,
                {"Method": edited.method, "Text": edited.prompt.text, "Strength": f"{edited.strength:g}"},
            )
            with atomic_write(self.folder / image) as handle:
                handle.write(png(quantised(edited.after[at], 8), facts))
            known = {f: v for f, v in zip(self.gan.findings, labels.tolist(), strict=True)}
            self.rows.append(
                {
                    "image": image,
                    "patient": bodies.patients[at],
                    "split": "train",
                    **known,
                    f"{SOFT_PREFIX}{judged.finding}": round(soft, 4),
                    "edited": judged.finding,
                    "method": edited.method,
                    "text": edited.prompt.text,
                    "strength": edited.strength,
                    "synthetic": 1,
                }
            )
            self.made[judged.finding] += 1

    def _write(self) -> None:
        """The table first: rows beyond those that the state counts are made anew, and come out the same."""
        write_table(self.rows, self.gan.findings, self.folder)
        state = {
            "synthetic": True,
            "request": self.request,
            "rows": len(self.rows),
            "batches": self.batches,
            "strengths": self.strengths(),
            "short": self.short,
            "tally": self.tally.counts,
            "rates": self.tally.table(),
        }
        write_json(self.folder / _STATE, state)

    def _resume(self) -> None:
        state = state_of(self.folder / _STATE, self.request)
        if state is None:
            return
        self.batches = state["batches"]
        self.tally = Tally(state["tally"])
        if state["rows"]:
            table = StudyTable.read(self.folder / _TABLE, labelled=False)
            kept = table.frame.iloc[: state["rows"]].drop(columns=["mask_kind"])
            soft = [str(name) for name in kept if str(name).startswith(SOFT_PREFIX)]
            for name in (*soft, "strength", "synthetic"):
                kept[name] = pd.to_numeric(kept[name], errors="coerce")
            for row in kept.to_dict("records"):
                known = {str(name): value for name, value in row.items() if value == value}  # blank cells are NaN
                self.rows.append(known)
                self.made[known["edited"]] += 1


def write_table(rows: Sequence[Mapping[str, Any]], findings: Sequence[str], folder: Path) -> None:
    """The study table of synthetic images, with the findings that some row speaks of."""
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["image", "patient", "split"])
    known = [name for name in findings if name in frame]
    StudyTable.from_frame(frame, folder, findings=known).write(folder / _TABLE)


def state_of(path: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far a request came; None where it has not begun.

    Raises:
        InputError: the folder is another request's.
    """
    if not path.is_file():
        return None
    state: dict[str, Any] = read_json(path)
    if state.get("request") != json.loads(json.dumps(request)):
        raise InputError(
            "holds the images of another request",
            path=path.parent,
            remedy="Choose another folder, or repeat that request to go on with it",
        )
    return state
