"""The arms of a study: the same network, number of steps and batch size; only what the batches hold differs.

* "real": training images as they are. "classic": random views of them, as all further arms have.
* mixed: a fixed part of each batch is synthetic (or real again), with a weight of its own in the loss.
* only: nothing but synthetic images.
* pretrain: synthetic images alone for the first steps, then real ones alone, within the same number of steps.

Real images are drawn as many with as without each finding in every arm, so that no arm wins by balance.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from counterscan.bench import study_content
from counterscan.bench.quality_usefulness import MixedRows
from counterscan.bench.study_config import PLAIN, Content, Mode, StudyConfig
from counterscan.bench.study_content import TEXTUAL, Made
from counterscan.bench.study_models import Study
from counterscan.classify import ClassifierTask, ClassifyConfig
from counterscan.classify.deepauc import AUCConfig, DeepAUCConfig, DeepAUCTask, started
from counterscan.classify.task import LabelledRows, predict_logits
from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.files import atomic_write
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.training import BalancedSampler, Sampler, finding_groups, seed_everything, train

FEWEST = 8  # synthetic images below which an arm is left out
_SCORES = "scores.npz"
_BATCH = 128


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
        content: what is added to real images; see ``bench.study_content``.
        mode: "mixed", "only" or "pretrain".
        view: text that the text-image model learned; "" where text plays no part.
        share: part of each batch that is synthetic, in mode "mixed"; 0 elsewhere.
        name: short for the first view and share, as in the protocol's pairs.
    """

    content: Content
    mode: Mode
    view: str
    share: float
    name: str

    @property
    def key(self) -> str:
        """Its folder."""
        content = {"text+": "text-plus", "text-": "text-minus"}.get(self.content, self.content)
        return "_".join((content, self.mode, self.view or "no-text", f"{self.share:g}"))


def arms_of(config: StudyConfig) -> list[Arm]:
    """All arms of a protocol: each with the first view and share, then those that other views and shares change."""
    found = []
    for name in config.arms:
        content, _, mode_ = name.partition(":")
        mode: Mode = mode_ or "mixed"  # type: ignore[assignment]
        views = config.views if content in TEXTUAL and content != "ensemble" else config.views[:1]
        shares = config.shares if content not in PLAIN and mode == "mixed" else config.shares[:1]
        for at, view in enumerate(views):
            for share in shares[: None if at == 0 else 1]:
                label = name + (f" @ {view}" if at else "") + (f", share {share:g}" if share != shares[0] else "")
                textual = view if content in TEXTUAL else ""
                part = share if mode == "mixed" and content not in PLAIN else 0.0
                found.append(Arm(content, mode, textual, part, label))  # type: ignore[arg-type]
    return found


class StudyRows(MixedRows):
    """Rows of several stores with their weight in the loss.

    Args:
        parts: images of one size, with targets of the same findings.
        weights: of each part.
    """

    def __init__(self, parts: Sequence[LabelledRows], weights: Sequence[float]) -> None:
        super().__init__(parts)
        self.weights = np.concatenate(
            [np.full(len(part), weight, np.float32) for part, weight in zip(parts, weights, strict=True)]
        )

    def batch(self, indices: Any) -> dict[str, Any]:
        """ "image", "target" in [0, 1], "weight" (B,)."""
        return {**super().batch(indices), "weight": self.weights[np.asarray(indices)]}


class HardRows(StudyRows):
    """The same with targets of 0 and 1, as a loss over pairs needs them."""

    def batch(self, indices: Any) -> dict[str, Any]:
        """Soft targets become what is more probable; unknown ones stay so."""
        found = super().batch(indices)
        y = found["target"]
        return {**found, "target": np.where(np.isnan(y), y, (y > 0.5).astype(y.dtype))}


