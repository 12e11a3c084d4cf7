"""Edited studies until enough pass the gate: images, a study table with truthful labels, and what was rejected and why.

Labels are never taken from the prompt alone: an image keeps the labels of what it was made from, but for the finding
that was edited, which is present or absent because the gate's verifiers see it so. Beside the hard label stands their
probability, within [.05, .95], for losses that take soft ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from counterscan.data.findings import canonical_name
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json
from counterscan.tbsmgan.acceptance import STRENGTHS, Tally, choose_strength, named
from counterscan.tbsmgan.edits.base import Edited, Editor, Origin
from counterscan.tbsmgan.edits.prompt import Prompt
from counterscan.tbsmgan.export import facts_of, png, quantised
from counterscan.tbsmgan.gate import Gate, Judgement, Sign
from counterscan.tbsmgan.generator import PSI, StyleGAN

SOFT_PREFIX = "soft:"
LEAST, MOST = 0.05, 0.95  # of soft labels
_STATE, _TABLE = "synthesis.json", "table.csv"
_TUNED_ON = 48  # bodies that strengths are chosen on

Progress = Callable[[str, int, int], None]  # finding, accepted, wanted


@dataclass(frozen=True)
class SynthesisConfig:
    """How studies are made.

    Attributes:
        sign: 1 brings findings in, -1 takes them out.
        strength: in standard deviations, above 0; None tries some per finding and takes the one at which most pass.
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


@dataclass(frozen=True)
class Bodies:
    """What edits start from.

    Attributes:
        origin: N latents.
        labels: (N, K) what they show: 1, 0, NaN for unknown; columns as the generator's findings.
        patients: (N,) whose; made-up ones for samples. An edited image of a patient is an image of that patient.
        rows: (N,) rows of the gate's training images that they were inverted from; None for samples.
    """

    origin: Origin
    labels: Tensor
    patients: Sequence[str]
    rows: Tensor | None = None

    def first(self, count: int) -> Bodies:
        """The first of them."""
        chosen = slice(count)
        rows = None if self.rows is None else self.rows[chosen]
        return Bodies(self.origin.take(chosen), self.labels[chosen], self.patients[chosen], rows)


class Supply(Protocol):
    """Gives bodies without end, or until there are no more."""

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies | None:
        """The ``number``-th batch of up to ``count`` bodies to edit a finding in, the same for the same arguments.

        Returns:
            Bodies that lack the finding for sign 1, that have it for -1; None when there are no more.
        """
        ...


@dataclass(frozen=True)
class Sampled:
    """Bodies that the generator makes up, with the training images' mixture of labels.

    Findings that it has not learnt are never asked for: the label would say what the image does not show.
    """

    gan: StyleGAN
    psi: float = PSI
    seed: int = 0

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies:
        """See ``Supply``."""
        gan = self.gan
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {finding} {sign} {number}".encode()).digest()[:6], "big")
        labels = gan.draw_labels(count, seed).clone()
        for at, name in enumerate(gan.findings):
            if name == finding:
                labels[:, at] = 0.0 if sign > 0 else 1.0
            elif not gan.learned.get(name, False):
                labels[:, at] = 0.0
        origin = Origin.sample(gan, labels, self.psi, seed)
        tag = f"synthetic-{gan.checkpoint}-{seed:012x}"
        return Bodies(origin, labels, [f"{tag}-{k:03d}" for k in range(count)])


@dataclass(frozen=True)
class Inverted:
    """Real training images, inverted: each is edited once at most.

    Attributes:
        w: (N, num_ws, w_dim) of images of the split "train".
        labels: (N, K) of the study table, columns as the generator's findings.
        findings: K names.
        patients: (N,).
        rows: (N,) which of the rows of the split "train" they are.
    """

    w: Tensor
    labels: Tensor
    findings: Sequence[str]
    patients: Sequence[str]
    rows: Tensor

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies | None:
        """See ``Supply``."""
        fits = torch.nonzero(self.labels[:, list(self.findings).index(finding)] == (0.0 if sign > 0 else 1.0))[:, 0]
        chosen = fits[number * count : (number + 1) * count]
        if not len(chosen):
            return None
        patients = [self.patients[i] for i in chosen.tolist()]
        return Bodies(Origin(self.w[chosen.to(self.w.device)]), self.labels[chosen], patients, self.rows[chosen])


