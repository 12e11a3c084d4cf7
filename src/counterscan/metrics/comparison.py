"""Is one way of training better than another? Paired over test images, resampled over patients and seeds.

Two things make a difference vary: which patients were tested, and which seeds were trained with. Both arms answer for
the same images, and usually ran with the same seeds, so that everything is computed on differences.

* Patients: every figure is recomputed on resamples of patients, the same for all arms and seeds.
* Seeds: too few (2 to 10) for resampling, which understates their variance by (S - 1) / S and knows no heavy tails.
  Their variance s^2 / S is computed instead, less the part of it that is only the tested patients' noise and that the
  resamples already hold; intervals take Student's t with Welch and Satterthwaite's degrees of freedom, the seeds'
  variance counting in full there, also where it is no more than the patients' noise. The plain two-level bootstrap,
  which draws patients and seeds, is reported beside it.

The verdict is "better" or "worse" when Holm's adjusted p is below 1 - level, else "not shown". What could have been
shown is the minimum detectable effect, which 80 % of such studies find: (t(.975) + t(.8)) standard errors, which is 2.8
with many seeds and more with few. In simulated studies without a difference, where seeds differ both by image and in
quality, "better" and "worse" together came up in 6 % with five seeds, 7 % with three and 11 % with two
(``benchmarks/null_protocol.py``), against 9, 12 and 20 % of the plain bootstrap's intervals that left out zero.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.classification import check_average_precision, pr_auc, prevalence, roc_auc
from counterscan.metrics.intervals import RESAMPLES, Interval, patient_draws, percentile_interval

Figure = Literal["ap", "roc_auc"]
Verdict = Literal["better", "not shown", "worse"]
POWER = 0.8
MEAN = "mean"
_NAMES = {"ap": "average precision", "roc_auc": "ROC-AUC"}
_CURVES = {"ap": pr_auc, "roc_auc": roc_auc}


@dataclass(frozen=True)
class Arm:
    """Figures of one way of training, on the test set and on its resamples.

    Attributes:
        figure: "ap" or "roc_auc".
        values: (S, C) per seed and class; NaN for a class that cannot be judged.
        draws: (B, S, C) the same on each resample of patients.
        patients: their number.
        basis: digest of labels, patients and resamples; arms with the same basis can be compared.
    """

    figure: Figure
    values: Tensor
    draws: Tensor
    patients: int
    basis: str


@dataclass(frozen=True)
class Comparison:
    """A difference ours - theirs and what may be said of it.

    Attributes:
        ours, theirs: names of the arms.
        scope: "mean" over the classes, or a class.
        figure: "ap" or "roc_auc".
        ours_value, theirs_value: means over seeds.
        difference: with its interval, value -+ t SE.
        percentiles: the plain two-level bootstrap's interval of the same difference, for reference.
        standard_error: of the difference, patients and seeds together; ``freedom`` its degrees of freedom.
        patient_sd: standard deviation of the difference over test sets, at these seeds.
        seed_sd: standard deviation over seeds on this test set (pooled where arms are not paired); NaN with one seed.
        p: two-sided, of no difference; ``adjusted`` by Holm over the comparisons that were made together.
        detectable: difference that 80 % of studies like this one find, before Holm's adjustment.
        verdict: "better", "not shown" or "worse".
    """

    ours: str
    theirs: str
    scope: str
    figure: Figure
    ours_value: float
    theirs_value: float
    difference: Interval
    percentiles: Interval
    standard_error: float
    freedom: float
    patient_sd: float
    seed_sd: float
    p: float
    adjusted: float
    detectable: float
    verdict: Verdict

    def sentence(self) -> str:
        """The verdict in words."""
        what = f"{'mean ' if self.scope == MEAN else ''}{_NAMES[self.figure]}" + (
            "" if self.scope == MEAN else f" for {self.scope}"
        )
        numbers = f"{self.difference.value:+.3f} [{self.difference.low:+.3f}, {self.difference.high:+.3f}]"
        if not math.isfinite(self.standard_error):
            return f"{self.ours} against {self.theirs}, {what}: not shown; too few patients to judge."
        if math.isnan(self.seed_sd):
            numbers += ", one seed"
        if self.verdict == "not shown":
            return (
                f"{self.ours} against {self.theirs}, {what}: no difference shown ({numbers}, p {self.adjusted:.2g}); "
                f"a study like this one finds differences from about {self.detectable:.3f}."
            )
        return f"{self.ours} is {self.verdict} than {self.theirs}, {what}: {numbers}, p {self.adjusted:.2g}."


def evaluate_arm(
    scores: Tensor,
    labels: Tensor,
    patients: Sequence[str],
    *,
    figure: Figure = "ap",
    groups: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Arm:
    """Figures of every seed and class on the test set and on resamples of its patients.

    Args:
        scores: (S, N, C) of S runs on the same images, or (N, C) of one.
        labels: (N, C) of 1, 0, -1 and NaN; the last two are skipped.
        patients: (N,).
        figure: "ap" (average precision, no interpolation, ties together) or "roc_auc".
        groups: (S,) which generator, or other costly step, each run shares with others; runs of a group are averaged
            and count as one seed, since they are not independent.
        resamples, seed: of the bootstrap; equal ones draw equal patients.

    Raises:
        InputError: shapes disagree, an unknown figure, scores that are not finite, or an average precision below what
            any ranking reaches.
    """
    scores = scores.detach().cpu().double()
    scores = scores[None] if scores.ndim == 2 else scores
    labels = labels.detach().cpu().double()
    if scores.ndim != 3 or scores.shape[1:] != labels.shape or len(labels) != len(patients):
        raise InputError(
            f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)} and {len(patients)} patients do not belong "
            "together",
            field="scores",
            remedy="Give scores (seeds, images, classes), labels (images, classes) and one patient per image",
        )
    if resamples < 2:
        raise InputError("must be at least 2; 2000 is usual", field="resamples")
    if figure not in _CURVES:
        raise InputError(f"{figure!r} must be ap or roc_auc", field="figure")
    if groups is not None and len(groups) != len(scores):
        raise InputError(f"{len(groups)} groups for {len(scores)} runs", field="groups", remedy="Name one per run")
    seeds, count, classes = scores.shape
    flat, known = scores.transpose(0, 1).reshape(count, -1), labels.repeat(1, seeds)
    if not bool(scores.isfinite().all()):
        raise InputError("scores hold NaN or infinite values", field="scores", remedy="Look at that run")
    curve = _CURVES[figure]
    values = curve(flat, known).reshape(seeds, classes)
    if figure == "ap":
        check_average_precision(values, prevalence(labels))
    counts = patient_draws(patients, resamples, seed)
    # Bounded memory: weights of at most 4 M image draws at once.
    parts = [curve(flat, known, part) for part in counts.split(max(1, 2**22 // max(1, count)))]
    draws = torch.cat(parts).reshape(resamples, seeds, classes)
    if groups is not None:
        members = [[s for s, g in enumerate(groups) if g == group] for group in sorted(set(groups))]
        values = torch.stack([values[rows].mean(0) for rows in members])
        draws = torch.stack([draws[:, rows].mean(1) for rows in members], dim=1)
    basis = hashlib.sha256(
        repr((figure, resamples, seed, list(map(str, patients)))).encode() + labels.contiguous().numpy().tobytes()
    ).hexdigest()
    return Arm(figure, values, draws, len(set(patients)), basis)


def compare_arms(
    arms: Mapping[str, Arm],
    pairs: Sequence[tuple[str, str]],
    findings: Sequence[str],
    *,
    paired_seeds: bool = True,
    level: float = 0.95,
    per_class: bool = True,
) -> list[Comparison]:
    """All declared comparisons: the means over classes first, then, as a second family, every class.

    Args:
        arms: by name; see ``evaluate_arm``.
        pairs: (ours, theirs), declared before the test set was looked at. Holm adjusts p over them for the means, and
            over all pairs and classes for the classes, which are the weaker evidence.
        findings: (C,) names of the classes.
        paired_seeds: run s of both arms had the same seed. False for independent runs, or unequal numbers of them.
        level: coverage; claims are made at 1 - level.
        per_class: also compare class by class.

    Raises:
        InputError: an unknown arm, arms on different images, other than C findings, or paired runs of unequal number.
    """
    for name in itertools.chain(*pairs):
        if name not in arms:
            raise InputError(f"no arm {name!r}", field="pairs", remedy=f"There are {', '.join(arms)}")
    for ours, theirs in pairs:
        _check_pair(arms[ours], arms[theirs], findings, paired_seeds)
    found = [
        [_compare(arms, pair, scope, c, paired_seeds, level) for pair in pairs for c, scope in scopes]
        for scopes in ([(None, MEAN)], list(enumerate(findings)) if per_class else [])
    ]
    return [
        _judged(one, p, level) for family in found for one, p in zip(family, holm([x.p for x in family]), strict=True)
    ]


def _check_pair(ours: Arm, theirs: Arm, findings: Sequence[str], paired: bool) -> None:
    if ours.basis != theirs.basis:
        raise InputError(
            "arms were not evaluated on the same images, labels and resamples",
            field="arms",
            remedy="Evaluate both with the same arguments",
        )
    if ours.values.shape[1] != len(findings):
        raise InputError(f"{len(findings)} names for {ours.values.shape[1]} classes", field="findings")
    if paired and len(ours.values) != len(theirs.values):
        raise InputError(
            f"{len(ours.values)} and {len(theirs.values)} runs cannot be paired by seed",
            field="paired_seeds",
            remedy="Run the same seeds in both arms, or say that they are not paired",
        )


def _judged(one: Comparison, adjusted: float, level: float) -> Comparison:
    verdict: Verdict = "not shown"
    if adjusted < 1 - level:
        verdict = "better" if one.difference.value > 0 else "worse"
    return replace(one, adjusted=adjusted, verdict=verdict)


def _compare(
    arms: Mapping[str, Arm], pair: tuple[str, str], scope: str, column: int | None, paired: bool, level: float
) -> Comparison:
    """One difference, before p is adjusted."""
    sides = [arms[name] for name in pair]
    values, draws = (
        [x.nanmean(-1) if column is None else x[..., column] for x in tables]
        for tables in ([side.values for side in sides], [side.draws for side in sides])
    )
    means = [float(x.mean()) for x in values]
    value = means[0] - means[1]
    if paired:
        errors = _errors([values[0] - values[1]], [draws[0] - draws[1]], sides[0].patients)
    else:
        errors = _errors(values, [draws[0], -draws[1]], sides[0].patients)
    se, freedom, patient_sd, seed_sd = errors
    reach = se * float(stdtrit(freedom, (1 + level) / 2))
    return Comparison(
        ours=pair[0],
        theirs=pair[1],
        scope=scope,
        figure=sides[0].figure,
        ours_value=means[0],
        theirs_value=means[1],
        difference=Interval(value, value - reach, value + reach),
        percentiles=percentile_interval(value, _two_level(draws[0], draws[1], paired), level),
        standard_error=se,
        freedom=freedom,
        patient_sd=patient_sd,
        seed_sd=seed_sd,
        p=float(2 * stdtr(freedom, -abs(value) / se)) if se > 0 else (1.0 if value == 0 else math.nan),
        adjusted=math.nan,
        detectable=reach + se * float(stdtrit(freedom, POWER)),
        verdict="not shown",
    )


def _errors(values: list[Tensor], draws: list[Tensor], patients: int) -> tuple[float, float, float, float]:
    """Standard error of the sum over the terms of their means over seeds.

    Args:
        values: per term (S,) on the test set.
        draws: per term (B, S) on the resamples, signed as they add.
        patients: P.

    Returns:
        standard error, degrees of freedom, standard deviation over patients, standard deviation over seeds.
    """
    total = torch.stack([x.mean(1) for x in draws]).sum(0)
    exists = total.isfinite()
    if patients < 2 or int(exists.sum()) < max(2, len(exists) / 2):
        return (math.nan,) * 4
    over_patients = float(total[exists].var()) * patients / (patients - 1)
    extra, doubt, pooled = 0.0, over_patients**2 / (patients - 1), []
    seen = [
        (float(v.var()), float(d[exists].sub(d[exists].mean(1, keepdim=True)).var(0).mean()), len(v))
        for v, d in zip(values, draws, strict=True)
        if len(v) > 1
    ]
    for variance, within, seeds in seen:
        # The deviations from their mean hold (S - 1) / S of one seed's own noise over patients.
        extra += max(0.0, variance - within * seeds / (seeds - 1)) / seeds
        pooled.append(variance)
    square = over_patients + extra
    doubt += sum(min(variance / seeds, square) ** 2 / (seeds - 1) for variance, _, seeds in seen)
    freedom = square**2 / doubt if doubt > 0 else float(patients - 1)
    seed_sd = math.sqrt(sum(pooled) / len(pooled)) if pooled else math.nan
    return math.sqrt(square), freedom, math.sqrt(over_patients), seed_sd


def _two_level(ours: Tensor, theirs: Tensor, paired: bool) -> Tensor:
    """(B,) differences with seeds drawn as well, a resample of patients each."""
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(x.shape[1], x.shape, generator=generator) for x in (ours, theirs)]
    if paired:
        picks[1] = picks[0]
    means = [x.gather(1, pick).mean(1) for x, pick in zip((ours, theirs), picks, strict=True)]
    return means[0] - means[1]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of a family of tests, in the given order (Holm 1979): their errors stay below level together.

    A p that does not exist (NaN) stays NaN and counts as a test.
    """
    order = sorted(range(len(p)), key=lambda i: math.inf if math.isnan(p[i]) else p[i])
    adjusted, largest = [math.nan] * len(p), 0.0
    for passed, i in enumerate(order):
        if not math.isnan(p[i]):
            largest = max(largest, min(1.0, (len(p) - passed) * p[i]))
            adjusted[i] = largest
    return adjusted
