"""Does augmentation help? The whole study, one command for each set of images.

    python benchmarks/study.py phantom --profile quick --out runs/study
    python benchmarks/study.py nih --data ../shared/data/nih_cxr --out runs/study-nih
    python benchmarks/study.py covid --data ../shared/data/covid_cxr --out runs/study-covid

`phantom`: chest films with a long tail of findings, the rarest in 2 % of them; 3,000 to train on, 4,000 to test on. The
profile quick takes about an hour of CPU time, half of that on two cores. `nih`: labels, and short reports made of its
lists of findings; small, so that only large effects show. `covid`: images with clinical notes, from different hospitals
for the two classes; shows that everything runs, and no more. The same command goes on with an interrupted study.
Written: `study.yaml` (the protocol, frozen first), `report.html`, `tables.md`, `study.json`, `times.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console

from counterscan.bench.study_config import PROFILES, SPLITS, StudyConfig
from counterscan.bench.study_run import run_study
from counterscan.cli.study import StudyOptions
from counterscan.data.importers import IMPORTERS
from counterscan.data.phantom import PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.splits import split_by_patient
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
    resamples: int | None = None
    """Bootstrap draws of patients."""
    others: Literal["source", "agreed"] | None = None
    """Labels of findings that were not edited."""
    cards: bool = False
    """Quality cards of the synthetic sets."""

    def config(self, **own: Any) -> StudyConfig:
        """The profile with what a set needs, and what was asked for."""
        asked = self.given("clip_steps", "verifier_steps", "tries", "resamples", "others")
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
            say=lambda line: print(line, flush=True),
        )
        for shown in report.tables:
            Console(width=160).print(shown.to_rich())
        print("\n".join([*report.sentences, *(f"{k} left out: {v}" for k, v in report.left_out.items())]))
        print(f"{report.page}: {report.minutes['total']:.1f} minutes of CPU time")


@dataclass
class Phantom(Options):
    """Phantom chest films with a long tail of findings."""

    train: int = 3000
    """Films to train on."""
    val: int = 600
    """Films to validate on."""
    test: int = 4000
    """Films to test on."""
    prevalence: tuple[str, ...] = (
        "Pleural Effusion=0.25",
        "Consolidation=0.15",
        "Edema=0.08",
        "Pneumothorax=0.04",
        "Cardiomegaly=0.02",
    )
    """Findings and their shares of films."""
    data_seed: int = 0
    """Of the films."""

    def run(self) -> None:
        """Render once, then the study."""
        path = self.out / "phantom" / "split.csv"
        if not path.exists():
            rates = dict(map(_rate, self.prevalence))
            count = self.train + self.val + self.test
            made = write_phantom(
                self.out / "phantom",
                count,
                PhantomConfig(size=self.size, findings=tuple(rates), prevalence=rates),
                self.data_seed,
                workers=self.workers,
                twins=False,
            )
            shares = {name: getattr(self, name) / count for name in SPLITS}
            split_by_patient(made, shares, self.data_seed).write(path)
        table = StudyTable.read(path)
        self.study(table, self.config(findings=table.findings))


@dataclass
class NIH(Options):
    """NIH ChestX-ray14, a packed part: lists of findings as short reports."""

    data: Path = Path("../shared/data/nih_cxr")
    """Folder with manifest.csv."""
    least: int = 5
    """Positives that a finding must have in every split."""

    def run(self) -> None:
        """The findings that can be measured, then the study."""
        table = IMPORTERS["manifest"](self.data)
        # "Abnormal" is no word of these reports.
        findings = tuple(name for name in measurable(table, self.least) if name != "Abnormal")
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


def with_reports(table: StudyTable, findings: Sequence[str]) -> StudyTable:
    """The same rows with a sentence for each finding that is known to be there, or not; nothing where none is known."""
    labels = table.targets("ignore", "ignore")[:, [table.findings.index(name) for name in findings]]
    words = [name.lower() for name in findings]
    reports = [
        " ".join(f"{w.capitalize()}." if y == 1 else f"No {w}." for w, y in zip(words, row, strict=True) if y in (0, 1))
        for row in labels
    ]
    return StudyTable(table.frame.assign(report=reports), table.root, table.findings)


def measurable(table: StudyTable, least: int) -> tuple[str, ...]:
    """Findings with so many positives, and negatives, in every split.

    Raises:
        InputError: there is none.
    """
    labels, split = table.targets("ignore", "ignore"), table.frame["split"].to_numpy(dtype=str)
    found = [
        name
        for k, name in enumerate(table.findings)
        if all(int(np.sum(labels[split == part, k] == value)) >= least for part in SPLITS for value in (0, 1))
    ]
    if not found:
        raise InputError(f"no finding has {least} positives in every split", field="least", remedy="Ask for fewer")
    return tuple(found)


def _rate(text: str) -> tuple[str, float]:
    """ "Edema=0.08"."""
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise InputError(f"{text!r} is no share", field="prevalence", remedy="Write Edema=0.08") from None


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"phantom": Phantom, "nih": NIH, "covid": Covid}).run()
