"""Is a classifier better for synthetic images? Small classifiers with the same steps, on held-out real patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from counterscan.bench.quality_card import Section, Verdict
from counterscan.classify import ClassifierTask, ClassifyConfig, predict_logits
from counterscan.classify.task import LabelledRows
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.comparison import Arm, Figure, evaluate_arm
from counterscan.metrics.intervals import RESAMPLES, Interval, percentile_interval
from counterscan.nets.cnn import Classifier
from counterscan.report.tables import Cell, Table
from counterscan.training import BalancedSampler, finding_groups, seed_everything, train

REAL, SYNTHETIC, BOTH = "real", "synthetic", "real + synthetic"
FIGURES: tuple[Figure, ...] = get_args(Figure)


@dataclass(frozen=True)
class Usefulness:
    """Mean over findings and seeds on held-out real images, with 95 % intervals over patients.

    Attributes:
        findings: that were learned.
        auc, ap: ROC-AUC and average precision by arm: "real", "synthetic", "real + synthetic".
        auc_gain, ap_gain: of "synthetic" and "real + synthetic" over "real" on the same images.
        images: trained on, by arm.
        left_out: arms and findings that could not be trained, and why.
    """

    findings: tuple[str, ...]
    auc: dict[str, Interval]
    ap: dict[str, Interval]
    auc_gain: dict[str, Interval]
    ap_gain: dict[str, Interval]
    images: dict[str, int]
    left_out: tuple[str, ...] = ()


class MixedRows:
    """Rows of several stores one after another, as the training loop reads them.

    Args:
        parts: images of one size, with targets of the same findings.
    """

    def __init__(self, parts: Sequence[LabelledRows]) -> None:
        self.parts = list(parts)
        self.targets = np.concatenate([part.targets for part in parts])
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Any) -> dict[str, Any]:
        """ "image" (B, 1, S, S) in [-1, 1] and "target" (B, C)."""
        rows = np.asarray(indices)
        images: Tensor | None = None
        for part, start, end in zip(self.parts, self._starts, self._starts[1:], strict=False):
            here = np.flatnonzero((rows >= start) & (rows < end))
            if len(here):
                found = part.store.images(rows[here] - start)
                images = torch.empty(len(rows), *found.shape[1:]) if images is None else images
                images[torch.from_numpy(here)] = found
        return {"image": images, "target": self.targets[rows]}


def usefulness(
    synthetic: PreparedStore,
    training: PreparedStore,
    test: PreparedStore,
    folder: str | Path,
    config: ClassifyConfig,
    *,
    seeds: int = 1,
    resamples: int = RESAMPLES,
    progress: Callable[[str, int, int], Any] | None = None,
) -> Usefulness:
    """Train on real, on synthetic and on both, and test on real images of other patients.

    All arms have the same network, steps, batch size and balance of findings. So "real" is the control with real images
    repeated, too: a gain of "real + synthetic" is one of content, not of number. Of the synthetic images no more than
    there are real ones are mixed in.

    Args:
        synthetic, training, test: of one size; labels of the findings that all three have.
        folder: gets a run for each arm and seed; the same call goes on where one stopped.
        config: of the classifiers; its seed is the first.
        seeds: classifiers per arm.
        resamples: of the patient bootstrap.
        progress: called with (arm, seed, seeds).

    Raises:
        InputError: sizes differ, or no finding can be learned from real images and tested.
    """
    if not synthetic.size == training.size == test.size:
        raise InputError(f"{synthetic.size}, {training.size} and {test.size} px differ", field="size")
    findings, left_out = _learnable(synthetic, training, test, config)
    real, made = (_rows(store, findings, config) for store in (training, synthetic))
    few = np.random.default_rng(config.seed).permutation(len(synthetic))[: len(training)]
    arms: dict[str, MixedRows] = {REAL: MixedRows([real])}
    arms[BOTH] = MixedRows([real, _rows(synthetic.subset(np.sort(few)), findings, config)])
    lacking = [name for name, y in zip(findings, made.targets.T, strict=True) if len(set(y[~np.isnan(y)])) < 2]
    if lacking:
        left_out.append(f"Training on synthetic images alone: all of them or none have {', '.join(lacking)}.")
    else:
        arms[SYNTHETIC] = MixedRows([made])
    targets = torch.from_numpy(_rows(test, findings, config).targets)
    scores: dict[str, list[Tensor]] = {arm: [] for arm in arms}
    for arm, rows in arms.items():
        for seed in range(seeds):
            if progress is not None:
                progress(arm, seed, seeds)
            place = Path(folder) / arm.replace(" + ", "_and_") / str(seed)
            scores[arm].append(_scores(rows, findings, replace(config, seed=config.seed + seed), place, test))
    patients = test.patients.tolist()
    drawn = {
        name: {
            arm: _means(evaluate_arm(torch.stack(scores[arm]), targets, patients, figure=name, resamples=resamples))
            for arm in arms
        }
        for name in FIGURES
    }
    figures = {
        name: {arm: percentile_interval(*pair) for arm, pair in by_arm.items()} for name, by_arm in drawn.items()
    }
    gains = {
        name: {
            arm: percentile_interval(value - by_arm[REAL][0], many - by_arm[REAL][1])
            for arm, (value, many) in by_arm.items()
            if arm != REAL
        }
        for name, by_arm in drawn.items()
    }
    images = {arm: len(rows) for arm, rows in arms.items()}
    return Usefulness(
        findings, figures["roc_auc"], figures["ap"], gains["roc_auc"], gains["ap"], images, tuple(left_out)
    )


def usefulness_section(found: Usefulness, steps: int, seeds: int) -> Section:
    """Are they of use? By the gain in average precision of real + synthetic over real alone."""
    gain = found.ap_gain[BOTH]
    verdict: Verdict = "doubtful"
    word = "not shown to be better or worse"
    if seeds > 1 and gain.excludes(0.0):
        verdict, word = ("good", "better") if gain.value > 0 else ("poor", "worse")
    least = 2.8 * (gain.high - gain.low) / 3.92  # found in 4 of 5 such trials at the 5 % level
    said = f"real + synthetic is {word} than real alone: mean AP {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    said += f"; a difference of {least:.3f} would be seen over patients"
    if seeds == 1:
        said += "; one classifier an arm does not tell it from another seed's luck"
    rows: list[list[Cell]] = [
        [arm, found.images[arm], found.auc[arm], found.auc_gain.get(arm), found.ap[arm], found.ap_gain.get(arm)]
        for arm in (REAL, SYNTHETIC, BOTH)
        if arm in found.images
    ]
    note = (
        f"Trained for {steps} steps each, {seeds} per arm; means over {', '.join(found.findings)}. Gains are over real "
        "on the same images. With equal steps real alone repeats its images: it is the control for their number."
    )
    table = Table("Usefulness", ("Trained on", "Images", "AUC", "Gain", "AP", "Gain in AP"), rows, note, digits=3)
    rule = (
        "Good: with two classifiers an arm or more, the 95 % interval over patients of the gain in mean AP lies above "
        "0. Poor: below. Doubtful: it is not shown. How classifiers differ between seeds is not in it: see the study."
    )
    return Section("Usefulness", verdict, said, rule, (table,), found.left_out)


def _learnable(
    synthetic: PreparedStore, training: PreparedStore, test: PreparedStore, config: ClassifyConfig
) -> tuple[tuple[str, ...], list[str]]:
    """Findings that all have, with both outcomes among real training and test images; and the others, with reasons."""
    findings, left_out = [], []
    for name in training.findings:
        if name not in synthetic.findings or name not in test.findings:
            left_out.append(f"{name}: no such label.")
            continue
        columns = [_rows(store, (name,), config).targets[:, 0] for store in (training, test)]
        if all((y == 1).any() and (y == 0).any() for y in columns):
            findings.append(name)
        else:
            left_out.append(f"{name}: all real training or test images have it, or none has.")
    if not findings:
        remedy = "Give the synthetic images labels of the real images' findings"
        raise InputError("no finding can be learned and tested", field="findings", remedy=remedy)
    return tuple(findings), left_out


def _rows(store: PreparedStore, findings: Sequence[str], config: ClassifyConfig) -> LabelledRows:
    """Targets without the uncertain ones, so that all arms and the test mean the same."""
    columns = [store.findings.index(name) for name in findings]
    return LabelledRows(store, np.ascontiguousarray(store.table.targets("ignore", config.blank)[:, columns]))


def _scores(
    rows: MixedRows, findings: tuple[str, ...], config: ClassifyConfig, folder: Path, test: PreparedStore
) -> Tensor:
    """(N, C) logits for the test images, of a classifier that is trained on ``rows``."""
    groups, _ = finding_groups(rows.targets)
    seed_everything(config.seed)
    task = ClassifierTask(Classifier(config.model, findings), config)
    data = [[part.store.content, len(part)] for part in rows.parts]
    settings = {**config.system(), "findings": list(findings), "data": {"size": test.size, "parts": data}}
    sampler = BalancedSampler(groups, config.batch_size, config.seed)
    train(task, rows, config.training(), folder, sampler=sampler, settings=settings)
    return predict_logits(task.modules["classifier"].eval(), test)


def _means(arm: Arm) -> tuple[float, Tensor]:
    """Mean of a figure over findings and seeds; the same for each resample, (B,)."""
    return float(arm.values.nanmean(1).mean()), arm.draws.nanmean(2).mean(1)
