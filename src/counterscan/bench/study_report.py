"""What a study found: the two tables by strategy, calibration, paired comparisons with a verdict in words, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from counterscan.bench import study_tables
from counterscan.bench.study_arms import Arm
from counterscan.bench.study_config import config_of
from counterscan.bench.study_models import Study
from counterscan.errors import InputError
from counterscan.files import write_json, write_text
from counterscan.metrics.comparison import MEAN, Comparison, compare_arms, evaluate_arm
from counterscan.metrics.comparison import Arm as Measured
from counterscan.metrics.intervals import Interval
from counterscan.report.page import write_report as write_page
from counterscan.report.tables import Cell, Table

LIMITS = (
    "Synthetic images show no patient. A gain here is one for this network, this number of steps and these images.",
    "Intervals of gains speak of new patients and new seeds of the classifiers, not of new generators, unless there "
    "are at least three, over which runs are then grouped.",
    "Comparisons class by class are weaker evidence than those of the mean; adjusted in a family of their own.",
    "Where the generator has not learnt a finding, or the text-image model hardly knows it, nothing is made for it.",
    "Edits by text carry the verifiers' soft opinion as target of the edited finding, and no label where they "
    "contradict one of another; duplicates and samples of the plain GAN keep plain labels. A part of a gain over these "
    "may come from that. Grafts carry .95.",
    "Duplicates and plain samples have the numbers of one content, the joint one where it is an arm. Random edits are "
    "made in one direction, of bodies without the finding, and are not confined.",
)


@dataclass(frozen=True)
class StudyReport:
    """Figures of a study.

    Attributes:
        findings: names of the classes.
        tables: all of them, in the order of the page.
        comparisons: means over classes first, then class by class; by figure "ap" and "roc_auc".
        sentences: the verdicts on the means in words.
        left_out: arms that could not be trained, and why.
        minutes: CPU minutes by part.
        page: path of the HTML page.
    """

    findings: tuple[str, ...]
    tables: tuple[Table, ...]
    comparisons: Mapping[str, Sequence[Comparison]]
    sentences: tuple[str, ...]
    left_out: Mapping[str, str]
    minutes: Mapping[str, float]
    page: Path


def write_report(
    study: Study,
    told: Mapping[str, Any],
    arms: Sequence[Arm],
    left_out: Mapping[str, str],
    minutes: Mapping[str, float],
) -> StudyReport:
    """Measure, compare, and write ``report.html``, ``study.json`` and ``tables.md``.

    Args:
        study: whose arms are trained.
        told: its protocol.
        arms: of the protocol.
        left_out: arms by name that could not be trained, and why.
        minutes: CPU minutes by part.

    Raises:
        InputError: no arm has all its runs, or an average precision that no ranking can have.
    """
    scores = {arm.name: one for arm in arms if (one := study_tables.read_scores(study, arm)) is not None}
    if not scores:
        raise InputError("no arm has been trained", path=study.out, field="arms", remedy="Run the study again")
    labels, patients = torch.from_numpy(study.targets("test")), study.part("test").patients.tolist()
    count = study.config.generators
    groups = [n % count for n in range(study.config.seeds)] if count >= 3 else None
    measured = {
        figure: {
            name: evaluate_arm(
                one.test, labels, patients, figure=figure, groups=groups, resamples=study.config.resamples
            )
            for name, one in scores.items()
        }
        for figure in ("ap", "roc_auc")
    }
    pairs = [pair for pair in study.config.compared if set(pair) <= set(scores)]
    compared = {
        figure: compare_arms(by_arm, pairs, study.findings) if pairs else [] for figure, by_arm in measured.items()
    }
    shown = [arm for arm in arms if arm.name in scores]
    tables = [
        *study_tables.strategies(study, shown, measured),
        *study_tables.gains(study, compared),
        study_tables.by_rarity(study, compared["ap"]),
        study_tables.normalised(study, shown, measured["ap"], labels),
        *study_tables.calibration(study, shown, scores, labels),
        *study_tables.making(study, arms),
        study_tables.minutes(minutes),
    ]
    kept = tuple(table for table in tables if table.rows)
    sentences = tuple(c.sentence() for c in compared["ap"] if c.scope == MEAN)
    page = study.out / "report.html"
    write_page(
        page,
        title="Does augmentation help?",
        intro=_intro(study, told, len(labels), len(set(patients))),
        summary=_summary(compared["ap"], measured["ap"]),
        tables=[_verdicts(compared["ap"], left_out), *kept],
        settings={"digest": told["digest"], **told["study"]},
        limits=LIMITS,
    )
    report = StudyReport(study.findings, kept, compared, sentences, dict(left_out), dict(minutes), page)
    write_json(study.out / "study.json", _plain(report, told, measured))
    text = "\n\n".join(f"## {t.title}\n\n{t.to_markdown()}" for t in (_verdicts(compared["ap"], left_out), *kept))
    write_text(study.out / "tables.md", text + "\n")
    return report


def _intro(study: Study, told: Mapping[str, Any], images: int, patients: int) -> str:
    config, counts = study.config, told["data"]["images"]
    return (
        f"{counts['train']:,} training images, {counts['val']:,} for validation, and {images:,} test images of "
        f"{patients:,} patients whom no part of the system has seen. Each arm: {config.seeds} runs of {config.steps} "
        f"steps of {config.batch_size} images, the same network, the same steps; only what the batches hold differs. "
        f"The protocol was frozen first: {told['digest'][:16]}."
    )


def _verdicts(compared: Sequence[Comparison], left_out: Mapping[str, str]) -> Table:
    rows: list[list[Cell]] = [[f"{c.ours} against {c.theirs}", c.sentence()] for c in compared if c.scope == MEAN]
    rows += [[f"{name} was left out", reason] for name, reason in left_out.items()]
    return Table("In words", ("Question", "Answer"), rows)


def _summary(compared: Sequence[Comparison], measured: Mapping[str, Measured]) -> list[tuple[str, Cell]]:
    tiles: list[tuple[str, Cell]] = [
        (f"Mean PR-AUC, {name}", study_tables.over_classes(measured[name]))
        for name in ("classic", "both")
        if name in measured
    ]
    tiles += [(f"{c.ours} − {c.theirs}", c.difference) for c in compared if c.scope == MEAN][:4]
    return tiles


def _plain(
    report: StudyReport, told: Mapping[str, Any], measured: Mapping[str, Mapping[str, Measured]]
) -> dict[str, Any]:
    """For study.json."""
    return {
        "protocol": dict(told),
        "settings": asdict(config_of(dict(told))),
        "arms": {
            figure: {
                name: {
                    "mean": _triple(study_tables.over_classes(arm)),
                    "classes": {n: _triple(study_tables.of_class(arm, k)) for k, n in enumerate(report.findings)},
                    "runs": arm.values.tolist(),
                }
                for name, arm in by_arm.items()
            }
            for figure, by_arm in measured.items()
        },
        "comparisons": {
            figure: [
                {**asdict(c), "difference": _triple(c.difference), "percentiles": _triple(c.percentiles)} for c in found
            ]
            for figure, found in report.comparisons.items()
        },
        "in_words": list(report.sentences),
        "left_out": dict(report.left_out),
        "cpu_minutes": dict(report.minutes),
        "tables": {t.title: [list(map(_cell, row)) for row in t.rows] for t in report.tables},
    }


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _cell(cell: Cell) -> Any:
    return _triple(cell) if isinstance(cell, Interval) else cell
