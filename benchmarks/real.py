"""TagGAN on real images against its first peers.

    python benchmarks/real.py lgg --data ../shared/data/lgg_mri --out runs/lgg
    python benchmarks/real.py nih --data ../shared/data/nih_cxr --out runs/nih

`lgg`: 5 folds by patient, so that every patient is tested once, 3 seeds of classifier and TagGAN; figures are means
over tumour slices, of maps at the working size and of maps brought to the native 256 px. `nih`: the boxed images are
the test set and their patients are never trained on. What is done is kept: the same command goes on after an
interruption.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from supervised import supervised
from torch import Tensor

from counterscan.bench import Evaluation, calibrated, evaluate_systems, first_peers, native_truth
from counterscan.bench.workers import end_with_parent
from counterscan.classify import load_classifier
from counterscan.counterpart import System
from counterscan.data.augment import AugmentConfig
from counterscan.data.importers import IMPORTERS
from counterscan.data.prepare import prepare
from counterscan.data.splits import folds
from counterscan.data.store import PreparedStore
from counterscan.files import read_json, write_json, write_text
from counterscan.peers.base import AttributionPeer, Masker, Target
from counterscan.taggan import TagGAN, TagGANConfig, fit

KEY = b"benchmark"  # public images: their pseudonyms need no secret, and the same ones in every run


@dataclass
class Options:
    """What both sets share."""

    data: Path
    """Folder of the set, with its manifest.csv."""
    out: Path
    """Runs, evaluation and tables."""
    size: int = 64
    """Working size in pixels."""
    seeds: int = 3
    """Seeds of classifier and TagGAN."""
    workers: int = 2
    """Runs trained at once, one thread each."""
    ig_steps: int = 16
    """Steps of Integrated Gradients."""
    steps: int = 400
    """Steps of TagGAN."""
    ceiling: bool = True
    """Also train the same U-Net on the masks (first seed of each fold)."""

    flip: float = 0.5
    """Share of mirrored views in training."""
    finding: str = "Brain Tumor"
    """What is looked for."""

    def config(self, seed: int) -> TagGANConfig:
        """The package's defaults with this seed."""
        base, flip = TagGANConfig(), self.flip
        return replace(
            base,
            training=replace(base.training, seed=seed, steps=self.steps, tensorboard=False, sample_every=0),
            classifier=replace(
                base.classifier,
                seed=100 + seed,
                tensorboard=False,
                augment=replace(base.classifier.augment, flip=flip),
            ),
            objective=replace(base.objective, augment=replace(base.objective.augment, flip=flip)),
            care=replace(base.care, flips=flip > 0),
        )

    def prepare(self) -> None:
        """Decode the set once, with the one label that is asked about."""
        prepare(
            IMPORTERS["manifest"](self.data).with_findings([self.finding]),
            self.out / f"store{self.size}",
            size=self.size,
            workers=1,
        )

    def store(self) -> PreparedStore:
        """The prepared set."""
        return PreparedStore.open(self.out / f"store{self.size}")


def with_split(store: PreparedStore, train: list[str], val: list[str], test: list[str]) -> PreparedStore:
    """The store with its rows dealt anew."""
    view = store.subset(slice(None))
    names = np.full(len(view), "", dtype="<U5")
    for name, patients in (("train", train), ("val", val), ("test", test)):
        names[np.isin(view.patients, list(patients))] = name
    view.split = names
    return view


def fold_store(options: Options, fold: int, count: int) -> PreparedStore:
    """Fold ``fold`` of LGG; the only "fold" of NIH is the split of its importer."""
    store = options.store()
    return with_split(store, *folds(store.table, count, 0)[fold]) if count > 1 else store


