"""What a command line names as inputs (files, folders, series, tables), and the answers of a system to all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.report.stream import FileSystem


def is_table(path: Path) -> bool:
    """Whether a path names a study table rather than an image, a folder or a store."""
    return path.suffix.lower() in (".csv", ".parquet") and not path.is_dir()


class Items:
    """Files and frames of what was named on the command line.

    Args:
        inputs: image files, folders, study tables.
        each_frame: an item for each frame of multi-frame files in folders.
        out: where answers go, which inside a folder of images are none.

    Attributes:
        skipped: reason -> number of files passed over so far, in folders.

    Raises:
        InputError: nothing is named, or what is named is not there; on iteration, before the first item.
    """

    def __init__(self, inputs: Sequence[Path], each_frame: bool, out: Path) -> None:
        from counterscan.data.readers import iter_images

        if not inputs:
            raise InputError("no image is named", field="inputs", remedy="Name files, folders or a study table")
        self._tables = [path for path in inputs if is_table(path)]
        others = [path for path in inputs if path not in self._tables]
        self._walk = iter_images(others, each_frame=each_frame, without=out) if others else None

    @property
    def skipped(self) -> dict[str, int]:
        """See the class."""
        return {} if self._walk is None else dict(self._walk.skipped)

    def __iter__(self) -> Iterator[tuple[Path, int | None]]:
        from counterscan.data.table import StudyTable

        tables = [StudyTable.read(path, labelled=False) for path in self._tables]
        walk = ((item.path, item.frame) for item in self._walk or ())
        first = list(islice(walk, 1))  # so that a missing input is told before any work
        for table in tables:
            for row in range(len(table)):
                yield table.image_path(row), table.frame_number(row)
        yield from chain(first, walk)


def named(names: Sequence[str], known: tuple[str, ...], whose: str) -> tuple[str, ...]:
    """Canonical names of the findings that a command line names, all that are known where it names none.

    Args:
        names, known: findings.
        whose: what knows them, "model" or "classifier".

    Raises:
        InputError: one is not known.
    """
    from counterscan.data.findings import canonical_name

    findings = tuple(map(canonical_name, names)) or known
    for finding in findings:
        if finding not in known:
            raise InputError(
                f"the {whose} does not know {finding!r}", field="--finding", remedy=f"It knows {', '.join(known)}"
            )
    return findings


def answer(
    system: FileSystem,
    inputs: Sequence[Path],
    out: Path,
    findings: Sequence[str],
    *,
    doing: str,
    each_frame: bool = False,
    **options: Any,
) -> int:
    """Answer all inputs with a progress bar, and say what became of them.

    Args:
        system, out, findings, options: see ``report.stream.stream``.
        inputs, each_frame: see ``Items``.
        doing: shown beside the bar.

    Returns:
        the exit code: 0 if anything is answered, now or before.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from counterscan.cli.tables import say
    from counterscan.report.stream import stream

    columns = (SpinnerColumn(), TextColumn("{task.completed} images"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(doing, total=None)
        items = Items(inputs, each_frame, out)
        report = stream(system, items, out, findings, progress=lambda n: bar.advance(task, n), **options)
    say(f"{out}: {report.done} answered, {report.skipped} done before, {len(report.bad)} unusable")
    if items.skipped:
        say(f"  passed over: {', '.join(f'{count} x {reason}' for reason, count in items.skipped.items())}")
    if report.doubted:
        say(f"  {report.doubted} answers have a warning: see verdict in {out / 'results.csv'}")
    for path, reason in report.bad[:10]:
        say(f"  {reason if reason.startswith(path) else f'{path}: {reason}'}")
    if len(report.bad) > 10:
        say(f"  ... all in {out / 'bad.csv'}")
    return 0 if report.done or report.skipped else 1
