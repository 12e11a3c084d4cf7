"""A tagger on held-out patients: every finding, every first peer, one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from counterscan.bench.entrants import first_peers, native_truth
from counterscan.bench.evaluation import Evaluation
from counterscan.bench.localise import evaluate_systems
from counterscan.bench.sensitivity import ClassSensitivity, class_sensitivity
from counterscan.bench.subjects import image_names, patient_names, study_batch
from counterscan.counterpart import Query, System
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import write_json
from counterscan.report.cases import Case, Picks, pick_cases
from counterscan.report.page import write_report
from counterscan.report.tables import Cell, Table
from counterscan.taggan import TagGAN
from counterscan.taggan.masks import MaskRule
from counterscan.training import read_metrics

LIMITS = (
    "Maps show what the model changes to make an image look free of the finding; that is evidence of the finding only "
    "as far as the training labels are.",
    "Recall (the paper's PoI) can be had by painting everything: read it with precision and area.",
    "Intervals are over patients of this set; they say nothing about other hospitals or devices.",
    "The oracle threshold has seen the masks and is for orientation only; all other thresholds come from healthy "
    "validation images.",
)


@dataclass(frozen=True)
class TagReport:
    """What ``evaluate_tagger`` found.

    Attributes:
        evaluations: by finding.
        sensitivity: with several findings whose masks are kept apart, else None.
        page: the HTML file.
    """

    evaluations: dict[str, Evaluation]
    sensitivity: ClassSensitivity | None
    page: Path

    def headline(self) -> Table:
        """Pixel AP of every system for every finding: what fits a terminal."""
        first = next(iter(self.evaluations.values()))
        rows: list[list[Cell]] = [
            [
                name,
                *(found.interval(name, "ap") if name in found.systems else None for found in self.evaluations.values()),
            ]
            for name in first.systems
        ]
        note = "Mean over images with the lesion, 95 % intervals over patients. Everything else is in the report."
        better: dict[str, Literal["high", "low"]] = {finding: "high" for finding in self.evaluations}
        return Table(
            "Pixel average precision", ("System", *self.evaluations), rows, note=note, better=better, own=first.own
        )

    def tables(self) -> list[Table]:
        """All tables, a finding's name in their titles."""
        found = [
            replace(table, title=f"{finding}: {table.title}")
            for finding, evaluation in self.evaluations.items()
            for table in evaluation.tables()
        ]
        return found + (self.sensitivity.tables() if self.sensitivity is not None else [])


def evaluate_tagger(
    tagger: TagGAN,
    store: PreparedStore,
    folder: str | Path,
    *,
    split: str = "test",
    judge: nn.Module | None = None,
    run: str | Path | None = None,
    native: bool = True,
    cases: int = 4,
    ig_steps: int = 16,
    title: str = "Disease maps from image-level labels",
    progress: Callable[[str, int, int], Any] | None = None,
) -> TagReport:
    """Judge a tagger and its first peers on images with lesion masks; write figures and the page.

    Args:
        tagger: with the classifier that the peers explain.
        store: with rows in ``split``, masks, and healthy "val" rows for the peers' mask thresholds.
        folder: gets ``<finding>/evaluation.json``, ``<finding>/per_image.csv`` and ``report.html``.
        split: which rows are judged.
        judge: classifier trained independently, for the healed rate.
        run: the run folder, for its learning curves.
        native: also judge on the native grid of the image files.
        cases: shown of each kind: best, median, worst.
        ig_steps: points of Integrated Gradients.
        title: of the page.
        progress: called with (system, images done, images).

    Raises:
        InputError: no image of the split has a lesion mask.
    """
    folder, evaluations, shown, rule = Path(folder), {}, [], ""
    for finding in tagger.findings:
        rows = lesion_rows(store, split, finding)
        if not len(rows):
            continue
        systems = _systems(tagger, store, finding, ig_steps)
        well = np.flatnonzero((store.split == split) & (store.labels[:, store.findings.index(finding)] == 0))
        truth = native_truth(store, finding) if native else None
        found = evaluate_systems(
            systems, store, rows, finding, healthy_rows=well, native_masks=truth, classifier=judge, progress=progress
        )
        found.save(folder / finding.lower().replace(" ", "_"))
        evaluations[finding] = found
        picks = pick_cases(found.values(tagger.name, "ap")[0][: len(rows)], cases, "pixel AP")
        shown += _cases(tagger, systems, store, rows, finding, picks, found)
        rule = picks.rule
    if not evaluations:
        raise InputError(
            f"no image of the split {split!r} has a lesion mask", path=store.folder, remedy="Name another split"
        )
    several = [name for name in evaluations if name in store.mask_findings]
    sensitivity = class_sensitivity(tagger, store, store.split == split, several) if len(several) > 1 else None
    report = TagReport(evaluations, sensitivity, folder / "report.html")
    if sensitivity is not None:
        write_json(folder / "class_sensitivity.json", sensitivity.to_json())
    write_report(
        report.page,
        title=title,
        intro=f"{len(tagger.findings)} findings, {int((store.split == split).sum())} images of the split {split!r}; "
        "no pixel label was used in training, in choosing the checkpoint or in setting thresholds.",
        summary=[(f"{finding}: pixel AP", found.interval(tagger.name, "ap")) for finding, found in evaluations.items()],
        tables=report.tables(),
        cases=shown,
        selection=rule,
        curves=read_metrics(run) if run is not None else (),
        settings={"model": {name: tagger.settings(name) for name in tagger.findings}},
        limits=LIMITS,
    )
    return report


