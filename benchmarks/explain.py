"""medXGAN+ against its rivals and its published form, on the same classifiers and images.

    python benchmarks/explain.py lgg --data ../shared/data/lgg_mri --out runs/explain-lgg
    python benchmarks/explain.py phantom --out runs/explain-phantom
    python benchmarks/explain.py nih --data ../shared/data/nih_cxr --out runs/explain-nih

Three runs each, every one with patients of its own to test (a fold, or for the phantom films of its own), its own
seed, explained classifier, oracle (other seed and architecture), explainer and rivals; the published recipe is trained
for the CPU time that medXGAN+ took and explains a sample with its 5,000-step inversion. Figures are pooled over the
tested images. What is done is kept: the same command goes on after an interruption, and one that asks otherwise only
judges anew. What would have to be trained otherwise needs a folder of its own.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from real import with_split
from record import facts, phantom_store
from rich.console import Console

from counterscan.bench.evaluation import Evaluation
from counterscan.bench.explain_report import evaluate_explainer
from counterscan.bench.explain_tables import ExplainerEvaluation
from counterscan.bench.workers import end_with_parent
from counterscan.classify import ClassifyConfig, load_classifier, train_classifier
from counterscan.data.importers import IMPORTERS
from counterscan.data.phantom.config import PhantomConfig
from counterscan.data.prepare import prepare
from counterscan.data.splits import folds, spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import read_json, write_json, write_text
from counterscan.medxgan import ExplainConfig, MedXGAN
from counterscan.medxgan.published import PublishedConfig, PublishedMedXGAN
from counterscan.medxgan.training import MedXGANConfig, fit
from counterscan.nets.cnn import ClassifierConfig
from counterscan.training.config import changes, plain

ORACLE = ClassifierConfig(widths=(24, 48, 96), pool="gap")  # wider, shallower, and pooled otherwise
_TIMED = (10, 40)  # steps of two trainings of the published recipe, from whose difference the time of one is told
_TRAINED = ("size", "steps", "finding", "flip", "classifier_steps")  # options that trained networks depend on


@dataclass
class Options:
    """What all sets share."""

    out: Path
    """Runs, evaluations and tables."""
    size: int = 64
    """Working size in pixels."""
    runs: int = 3
    """Runs, each with its own tested patients, seed, classifier, oracle, explainer and rivals."""
    workers: int = 2
    """Runs at once, one thread each."""
    steps: int = 1200
    """Steps of medXGAN+."""
    sample: int = 12
    """Images for what is slow: stability, randomisation, the published inversion."""
    most: int = 120
    """Tested images of each run at most."""
    masks: tuple[float, ...] = ExplainConfig().masks
    """Thresholds of the transfer mask, tried in turn."""
    rivals: tuple[str, ...] = ()
    """Who enters beside medXGAN+, by the names in the tables; all by default."""
    slow: tuple[str, ...] = ("RISE",)
    """Rivals that are asked about the sample only."""
    published: bool = True
    """Also train and ask the published recipe."""
    finding: str = "Brain Tumor"
    """What is explained."""
    flip: float = 0.5
    """Share of mirrored views in training the classifiers."""
    classifier_steps: int = 500
    """Steps of the explained classifier and of the oracle."""

    def store(self, run: int) -> PreparedStore:
        """The prepared images of one run, split into train, val and test by patient."""
        raise NotImplementedError

    def classifier(self, seed: int, model: ClassifierConfig) -> ClassifyConfig:
        """Settings of a classifier."""
        base = ClassifyConfig(model=model, seed=seed, steps=self.classifier_steps, tensorboard=False)
        return replace(base, augment=replace(base.augment, flip=self.flip))


def explainer_config(steps: int, seed: int) -> MedXGANConfig:
    """Settings of medXGAN+: the package's defaults."""
    base = MedXGANConfig()
    return replace(base, training=replace(base.training, steps=steps, seed=seed, tensorboard=False))


