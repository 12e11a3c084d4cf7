"""``counterscan augment study``: do synthetic images make a classifier better? Every arm, one frozen protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore


@dataclass
class Study:
    """Compare classifiers trained with and without synthetic images, under a protocol that is frozen first."""

    data: tyro.conf.Positional[Path]
    """A study table (CSV or Parquet, with splits and the column report), or a folder of `counterscan data prepare`."""
    out: Path
    """Folder of the study; the same command goes on with an interrupted one."""
    profile: Literal["quick", "full"] = "quick"
    """quick: about an hour of CPU time at 64 px. full: every text view and share, three generators, more of all."""
    size: int = 64
    """Side in pixels to which the images of a table are prepared."""
    findings: tuple[str, ...] = ()
    """Which findings; default: all of the table."""
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
    preset: str | None = None
    """Of the generator's networks: cxr64-cpu, cxr64-lite, cxr128, cxr256; default: by size."""
    method: Literal["style", "learned"] | None = None
    """How text moves an image; default: the profile's."""
    force: bool = False
    """Also steer to findings that the generator has not learnt, trusting the gate."""
    generator: Path | None = None
    """A generator of `counterscan augment gan train` on this very store, instead of training one."""
    text_model: Path | None = None
    """A text-image model trained on this very split train, instead of training one."""
    workers: int = 2
    """Processes of one thread each; the result does not depend on their number."""

    def run(self) -> None:
        from rich.console import Console

        from counterscan.bench.study_config import PROFILES
        from counterscan.bench.study_run import run_study
        from counterscan.cli.tables import say

        store = opened(self.data, self.out, self.size, self.workers)
        changes: dict[str, Any] = {
            name: value
            for name in ("findings", "arms", "views", "shares", "seeds", "steps", "synthetic", "gan_steps", "preset")
            if (value := getattr(self, name))
        }
        if self.method is not None:
            changes["method"] = self.method
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
            say=say,
        )
        for table in report.tables[:2]:
            Console().print(table.to_rich())
        for sentence in report.sentences:
            say(sentence)
        for name, reason in report.left_out.items():
            say(f"{name} was left out: {reason}")
        say(f"{report.page}; {report.minutes['total']:.0f} minutes of CPU time")


def opened(data: Path, out: Path, size: int, workers: int) -> PreparedStore:
    """A store as it is, or a table's, prepared beside the study.

    Raises:
        InputError: neither is there.
    """
    from counterscan.data.prepare import prepare
    from counterscan.data.store import PreparedStore
    from counterscan.data.table import StudyTable

    if data.is_dir():
        return PreparedStore.open(data)
    if not data.exists():
        raise InputError("no such table or store", path=data, remedy="Name a study table or a prepared store")
    prepare(StudyTable.read(data), out / "store", size=size, workers=workers)
    return PreparedStore.open(out / "store")


COMMANDS = {"study": Study}
