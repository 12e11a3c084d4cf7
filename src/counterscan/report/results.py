"""results.csv: one line per answer, added as answers come, so that a killed job loses nothing and resumes."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from counterscan.counterpart import Counterpart
from counterscan.errors import InputError

try:
    import fcntl
except ImportError:  # no file locks here: one writer per file
    fcntl = None  # type: ignore[assignment]

COLUMNS = (
    "id",
    "finding",
    "direction",
    "system",
    "score_before",
    "score_after",
    "mean_magnitude",
    "mask_area",
    "verdict",
)


def result_row(name: str, counterpart: Counterpart) -> dict[str, Any]:
    """One answer as a line under ``COLUMNS``.

    ``mean_magnitude`` is mean |M| where there is a counterpart, else the mean evidence; ``mask_area`` the share of the
    model's grid that the mask paints.
    """
    signal = counterpart.evidence if counterpart.counterpart is None else counterpart.delta
    return {
        "id": name,
        "finding": counterpart.query.finding,
        "direction": counterpart.query.direction,
        "system": counterpart.made_by.system,
        "score_before": counterpart.score_before,
        "score_after": counterpart.score_after,
        "mean_magnitude": float(signal.abs().mean()),
        "mask_area": None if counterpart.mask is None else float(counterpart.mask.float().mean()),
        "verdict": counterpart.verdict,
    }


class ResultsFile:
    """Appends lines to a CSV file; knows which are there already.

    Each line is one write to the end of the file under a lock, so several processes may share it. A line cut off by a
    crash is removed on opening. Write an answer's files first and its line last: then a line means that everything is
    there.

    Args:
        path: the CSV file; made with its folder when missing.
        columns: headings; an existing file must have the same.
        key: columns that name an answer.

    Raises:
        InputError: the existing file has other columns, or cannot be opened.

    Example::

        with ResultsFile(out / "results.csv") as results:
            for name, answer in answers:
                if (name, answer.query.finding) not in results:
                    write_outputs(out, name, answer)
                    results.append(result_row(name, answer))
    """

    def __init__(
        self, path: str | Path, columns: Sequence[str] = COLUMNS, key: Sequence[str] = ("id", "finding")
    ) -> None:
        self.path, self.columns, self.key = Path(path), tuple(columns), tuple(key)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with self._explained(), self._locked():
                self.done = self._read()
        except InputError:
            os.close(self._descriptor)
            raise

    def _read(self) -> set[tuple[str, ...]]:
        """Check or write the headings, drop a torn last line, and list the answers. What is not ours stays as it is."""
        content, headings = self.path.read_bytes(), _line(self.columns)
        whole = content[: content.rfind(b"\n") + 1]
        ours = headings.startswith(content) if not whole else whole.splitlines()[0] == headings.splitlines()[0]
        if not ours:
            found = content[:200].decode("utf-8", errors="replace").splitlines()[0]
            raise InputError(
                f"has the columns {found}, not {', '.join(self.columns)}",
                path=self.path,
                remedy="Move it away, or write to another folder",
            )
        if len(whole) < len(content):
            os.ftruncate(self._descriptor, len(whole))
        if not whole:
            os.write(self._descriptor, headings)
            return set()
        rows = csv.DictReader(io.StringIO(whole.decode("utf-8", errors="replace"), newline=""))
        return {tuple(row[name] or "" for name in self.key) for row in rows}

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return tuple(_cell(part) for part in key) in self.done

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line and wait until it is on the disk.

        Raises:
            InputError: a column is missing or unknown, or the disk is full (the file keeps its earlier lines).
        """
        if set(row) != set(self.columns):
            odd = sorted(set(row) ^ set(self.columns))
            raise InputError(
                f"a line must have exactly the columns of the file; check {', '.join(odd)}", path=self.path
            )
        line = _line([row[name] for name in self.columns])
        with self._explained(), self._locked():
            before = os.fstat(self._descriptor).st_size
            try:
                if os.write(self._descriptor, line) < len(line):
                    raise OSError("the disk is full")
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise
        self.done.add(tuple(_cell(row[name]) for name in self.key))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if fcntl is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})",
                path=self.path,
                remedy="Free space or choose another folder; the lines written so far are kept",
            ) from error


def _line(values: Sequence[Any]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([_cell(value) for value in values])
    return buffer.getvalue().encode("utf-8")


def _cell(value: Any) -> str:
    """A value as written: line breaks become spaces, so that a line of the file is a line of the table."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).splitlines())