def timed(folder: Path, name: str, work: partial) -> float:
    """CPU seconds of a training in ``folder/name`` that is done once; an interrupted one starts anew, or they would
    only be its last part's."""
    kept = folder / f"{name}.json"
    if not kept.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        start = time.process_time()
        work()
        write_json(kept, {"cpu_seconds": time.process_time() - start})
    return float(read_json(kept)["cpu_seconds"])


def train_published(options: Options, store: PreparedStore, folder: Path, run: int, seconds: float) -> int:
    """The published recipe for about that many CPU seconds, told from some first steps; its number of steps."""
    classifier, base = load_classifier(folder / "classifier"), PublishedConfig()

    def config(steps: int) -> PublishedConfig:
        training = replace(base.training, steps=steps, seed=run, tensorboard=False, precision="auto")
        return replace(base, training=replace(training, validate_every=0, sample_every=0, checkpoint_every=0))

    def train(steps: int, place: str) -> None:
        PublishedMedXGAN.fit(store, classifier, folder / place, config(steps), finding=options.finding)

    few, more = (timed(folder, f"published_{n}", partial(train, n, f"published_{n}")) for n in _TIMED)
    steps = max(1, round(seconds / ((more - few) / (_TIMED[1] - _TIMED[0]))))
    timed(folder, "published", partial(train, steps, "published"))
    return steps


def one_run(options: Options, run: int) -> tuple[int, dict[str, float]]:
    """Train and judge one run; what its parts took."""
    torch.set_num_threads(1)
    store, folder = options.store(run), options.out / f"run{run}"
    same_training(options, store, folder)
    explain = replace(ExplainConfig(), masks=options.masks)
    asked = {name: getattr(options, name) for name in ("most", "sample", "rivals", "slow", "published")}
    asked = plain({**asked, "explain": explain})
    if (folder / "done.json").exists():
        done = read_json(folder / "done.json")
        if done["asked"] == asked:
            return run, done["took"]
    took = {}
    for name, seed, model in (("classifier", 100 + run, ClassifierConfig()), ("oracle", 200 + run, ORACLE)):
        work = partial(train_classifier, store, folder / name, options.classifier(seed, model))
        took[name] = timed(folder, name, work)
    classifier = load_classifier(folder / "classifier")
    took["medXGAN+"] = timed(
        folder,
        "medxgan",
        partial(fit, store, classifier, folder / "medxgan", explainer_config(options.steps, run)),
    )
    published = None
    if options.published:
        took["published steps"] = train_published(options, store, folder, run, took["medXGAN+"])
        published = PublishedMedXGAN.from_pretrained(folder / "published" / "model")
    evaluate_explainer(
        as_now(folder, explain),
        fewer(store, options.finding, options.most),
        folder / "evaluation",
        findings=(options.finding,),
        oracle=load_classifier(folder / "oracle"),
        published=published,
        rivals=options.rivals,
        slow=options.slow,
        sample=options.sample,
        run=folder / "medxgan",
    )
    write_json(folder / "done.json", {"asked": asked, "took": took})
    return run, took


def same_training(options: Options, store: PreparedStore, folder: Path) -> None:
    """Note what the networks of a run are trained from, the first time; later it must be the same."""
    images = {"content": store.content, "division": store.division}
    now, noted = plain({name: getattr(options, name) for name in _TRAINED} | images), folder / "trained.json"
    if not noted.exists():
        write_json(noted, now)
    for name, _, _ in changes(read_json(noted), now):
        raise InputError("its networks were trained otherwise", path=folder, field=name, remedy="Give another --out")


def as_now(run: Path, config: ExplainConfig | None = None) -> MedXGAN:
    """A run's explainer, explaining as the package does now, not as it did at the training."""
    explainer = MedXGAN.from_pretrained(run / "medxgan" / "model")
    explainer.config = ExplainConfig() if config is None else config
    return explainer


def fewer(store: PreparedStore, finding: str, most: int) -> PreparedStore:
    """The store with at most so many tested images that have the finding, evenly spaced, and as many without."""
    column, kept = store.findings.index(finding), store.split != "test"
    for value in (0, 1):
        rows = np.flatnonzero((store.split == "test") & (store.labels[:, column] == value))
        kept[spaced(rows, most)] = True
    view = store.subset(slice(None))
    view.split = np.where(kept, store.split, "")
    return view


