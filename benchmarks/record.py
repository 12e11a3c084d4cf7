"""What the benchmarks share: how a result is told, and phantom films on disk as a user would have them."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from counterscan.data.phantom import PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.splits import split_by_patient
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.files import write_text
from counterscan.report.tables import Table


def facts() -> str:
    """Command, date and machine."""
    return (
        f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} "
        f"cores, torch {torch.__version__}, {torch.get_num_threads()} thread(s) here"
    )


def publish(table: Table, note: str, path: Path) -> None:
    """Print a table and write it under its note."""
    write_text(path, f"{note}\n\n{table.to_markdown()}")
    Console().print(table.to_markdown())
    Console().print(note)


def phantom_store(
    films: Path, store: Path, count: int, config: PhantomConfig, shares: dict[str, float], seed: int
) -> PreparedStore:
    """Films rendered into one folder and split by patient, prepared into another; both once."""
    table = films / "split.csv"
    if not table.exists():
        split_by_patient(write_phantom(films, count, config, seed, workers=1), shares, seed).write(table)
    prepare(StudyTable.read(table), store, size=config.size, workers=1)
    return PreparedStore.open(store)
