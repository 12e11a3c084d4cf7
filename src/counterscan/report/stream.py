"""Answers for any number of files: read, ask, write, one batch at a time; what is done is skipped on the next start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from counterscan.counterpart import Counterpart, Direction, Query, StudyBatch, StudyRef
from counterscan.data.geometry import Geometry
from counterscan.data.intensity import IntensityRecipe, default_recipe
from counterscan.data.load import on_grid
from counterscan.data.readers import read_image
from counterscan.errors import CounterscanError, InputError
from counterscan.files import read_json, write_json
from counterscan.report.files import FORMATS, safe_name, write_outputs
from counterscan.report.pseudonym import pseudonym, secret_key
from counterscan.report.results import ResultsFile, result_row
from counterscan.training.config import changes, plain

Item = tuple[Path, int | None]
Write = Callable[[Path, str, Counterpart], Any]


class FileSystem(Protocol):
    """A system that knows how its images were made."""

    size: int | None
    recipe: IntensityRecipe | None

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """See ``counterscan.counterpart.System``."""
        ...


@dataclass(frozen=True)
class _Read:
    path: Path
    name: str
    image: Tensor  # (1, size, size) in [-1, 1]
    valid: Tensor  # (1, size, size) bool
    geometry: Geometry
    references: dict[str, str]


@dataclass
class StreamReport:
    """What became of the files.

    Attributes:
        done: answered now.
        doubted: answers among them, one per image and finding, whose verdict is a warning.
        skipped: answered by an earlier run.
        bad: (path, reason) of files that could not be read or answered; also in ``bad.csv``.
    """

    done: int = 0
    doubted: int = 0
    skipped: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


def stream(
    system: FileSystem,
    items: Iterable[Item],
    out: str | Path,
    findings: Sequence[str],
    *,
    batch_size: int = 16,
    direction: Direction = "remove",
    formats: Sequence[str] = FORMATS,
    links: str | Path | None = None,
    write: Write | None = None,
    ask: Callable[[StudyBatch, Query], list[Counterpart]] | None = None,
    settings: Callable[[str], Any] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> StreamReport:
    """Answer every file for every finding and write maps, counterparts, masks, overlays and ``results.csv``.

    An answer's files are in ``out/<finding>``, or ``out/<finding>_add``. Under ``torchrun`` each process takes every
    world-th file. Memory does not grow with the number of files.

    Args:
        system: has ``size``, ``recipe`` and ``counterparts``.
        items: (path, frame); frame None for single-frame files.
        out: folder.
        findings: each is asked in turn.
        batch_size: images answered at once.
        direction: of the question.
        formats: see ``report.files.write_outputs``.
        links: a CSV file of id, path and frame, for whoever may know; without it only the key leads back to the files.
        write: writes more of each answer; given the answer's folder, its id and the answer.
        ask: how to ask the system; ``system.counterparts`` by default.
        settings: of a finding, what its answers depend on, in plain values; kept in ``settings.json``. A folder with
            answers under other settings is refused, since what is done would not be done again.
        progress: called with the number of files finished after each batch.

    Raises:
        InputError: no image at once, the system does not say its size, the folder holds answers under other settings,
            or results cannot be written (full disk).
    """
    if batch_size < 1:
        raise InputError(f"{batch_size} must be at least 1", field="batch_size")
    if system.size is None:
        raise InputError("the model does not say at which size it works", field="size", remedy="Train it from a store")
    out, key, report = Path(out), secret_key(), StreamReport()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = islice(iter(items), rank, None, world)
    queries = [Query(finding, direction) for finding in findings]
    if settings is not None:
        written = {"formats": sorted(formats)}
        asked = {_folder(query): plain(settings(query.finding)) | written for query in queries}
        _same_settings(out / "settings.json", asked)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        results = stack.enter_context(ResultsFile(out / "results.csv", key=("id", "finding", "direction")))
        sources = stack.enter_context(ResultsFile(links, ("id", "path", "frame"), ("id",))) if links else None

        def missing(name: str) -> list[Query]:
            return [query for query in queries if (name, query.finding, query.direction) not in results]

        def put(name: str, answer: Counterpart) -> None:
            folder = out / _folder(answer.query)
            write_outputs(folder, name, answer, formats=formats)  # type: ignore[arg-type]
            if write is not None:
                write(folder, name, answer)
            results.append(result_row(name, answer))
            report.doubted += not answer.trusted

        for group in _batches(mine, batch_size):
            named = [(item, pseudonym(f"{item[0].resolve()}#{item[1]}", key)) for item in group]
            todo = [(item, name) for item, name in named if missing(name)]
            report.skipped += len(named) - len(todo)
            known = len(report.bad)
            reads = _read_all(pool, todo, system, report)
            for query in queries:
                wanted = [read for read in reads if query in missing(read.name)]
                _answer(ask or system.counterparts, wanted, query, put, report)
            report.done += sum(not missing(read.name) for read in reads)
            _list_bad(out / "bad.csv", report.bad[known:])
            for (path, frame), name in named:
                if sources is not None and (name,) not in sources:
                    sources.append({"id": name, "path": str(path), "frame": frame})
            if progress is not None:
                progress(len(group))
    return report


def _same_settings(path: Path, asked: dict[str, Any]) -> None:
    """Note what answers depend on; those of an earlier run must depend on the same."""
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(settings, dict) for settings in known.values()):
        raise InputError("holds settings of something else", path=path, remedy="Write to another folder")
    for name in sorted(asked.keys() & known.keys()):
        for field_name, old, new in changes(known[name], asked[name]):
            raise InputError(
                f"holds answers in {name} under other settings: {field_name} was {old}, now {new}",
                path=path.parent,
                remedy="Write to another folder, or ask with the same settings",
            )
    if asked.keys() - known.keys():
        write_json(path, known | asked)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(items, size)):
        yield group


def _read_all(
    pool: ThreadPoolExecutor, todo: list[tuple[Item, str]], system: FileSystem, report: StreamReport
) -> list[_Read]:
    reads = []
    for (item, _), outcome in zip(todo, pool.map(lambda one: _read(one[0], one[1], system), todo), strict=True):
        if isinstance(outcome, CounterscanError):
            report.bad.append((str(item[0]), " ".join(str(outcome).split())))
        else:
            reads.append(outcome)
    return reads


def _read(item: Item, name: str, system: FileSystem) -> _Read | CounterscanError:
    path, frame = item
    assert system.size is not None
    try:
        raw = read_image(path, frame=frame)
        image, valid, geometry = on_grid(raw, system.recipe or default_recipe(raw), system.size)
    except CounterscanError as error:
        return error
    return _Read(path, name, image, valid[None], geometry, dict(raw.references))


def _answer(
    ask: Callable[[StudyBatch, Query], list[Counterpart]],
    reads: list[_Read],
    query: Query,
    put: Callable[[str, Counterpart], None],
    report: StreamReport,
) -> None:
    """Ask for a batch; if that fails, one by one, so that one bad image does not take its neighbours along."""
    if not reads:
        return
    try:
        answers: list[Counterpart | CounterscanError] = [*ask(_batch(reads), query)]
    except CounterscanError as error:
        if len(reads) > 1:
            for read in reads:
                _answer(ask, [read], query, put, report)
            return
        answers = [error]
    for read, answer in zip(reads, answers, strict=True):
        if isinstance(answer, CounterscanError):
            report.bad.append((str(read.path), " ".join(str(answer).split())))
        else:
            put(read.name, answer)


def _folder(query: Query) -> str:
    name = safe_name(query.finding.lower().replace(" ", "_"))
    return name if query.direction == "remove" else f"{name}_{query.direction}"


def _batch(reads: list[_Read]) -> StudyBatch:
    return StudyBatch(
        images=torch.stack([read.image for read in reads]),
        valid=torch.stack([read.valid for read in reads]),
        sources=[StudyRef(read.name, read.geometry, read.references) for read in reads],
    )


def _list_bad(path: Path, bad: Sequence[tuple[str, str]]) -> None:
    """Add files and reasons that are not listed yet; without any no list is made."""
    if bad:
        with ResultsFile(path, ("path", "reason"), ("path", "reason")) as listed:
            for name, reason in bad:
                if (name, reason) not in listed:
                    listed.append({"path": name, "reason": reason})