def train_one(options: Options, count: int, job: tuple[int, int]) -> tuple[int, int, float]:
    """One seed of one fold; CPU seconds."""
    seed, fold = job
    torch.set_num_threads(1)
    folder = options.out / f"fold{fold}" / f"seed{seed}"
    if not (folder / "seconds.json").exists():
        start = time.process_time()
        fit(fold_store(options, fold, count), folder, options.config(seed))
        write_json(folder / "seconds.json", {"cpu_seconds": time.process_time() - start})
    return seed, fold, read_json(folder / "seconds.json")["cpu_seconds"]


def train_ceiling(options: Options, count: int, fold: int) -> None:
    """The supervised U-Net of one fold."""
    torch.set_num_threads(1)
    supervised(fold_store(options, fold, count), options.out / f"fold{fold}" / "supervised", options.config(0))


def train_all(options: Options, count: int) -> list[float]:
    """Every seed of every fold; CPU minutes of each."""
    context, minutes = multiprocessing.get_context("spawn"), []
    with context.Pool(options.workers, initializer=end_with_parent) as pool:
        jobs = [(seed, fold) for seed in range(options.seeds) for fold in range(count)]
        for seed, fold, seconds in pool.imap(partial(train_one, options, count), jobs, chunksize=1):
            Console().print(f"fold {fold} seed {seed}: {seconds / 60:.1f} CPU minutes")
            minutes.append(seconds / 60)
        if options.ceiling:
            list(pool.imap(partial(train_ceiling, options, count), range(count), chunksize=1))
    return minutes


def judge_seed(options: Options, count: int, finding: str, job: tuple[int, int]) -> Evaluation:
    """One seed's systems on one fold's test patients; the judge of the healed rate is another seed's classifier."""
    seed, fold = job
    torch.set_num_threads(1)
    store, folder = fold_store(options, fold, count), options.out / f"fold{fold}"
    done = folder / f"seed{seed}" / "evaluation"
    if (done / "evaluation.json").exists():
        return Evaluation.load(done)
    column, boxes = store.findings.index(finding), count == 1
    test, positive = store.split == "test", store.labels[:, column] == 1
    ill, well = np.flatnonzero(test & positive & (store.has_mask | boxes)), np.flatnonzero(test & ~positive)
    tagger = TagGAN.from_pretrained(folder / f"seed{seed}")
    healthy_val = (store.split == "val") & ~positive
    classifiers = [load_classifier(folder / f"seed{k}" / "classifiers" / f"{100 + k}") for k in range(options.seeds)]
    systems: dict[str, System] = {"TagGAN": tagger}
    systems |= first_peers(
        classifiers[seed], store, healthy_val, finding,
        care=tagger.care, ig_care=replace(tagger.care, shifts=()), ig_steps=options.ig_steps, any_lesion=boxes, key=KEY,
        # With boxes on test images only, the prior is learnt from the other test patients; else from training masks.
        location_rows=np.flatnonzero(store.has_mask & (test if boxes else store.split == "train")),
        location_smoothing=tagger.care.smoothing,
    )  # fmt: skip
    systems |= not_spread(tagger, systems, store, healthy_val, finding)
    if options.seeds > 1:
        systems["TagGAN, seeds averaged"] = TagGAN.from_pretrained([folder / f"seed{k}" for k in range(options.seeds)])
    if options.ceiling:
        systems["Supervised by masks"] = supervised(store, folder / "supervised", options.config(0))
    found = evaluate_systems(
        systems, store, ill, finding, healthy_rows=well, any_lesion=boxes, key=KEY,
        native_masks=native_truth(store, finding, any_lesion=boxes),
        classifier=classifiers[(seed + 1) % options.seeds],
    )  # fmt: skip
    found = replace(found, per_image=found.per_image.assign(seed=seed))
    found.save(done)
    return found