class BothSampler:
    """Batches of two parts of fixed sizes, the first ones perhaps of the second part alone.

    Args:
        real, added: samplers of the two sizes; the second one's rows come after ``offset`` real ones.
        offset: number of real rows.
        first: samplers of whole batches of added rows; used before step ``until``.
        until: see ``first``.
    """

    def __init__(
        self,
        real: BalancedSampler | None,
        added: BalancedSampler | None,
        offset: int,
        first: BalancedSampler | None = None,
        until: int = 0,
    ) -> None:
        self.real, self.added, self.offset, self.first, self.until = real, added, offset, first, until

    def _parts(self, step: int) -> list[tuple[BalancedSampler, int]]:
        if self.first is not None and step < self.until:
            return [(self.first, self.offset)]
        both = ((self.real, 0), (self.added, self.offset))
        return [(sampler, start) for sampler, start in both if sampler is not None]

    def batch_indices(self, step: int, rank: int = 0, world: int = 1, stream: int = 0) -> np.ndarray:
        """See ``training.Sampler``."""
        return np.concatenate([s.batch_indices(step, rank, world, stream) + at for s, at in self._parts(step)])

    def batch_groups(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """0 for real rows, 1 for added ones."""
        return np.concatenate(
            [np.full(len(s.batch_groups(step, rank, world)), int(at > 0)) for s, at in self._parts(step)]
        )


def weighted_bce(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy averaged over the known targets with weights of images; 0 when none is known.

    Args:
        logits: (N, C).
        targets: (N, C) in [0, 1] or NaN, which neither counts nor sends gradients.
        weights: (N,) of at least 0.
        smoothing: targets become y (1 - smoothing) + smoothing / 2.
    """
    known = ~targets.isnan() * weights[:, None]
    wanted = targets.nan_to_num(nan=0.5) * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1e-6)


class StudyTask(ClassifierTask):
    """Trains the classifier of an arm."""

    def objective(self, logits: Tensor, views: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Every image with its weight."""
        return weighted_bce(logits, batch["target"], batch["weight"], self.config.label_smoothing)


def rows_of(study: Study, arm: Arm, number: int) -> tuple[StudyRows, Sampler] | str:
    """What an arm is trained on, or why it cannot be."""
    config, real = study.config, LabelledRows(study.part("train"), study.targets("train"))
    groups, _ = finding_groups(real.targets)
    size = config.batch_size
    if arm.content in PLAIN:
        return StudyRows([real], [1.0]), BalancedSampler(groups, size, number)
    made: Made = study_content.load(study, arm.content, arm.view or config.views[0], number % config.generators)
    if len(made) < FEWEST:
        return f"{len(made)} images were made; at least {FEWEST} are needed"
    store = PreparedStore.from_arrays(made.images, labels=made.targets * 0, findings=study.findings)
    rows = StudyRows([real, LabelledRows(store, made.targets)], [1.0, config.weight])
    everything = [np.arange(len(made))]

    def added(count: int) -> BalancedSampler:
        return BalancedSampler(everything, count, number)

    if arm.mode == "only":
        return rows, BothSampler(None, added(size), len(real))
    if arm.mode == "pretrain":
        until = round(config.pretrain * config.steps)
        return rows, BothSampler(BalancedSampler(groups, size, number), None, len(real), added(size), until)
    count = min(size - 1, max(1, round(arm.share * size)))
    return rows, BothSampler(BalancedSampler(groups, size - count, number), added(count), len(real))


def scores_path(study: Study, arm: Arm, number: int) -> Path:
    """Where the scores of a run are kept."""
    return study.out / "runs" / arm.key / str(number) / _SCORES


def train_arm(study: Study, arm: Arm, number: int) -> str:
    """One run of an arm: train, score validation and test images, keep the scores; nothing if they are there.

    Returns:
        "" or why it could not be trained.
    """
    path = scores_path(study, arm, number)
    if path.is_file():
        return ""
    found = rows_of(study, arm, number)
    if isinstance(found, str):
        return found
    rows, sampler = found
    began = time.process_time()
    config = _settings(study, arm, number)
    seed_everything(config.seed)
    task = StudyTask(Classifier(config.model, study.findings), config)
    about = {**config.system(), "arm": arm.name, "rows": len(rows), "targets": _digest(rows)}
    train(task, rows, config.training(), path.parent, sampler=sampler, settings=about)
    classifier = task.modules["classifier"]
    if study.config.auc_steps:
        classifier = _deep_auc(study, classifier, rows, sampler, config, path.parent / "auc", about)
    scores = {split: predict_logits(classifier.eval(), study.part(split), _BATCH).numpy() for split in ("val", "test")}
    share = _shown(rows, sampler, config.steps)
    spent = np.array(time.process_time() - began)
    buffer = io.BytesIO()
    np.savez(buffer, val=scores["val"], test=scores["test"], share=share, cpu_seconds=spent)
    with atomic_write(path) as handle:
        handle.write(buffer.getvalue())
    return ""


def _settings(study: Study, arm: Arm, number: int) -> ClassifyConfig:
    config = study.config
    return ClassifyConfig(
        ClassifierConfig(widths=config.widths),
        AugmentConfig.none() if arm.content == "real" else AugmentConfig(flip=config.flip),
        findings=study.findings,
        steps=config.steps,
        batch_size=config.batch_size,
        seed=number,
        tensorboard=False,
    )


def _deep_auc(
    study: Study,
    classifier: Any,
    rows: StudyRows,
    sampler: Sampler,
    config: ClassifyConfig,
    folder: Path,
    about: dict[str, Any],
) -> Any:
    """The AUC-margin stage on the same rows."""
    settings = DeepAUCConfig(config, AUCConfig(auc_steps=study.config.auc_steps, best=False))
    hard = HardRows(rows.parts, [1.0] * len(rows.parts))
    # Only what the last steps hold is drawn here: a fine-tuned classifier does not go back to synthetic images.
    later = after_first(sampler)
    seed_everything(config.seed, stream=1)
    task = DeepAUCTask(started(classifier, settings), settings, None)
    train(
        task, hard, settings.training(), folder, sampler=later, settings={**about, "auc_steps": study.config.auc_steps}
    )
    return task.modules["classifier"]


def after_first(sampler: Sampler) -> Sampler:
    """A sampler without its first phase."""
    if isinstance(sampler, BothSampler) and sampler.first is not None:
        return BothSampler(sampler.real, sampler.added, sampler.offset)
    return sampler


def _shown(rows: StudyRows, sampler: Sampler, steps: int, looked: int = 200) -> np.ndarray:
    """(C,) share of positives among the targets that the last batches showed, weighted as in the loss."""
    indices = np.concatenate([sampler.batch_indices(step) for step in range(max(0, steps - looked), steps)])
    targets, weights = rows.targets[indices], rows.weights[indices][:, None]
    known = ~np.isnan(targets)
    return np.nansum(targets * weights, axis=0) / np.maximum((known * weights).sum(0), 1e-6)


def _digest(rows: StudyRows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows.targets).tobytes()).hexdigest()[:16]
