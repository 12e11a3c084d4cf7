"""Audits of explanations beside `benchmarks/explain.py`.

    python benchmarks/explain_audits.py shortcut --out runs/explain-shortcut
    python benchmarks/explain_audits.py retrained --run-folder runs/lgg/run0 --store runs/lgg/store --fold 0
    python benchmarks/explain_audits.py speed --run-folder runs/lgg/run0 --store runs/lgg/store --fold 0
    python benchmarks/explain_audits.py strangers --run-folder runs/lgg/run0 --store runs/lgg/store --fold 0

`shortcut`: a classifier learns from films whose consolidations mostly carry a tag in a corner; who points at the tag?
`retrained`: the randomisation test for maps that do not ask the classifier when they explain: medXGAN+ is trained anew
for a classifier whose layers were randomised. `speed`: seconds per explanation side by side in one process.
`strangers`: are images unlike the training images told apart, and are those that need no change left alone?
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from explain import as_now, explainer_config, timed
from real import with_split
from record import facts, phantom_store, publish
from torch import Tensor, nn

from counterscan.bench.explain_classifier import Reading
from counterscan.bench.explain_peers import explain_peers
from counterscan.bench.explain_stability import randomisation_test, signed_maps
from counterscan.bench.subjects import study_batch
from counterscan.classify import ClassifyConfig, load_classifier, train_classifier
from counterscan.counterpart import Query, StudyBatch, System
from counterscan.data.load import load
from counterscan.data.phantom.config import PhantomConfig
from counterscan.data.phantom.marks import SHORTCUT_CORNER
from counterscan.data.readers import iter_images
from counterscan.data.splits import folds, spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.medxgan import MedXGAN
from counterscan.medxgan.inversion import RefineConfig
from counterscan.medxgan.published import PublishedMedXGAN
from counterscan.medxgan.training import fit
from counterscan.metrics.intervals import mean_interval
from counterscan.metrics.localisation import pixel_average_precision, pointing_game
from counterscan.metrics.stability import map_similarity
from counterscan.report.tables import Table


@dataclass
class Shortcut:
    """A classifier that goes by a planted tag: do explanations show it?"""

    out: Path
    """Films, runs and the table."""
    size: int = 64
    """Working size in pixels."""
    count: int = 1500
    """Films."""
    seeds: int = 2
    """Seeds of films, classifier and explainer."""
    steps: int = 600
    """Steps of medXGAN+."""
    most: int = 60
    """Tested films of each seed at most."""

    def run(self) -> None:
        """All of it."""
        torch.set_num_threads(1)
        figures: dict[str, list[Tensor]] = {}
        patients: list[str] = []
        removed: list[Tensor] = []
        for seed in range(self.seeds):
            patients += self.one(seed, figures, removed)
        rows = []
        for name, parts in figures.items():
            found = torch.cat(parts, dim=1)
            rows.append([name, *(mean_interval(found[k], patients) for k in range(2))])
        better = {"Points at the tag": "high", "AP of the tag": "high"}
        own = next(iter(figures))
        table = Table("Who shows the shortcut", ("System", *better), rows, better=better, own=own)  # type: ignore[arg-type]
        gone = mean_interval(torch.cat(removed), patients)
        note = (
            f"{facts()}; {self.seeds} seeds; {len(patients)} tested films on which the tag carries the call (painting "
            f"it over takes the call or 1 logit away); the counterpart takes {gone} of the tag's contrast away."
        )
        publish(table, note, self.out / "results.md")

    def one(self, seed: int, figures: dict[str, list[Tensor]], removed: list[Tensor]) -> list[str]:
        """One seed; adds (2, n) figures by system, returns the films' patients."""
        store, tags = self.store(seed)
        folder, finding = self.out / f"seed{seed}", "Consolidation"
        folder.mkdir(parents=True, exist_ok=True)
        classify = ClassifyConfig(seed=100 + seed, steps=500, tensorboard=False)
        classify = replace(classify, augment=replace(classify.augment, flip=0.0, shift=0.0))
        timed(folder, "classifier", partial(train_classifier, store, folder / "classifier", classify))
        classifier = load_classifier(folder / "classifier")
        config = explainer_config(self.steps, seed)
        timed(folder, "medxgan", partial(fit, store, classifier, folder / "medxgan", config))
        explainer = as_now(folder)
        reading, box = Reading(classifier, finding), tag_box(store.size)
        tagged = np.flatnonzero((store.split == "test") & tags)
        images = store.images(tagged)
        with_tag, without = reading.margins(images), reading.margins(painted_over(images, box))
        carried = (with_tag >= 0) & ((without < 0) | (with_tag - without >= 1))
        chosen = spaced(tagged[carried.numpy()], self.most)
        names = np.array([f"{seed} {patient}" for patient in store.patients[chosen]])
        peers = explain_peers(explainer, store, finding, folder=folder)
        batch, truth = study_batch(store, chosen, names), box.expand(len(chosen), 1, -1, -1)
        for name, system in peers.systems.items():
            answers = system.counterparts(batch, Query(finding))
            maps = torch.stack([a.evidence.detach() for a in answers])
            found = torch.stack([pointing_game(maps, truth), pixel_average_precision(maps, truth)])
            figures.setdefault(name, []).append(found)
            if system is explainer:
                after = torch.stack([a.counterpart for a in answers if a.counterpart is not None])
                removed.append(1 - contrast(after, box) / contrast(batch.images, box))
        return names.tolist()

    def store(self, seed: int) -> tuple[PreparedStore, np.ndarray]:
        """Films and which of them carry the tag."""
        folder = self.out / f"phantom{seed}"
        config = PhantomConfig(
            size=self.size, findings=("Consolidation",), prevalence=0.4, shortcut="Consolidation", shortcut_rate=0.9
        )
        shares = {"train": 0.6, "val": 0.1, "test": 0.3}
        store = phantom_store(folder, self.out / f"store{seed}", self.count, config, shares, seed)
        return store, store.table.frame["shortcut"].to_numpy().astype(int) == 1


