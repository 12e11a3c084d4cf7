"""Does augmentation help? The whole study, one command for each set of images.

    python benchmarks/study.py phantom --profile quick --out runs/study
    python benchmarks/study.py lgg --data ../shared/data/lgg_mri --out runs/study-lgg
    python benchmarks/study.py nih --data ../shared/data/nih_cxr --out runs/study-nih
    python benchmarks/study.py covid --data ../shared/data/covid_cxr --out runs/study-covid

`phantom`: chest films with a long tail of findings, the rarest in 2 % of them; 2,000 to train on, 8,000 to test on. The
profile quick takes about 80 CPU minutes, half of that on two cores. `--perfect` adds the arm "given": edits as no
generator can make them, training bodies rendered anew with one finding more or less; what they gain is the most that
edits of these bodies can. `lgg`: brain slices, few of them with a tumour, and neither generator nor text: do grafts
help? `nih`: labels, and short reports made of its lists of findings; small, so that only large
effects show. `covid`: images with clinical notes, from different hospitals for the two classes; shows that everything
runs, and no more. The same command goes on with an interrupted study.
Written: `study.yaml` (the protocol, frozen first), `report.html`, `tables.md`, `study.json`, `times.json`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from PIL import Image
from rich.console import Console

from counterscan.bench.study_config import PROFILES, SPLITS, StudyConfig
from counterscan.bench.study_content import wanted
from counterscan.bench.study_run import run_study
from counterscan.cli.study import StudyOptions
from counterscan.data.importers import IMPORTERS
from counterscan.data.phantom import PhantomConfig, render, write_phantom
from counterscan.data.phantom.dataset import to_uint8
from counterscan.data.prepare import prepare
from counterscan.data.splits import folds, split_by_patient
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError


@dataclass
class Options(StudyOptions):
    """What all sets share; what is not given is the profile's."""

    clip_steps: int | None = None
    """Steps of the text-image model."""
    verifier_steps: int | None = None
    """Steps of each verifier."""
    tries: float | None = None
    """At most so many edits per image that is wanted."""
    weight: float | None = None
    """Of a synthetic image in the loss, a real one has 1."""
    least: float | None = None
    """Share of edits that must pass the gate on some bodies, or a finding is left alone."""
    resamples: int | None = None
    """Bootstrap draws of patients."""
    others: Literal["source", "agreed"] | None = None
    """Labels of findings that were not edited."""
    cards: bool = False
    """Quality cards of the synthetic sets."""

    def config(self, **own: Any) -> StudyConfig:
        """The profile with what a set needs, and what was asked for."""
        asked = self.given("clip_steps", "verifier_steps", "tries", "weight", "least", "resamples", "others")
        base = PROFILES[self.profile]()
        return replace(base, force=self.force, cards=self.cards or base.cards, **{**own, **asked})

    def study(self, table: StudyTable, config: StudyConfig) -> None:
        """Prepare, run, print."""
        prepare(table, self.out / "store", size=self.size, workers=self.workers)
        store = PreparedStore.open(self.out / "store")
        report = run_study(
            store,
            self.out,
            config,
            workers=self.workers,
            generator=self.generator,
            clip=self.text_model,
            given=self.synthetic_images(store),
            say=lambda line: print(line, flush=True),
        )
        for shown in report.tables:
            Console(width=160).print(shown.to_rich())
        print("\n".join([*report.sentences, *(f"{k} left out: {v}" for k, v in report.left_out.items())]))
        print(f"{report.page}: {report.minutes['total']:.1f} minutes of CPU time")


@dataclass
class Phantom(Options):
    """Phantom chest films with a long tail of findings."""

    train: int = 2000
    """Films to train on."""
    val: int = 600
    """Films to validate on."""
    test: int = 8000
    """Films to test on."""
    prevalence: tuple[str, ...] = (
        "Pleural Effusion=0.25",
        "Cardiomegaly=0.10",
        "Edema=0.04",
        "Consolidation=0.02",
    )
    """Findings and their shares of films."""
    data_seed: int = 0
    """Of the films."""
    perfect: bool = False
    """Add the arm "given", of perfect edits."""

    def run(self) -> None:
        """Render once, then the study."""
        path, rates = self.out / "phantom" / "split.csv", dict(map(_rate, self.prevalence))
        phantom = PhantomConfig(size=self.size, findings=tuple(rates), prevalence=rates)
        if not path.exists():
            count = self.train + self.val + self.test
            made = write_phantom(
                self.out / "phantom", count, phantom, self.data_seed, workers=self.workers, twins=False
            )
            shares = {name: getattr(self, name) / count for name in SPLITS}
            split_by_patient(made, shares, self.data_seed).write(path)
        table = StudyTable.read(path)
        config = self.config(findings=table.findings)
        if self.perfect:
            config = replace(config, arms=tuple(dict.fromkeys((*config.arms, "given"))))
            self.images = perfect_edits(table, phantom, self.data_seed, config, self.out / "perfect")
        self.study(table, config)