@dataclass(frozen=True)
class SynthesisReport:
    """What became of a request.

    Attributes:
        table: path of the study table.
        accepted: finding -> images with it that were written.
        wanted: finding -> how many were wanted.
        tally: tries, accepted ones and criteria; see ``Tally``.
        strengths: finding -> signed strength that was used.
        short: finding -> why there are fewer than wanted; empty when all came true.
    """

    table: Path
    accepted: dict[str, int]
    wanted: dict[str, int]
    tally: Tally
    strengths: dict[str, float]
    short: dict[str, str]


def synthesize(
    gan: StyleGAN,
    editor: Editor,
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
        editor: the method.
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
        "method": editor.name,
        "generator": gan.checkpoint,
        "verifiers": gate.digests(),
        "config": asdict(config),
    }
    run = _Run(gan, editor, gate, folder, config, request)
    for name, count in wanted.items():
        run.fill(name, prompts[name], count, supply, progress)
    return SynthesisReport(
        folder / _TABLE,
        {name: run.made[name] for name in wanted},
        wanted,
        run.tally,
        run.strengths,
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


class _Run:
    """A request that is being met, with its state on disk after every batch."""

    def __init__(
        self, gan: StyleGAN, editor: Editor, gate: Gate, folder: Path, config: SynthesisConfig, request: dict[str, Any]
    ) -> None:
        self.gan, self.editor, self.gate, self.folder, self.config = gan, editor, gate, folder, config
        self.request, self.tally = request, Tally()
        self.rows: list[dict[str, Any]] = []
        self.made: Counter[str] = Counter()
        self.batches: dict[str, int] = {}
        self.strengths: dict[str, float] = {}
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
            bodies = bodies.first(budget - tried)
            if name not in self.strengths:
                self.strengths[name] = self._strength(prompt, bodies)
            edited = self.editor.edit(bodies.origin, prompt, self.strengths[name])
            judged = self.gate.judge(edited.before, edited.after, name, config.sign, also=prompt.also, own=bodies.rows)
            self.tally.add(judged)
            self._keep(bodies, edited, judged, wanted)
            self.batches[name] = number + 1
            self._write()
            if progress is not None:
                progress(name, self.made[name], wanted)
        self._write()

    def _tried(self, name: str) -> int:
        return int(self.tally.counts.get(named(name, self.config.sign), {}).get("tried", 0))

    def _strength(self, prompt: Prompt, bodies: Bodies) -> float:
        config = self.config
        if config.strength is not None:
            return config.sign * config.strength
        few = bodies.origin.take(slice(0, _TUNED_ON))
        return choose_strength(self.editor, prompt, self.gate, few, STRENGTHS, config.sign).strength

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
        frame = pd.DataFrame(self.rows) if self.rows else pd.DataFrame(columns=["image", "patient", "split"])
        StudyTable.from_frame(frame, self.folder, findings=[f for f in self.gan.findings if f in frame]).write(
            self.folder / _TABLE
        )
        state = {
            "synthetic": True,
            "request": self.request,
            "rows": len(self.rows),
            "batches": self.batches,
            "strengths": self.strengths,
            "short": self.short,
            "tally": self.tally.counts,
            "rates": self.tally.table(),
        }
        write_json(self.folder / _STATE, state)

    def _resume(self) -> None:
        if not (self.folder / _STATE).is_file():
            return
        state = read_json(self.folder / _STATE)
        if state.get("request") != json.loads(json.dumps(self.request)):
            raise InputError(
                "holds the images of another request",
                path=self.folder,
                remedy="Choose another folder, or repeat that request to go on with it",
            )
        self.batches, self.strengths = state["batches"], state["strengths"]
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