def tag_box(size: int) -> Tensor:
    """(1, 1, size, size) bool: the pixels that the tag touches."""
    left, top, width, height = (share * size for share in SHORTCUT_CORNER)
    box = torch.zeros(1, 1, size, size, dtype=torch.bool)
    box[..., int(top) : int(np.ceil(top + height)), int(left) : int(np.ceil(left + width))] = True
    return box


def _around(box: Tensor) -> Tensor:
    """The pixels beside the tag."""
    wide = nn.functional.max_pool2d(box.float(), 5, stride=1, padding=2) > 0
    return wide & ~box


def painted_over(images: Tensor, box: Tensor) -> Tensor:
    """Images (N, 1, H, W) with the mean of the pixels beside the tag in its place."""
    beside = (images * _around(box)).sum((1, 2, 3), keepdim=True) / _around(box).sum()
    return torch.where(box, beside, images)


def contrast(images: Tensor, box: Tensor) -> Tensor:
    """(N,) mean of the tag above the pixels beside it."""
    return (images * box).sum((1, 2, 3)) / box.sum() - (images * _around(box)).sum((1, 2, 3)) / _around(box).sum()


@dataclass
class Trained:
    """A run of benchmarks/explain.py."""

    run_folder: Path = tyro.MISSING
    """Folder of the run, with classifier, medxgan and published."""
    store: Path = tyro.MISSING
    """Its prepared store."""
    fold: int | None = None
    """The fold that the run tested, where the store is not split itself."""
    folds: int = 5
    """Into how many the set was dealt."""
    finding: str = "Brain Tumor"
    """What is explained."""
    images: int = 12
    """Images looked at."""

    def open(self) -> tuple[PreparedStore, nn.Module, np.ndarray]:
        """Store, explained classifier, rows of the sample."""
        torch.set_num_threads(1)
        store = PreparedStore.open(self.store)
        if self.fold is not None:
            store = with_split(store, *folds(store.table, self.folds, 0)[self.fold])
        classifier = load_classifier(self.run_folder / "classifier")
        ill = np.flatnonzero((store.split == "test") & (store.labels[:, store.findings.index(self.finding)] == 1))
        called = Reading(classifier, self.finding).margins(store.images(ill)) >= 0
        return store, classifier, spaced(ill[called.numpy()], self.images)


