"""The generator at 64 px on a CPU: how it gets on, and whether adaptive augmentation helps where images are few.

    python benchmarks/generator.py phantom --out runs/gan-phantom
    python benchmarks/generator.py lgg --data ../shared/data/lgg_mri --out runs/gan-lgg
    python benchmarks/generator.py nih --data ../shared/data/nih_cxr --out runs/gan-nih
    python benchmarks/generator.py few --out runs/gan-few

The first three train the preset cxr64-cpu on patients of the split train and tell FID, in features of a classifier of
those patients, against 200 or fewer validation images at a tenth of the steps and for the chosen checkpoint, and the
AUC with which that classifier finds what was asked for. `few`: with and without adaptive augmentation on 100 and 500
phantom films; KID against 1,000 other films, in features of a classifier of yet other films. What is done is kept.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from explain import timed
from real import with_split
from record import facts, phantom_store, publish
from torch import Tensor

from counterscan.bench.workers import end_with_parent
from counterscan.classify import ClassifyConfig, load_classifier, train_classifier
from counterscan.data.importers import IMPORTERS
from counterscan.data.phantom import PhantomConfig
from counterscan.data.prepare import prepare
from counterscan.data.splits import folds
from counterscan.data.store import PreparedStore
from counterscan.metrics.distance_interval import distance_interval
from counterscan.metrics.realism import InDomainFeatures, features_of, kid_of_all
from counterscan.report.tables import Cell, Table
from counterscan.tbsmgan import GANConfig, StyleGAN, fit, preset
from counterscan.training import read_metrics

FILMS = PhantomConfig(size=64, prevalence=0.25)


@dataclass
class Options:
    """What all share."""

    out: Path
    """Runs and tables."""
    steps: int = 5000
    """Steps of 32 images."""
    seed: int = 0
    """Of everything."""

    def config(self, steps: int) -> GANConfig:
        """The preset cxr64-cpu, looked at ten times."""
        base = preset("cxr64-cpu")
        every = max(1, steps // 10)
        loop = replace(
            base.training, steps=steps, seed=self.seed, threads=1, tensorboard=False, validate_every=every,
            checkpoint_every=every, sample_every=every,
        )  # fmt: skip
        return replace(base, training=loop, classifier=replace(base.classifier, seed=self.seed))

    def store(self) -> PreparedStore:
        """The images, split by patient."""
        raise NotImplementedError

    def run(self) -> None:
        """Train, and tell how it went."""
        torch.set_num_threads(1)
        store, folder = self.store(), self.out / "run"
        self.out.mkdir(parents=True, exist_ok=True)
        seconds = timed(self.out, "seconds", partial(fit, store, folder, self.config(self.steps)))
        gan = StyleGAN.from_pretrained(folder / "model")
        learned = [name for name, known in gan.learned.items() if known]
        seen = [line for line in read_metrics(folder) if "validation/fid" in line]
        rows: list[list[Cell]] = [["FID", seen[0]["validation/fid"], gan.figures["fid"]]]
        for name in gan.findings:
            key = f"consistency/{name}"
            rows.append([f"consistency AUC, {name}", seen[0].get(f"validation/{key}"), gan.figures.get(key)])
        rows += [[n, seen[0].get(f"validation/{n}"), gan.figures.get(n)] for n in ("diversity", "near_ratio", "copies")]
        note = (
            f"{facts()}; {int((store.split == 'train').sum())} training and {int((store.split == 'val').sum())} "
            f"validation images; {self.steps} steps of 32 images, {seconds / 60:.1f} CPU minutes with the classifier "
            f"that watches; learned: {', '.join(learned) or 'none'}; trouble: {'; '.join(gan.diagnoses) or 'none'}."
        )
        columns = ("Figure", f"after {seen[0]['step']} steps", "chosen checkpoint")
        publish(Table("Generator", columns, rows, digits=3), note, self.out / "results.md")


@dataclass
class Phantom(Options):
    """Chest phantoms with seven findings."""

    count: int = 2400
    """Films."""

    def store(self) -> PreparedStore:
        """Films of this seed."""
        return phantom_store(
            self.out / "phantom",
            self.out / "store",
            self.count,
            FILMS,
            {"train": 0.84, "val": 0.08, "test": 0.08},
            self.seed,
        )


@dataclass
class Manifest(Options):
    """A set with a manifest; the first of five folds by patient is left out."""

    data: Path = Path("data")
    """Folder of the set, with its manifest.csv."""
    finding: str = "Brain Tumor"
    """What is asked for."""

    def store(self) -> PreparedStore:
        """The set, prepared once."""
        table = IMPORTERS["manifest"](self.data).with_findings([self.finding])
        prepare(table, self.out / "store", size=64, workers=1)
        store = PreparedStore.open(self.out / "store")
        return with_split(store, *folds(store.table, 5, 0)[0])


@dataclass
class Lgg(Manifest):
    """Brain slices."""


@dataclass
class Nih(Manifest):
    """Chest films."""

    finding: str = "Abnormal"
    """What is asked for."""


@dataclass
class Few(Options):
    """Few films, with and without adaptive augmentation."""

    steps: int = 2000
    """Steps of 32 images."""
    numbers: tuple[int, ...] = (100, 500)
    """Training films."""
    judged: int = 1000
    """Films that samples are compared with."""
    seeds: int = 2
    """Of weights and films drawn for training."""

    def store(self) -> PreparedStore:
        """Films; those of the split test are what samples are compared with."""
        return phantom_store(
            self.out / "phantom", self.out / "store", 3000, FILMS, {"train": 0.6, "val": 0.05, "test": 0.35}, self.seed
        )

    def run(self) -> None:
        """Every number, with and without, every seed."""
        torch.set_num_threads(1)
        store = self.store()
        train = np.flatnonzero(store.split == "train")
        spare = store.subset(np.r_[train[max(self.numbers) * self.seeds :], np.flatnonzero(store.split == "val")])
        settings = ClassifyConfig(steps=600, tensorboard=False)
        settings = replace(settings, augment=replace(settings.augment, flip=0.0))
        timed(self.out, "judge", partial(train_classifier, spare, self.out / "judge", settings))
        jobs = [(n, how, seed) for n in self.numbers for how in ("adaptive", "none") for seed in range(self.seeds)]
        with multiprocessing.get_context("spawn").Pool(1, initializer=end_with_parent) as pool:
            found = dict(zip(jobs, pool.imap(self.one, jobs), strict=True))
        judge = load_classifier(self.out / "judge")
        test = np.flatnonzero(store.split == "test")[: self.judged]
        real = features_of(InDomainFeatures(judge), store.images(test))
        rows: list[list[Cell]] = []
        for n in self.numbers:
            for how in ("adaptive", "none"):
                cells: list[Cell] = []
                for seed in range(self.seeds):
                    images, copies = found[n, how, seed]
                    fake = features_of(InDomainFeatures(judge), images)
                    cells += [distance_interval(kid_of_all, real, fake), copies]
                rows.append([f"{n} films, {'with' if how == 'adaptive' else 'without'} ADA", *cells])
        columns = ("Training", *(f"{what}, seed {s}" for s in range(self.seeds) for what in ("KID", "copies")))
        note = f"{facts()}; {self.steps} steps; KID of 1,000 samples against {len(test)} films nobody learned from."
        publish(Table("Few images", columns, rows, digits=4), note, self.out / "results.md")

    def one(self, job: tuple[int, str, int]) -> tuple[Tensor, float]:
        """Samples of one generator, and its share of near copies."""
        torch.set_num_threads(1)
        count, how, seed = job
        store, folder = self.store(), self.out / f"{count}-{how}-{seed}"
        train = np.flatnonzero(store.split == "train")[: max(self.numbers) * self.seeds]
        chosen = np.random.default_rng(seed).permutation(train)[:count]
        few = store.subset(np.r_[chosen, np.flatnonzero(store.split == "val")])
        config = self.config(self.steps)
        config = replace(
            config,
            training=replace(config.training, seed=seed),
            objective=replace(config.objective, augment=how),  # type: ignore[arg-type]
        )
        gan = fit(few, folder, config, classifier=load_classifier(self.out / "judge"))
        return gan.sample(1000, seed=seed), float(gan.figures["copies"])


if __name__ == "__main__":
    tyro.cli(Phantom | Lgg | Nih | Few).run()  # type: ignore[arg-type]