def summed(agreements: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Of all runs together."""
    return (sum(a for a, _ in agreements), sum(n for _, n in agreements)) if agreements else None


def report(options: Options) -> None:
    """Train and judge every run; write ``evaluation.json``, ``per_image.csv`` and ``results.md``; print the tables."""
    with multiprocessing.get_context("spawn").Pool(
        min(options.workers, options.runs), initializer=end_with_parent
    ) as pool:
        took = dict(pool.imap_unordered(partial(one_run, options), range(options.runs)))
    name = options.finding.lower().replace(" ", "_")
    parts = [ExplainerEvaluation.load(options.out / f"run{k}" / "evaluation" / name) for k in range(options.runs)]
    systems = list(parts[0].realism)
    pooled = ExplainerEvaluation(
        Evaluation.concat([part.evaluation for part in parts]),
        {name: [entry for part in parts for entry in part.realism[name]] for name in systems},
        agreement=summed([part.agreement for part in parts if part.agreement is not None]),
    )
    pooled.save(options.out)
    spent = {key: [round(took[k].get(key, 0) / 60, 1) for k in sorted(took)] for key in ("classifier", "medXGAN+")}
    note = (
        f"{facts()}; {options.runs} runs, {options.size} px; CPU minutes by "
        f"run: {spent}; steps of the published recipe: {[took[k].get('published steps') for k in sorted(took)]}; "
        f"counts {pooled.evaluation.counts()}"
    )
    tables = pooled.tables()
    write_text(options.out / "results.md", "\n\n".join([note, *(table.to_markdown() for table in tables)]))
    for table in tables:
        Console().print(table.to_markdown())
    Console().print(note)


@dataclass
class Manifest(Options):
    """A set with a manifest, its patients dealt into folds; run k tests fold k."""

    data: Path = Path("data")
    """Folder of the set, with its manifest.csv."""
    folds: int = 5
    """Folds by patient."""

    def prepare(self) -> None:
        """Decode the set once, with the one label that is asked about."""
        table = IMPORTERS["manifest"](self.data).with_findings([self.finding])
        prepare(table, self.out / "store", size=self.size, workers=1)

    def store(self, run: int) -> PreparedStore:
        """Fold ``run``."""
        store = PreparedStore.open(self.out / "store")
        return with_split(store, *folds(store.table, self.folds, 0)[run])

    def run(self) -> None:
        """All of it."""
        self.prepare()
        report(self)


@dataclass
class Lgg(Manifest):
    """Brain tumours on FLAIR slices, pixel masks."""


@dataclass
class Nih(Manifest):
    """Chest films called abnormal by their reports: no masks but 23 boxes, so mostly about the counterparts."""

    finding: str = "Abnormal"
    """What is explained."""
    flip: float = 0.0
    """Share of mirrored views; hearts have a side."""


@dataclass
class Phantom(Options):
    """The chest phantom: true masks and true healthy twins; every run renders films of its own."""

    finding: str = "Consolidation"
    """What is explained; the classifier knows Pneumothorax as well."""
    flip: float = 0.0
    """Share of mirrored views; hearts have a side."""
    classifier_steps: int = 700
    """Steps of the explained classifier and of the oracle."""
    count: int = 1500
    """Films of a run."""

    def store(self, run: int) -> PreparedStore:
        """The films of one run; rendered the first time."""
        config = PhantomConfig(size=self.size, findings=("Consolidation", "Pneumothorax"), prevalence=0.3)
        shares = {"train": 0.7, "val": 0.1, "test": 0.2}
        return phantom_store(self.out / f"phantom{run}", self.out / f"store{run}", self.count, config, shares, run)

    def run(self) -> None:
        """All of it."""
        for run in range(self.runs):
            self.store(run)  # here, before two processes ask for it
        report(self)


if __name__ == "__main__":
    tyro.cli(Lgg | Nih | Phantom).run()  # type: ignore[arg-type]