@dataclass
class Retrained(Trained):
    """The randomisation test with the generator trained anew for each randomised classifier; beside it, how alike maps
    of the same classifier are when only the training's seed differs."""

    steps: int = 400
    """Steps of every explainer, the one of the trained classifier included."""

    def run(self) -> None:
        """All of it."""
        store, classifier, rows = self.open()
        networks: list[MedXGAN] = []

        def anew(other: nn.Module, seed: int = 0) -> MedXGAN:
            folder = self.run_folder / "retrained" / str(len(networks))
            networks.append(fit(centred(store, other), other, folder, explainer_config(self.steps, seed)))
            explainer = networks[-1]
            explainer.config = replace(explainer.config, evidence="difference")
            return explainer

        def centred(store: PreparedStore, other: nn.Module) -> PreparedStore:
            """The store; the classifier's last bias is moved so that it calls half of the training images positive."""
            x = store.images(np.flatnonzero(store.split == "train"))
            with torch.no_grad():
                logits = torch.cat([other(part) for part in x.split(128)])
                bias = [p for name, p in other.named_parameters() if name.endswith("bias")][-1]
                bias -= logits.median(dim=0).values
            return store

        frame = randomisation_test({"difference": anew}, classifier, store, rows, self.finding)
        same = next(explainer for explainer in networks if explainer.classifier is classifier)
        batch, patients = store.batch(rows), [str(p) for p in store.patients[rows]]
        maps = [signed_maps(system, batch, self.finding) for system in (same, anew(classifier, seed=1))]
        alike = map_similarity(*maps, batch.valid).spearman
        left = [torch.tensor(frame[f"mprt_{depth}"].to_numpy()) for depth in ("top", "half", "all")]
        table = Table(
            "Spearman after randomising",
            ("System", "top", "half", "all", "nothing, but of another seed"),
            [["difference, retrained", *(mean_interval(values, patients) for values in (*left, alike))]],
        )
        note = f"{facts()}; {self.steps} steps each; {len(rows)} images."
        publish(table, note, self.run_folder / "retrained" / "results.md")


@dataclass
class Speed(Trained):
    """Seconds per explanation on one thread, everybody in turn."""

    published_images: int = 2
    """Images that the published 5,000-step inversion is asked about."""
    rivals: tuple[str, ...] = ("Grad-CAM", "IG, black", "SmoothGrad", "Occlusion", "RISE", "Wachter", "Latent Shift")
    """Who is timed beside medXGAN+."""
    rounds: int = 3
    """Times that everybody is asked."""

    def run(self) -> None:
        """All of it."""
        store, _, rows = self.open()
        explainer = as_now(self.run_folder)
        place = self.run_folder / "evaluation"
        peers = explain_peers(explainer, store, self.finding, folder=place, rivals=self.rivals)
        asked: dict[tuple[str, int], Callable[[Tensor], object]] = {}
        for steps in (0, 50, 200):
            system = explainer.variant(config=replace(explainer.config, refine=RefineConfig(steps=steps)))
            for count in (1, 4, 12):
                asked[f"medXGAN+, {steps} steps", count] = partial(system.explain, target=self.finding)
        for name, system in peers.systems.items():
            if name in self.rivals:
                for count in (1, 12):
                    asked[name, count] = partial(peer_answers, system, self.finding)
        images = store.images(rows)
        rounds = [
            {key: [seconds(ask, part) for part in images.split(key[1])] for key, ask in asked.items()}
            for _ in range(self.rounds)
        ]
        taken = {key: np.median([taken[key] for taken in rounds], axis=0) for key in asked}
        published = self.run_folder / "published" / "model"
        if published.exists():
            some = images[: self.published_images]
            inverted = PublishedMedXGAN.from_pretrained(published)
            taken[inverted.name, len(some)] = np.array([seconds(partial(inverted.explain, target=self.finding), some)])
        own = float(np.median(taken["medXGAN+, 50 steps", 12]))
        cells = [[*key, float(np.median(t)), float(t.max()), float(np.median(t)) / own] for key, t in taken.items()]
        columns = ("System", "At once", "Seconds an image", "The slowest", "Ratio to medXGAN+, 50 steps, 12 at once")
        note = f"{facts()}; {len(images)} images, every one the median of {self.rounds} rounds; medians over them."
        publish(Table("Time", columns, cells, digits=3), note, self.run_folder / "speed.md")