@dataclass
class LGG(Options):
    """Brain tumours on FLAIR slices, few of which have one in training: grafts against duplicates."""

    data: Path = Path("../shared/data/lgg_mri")
    """Folder with manifest.csv."""
    positives: int = 40
    """Training slices with a tumour, of as few patients as have them; further ones are left out."""
    fold: int = 0
    """Of three by patient: which is tested."""

    def run(self) -> None:
        """A fold, then the study."""
        table = IMPORTERS["manifest"](self.data).with_findings(["Brain Tumor"])
        parts = dict(zip(SPLITS, folds(table, 3, 0, val_fraction=1 / 3)[self.fold], strict=True))
        split = {patient: name for name, patients in parts.items() for patient in patients}
        # Names go by hospital, so positives are kept in an order of their own.
        turn = {p: k for k, p in enumerate(np.random.default_rng(self.fold).permutation(parts["train"]))}
        whose = table.frame["patient"].astype(str)
        frame = table.frame.assign(split=whose.map(split), turn=whose.map(turn)).sort_values("turn", kind="stable")
        ill = (frame["split"] == "train") & (frame["Brain Tumor"].astype(float) == 1)
        frame = frame[~ill | (ill.cumsum() <= self.positives)].drop(columns="turn").reset_index(drop=True)
        own = {"findings": table.findings, "arms": ("classic", "duplicate", "graft"), "flip": 0.5, "synthetic": 300}
        self.study(StudyTable(frame, table.root, table.findings), self.config(**own))


@dataclass
class NIH(Options):
    """NIH ChestX-ray14, a packed part: lists of findings as short reports."""

    data: Path = Path("../shared/data/nih_cxr")
    """Folder with manifest.csv."""
    positives: int = 5
    """Positives, and negatives, that a finding must have in every split."""

    def run(self) -> None:
        """The findings that can be measured, then the study."""
        table = IMPORTERS["manifest"](self.data)
        # "Abnormal" is no word of these reports.
        findings = tuple(name for name in measurable(table, self.positives) if name != "Abnormal")
        own = {
            "findings": findings,
            "blank": "ignore",
            "views": ("findings",),
            "gan_steps": 3000,
            "synthetic": 300,
            "clip_batch": 64,
        }
        self.study(with_reports(table, findings), self.config(**own))


@dataclass
class Covid(Options):
    """COVID-19 chest radiographs with clinical notes."""

    data: Path = Path("../shared/data/covid_cxr")
    """Folder with manifest.csv."""

    def run(self) -> None:
        """Few patients: a fifth of them validates, for the gate needs twenty."""
        table = split_by_patient(IMPORTERS["manifest"](self.data), {"train": 0.55, "val": 0.2, "test": 0.25})
        own = {
            "findings": ("COVID-19",),
            "views": ("findings",),
            "gan_steps": 2000,
            "synthetic": 150,
            "clip_steps": 600,
            "clip_batch": 32,
        }
        self.study(table, self.config(**own))


def perfect_edits(table: StudyTable, phantom: PhantomConfig, seed: int, config: StudyConfig, folder: Path) -> Path:
    """Training films rendered again with one finding more, or less, as many as an arm of edits is to have.

    Body, exposure and the other findings stay as they are; a finding that is added is drawn as the phantom draws it, so
    its side, place and severity are new.

    Args:
        table: the films, split; their files are named by index.
        phantom, seed: what they were rendered with.
        config: says how many for each finding.
        folder: gets images and ``table.csv``.

    Returns:
        The table.
    """
    path = folder / "table.csv"
    if path.exists():
        return path
    films = table.frame[table.frame["split"] == "train"]
    labels = films[list(table.findings)].astype(float)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    dice, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    counts = wanted(labels.to_numpy(), table.findings, config)
    for name, sign in itertools.product(table.findings, (1, -1)):
        pool = films[labels[name] == (0 if sign > 0 else 1)]
        always = replace(phantom, prevalence={**{f: phantom.rate(f) for f in phantom.findings}, name: 1.0})
        for film in dice.choice(len(pool), counts[name]):
            source = pool.iloc[film]
            index = int(Path(source["image"]).stem)
            study = render(always, seed, index) if sign > 0 else render(phantom, seed, index, without={name})
            image = f"images/{len(rows):06d}.png"
            Image.fromarray(to_uint8(study.image)).save(folder / image)
            rows.append({"image": image, "patient": source["patient"], "split": "train", **study.labels})
    made = StudyTable.from_frame(pd.DataFrame(rows), folder, findings=table.findings)
    made.write(path)
    return path


def with_reports(table: StudyTable, findings: Sequence[str]) -> StudyTable:
    """The same rows with a sentence for each finding that is known to be there, or not; nothing where none is known."""
    labels = table.targets("ignore", "ignore")[:, [table.findings.index(name) for name in findings]]
    words = [name.lower() for name in findings]
    reports = [
        " ".join(f"{w.capitalize()}." if y == 1 else f"No {w}." for w, y in zip(words, row, strict=True) if y in (0, 1))
        for row in labels
    ]
    return StudyTable(table.frame.assign(report=reports), table.root, table.findings)


def measurable(table: StudyTable, positives: int) -> tuple[str, ...]:
    """Findings with so many positives, and negatives, in every split.

    Raises:
        InputError: there is none.
    """
    labels, split = table.targets("ignore", "ignore"), table.frame["split"].to_numpy(dtype=str)
    found = [
        name
        for k, name in enumerate(table.findings)
        if all(int(np.sum(labels[split == part, k] == value)) >= positives for part in SPLITS for value in (0, 1))
    ]
    if not found:
        raise InputError(
            f"no finding has {positives} positives in every split", field="positives", remedy="Ask for fewer"
        )
    return tuple(found)


def _rate(text: str) -> tuple[str, float]:
    """ "Edema=0.08"."""
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise InputError(f"{text!r} is no share", field="prevalence", remedy="Write Edema=0.08") from None


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"phantom": Phantom, "lgg": LGG, "nih": NIH, "covid": Covid}).run()