def lesion_rows(store: PreparedStore, split: str, finding: str) -> np.ndarray:
    """Rows of a split that are labelled with the finding and have its lesion mask."""
    column = store.findings.index(finding)
    rows = np.flatnonzero((store.split == split) & (store.labels[:, column] == 1) & store.has_mask)
    if not len(rows):
        return rows
    drawn = store.masks(rows, finding if store.mask_findings else None).flatten(1).any(1)
    return rows[drawn.numpy()]


def _systems(tagger: TagGAN, store: PreparedStore, finding: str, ig_steps: int) -> dict[str, System]:
    """The tagger, and its peers on its own classifier where it has one."""
    systems: dict[str, System] = {tagger.name: tagger}
    if tagger.classifier is None:
        return systems
    column, rule = store.findings.index(finding), tagger.rules.get(finding) or MaskRule(0.0)
    prior = lesion_rows(store, "train", finding)
    return systems | first_peers(
        tagger.classifier,
        store,
        (store.split == "val") & (store.labels[:, column] == 0),
        finding,
        care=tagger.care,
        ig_care=replace(tagger.care, shifts=()),
        ig_steps=ig_steps,
        location_rows=prior if len(prior) else None,
        location_smoothing=tagger.care.smoothing,
        percentile=rule.percentile,
        min_area=rule.min_area,
    )


def _cases(
    tagger: TagGAN,
    systems: dict[str, System],
    store: PreparedStore,
    rows: np.ndarray,
    finding: str,
    picks: Picks,
    found: Evaluation,
) -> list[Case]:
    """Rows of pictures: ours, with the attribution peers beside."""
    chosen = picks.grouped()
    at = rows[[number for _, number in chosen]]
    batch = study_batch(store, at, patient_names(store, at))
    answers = {name: system.counterparts(batch, Query(finding)) for name, system in systems.items()}
    truth = store.masks(at, finding if store.mask_findings else None)
    rivals = [name for name in ("Grad-CAM", "LayerCAM", "Integrated Gradients") if name in answers]
    ap, dice = (found.values(tagger.name, figure)[0] for figure in ("ap", "dice"))
    names = image_names(store, at)
    return [
        Case(
            label=names[i],
            counterpart=answers[tagger.name][i],
            truth=truth[i],
            caption=f"AP {float(ap[number]):.2f}, Dice {float(dice[number]):.2f}",
            group=f"{finding}: {group.lower()}",
            others=[answers[name][i] for name in rivals],
        )
        for i, (group, number) in enumerate(chosen)
    ]
