"""The tables of a study: the two of the method's publication, gains, calibration, what was made and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterscan.bench import study_content
from counterscan.bench.study_arms import Arm, scores_path
from counterscan.bench.study_config import PLAIN
from counterscan.bench.study_content import TEXTUAL, UNIONS
from counterscan.bench.study_models import Study
from counterscan.classify.calibration import fit_sigmoid
from counterscan.files import read_json
from counterscan.metrics import classification as figures
from counterscan.metrics.comparison import MEAN, Comparison
from counterscan.metrics.comparison import Arm as Measured
from counterscan.metrics.intervals import Interval, percentile_interval
from counterscan.report.tables import Cell, Table


@dataclass(frozen=True)
class Scores:
    """Scores of the runs of an arm.

    Attributes:
        val, test: (S, N, C) logits.
        share: (S, C) share of positives that the last batches showed.
    """

    val: Tensor
    test: Tensor
    share: Tensor


def read_scores(study: Study, arm: Arm) -> Scores | None:
    """All runs of an arm; None unless all are there."""
    paths = [scores_path(study, arm, number) for number in range(study.config.seeds)]
    if not all(path.is_file() for path in paths):
        return None
    found = [np.load(path) for path in paths]
    return Scores(*(torch.from_numpy(np.stack([one[name] for one in found])) for name in ("val", "test", "share")))


def over_classes(arm: Measured, level: float = 0.95) -> Interval:
    """Mean over classes and seeds, interval over patients and seeds."""
    return _interval(arm.values.nanmean(-1), arm.draws.nanmean(-1), level)


def of_class(arm: Measured, at: int, level: float = 0.95) -> Interval:
    """One class."""
    return _interval(arm.values[:, at], arm.draws[:, :, at], level)


def _interval(values: Tensor, draws: Tensor, level: float) -> Interval:
    """(S,) and (B, S); the two-level bootstrap: patients were drawn, and seeds are here."""
    dice = torch.Generator().manual_seed(0)
    picks = torch.randint(draws.shape[1], draws.shape, generator=dice)
    return percentile_interval(float(values.mean()), draws.gather(1, picks).mean(1), level)


def strategies(study: Study, arms: Sequence[Arm], measured: Mapping[str, Mapping[str, Measured]]) -> list[Table]:
    """The published tables: synthetic images alone, and beside real ones; for both figures."""
    found = []
    counts = f"{study.config.seeds} runs; 95 % intervals over patients and seeds"
    for figure, name in (("ap", "PR-AUC"), ("roc_auc", "ROC-AUC")):
        for title, chosen in (
            (f"Trained on synthetic images only, {name}", [a for a in arms if a.mode == "only"]),
            (f"Real and synthetic images, {name}", [a for a in arms if a.mode != "only"]),
        ):
            rows: list[list[Cell]] = []
            for arm in chosen:
                one = measured[figure][arm.name]
                seeds = one.values.nanmean(-1)
                spread = float(seeds.std()) if len(seeds) > 1 else None
                classes: list[Cell] = [of_class(one, k) for k in range(len(study.findings))]
                rows.append([arm.name, *classes, over_classes(one), spread])
            columns = ("Strategy", *study.findings, "Mean", "SD over seeds")
            better = {name: "high" for name in (*study.findings, "Mean")}
            found.append(Table(title, columns, rows, counts, better, "both", "Mean", digits=3))  # type: ignore[arg-type]
    return found


def gains(study: Study, compared: Mapping[str, Sequence[Comparison]]) -> list[Table]:
    found = []
    for figure, name in (("ap", "PR-AUC"), ("roc_auc", "ROC-AUC")):
        rows: list[list[Cell]] = [
            [
                f"{c.ours} − {c.theirs}",
                c.difference,
                c.percentiles,
                c.patient_sd,
                c.seed_sd,
                c.p,
                c.adjusted,
                c.detectable,
                c.verdict,
            ]
            for c in compared[figure]
            if c.scope == MEAN
        ]
        columns = ("Arms", "Gain", "Bootstrap", "SD, patients", "SD, seeds", "p", "p (Holm)", "Detectable", "Verdict")
        note = (
            "Paired over patients and seeds. Gain: with its 95 % interval by t; Bootstrap: of the plain two-level one. "
            "Detectable: a difference that 4 of 5 such studies would find. Holm over the comparisons of this table."
        )
        found.append(Table(f"Gains in mean {name}", columns, rows, note, chart="Gain", digits=4))
    return found


def by_rarity(study: Study, compared: Sequence[Comparison]) -> Table:
    """Gains class by class, the rarest finding first."""
    rates = dict(zip(study.findings, np.nanmean(study.targets("train"), axis=0).tolist(), strict=True))
    order = sorted(rates, key=lambda name: rates[name])
    names = list(dict.fromkeys((c.ours, c.theirs) for c in compared))
    rows: list[list[Cell]] = []
    for ours, theirs in names:
        for finding in order:
            c = next(c for c in compared if (c.ours, c.theirs, c.scope) == (ours, theirs, finding))
            words = [f"{ours} − {theirs}: {finding}", f"{rates[finding]:.1%}"]
            rows.append([*words, c.ours_value, c.theirs_value, c.difference, c.adjusted, c.detectable, c.verdict])
    columns = ("Arms and finding", "Prevalence", "Ours", "Theirs", "Gain", "p (Holm)", "Detectable", "Verdict")
    note = "PR-AUC, the rarest finding first. Prevalence: among training images."
    return Table("Gains by finding", columns, rows, note, digits=3)


def normalised(study: Study, arms: Sequence[Arm], measured: Mapping[str, Measured], labels: Tensor) -> Table:
    share = figures.prevalence(labels)
    floor = figures.average_precision_floor(share)
    rows: list[list[Cell]] = [
        ["prevalence in test", *share.tolist(), float(share.mean())],
        ["lowest PR-AUC that any ranking reaches", *floor.tolist(), float(floor.mean())],
    ]
    for arm in arms:
        values = figures.normalised_average_precision(measured[arm.name].values, share).mean(0)
        rows.append([arm.name, *values.tolist(), float(values.nanmean())])
    note = (
        "(AP − prevalence) / (1 − prevalence): 0 is chance, 1 perfect. Every average precision was checked against the "
        "lowest that any ranking reaches; one below it would have stopped this report."
    )
    return Table("Normalised PR-AUC", ("Arm", *study.findings, "Mean"), rows, note, digits=3)


def calibration(study: Study, arms: Sequence[Arm], scores: Mapping[str, Scores], labels: Tensor) -> list[Table]:
    """Of raw logits, of logits moved to the true prevalence, and after temperature and offset fitted on validation."""
    held = torch.from_numpy(study.targets("val"))
    target = torch.from_numpy(np.nanmean(study.targets("train"), axis=0)).clamp(1e-4, 1 - 1e-4)
    columns = ("Arm", "Logits", "Brier", "ECE", "Slope", "Intercept")
    rows: list[list[Cell]] = []
    reach: list[list[Cell]] = []
    for arm in arms:
        one = scores[arm.name]
        kinds: dict[str, list[Tensor]] = {"raw": [], "prior moved": [], "calibrated on val": []}
        for val, test, share in zip(one.val, one.test, one.share, strict=True):
            kinds["raw"].append(test)
            kinds["prior moved"].append(figures.shift_prior(test, share.clamp(1e-4, 1 - 1e-4), target))
            kinds["calibrated on val"].append(_calibrated(val, held, test))
        for kind, many in kinds.items():
            values = [_quality(logits, labels) for logits in many]
            means = torch.stack(values).nanmean((0, 2)).tolist()
            rows.append([arm.name, kind, *means])
        found = torch.stack([figures.sensitivity_at_specificity(test, labels) for test in one.test]).mean(0)
        reach.append([arm.name, *found.tolist(), float(found.nanmean())])
    note = (
        "Means over findings and seeds. ECE: 15 bins of equal mass. Perfect: Brier and ECE low, slope 1, intercept 0. "
        "Batches are balanced, which raises raw probabilities; 'prior moved' undoes that by Bayes' rule, 'calibrated' "
        "by a temperature and an offset per finding fitted on validation images."
    )
    return [
        Table("Calibration", columns, rows, note, digits=3),
        Table(
            "Sensitivity at 90 % specificity", ("Arm", *study.findings, "Mean"), reach, "Means over seeds.", digits=3
        ),
    ]


def _calibrated(val: Tensor, held: Tensor, test: Tensor) -> Tensor:
    done = test.double().clone()
    for k in range(test.shape[1]):
        known = ~held[:, k].isnan()
        temperature, offset = fit_sigmoid(val[known, k], held[known, k])
        done[:, k] = done[:, k] / temperature + offset
    return done


def _quality(logits: Tensor, labels: Tensor) -> Tensor:
    """(4, C): Brier, ECE, slope, intercept."""
    p = logits.double().sigmoid()
    slope, intercept = figures.calibration_line(logits.double(), labels)
    ece = figures.expected_calibration_error(p, labels, equal_mass=True)
    return torch.stack([figures.brier(p, labels), ece, slope, intercept])


def making(study: Study, arms: Sequence[Arm]) -> list[Table]:
    """What was made, what the gate let through, what the models know."""
    config, rows, rates, short = study.config, list[list[Cell]](), list[list[Cell]](), list[list[Cell]]()
    contents = dict.fromkeys(a.content for a in arms if a.content not in PLAIN)
    stored = [c for c in (*contents, "text+", "text-", "graft") if c not in UNIONS]
    for content in dict.fromkeys(stored):
        for view in config.views if content in TEXTUAL else config.views[:1]:
            for number in range(config.generators):
                folder = study_content.folder_of(study, content, view, number)
                if not (folder / "about.json").is_file():
                    continue
                made = study_content.load(study, content, view, number)
                name = f"{content} {view if content in TEXTUAL else ''}".strip()
                name += f", generator {number}" if config.generators > 1 else ""
                counts = made.counts(1, len(study.findings)) + made.counts(-1, len(study.findings))
                refused = made.about.get("refused", {})
                told = {**refused, **made.about.get("short", {})}
                rows.append([name, *map(int, counts), len(made)])
                short += [[f"{name}: {finding}", reason] for finding, reason in told.items()]
                for row in made.about.get("rates", []):
                    cells = [
                        row[c] for c in ("tried", "accepted", "rate", "target", "off-target", "identity", "realism")
                    ]
                    rates.append([f"{name}: {row['finding']}", *cells, row["new"], row["mean |off-target|"]])
    columns = ("Content", *study.findings, "Images")
    heads = ("Edits", "Tried", "Accepted", "Rate", "Target", "Off-target", "Identity", "Realism", "New", "|Off-target|")
    note = (
        "Shares of edits that pass each criterion; 'Accepted' passes all that are asked for: of 'random' not the "
        "target, of grafts neither that nor realism."
    )
    return [
        Table("Synthetic images by the finding they were made for", columns, rows),
        Table("Refused, or fewer than wanted", ("Content and finding", "Why"), short),
        Table("What the gate let through", heads, rates, note, digits=3),
        _models(study),
    ]


def _models(study: Study) -> Table:
    """Zero-shot AUC by view on validation images; label consistency of each generator."""
    rows: list[list[Cell]] = []
    for view in study.config.views:
        path = study.out / "clip" / view / "zeroshot.json"
        if path.is_file():
            found = read_json(path)["auc"]
            values = [found.get(name) for name in study.findings]
            there = [v for v in values if v is not None and not math.isnan(v)]
            rows.append([f"text-image model, {view}: zero-shot AUC", *values, sum(there) / max(1, len(there))])
    for number in range(study.config.generators):
        given = study.generator if number == 0 and study.generator is not None else study.out / f"generators/{number}"
        found_at = next((p for p in (given / "model/stylegan.json", given / "stylegan.json") if p.is_file()), None)
        if found_at is not None:
            known = read_json(found_at).get("figures", {})
            values = [known.get(f"consistency/{name}") for name in study.findings]
            rows.append([f"generator {number}: consistency AUC", *values, known.get("consistency")])
    note = "Steered are findings that the text-image model tells apart (AUC .75) and the generator shows (AUC .85)."
    return Table("What the models know", ("Model", *study.findings, "Mean"), rows, note, digits=3)


def minutes(minutes: Mapping[str, float]) -> Table:
    return Table("CPU minutes", ("Part", "Minutes"), [[k, v] for k, v in minutes.items()], "Over all calls.", digits=1)
