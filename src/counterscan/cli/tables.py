"""What the data commands show: counts per finding and split, and rows that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from counterscan.data.table import StudyTable


def say(text: str) -> None:
    """One line on standard output, whatever its length."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def show_table(table: StudyTable, title: str) -> None:
    """Images, patients and labels per split."""
    frame = table.frame
    present = [s for s in ("train", "val", "test", "") if (frame["split"] == s).any()]
    say(f"{title}: {len(table):,} images, {frame['patient'].nunique():,} patients")
    rows = Table()
    rows.add_column("split")
    for name in ("images", "patients", "pixel masks", "boxes", "no lesion (known)"):
        rows.add_column(name, justify="right")
    for split in present:
        part = frame[frame["split"] == split]
        kinds = part["mask_kind"].value_counts()
        counts = [len(part), part["patient"].nunique(), *(kinds.get(k, 0) for k in ("pixel", "box", "none(empty)"))]
        rows.add_row(split or "(none)", *(f"{int(count):,}" for count in counts))
    console = Console()
    console.print(rows)
    if table.findings:
        say("images by label (1 present, 0 absent, -1 uncertain, blank unmentioned), and with the finding by split:")
        console.print(_label_counts(table, present))


def _label_counts(table: StudyTable, splits: Sequence[str]) -> Table:
    shown = Table()
    shown.add_column("finding")
    for name in ("1", "0", "-1", "blank", *(s or "(none)" for s in splits)):
        shown.add_column(name, justify="right")
    labels, split = table.labels(), table.frame["split"].to_numpy(dtype=str)
    for index, finding in enumerate(table.findings):
        values = labels[:, index]
        counts = [(values == 1).sum(), (values == 0).sum(), (values == -1).sum(), np.isnan(values).sum()]
        counts += [((values == 1) & (split == s)).sum() for s in splits]
        lacks = not counts[0] or not (counts[1] + counts[3])
        name = f"{finding} (one class only)" if lacks else finding
        shown.add_row(name, *(f"{int(count):,}" for count in counts), style="yellow" if lacks else None)
    return shown


def show_bad(bad: Sequence[tuple[int, str, str]], total: int, limit: int = 20) -> int:
    """List rows that could not be read; returns the exit code, 1 if there are any."""
    if not bad:
        say(f"all {total:,} images can be read")
        return 0
    say(f"{len(bad):,} of {total:,} images cannot be read:")
    shown = Table()
    for name in ("row", "image", "reason"):
        shown.add_column(name, overflow="fold")
    for row, image, reason in bad[:limit]:
        shown.add_row(str(row), image, reason)
    if len(bad) > limit:
        shown.add_row("...", f"{len(bad) - limit:,} more", "")
    Console().print(shown)
    return 1


def show_bad_file(path: Path, count: int, total: int) -> None:
    """The first bad rows of a store, and where the others are listed."""
    if count:
        import pandas as pd

        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        listed = [(int(r), i, why) for r, i, why in zip(rows["row"], rows["image"], rows["reason"], strict=True)]
        show_bad(listed, total, limit=10)
        say(f"left out, and listed in {path}")
