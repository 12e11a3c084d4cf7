"""From a prepared store to a finished tagger: classifiers, TagGAN, choice of checkpoint, mask thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from counterscan.care import Care
from counterscan.classify import ClassifyConfig, train_classifier
from counterscan.classify.task import LabelledRows
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity, check_share
from counterscan.files import write_json
from counterscan.inputs import device_of, findings_of
from counterscan.nets.cnn import Classifier
from counterscan.taggan.model import MapGenerator, NetworkConfig
from counterscan.taggan.objective import ObjectiveConfig, TagGANTask
from counterscan.taggan.selection import LabelOnlySelection
from counterscan.taggan.tagger import VIEWS, TagGAN
from counterscan.training import BalancedSampler, TrainConfig, finding_groups, load_weights, seed_everything, train
from counterscan.training.checkpoint import weights_digest
from counterscan.training.config import shaping

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore


def _training() -> TrainConfig:
    return TrainConfig(
        steps=400,
        batch_size=32,
        precision="auto",
        schedule="cosine",
        final_factor=0.03,
        warmup=30,
        grad_clip=5.0,
        ema_half_life=70,
        validate_every=50,
        checkpoint_every=100,
        sample_every=200,
    )


@dataclass(frozen=True)
class TagGANConfig:
    """Everything that a run is made of.

    Attributes:
        training: the loop's settings.
        networks, objective: see there.
        classifier: settings of the frozen classifiers of the class term; the k-th has the seed ``seed + k``.
        classifiers: how many are trained.
        care: views averaged at inference, smoothing and spreading of the evidence.
        percentile, min_area: of the mask rule; see ``taggan.masks``.
        trust: share of validation images that count as like the training images; see ``familiarity``.

    Raises:
        InputError: ``trust`` is not in (0, 1].
    """

    training: TrainConfig = field(default_factory=_training)
    networks: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    classifier: ClassifyConfig = field(default_factory=ClassifyConfig)
    classifiers: int = 1
    care: Care = VIEWS
    percentile: float = 99.0
    min_area: float = 0.001
    trust: float = 0.98

    def __post_init__(self) -> None:
        check_share(self.trust, "trust")
        if not 0 <= self.percentile <= 100:
            raise InputError(f"{self.percentile} must be between 0 and 100", field="percentile")
        if not 0 <= self.min_area < 1:
            raise InputError(f"{self.min_area} must be at least 0 and below 1", field="min_area")
        if self.classifiers < 1:
            raise InputError(f"{self.classifiers} must be at least 1", field="classifiers")
        if self.classifier.findings:
            raise InputError(
                "maps are learned of all findings of the store, and so must the classifier's scores be",
                field="classifier.findings",
                remedy="Leave it out; to learn fewer, prepare a table that has only these",
            )


def fit(
    store: PreparedStore,
    folder: str | Path,
    config: TagGANConfig | None = None,
    *,
    classifiers: Sequence[nn.Module] | None = None,
) -> TagGAN:
    """Train, choose, calibrate, save to ``folder/model``. Called again after an interruption it goes on from there.

    Args:
        store: rows split into "train" and "val".
        folder: the run folder.
        config: settings.
        classifiers: ready classifiers for the store's findings instead of new ones.

    Raises:
        InputError: a finding has one class only, a split is empty, a patient is in both, or ready classifiers do not
            have the store's findings in its order.
    """
    config, folder = config or TagGANConfig(), Path(folder)
    for classifier in classifiers or ():
        if (known := findings_of(classifier)) != store.findings:
            raise InputError(
                f"one knows {', '.join(known)}, the store has {', '.join(store.findings)}",
                field="classifiers",
                remedy="Give classifiers of the same findings in the same order",
            )
    learn, val = store.parts("train", "val")
    groups, meaning = _groups(learn, config.training.batch_size)
    for column, finding in enumerate(store.findings):
        if not (val.labels[:, column] == 0).any():
            raise InputError(
                "no validation image is without it, which masks and the choice of a checkpoint need",
                path=store.folder,
                field=finding,
                remedy="Move some such patients to the split val",
            )
    if classifiers is None:
        seeds = [config.classifier.seed + k for k in range(config.classifiers)]
        classifiers = [
            train_classifier(store, folder / "classifiers" / str(seed), replace(config.classifier, seed=seed))
            for seed in seeds
        ]
    seed_everything(config.training.seed)
    selection = LabelOnlySelection(val.images(), torch.from_numpy(val.labels), store.findings, val.valid())
    watch = val.batch(np.argsort(-np.nan_to_num(val.labels).sum(axis=1), kind="stable")[:8])
    task = TagGANTask(
        config.networks, config.objective, store.findings, classifiers, meaning, watch=watch, selection=selection
    )
    train(
        task,
        LabelledRows(learn, learn.labels),
        config.training,
        folder,
        sampler=BalancedSampler(groups, config.training.batch_size, config.training.seed),
        settings={
            "kind": "taggan",
            "findings": store.findings,
            "content": store.content,
            "division": store.division,
            "classifiers": [weights_digest(classifier)[:16] for classifier in classifiers],
            "taggan": shaping(config, "care", "percentile", "min_area", "trust"),
        },
    )
    tagger = from_run(folder, store, config, classifiers)
    chosen = load_weights(folder, {})
    write_json(folder / "choice.json", {"step": chosen["step"], "metrics": chosen["metrics"]})
    tagger.save_pretrained(folder / "model")
    return tagger


def from_run(
    folder: str | Path,
    store: PreparedStore,
    config: TagGANConfig,
    classifiers: Sequence[nn.Module],
    which: str | int = "best",
) -> TagGAN:
    """A tagger from a run's averaged weights, its mask rules calibrated on the store's healthy validation rows.

    Args:
        folder: the run folder.
        store: the store it was trained on.
        config: its settings.
        classifiers: its classifiers; the first gives the scores.
        which: "best" by the label-only criterion, "last", or a step.
    """
    generator = MapGenerator(config.networks, len(store.findings))
    info = load_weights(folder, {"map": generator}, which)
    if classifiers:  # training may have brought them to a GPU
        generator.to(device_of(classifiers[0]))
    tagger = TagGAN(
        [generator],
        store.findings,
        classifier=classifiers[0] if classifiers else None,
        care=config.care,
        size=store.size,
        recipe=store.recipe,
        checkpoint=info["digest"][:16],
    )
    tagger.calibrate(store, store.split == "val", percentile=config.percentile, min_area=config.min_area)
    if isinstance(tagger.classifier, Classifier):
        learn, val = store.parts("train", "val")
        tagger.familiarity = Familiarity.fit([tagger.classifier], learn, val, config.trust)
    return tagger


def _groups(learn: PreparedStore, batch_size: int) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Rows with and without each finding, and what each group means; checked."""
    groups, meaning = finding_groups(learn.labels)
    for column, finding in enumerate(learn.findings):
        for value, what in ((1, "with"), (0, "without")):
            if (column, value) not in meaning:
                raise InputError(
                    f"no training image is labelled as {what} it",
                    path=learn.folder,
                    field=finding,
                    remedy="TagGAN learns from both; add such images, or leave the finding out",
                )
    if batch_size < len(groups):
        raise InputError(
            f"{batch_size} images per step cannot hold images with and without each of {len(learn.findings)} findings",
            field="batch_size",
            remedy=f"Use at least {len(groups)}",
        )
    return groups, meaning
