"""The questions of a quality card, each answered from what was measured of three sets of images: real ones that the
generator may have seen, held-out real ones, and synthetic ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.bench.quality_card import QualityLimits, Section, Verdict, at_least, at_most, worse
from counterscan.classify import predict_logits
from counterscan.data.store import PreparedStore
from counterscan.metrics.classification import brier, expected_calibration_error
from counterscan.metrics.distance_interval import distance_interval
from counterscan.metrics.intervals import RESAMPLES, Interval, mean_interval, pr_auc_intervals, roc_auc_intervals
from counterscan.metrics.manifold import ManifoldFigures, diversity_ratio, manifold_figures
from counterscan.metrics.memorisation import Nearest
from counterscan.metrics.realism import fid, kid_of_all, nearest_neighbours
from counterscan.report.tables import Cell, Table

PIXELS = "pixels"
HELD, MADE = "held-out real", "synthetic"
_WIDE = 512


@dataclass(frozen=True)
class Measured:
    """What was measured of a set.

    Attributes:
        store: its images.
        features: (N, D) by space.
        small, mirrored: (N, P) ``thumbnails`` of the images and of their mirror images.
        pixels: (N, 3) mean grey, its standard deviation, and mean step between neighbouring pixels.
    """

    store: PreparedStore
    features: Mapping[str, Tensor]
    small: Tensor
    mirrored: Tensor
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.store)

    @property
    def patients(self) -> list[str]:
        return self.store.patients.tolist()

    def some(self, most: int, seed: int) -> Measured:
        """At most so many images, drawn at random."""
        if len(self) <= most:
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])
        at = torch.from_numpy(rows)
        features = {space: x[at] for space, x in self.features.items()}
        return Measured(self.store.subset(rows), features, self.small[at], self.mirrored[at], self.pixels[at])


@dataclass(frozen=True)
class Sets:
    """The three sets, and how they are compared.

    Attributes:
        training, held_out, synthetic: all their images.
        limits: thresholds.
        k: neighbours that a ball reaches to.
        resamples: of bootstraps.
        most: images of a set that distances between sets, and labels, are measured on.
        seed: of draws.
    """

    training: Measured
    held_out: Measured
    synthetic: Measured
    limits: QualityLimits = field(default_factory=QualityLimits)
    k: int = 5
    resamples: int = RESAMPLES
    most: int = 5000
    seed: int = 0

    def few(self) -> Sets:
        """With at most ``most`` images each."""
        training, held, made = (x.some(self.most, self.seed) for x in (self.training, self.held_out, self.synthetic))
        return replace(self, training=training, held_out=held, synthetic=made)

    def too_few(self) -> str:
        """Why distances between the sets are left out; "" when they are not."""
        fewest = self.limits.fewest
        named = (("training", self.training), (HELD, self.held_out), (MADE, self.synthetic))
        short = [f"{len(x)} {name} images" for name, x in named if len(x) < fewest]
        return f"{' and '.join(short)}, but {fewest} are needed." if short else ""

    def rows(self) -> tuple[tuple[str, Measured], ...]:
        return ((MADE, self.synthetic), (HELD, self.held_out))


def manifolds(sets: Sets) -> dict[str, dict[str, ManifoldFigures]]:
    """By space and set; empty where there are too few images."""
    if sets.too_few():
        return {}
    size = min(len(sets.synthetic), len(sets.held_out))
    return {
        space: {
            name: manifold_figures(
                real,
                x.features[space],
                sets.training.patients,
                x.patients,
                k=sets.k,
                size=size,
                resamples=sets.resamples,
                generator=torch.Generator().manual_seed(sets.seed),
            )
            for name, x in sets.rows()
        }
        for space, real in sets.training.features.items()
    }


def fidelity(sets: Sets, found: Mapping[str, Mapping[str, ManifoldFigures]]) -> Section:
    """Do the images look real?"""
    limits, tables, words, verdicts = sets.limits, [_pixels(sets)], list[str](), list[Verdict]()
    rule = (
        f"Good: FID at most {limits.fid[0]:g} times that of held-out real images and precision at least "
        f"{limits.precision[0]:g} of theirs, in every space. Poor: beyond {limits.fid[1]:g} times or below "
        f"{limits.precision[1]:g}."
    )
    left_out = [sets.too_few()] if sets.too_few() else [] if found else ["No feature extractor is at hand."]
    size = min(len(sets.synthetic), len(sets.held_out))
    note = (
        f"Against {len(sets.training)} training images; FID at {size} images, since it falls with their number. KID is "
        f"x 1000 and unbiased. Intervals are over patients. What the row {HELD} shows is as good as a new set can be."
    )
    for space, by_set in found.items():
        rows: list[list[Cell]] = []
        for name, x in sets.rows():
            figures = by_set[name]
            rows.append([name, *_distances(sets, space, x, size), figures.precision, figures.density])
        tables.append(Table(f"Fidelity, {space} features", ("Set", "FID", "KID", "Precision", "Density"), rows, note))
        fids = [float(getattr(row[1], "value")) for row in rows]  # noqa: B009 (a cell may be anything)
        apart = fids[0] / fids[1] if fids[1] > 0 else math.nan
        precise = _share(by_set, "precision")
        verdicts += [at_most(apart, limits.fid), at_least(precise, limits.precision)]
        words.append(f"{space}: FID {apart:.1f} times and precision {precise:.2f} times that of held-out real images")
    tables = [_digits(table, 3) for table in tables]
    return Section("Fidelity", worse(*verdicts), "; ".join(words) or left_out[0], rule, tuple(tables), tuple(left_out))


def _distances(sets: Sets, space: str, x: Measured, size: int) -> list[Interval]:
    real, made = sets.training.features[space], x.features[space]
    patients, draws = (sets.training.patients, x.patients), 20 if real.shape[1] > _WIDE or len(real) > 2000 else 50
    apart = distance_interval(fid, real, made, *patients, size=size, draws=draws, seed=sets.seed)
    kernel = distance_interval(lambda a, b: 1000 * kid_of_all(a, b), real, made, *patients, draws=draws, seed=sets.seed)
    return [apart, kernel]


def _pixels(sets: Sets) -> Table:
    columns = ("Set", "Mean grey", "Contrast", "Sharpness")
    rows: list[list[Cell]] = [
        [name, *(mean_interval(column, x.patients, resamples=sets.resamples) for column in x.pixels.T)]
        for name, x in (*sets.rows(), ("training", sets.training))
    ]
    note = "Grey from -1 to 1; contrast is its standard deviation, sharpness the mean step between neighbouring pixels."
    return Table("Pixels", columns, rows, note)


def diversity(
    sets: Sets,
    found: Mapping[str, Mapping[str, ManifoldFigures]],
    near: Mapping[str, tuple[Nearest, Nearest]],
) -> Section:
    """Are they as varied as real images, within each finding too?"""
    limits, tables, words, verdicts = sets.limits, list[Table](), list[str](), list[Verdict]()
    left_out = [sets.too_few()] if sets.too_few() else [] if found else ["No feature extractor is at hand."]
    rule = (
        f"Good: recall and coverage at least {limits.coverage[0]:g} of those of as many held-out real images, mean "
        f"distance within each finding at least {limits.diversity[0]:g} of theirs, and repeats at most "
        f"{limits.repeats[0]:.0%}. Poor: any below {limits.coverage[1]:g} or {limits.diversity[1]:g}, or repeats above "
        f"{limits.repeats[1]:.0%}."
    )
    for space, by_set in found.items():
        note = f"Of {len(sets.training)} training images, by {by_set[MADE].size} images of each set."
        rows: list[list[Cell]] = [[name, by_set[name].recall, by_set[name].coverage] for name, _ in sets.rows()]
        tables.append(Table(f"Variety, {space} features", ("Set", "Recall", "Coverage"), rows, note, digits=3))
        shares = [_share(by_set, name) for name in ("recall", "coverage")]
        verdicts += [at_least(share, limits.coverage) for share in shares]
        words.append("{}: recall {:.2f} and coverage {:.2f} times that of held-out real images".format(space, *shares))
        ratios, missing = _within(sets, space)
        left_out += [text for text in missing if text not in left_out]
        if not ratios:
            continue
        title = f"Distance within findings over that of held-out real images, {space} features"
        cells: list[list[Cell]] = [[name, ratio, *counts] for name, (ratio, counts) in ratios.items()]
        tables.append(Table(title, ("Images", "Ratio", "Synthetic", "Real"), cells, digits=3))
        verdicts += [at_least(ratio.value, limits.diversity) for ratio, _ in ratios.values()]
        least = min(ratios, key=lambda name: ratios[name][0].value)
        words.append(f"least varied, {least}: {ratios[least][0].value:.2f} of real")
    if PIXELS in near and len(sets.held_out) >= limits.fewest and len(sets.synthetic) >= limits.fewest:
        repeated = _repeats(sets, near[PIXELS][1])
        verdicts.append(at_most(repeated.value, limits.repeats))
        words.append(f"repeats: {repeated.value:.0%}")
        about = "Images with another synthetic one as near as the nearest of held-out real images is to a training one."
        tables.append(Table("Repeats, pixels", ("Set", "Share"), [[MADE, repeated]], about, digits=3))
    return Section("Diversity", worse(*verdicts), "; ".join(words) or left_out[0], rule, tuple(tables), tuple(left_out))


def _within(sets: Sets, space: str) -> tuple[dict[str, tuple[Interval, tuple[int, int]]], list[str]]:
    """Ratio of mean distances and image counts for all images and for those with each finding; what is left out."""
    groups = {"all images": (np.arange(len(sets.held_out)), np.arange(len(sets.synthetic)))}
    for name in sets.held_out.store.findings:
        if name in sets.synthetic.store.findings:
            stores = (sets.held_out.store, sets.synthetic.store)
            held, made = (np.flatnonzero(s.labels[:, s.findings.index(name)] == 1) for s in stores)
            groups[name] = held, made
    found, left_out, fewest = dict[str, tuple[Interval, tuple[int, int]]](), list[str](), sets.limits.fewest
    for name, rows in groups.items():
        if min(map(len, rows)) < fewest:
            have = f"{len(rows[0])} held-out real and {len(rows[1])} synthetic images"
            left_out.append(f"Diversity within {name}: {have}, but {fewest} of each are needed.")
            continue
        parts = [
            (x.features[space][torch.from_numpy(at)], [x.patients[i] for i in at])
            for x, at in zip((sets.held_out, sets.synthetic), rows, strict=True)
        ]
        (real, real_patients), (fake, fake_patients) = parts
        if len(set(real_patients)) < 2 or len(set(fake_patients)) < 2:
            left_out.append(f"Diversity within {name}: all images are of one patient.")
            continue
        ratio = diversity_ratio(real, fake, real_patients, fake_patients, resamples=sets.resamples)
        found[name] = ratio, (len(fake), len(real))
    return found, left_out


def _repeats(sets: Sets, held: Nearest) -> Interval:
    """Among as many synthetic images as there are training images, or fewer: in a crowd neighbours are nearer."""
    made = sets.synthetic.some(len(sets.training), sets.seed)
    threshold = float(held.distance.double().quantile(sets.limits.share))
    other = nearest_neighbours(made.small, made.small, 2).distances[:, 1]
    return mean_interval((other <= threshold).double(), made.patients, resamples=sets.resamples)


def _share(by_set: Mapping[str, ManifoldFigures], figure: str) -> float:
    made, real = (float(getattr(by_set[name], figure).value) for name in (MADE, HELD))
    return made / real if real > 0 else math.nan


def _digits(table: Table, digits: int) -> Table:
    return Table(table.title, table.columns, table.rows, table.note, digits=digits)


def label_truth(
    judge: nn.Module | None,
    synthetic: PreparedStore,
    real: PreparedStore,
    limits: QualityLimits,
    resamples: int = RESAMPLES,
) -> Section:
    """Do the images show what their labels say? By a classifier that the generator was not made with.

    Args:
        judge: has ``findings`` and ``probabilities``; None leaves the section out.
        synthetic: labelled images.
        real: held-out images, best ones that the judge was not calibrated on.
        limits: thresholds.
        resamples: of the patient bootstrap.
    """
    if judge is None:
        return Section("Label truth", "not judged", "There is no classifier that could judge.")
    names: tuple[str, ...] = tuple(getattr(judge, "findings"))  # noqa: B009 (not of every module)
    shared = [name for name in names if name in synthetic.findings and name in real.findings]
    if not shared or not len(real):
        why = "The judge knows none of the synthetic images' labels."
        why = "The synthetic images have no labels." if not synthetic.findings else why
        why = why if len(real) else "There are no held-out real images."
        return Section("Label truth", "not judged", why, left_out=(why,))
    rule = (
        f"Good: mean AUC at most {limits.auc[0]:g} below that on held-out real images, and no finding surely more than "
        f"that. Poor: the mean, or a finding surely, more than {limits.auc[1]:g} below. Findings with an AUC below "
        f"{limits.known:g} on real images are not judged: the classifier does not know them."
    )
    found = {name: _judged(judge, store, names, resamples) for name, store in ((MADE, synthetic), (HELD, real))}
    rows, gaps, wrong, sure = list[list[Cell]](), list[float](), list[str](), list[Verdict]()
    left_out = []
    for name in shared:
        made, held = found[MADE][name], found[HELD][name]
        short = [
            f"{x['present']} with and {x['absent']} without among {kind} images"
            for kind, x in ((MADE, made), (HELD, held))
            if min(x["present"], x["absent"]) < limits.fewest
        ]
        if short:
            left_out.append(f"{name}: {'; '.join(short)}, but {limits.fewest} of each are needed.")
            continue
        pairs = [(made[key], held[key]) for key in ("auc", "ap", "ece", "brier")]
        rows.append([name, *(cell for pair in pairs for cell in pair), made["stated"], made["seen"]])
        if held["auc"].value < limits.known:
            left_out.append(f"{name} is not judged: AUC {held['auc'].value:.2f} on held-out real images.")
            continue
        gaps.append(held["auc"].value - made["auc"].value)
        if made["auc"].high < held["auc"].value - limits.auc[0]:
            wrong.append(name)
            sure.append("poor" if gaps[-1] > limits.auc[1] else "doubtful")
    columns = ("Finding", *(f"{key}, {kind}" for key in ("AUC", "AP", "ECE", "Brier") for kind in (MADE, "real")))
    note = "Stated: share of synthetic images labelled so. Seen: mean probability that the judge gives them."
    table = Table("Labels as an independent classifier sees them", (*columns, "Stated", "Seen"), rows, note, digits=3)
    if not gaps:
        said = "; ".join(left_out)
        return Section("Label truth", "not judged", said, rule, (table,) if rows else (), tuple(left_out))
    gap = math.fsum(gaps) / len(gaps)
    said = f"mean AUC {abs(gap):.2f} {'below' if gap > 0 else 'above'} that on held-out real images"
    said += f"; labels do not hold for {', '.join(wrong)}" if wrong else "; no finding stands out"
    return Section("Label truth", worse(at_most(gap, limits.auc), *sure), said, rule, (table,), tuple(left_out))


def _judged(judge: nn.Module, store: PreparedStore, names: Sequence[str], resamples: int) -> dict[str, dict[str, Any]]:
    known = [name for name in names if name in store.findings]
    logits = predict_logits(judge, store)
    device = next((t.device for t in (*judge.parameters(), *judge.buffers())), torch.device("cpu"))
    seen = judge.probabilities(logits.to(device)).cpu()  # type: ignore[operator]
    at, columns = [names.index(name) for name in known], [store.findings.index(name) for name in known]
    blank = getattr(judge, "trained_on", {}).get("blank", "zero")
    y = torch.from_numpy(np.ascontiguousarray(store.table.targets("ignore", blank)[:, columns]))
    logits, seen, patients = logits[:, at], seen[:, at].double(), store.patients.tolist()
    curves = [f(logits, y, patients, resamples=resamples) for f in (roc_auc_intervals, pr_auc_intervals)]
    errors = [f(seen, y).tolist() for f in (expected_calibration_error, brier)]
    counted = ~y.isnan()
    return {
        name: {
            "present": int((y[:, c] == 1).sum()),
            "absent": int((y[:, c] == 0).sum()),
            "auc": curves[0][c],
            "ap": curves[1][c],
            "ece": errors[0][c],
            "brier": errors[1][c],
            "stated": float(y[counted[:, c], c].mean()),
            "seen": float(seen[counted[:, c], c].mean()),
        }
        for c, name in enumerate(known)
    }
