"""``counterscan augment study``: do synthetic images make a classifier better? Every arm, one frozen protocol."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore


@dataclass
class StudyOptions:
    """What a study can be asked for; what is not given is the profile's."""

    out: Path = field(kw_only=True)
    """Folder of the study; the same command goes on with an interrupted one."""
    profile: Literal["quick", "paper", "full"] = "quick"
    """quick: do edits by text and grafts help, in about 80 CPU minutes at 64 px? paper: the paper's arms, as long.
    full: every arm, text view and share, three generators, more of all."""
    size: int = 64
    """Side in pixels to which the images of a table are prepared."""
    arms: tuple[str, ...] = ()
    """Which arms, such as real classic both both:pretrain; default: the profile's."""
    views: tuple[str, ...] = ()
    """Texts for the text-image model, such as rules-v2 impression; default: the profile's."""
    shares: tuple[float, ...] = ()
    """Synthetic parts of each batch; default: the profile's."""
    seeds: int | None = None
    """Runs of each arm; default: the profile's."""
    steps: int | None = None
    """Steps of each run; default: the profile's."""
    synthetic: int | None = None
    """Images that each content is to have, per sign; default: the profile's."""
    gan_steps: int | None = None
    """Steps of each generator; default: the profile's."""
    method: Literal["style", "learned", "best"] | None = None
    """How text moves an image; "best" compares both for each finding; default: the profile's."""
    bodies: Literal["real", "new"] | None = None
    """What is edited: training images, or new samples of the generator; default: the profile's."""
    force: bool = False
    """Also steer to findings that the generator has not learnt, trusting the gate."""
    generator: Path | None = None
    """A generator of `counterscan augment gan train` on this very store, instead of training one."""
    text_model: Path | None = None
    """A text-image model trained on this very split train, instead of training one."""
    images: Path | None = None
    """Of the arm "given": synthetic images made elsewhere, as a study table with the findings, or a prepared store."""
    workers: int = 2
    """Processes of one thread each; the result does not depend on their number."""

    def given(self, *names: str) -> dict[str, Any]:
        """Those settings of the protocol that were given, these further ones of a subclass included."""
        asked = ("arms", "views", "shares", "seeds", "steps", "synthetic", "gan_steps", "method", "bodies", *names)
        values = {name: getattr(self, name) for name in asked}
        return {name: v for name, v in values.items() if v is not None and v is not False and v != ()}

    def synthetic_images(self, store: PreparedStore) -> PreparedStore | None:
        """Those of the arm "given", on the store's grid."""
        from counterscan.cli.synthetic import prepared_synthetic

        if self.images is None:
            return None
        return prepared_synthetic(self.images, store, self.out / "store_given", workers=self.workers)[0]


@dataclass
class Study(StudyOptions):
    """Compare classifiers trained with and without synthetic images, under a protocol that is frozen first."""

    data: tyro.conf.Positional[Path] = field(kw_only=True)
    """A study table (CSV or Parquet, with splits and the column report), or a folder of `counterscan data prepare`."""
    findings: tuple[str, ...] = ()
    """Which findings; default: all of the table."""
    preset: str | None = None
    """Of the generator's networks: cxr64-cpu, cxr64-lite, cxr128, cxr256; default: by size."""

    def run(self) -> None:
        from rich.console import Console

        from counterscan.bench.study_config import PROFILES
        from counterscan.bench.study_run import run_study
        from counterscan.cli.classify import open_or_prepare
        from counterscan.cli.inputs import is_table
        from counterscan.cli.tables import say

        if not self.data.exists():
            raise InputError("no such table or store", path=self.data, remedy="Name a study table or a prepared store")
        size = self.size if is_table(self.data) else None
        store = open_or_prepare(self.data, self.out / "store", size, self.workers)
        changes = self.given("findings", "preset")
        if self.preset is None and store.size != 64:
            changes["preset"] = f"cxr{store.size}"
        config = replace(PROFILES[self.profile](), force=self.force, **changes)
        report = run_study(
            store,
            self.out,
            config,
            workers=self.workers,
            generator=self.generator,
            clip=self.text_model,
            given=self.synthetic_images(store),
            say=say,
        )
        for table in report.tables[:2]:
            Console().print(table.to_rich())
        for sentence in report.sentences:
            say(sentence)
        for name, reason in report.left_out.items():
            say(f"{name} was left out: {reason}")
        say(f"{report.page}; {report.minutes['total']:.0f} minutes of CPU time")


COMMANDS = {"study": Study}