def not_spread(
    tagger: TagGAN, systems: dict[str, System], store: PreparedStore, healthy_val: np.ndarray, finding: str
) -> dict[str, System]:
    """TagGAN and the attribution peers without the spreading that all of them get otherwise: as they are commonly
    used, with averaged views and smoothing alone. Attributions are computed once for both."""
    bare = tagger.with_care(replace(tagger.care, reach=0.0))
    bare.calibrate(store, store.split == "val")
    found: dict[str, System] = {"TagGAN, not spread": bare}
    for name, peer in systems.items():
        if isinstance(peer, AttributionPeer):
            peer.attribute = remembered(peer.attribute)  # type: ignore[method-assign]
            found[f"{name}, not spread"] = calibrated(partial(unspread, peer), store, healthy_val, finding, key=KEY)
    return found


def unspread(peer: AttributionPeer, masker: Masker | None) -> AttributionPeer:
    """The same peer, sharing its attributions, without spreading."""
    other = copy.copy(peer)
    other.care, other.masker = replace(peer.care, reach=0.0), masker
    return other


def remembered(attribute: Callable[[Tensor, Target], Tensor]) -> Callable[[Tensor, Target], Tensor]:
    """``attribute`` that answers for images it has seen from memory."""
    known: dict[tuple[bytes, str], Tensor] = {}

    def answer(inputs: Tensor, target: Target) -> Tensor:
        key = (inputs.numpy().tobytes(), str(target))
        if key not in known:
            known[key] = attribute(inputs, target)
        return known[key]

    return answer


def judge(options: Options, count: int, finding: str) -> Evaluation:
    """Every seed of every fold, pooled."""
    jobs = [(seed, fold) for fold in range(count) for seed in range(options.seeds)]
    with multiprocessing.get_context("spawn").Pool(options.workers, initializer=end_with_parent) as pool:
        parts = list(pool.imap(partial(judge_seed, options, count, finding), jobs, chunksize=1))
    pooled = []
    for fold in range(count):
        frames = [part.per_image for (_, k), part in zip(jobs, parts, strict=True) if k == fold]
        pooled.append(replace(parts[0], per_image=pd.concat(frames, ignore_index=True)))
    return Evaluation.concat(pooled)


def report(options: Options, count: int, finding: str) -> None:
    """Train, judge, write ``evaluation.json``, ``per_image.csv`` and ``results.md``, print the tables."""
    options.prepare()
    minutes = train_all(options, count)
    found = judge(options, count, finding)
    found.save(options.out)
    facts = (
        f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}; {options.seeds} seeds, {options.size} px; "
        f"CPU minutes per run (classifier and TagGAN): median {np.median(minutes):.1f}, largest {max(minutes):.1f}; "
        f"counts {found.counts()}"
    )
    write_text(options.out / "results.md", "\n\n".join([facts, *(table.to_markdown() for table in found.tables())]))
    Console().print(found.table())
    Console().print(facts)


@dataclass
class Lgg(Options):
    """Brain tumours on FLAIR slices, pixel masks: 5 folds by patient."""

    folds: int = 5
    """Folds; every patient is tested once."""

    def run(self) -> None:
        """All of it."""
        report(self, self.folds, self.finding)


@dataclass
class Nih(Options):
    """Chest films with 23 boxed images, all tested: exploratory."""

    flip: float = 0.0
    """Share of mirrored views in training; hearts have a side."""
    finding: str = "Abnormal"
    """What is looked for."""
    films: bool = False
    """The phantom demo's settings for films (critic weight 1, a longer trained classifier) and strong views."""
    ceiling: bool = False
    """Not here: boxes are on test images only, so there is nothing to learn from."""

    def config(self, seed: int) -> TagGANConfig:
        """The package's defaults with this seed, or those for films."""
        base = super().config(seed)
        if not self.films:
            return base
        return replace(
            base,
            objective=replace(base.objective, adversarial=1.0),
            classifier=replace(base.classifier, steps=700, augment=AugmentConfig.strong(self.flip)),
        )

    def run(self) -> None:
        """All of it."""
        report(self, 1, self.finding)


if __name__ == "__main__":
    tyro.cli(Lgg | Nih).run()  # type: ignore[arg-type]
