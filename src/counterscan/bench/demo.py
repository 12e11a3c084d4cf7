"""The whole of ``tag`` on phantom films, where the truth is known: render, prepare, train, judge, report."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from counterscan.bench.tagging import TagReport, evaluate_tagger
from counterscan.bench.workers import end_with_parent
from counterscan.care import Care
from counterscan.classify import ClassifyConfig, train_classifier
from counterscan.data.phantom import PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.splits import split_by_patient
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.taggan import TagGANConfig, fit

FINDINGS = ("Consolidation", "Pneumothorax")  # one brighter than lung, one darker
COUNT, SIZE = 1500, 64
# No mirror images: hearts have a side.
CARE = Care(shifts=((1, 1), (-1, 1), (1, -1), (-1, -1)), smoothing=1 / 64, reach=0.055)


def demo(folder: Path, seed: int, workers: int, say: Callable[[str], None]) -> tuple[TagReport, float]:
    """Run it; what an interrupted run had finished is kept.

    Args:
        folder: phantom/, store/, run/, judge/ and evaluation/ are made in it.
        seed: of everything.
        workers: processes for rendering, and whether the judge is trained beside the tagger's own classifier.
        say: told what goes on.

    Returns:
        The report, and minutes taken.
    """
    start = time.monotonic()
    torch.set_num_threads(1)
    store = phantom_store(folder, seed, workers, say)
    config = demo_config(seed)
    say("training two classifiers: one for TagGAN and its peers, one that only judges")
    own, judge = folder / "run" / "classifiers" / str(seed), folder / "judge"
    jobs = [(folder, config.classifier, own), (folder, replace(config.classifier, seed=seed + 1000), judge)]
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(2, initializer=end_with_parent) as pool:
            pool.starmap(_train, jobs)
    classifiers: list[nn.Module] = [train_classifier(store, run, wanted) for _, wanted, run in jobs]
    say("training TagGAN")
    tagger = fit(store, folder / "run", config, classifiers=classifiers[:1])
    say("asking TagGAN and its peers about the test films")
    report = evaluate_tagger(
        tagger,
        store,
        folder / "evaluation",
        judge=classifiers[1],
        run=folder / "run",
        native=False,
        ig_steps=8,
        title="TagGAN on the chest phantom",
    )
    return report, (time.monotonic() - start) / 60


def demo_config(seed: int) -> TagGANConfig:
    """The package's defaults, for films instead of slices and two findings instead of one."""
    base = TagGANConfig()
    views = replace(base.objective.augment, flip=0.0)
    # A heavier critic than on slices: films have more anatomy that a map could draw over.
    return replace(
        base,
        training=replace(base.training, seed=seed, steps=400, tensorboard=False),
        objective=replace(base.objective, augment=views, adversarial=1.0),
        classifier=ClassifyConfig(
            seed=seed, steps=700, augment=replace(base.classifier.augment, flip=0.0), tensorboard=False
        ),
        care=CARE,
    )


def phantom_store(folder: Path, seed: int, workers: int, say: Callable[[str], None]) -> PreparedStore:
    """Films on disk as a user would have them: a study table of PNG files, split by patient, prepared once."""
    table = folder / "phantom" / "split.csv"
    if not table.exists():
        say(f"rendering {COUNT} phantom films")
        config = PhantomConfig(size=SIZE, findings=FINDINGS, prevalence=0.3)
        made = write_phantom(folder / "phantom", COUNT, config, seed, workers=workers)
        split_by_patient(made, {"train": 0.7, "val": 0.1, "test": 0.2}, seed).write(table)
    prepare(StudyTable.read(table), folder / "store", size=SIZE, workers=1)
    return PreparedStore.open(folder / "store")


def _train(folder: Path, config: ClassifyConfig, run: Path) -> None:
    torch.set_num_threads(1)
    train_classifier(PreparedStore.open(folder / "store"), run, config)
