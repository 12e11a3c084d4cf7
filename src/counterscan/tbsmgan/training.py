"""From a prepared store to a finished generator: labels, a classifier that watches, training, choice of checkpoint."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.classify import ClassifyConfig, train_classifier
from counterscan.classify.task import LabelledRows
from counterscan.data.augment import AugmentConfig
from counterscan.data.findings import canonical_name
from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.nets.stylegan2 import PRESETS, Generator, StyleGANConfig
from counterscan.nets.stylegan2 import preset as network_preset
from counterscan.tbsmgan.generator import LabelMix, StyleGAN, TrainingPatients
from counterscan.tbsmgan.monitors import MonitorConfig, Monitors
from counterscan.tbsmgan.objective import GANTask, ObjectiveConfig
from counterscan.training import (
    BalancedSampler,
    TrainConfig,
    finding_groups,
    load_weights,
    seed_everything,
    train,
    uniform_sampler,
)
from counterscan.training.checkpoint import weights_digest
from counterscan.training.config import plain

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore

_TRIED = 32  # steps timed before a run that is given minutes


def _training() -> TrainConfig:
    return TrainConfig(
        steps=5000,
        batch_size=32,
        ema_half_life=3000,
        ema_unit="images",
        ema_ramp=0.05,
        precision="auto",
        validate_every=500,
        checkpoint_every=500,
        sample_every=500,
        log_every=20,
        threads=0,
    )


def _classifier() -> ClassifyConfig:
    return ClassifyConfig(steps=600, augment=AugmentConfig(flip=0.0), tensorboard=False)


@dataclass(frozen=True)
class GANConfig:
    """Everything that a run is made of.

    Attributes:
        training: the loop's settings.
        network: sizes of both networks; ``labels`` is set to the number of findings.
        objective, monitor: see there.
        classifier: settings of the classifier that watches, if none is given.
        findings: which to condition on; all of the store when empty.
        conditional: False learns images without asking for findings; they are still watched.
        blank: what an unmentioned finding is: absent, or unknown. Uncertain labels are always unknown.
        boost: batches hold as many images with as without each finding, in turn, so that rare ones are seen.
    """

    training: TrainConfig = field(default_factory=_training)
    network: StyleGANConfig = field(default_factory=StyleGANConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    classifier: ClassifyConfig = field(default_factory=_classifier)
    findings: tuple[str, ...] = ()
    conditional: bool = True
    blank: Literal["zero", "ignore"] = "zero"
    boost: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        if self.blank not in ("zero", "ignore"):
            raise InputError(f"{self.blank!r} must be zero or ignore", field="blank")


def preset(name: str) -> GANConfig:
    """Settings by name, as the networks': cxr64-cpu and its half cxr64-lite, or cxr128 and cxr256 for a GPU.

    Raises:
        InputError: no such preset.
    """
    base = GANConfig(network=network_preset(name))
    if base.network.size == 64:
        return base
    loop = replace(
        base.training,
        steps=10_000,
        batch_size=64,
        ema_half_life=20_000,
        validate_every=1000,
        checkpoint_every=1000,
        sample_every=1000,
    )
    path = 2.0 if base.network.size >= 256 else 0.0
    adaptive = replace(base.objective.adaptive, kimg=200.0)
    return replace(base, training=loop, objective=replace(base.objective, path=path, path_every=8, adaptive=adaptive))


def fit(
    store: PreparedStore, folder: str | Path, config: GANConfig | None = None, *, classifier: nn.Module | None = None
) -> StyleGAN:
    """Train, choose, save to ``folder/model``. Called again after an interruption it goes on from there.

    Args:
        store: rows in the split "train", and some in "val" to compare with.
        folder: the run folder.
        config: settings.
        classifier: watches the findings, trained on the same training rows; None trains one.

    Returns:
        The generator of the checkpoint with the least FID among those whose findings are acceptably consistent.

    Raises:
        InputError: fewer than 2 training images, images of another size than the network's, a finding that all
            training images have or lack, or a patient in both splits.
    """
    config, folder = config or GANConfig(), Path(folder)
    job = _Job.of(store, config)
    if classifier is None and job.findings:
        wanted = replace(config.classifier, findings=job.findings, blank=config.blank)
        classifier = train_classifier(store, folder / "classifier", wanted)
    task = job.task(classifier)
    result = train(
        task,
        LabelledRows(job.learn, job.labels),
        config.training,
        folder,
        sampler=job.sampler(),
        settings={
            "kind": "stylegan",
            "findings": job.findings,
            "content": store.content,
            "gamma": task.gamma,
            # Its length and the like may change when it goes on; the loop keeps them apart.
            "stylegan": {name: value for name, value in plain(job.config).items() if name != "training"},
        },
    )
    gan = _finished(folder, job, "best")
    monitors = task.monitors
    assert monitors is not None
    # Of the generator that was chosen, but of the discriminator as it ended.
    ended: dict[str, float] = {name: result.metrics[name] for name in ("r_t", "p") if name in result.metrics}
    adaptive = config.objective.adaptive if config.objective.adapts else None
    gan.learned = monitors.learned(gan.figures)
    gan.diagnoses = tuple(monitors.diagnose({**gan.figures, **ended}, adaptive))
    gan.facts = _facts(job, task, gan, result.step, monitors.floor)
    if int(os.environ.get("RANK", 0)) == 0:
        gan.save_pretrained(folder / "model")
        write_text(folder / "README.md", gan.card())
    return gan


def _facts(job: _Job, task: GANTask, gan: StyleGAN, steps: int, floor: float) -> tuple[str, ...]:
    loop, w = job.config.training, job.config.objective
    facts = [
        f"trained on {len(job.learn):,} images of {len(gan.patients.hashes):,} patients, {steps:,} steps of "
        f"{loop.batch_size}, seed {loop.seed}; weights {gan.checkpoint}, averaged",
        f"{w.loss} loss, gamma {task.gamma:.4g}, R1 every {w.penalty_every} steps, weight of the findings {w.find:g}",
    ]
    if math.isfinite(floor):
        facts.append(f"FID of {len(job.held):,} held-out images against the training images: {floor:.4g}")
    return tuple(facts)


def steps_in(minutes: float, store: PreparedStore, config: GANConfig) -> int:
    """About how many steps of a run fit into a time on this machine, from a few that are tried and thrown away.

    Raises:
        InputError: see ``fit``; or the time is not positive.
    """
    if not minutes > 0:
        raise InputError(f"{minutes} must be positive", field="minutes")
    job = _Job.of(store, config)
    loop = replace(
        config.training,
        steps=_TRIED,
        checkpoint_every=0,
        log_every=0,
        sample_every=0,
        validate_every=0,
        tensorboard=False,
        schedule="const",
        warmup=0,
    )
    with tempfile.TemporaryDirectory() as scratch:
        rows, sampler = LabelledRows(job.learn, job.labels), job.sampler()
        train(job.task(None, watched=False), rows, replace(loop, steps=_TRIED // 2), scratch, sampler=sampler)
        start = time.monotonic()  # the first half paid for what is done once
        train(job.task(None, watched=False), rows, loop, scratch, sampler=sampler)
        seconds = (time.monotonic() - start) / (_TRIED - _TRIED // 2)
    return max(1, int(60 * minutes / seconds))


def from_run(folder: str | Path, store: PreparedStore, config: GANConfig, which: str | int = "best") -> StyleGAN:
    """A generator from a run's averaged weights, before or without the end of the run.

    Args:
        folder: the run folder.
        store: the store it was trained on.
        config: its settings.
        which: "best", "last", or a step.
    """
    return _finished(Path(folder), _Job.of(store, config), which)


def _finished(folder: Path, job: _Job, which: str | int) -> StyleGAN:
    generator = Generator(job.config.network)
    info = load_weights(folder, {"generator": generator}, which)
    conditional = job.config.network.labels > 0
    return StyleGAN(
        generator,
        job.findings if conditional else (),
        LabelMix.of(job.asked(torch.from_numpy(job.labels))) if conditional else None,
        job.store.recipe,
        weights_digest(generator)[:16],
        TrainingPatients.of(job.learn.patients.tolist(), f"{job.store.content}-{job.config.training.seed}"),
        info["metrics"],
    )


@dataclass(frozen=True)
class _Job:
    """What a run is about: checked rows, their labels, and the settings with the findings counted.

    Attributes:
        labels: (N, K) of the training rows: 0, 1, NaN for unknown.
    """

    store: PreparedStore
    config: GANConfig
    learn: PreparedStore
    held: PreparedStore
    findings: tuple[str, ...]
    labels: np.ndarray

    @classmethod
    def of(cls, store: PreparedStore, config: GANConfig) -> _Job:
        learn, held = (store.subset(store.split == name) for name in ("train", "val"))
        if len(learn) and len(held):
            store.parts("train", "val")  # no patient is in both
        if len(learn) < 2:
            raise InputError(
                f"{len(learn)} images are in the split 'train'; a distribution cannot be learned from fewer than 2",
                path=store.folder,
                field="split",
                remedy="Add images; some hundreds are the least that is useful",
            )
        if store.size != config.network.size:
            raise InputError(
                f"images are prepared at {store.size} px, the network makes {config.network.size}",
                path=store.folder,
                field="size",
                remedy=f"Prepare them with --size {config.network.size}, or choose another preset of "
                f"{', '.join(PRESETS)}",
            )
        findings = tuple(map(canonical_name, config.findings)) or store.findings
        missing = [name for name in findings if name not in store.findings]
        if missing:
            raise InputError(
                f"the images have no label {missing[0]!r}",
                path=store.folder,
                field="findings",
                remedy=f"Choose of {', '.join(store.findings)}",
            )
        columns = [store.findings.index(name) for name in findings]
        labels = learn.table.targets("ignore", config.blank)[:, columns]
        if config.conditional:
            _check_classes(labels, findings, store.folder)
        # Where nothing is asked for, findings are only watched, and those of one class cannot be.
        useful = [(values == 1).any() and (values == 0).any() for values in labels.T]
        findings = tuple(name for name, use in zip(findings, useful, strict=True) if use)
        labels = np.ascontiguousarray(labels[:, useful])
        network = replace(config.network, labels=len(findings) if config.conditional else 0)
        return cls(store, replace(config, network=network, findings=findings), learn, held, findings, labels)

    @property
    def frequency(self) -> Tensor:
        """(K,) share of present findings among the known labels."""
        return torch.from_numpy(np.nanmean(self.labels, axis=0)).float()

    def asked(self, labels: Tensor) -> Tensor:
        """See ``GANTask.asked``."""
        return torch.where(labels.isnan(), self.frequency, labels.float())

    def sampler(self) -> BalancedSampler:
        """As many with as without each finding, or every image once per pass."""
        loop = self.config.training
        groups = finding_groups(self.labels)[0] if self.config.boost and self.findings else []
        if not groups:
            return uniform_sampler(len(self.learn), loop.batch_size, loop.seed)
        return BalancedSampler(groups, loop.batch_size, loop.seed)

    def task(self, classifier: nn.Module | None, *, watched: bool = True) -> GANTask:
        """The training job, its networks built from the seed."""
        config, monitors = self.config, None
        if watched:
            monitors = Monitors(
                self.learn,
                self.held,
                self.labels,
                self.asked,
                self.findings,
                classifier,
                conditional=config.conditional,
                config=config.monitor,
            )
        seed_everything(config.training.seed)
        conditional = config.network.labels > 0
        watch = torch.eye(len(self.findings) + 1)[:, 1:] if conditional else None  # none of them, then each one
        return GANTask(config.network, config.objective, config.training.batch_size, self.frequency, monitors, watch)


def _check_classes(labels: np.ndarray, findings: tuple[str, ...], folder: Path | None) -> None:
    for name, values in zip(findings, labels.T, strict=True):
        for value, what in ((1, "with"), (0, "without")):
            if not (values == value).any():
                raise InputError(
                    f"no training image is known to be {what} it",
                    path=folder,
                    field=name,
                    remedy="Add such images; or leave it out by naming the other findings, or train unconditionally",
                )