@dataclass
class Strangers(Trained):
    """Images of another kind, and images that are called negative as they are."""

    others: tuple[Path, ...] = ()
    """Folders of images of another kind; all that can be read is shown."""
    most: int = 150
    """Images of each such folder at most."""

    def run(self) -> None:
        """All of it."""
        store, classifier, _ = self.open()
        explainer = as_now(self.run_folder)
        if explainer.familiarity is None:
            raise InputError(
                "it was trained before strangers were told apart", path=self.run_folder, remedy="Train it anew"
            )
        rows = np.flatnonzero(store.split == "test")
        own = store.images(rows)
        shown = {"test images": own, **{name: change(own) for name, change in CHANGES.items()}}
        shown |= {"/".join(folder.parts[-2:]): read_all(folder, explainer, self.most) for folder in self.others}
        trusting = explainer.variant()
        trusting.familiarity = None
        cells = []
        for name, images in shown.items():
            strange = explainer.familiarity.strangeness(explainer.witnesses, images)
            answers = trusting.explain(images[spaced(np.arange(len(images)), self.images)], self.finding)
            missed = np.mean([answer.verdict.startswith("not explainable") for answer in answers])
            cells.append([name, len(images), float((strange > 1).float().mean()), float(missed)])
        columns = ("Images", "Count", "Told apart", "By the limits of the inversion alone, of a sample")
        place, told = self.run_folder / "strangers.md", self.left_alone(explainer, classifier, store, rows)
        publish(Table("Strangers", columns, cells), f"{facts()}; {told}", place)

    def left_alone(self, explainer: MedXGAN, classifier: nn.Module, store: PreparedStore, rows: np.ndarray) -> str:
        """What becomes of images that are called negative."""
        margins = Reading(classifier, self.finding).margins(store.images(rows))
        chosen = spaced(rows[(margins < 0).numpy()], self.images)
        answers = explainer.explain(store.images(chosen), self.finding)
        names = [str(patient) for patient in store.patients[chosen]]
        changed = mean_interval(torch.stack([answer.delta.abs().mean() for answer in answers]), names)
        before = np.mean([answer.score_before for answer in answers])
        after = np.mean([answer.score_after for answer in answers])
        return (
            f"{len(chosen)} test images that the classifier calls negative: mean |change| {changed}, p {before:.2f} "
            f"before and {after:.2f} after."
        )


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "their negatives": lambda x: -x,
    "turned by a quarter": lambda x: x.rot90(1, (2, 3)),
    "upside down": lambda x: x.flip(2),
    "mirrored": lambda x: x.flip(3),
    "their middle 60 %": lambda x: _resized(x[..., _fifth(x) : -_fifth(x), _fifth(x) : -_fifth(x)], x.shape[-1]),
    "with noise, sigma .2": lambda x: (x + 0.2 * torch.randn(x.shape, generator=_seeded())).clamp(-1, 1),
}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _fifth(x: Tensor) -> int:
    return x.shape[-1] // 5


def _resized(x: Tensor, size: int) -> Tensor:
    return nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True).clamp(-1, 1)


def read_all(folder: Path, explainer: MedXGAN, most: int) -> Tensor:
    """Images (N, 1, size, size) of a folder, evenly spaced, as the explainer takes them; without unreadable ones."""
    assert explainer.size is not None
    images, items = list[Tensor](), list(iter_images(folder))
    for k in spaced(np.arange(len(items)), most):
        with contextlib.suppress(InputError):
            images.append(load(items[k].path, explainer.recipe, explainer.size, items[k].frame)[0])
    return torch.stack(images)


def peer_answers(system: System, finding: str, images: Tensor) -> object:
    """What a rival says of images (N, 1, H, W)."""
    return system.counterparts(StudyBatch(images), Query(finding))


def seconds(ask: Callable[[Tensor], object], images: Tensor) -> float:
    """Seconds an image that a question about some takes."""
    start = time.perf_counter()
    ask(images)
    return (time.perf_counter() - start) / len(images)


if __name__ == "__main__":
    tyro.cli(Shortcut | Retrained | Speed | Strangers).run()  # type: ignore[arg-type]
