from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.counterpart import Counterpart, Provenance, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.report.pseudonym import pseudonym, secret_key
from counterscan.report.stream import stream


class Brightness:
    """Evidence is brightness; refuses images that are all white, and warns of bright ones where that is asked for."""

    size, recipe = 16, None
    asked = 0
    doubts = float("inf")  # mean from which it warns

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        self.asked += len(batch)
        if any(float(x.mean()) > 0.2 for x in batch.images):  # white, on a letterbox
            raise InputError("an image is all white")
        sources = batch.sources or [None] * len(batch)
        return [
            Counterpart(
                image=x,
                evidence=(x + 1) / 2,
                counterpart=torch.full_like(x, -1.0),
                mask=x > 0,
                query=query,
                made_by=Provenance("Brightness", "1"),
                score_before=float(x.max()),
                verdict="ok" if float(x.mean()) < self.doubts else "too bright",
                source=source,
            )
            for x, source in zip(batch.images, sources, strict=True)
        ]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


def pictures(folder: Path, count: int) -> list[tuple[Path, int | None]]:
    folder.mkdir(parents=True)
    items: list[tuple[Path, int | None]] = []
    for k in range(count):
        path = folder / f"smith_john_{k}.png"
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (20, 30), dtype=np.uint8)).save(path)
        items.append((path, None))
    return items


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_every_file_is_answered_on_its_own_grid_and_named_by_a_pseudonym(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 5)
    report = stream(Brightness(), items, tmp_path / "out", ["Edema", "Pneumonia"], batch_size=2)
    assert (report.done, report.skipped, report.bad) == (5, 0, [])
    assert len(rows(tmp_path / "out")) == 10
    masks = sorted((tmp_path / "out" / "edema").glob("*_mask.png"))
    assert len(masks) == 5
    assert Image.open(masks[0]).size == (30, 20)
    written = "".join(str(path) for path in (tmp_path / "out").rglob("*")) + str(rows(tmp_path / "out"))
    assert "smith" not in written


def test_a_second_start_skips_what_is_done(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 4)
    stream(Brightness(), items[:2], tmp_path / "out", ["Edema"])
    system = Brightness()
    report = stream(system, items, tmp_path / "out", ["Edema"])
    assert (report.done, report.skipped, system.asked) == (2, 2, 2)
    assert len({row["id"] for row in rows(tmp_path / "out")}) == 4


def test_bad_files_and_bad_answers_are_counted_and_cost_nobody_else(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 3)
    items[1][0].write_bytes(b"not a picture")
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(items[2][0])
    more = pictures(tmp_path / "more", 2)
    for done in (3, 0):  # and again: what is listed is not listed twice
        report = stream(Brightness(), [*items, *more, (tmp_path / "gone.png", None)], tmp_path / "out", ["Edema"])
        assert report.done == done
        assert len(report.bad) == 3
        assert len(rows(tmp_path / "out")) == 3
        with (tmp_path / "out" / "bad.csv").open(encoding="utf-8") as handle:
            assert len(handle.readlines()) == 4


def test_bad_files_are_listed_as_they_come(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 3)
    items[0][0].write_bytes(b"not a picture")

    def stop(finished: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(Brightness(), items, tmp_path / "out", ["Edema"], batch_size=2, progress=stop)
    assert str(items[0][0]) in (tmp_path / "out" / "bad.csv").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for foreign in ("[1, 2]", '{"my": "tool"}'):
        (tmp_path / "out" / "settings.json").write_text(foreign)
        with pytest.raises(InputError, match="settings of something else"):
            stream(Brightness(), [], tmp_path / "out", ["Edema"], settings=lambda finding: {"care": 1})
        assert (tmp_path / "out" / "settings.json").read_text() == foreign


def test_warnings_are_counted(tmp_path: Path) -> None:
    system = Brightness()
    system.doubts = -1.0
    report = stream(system, pictures(tmp_path / "in", 2), tmp_path / "out", ["Edema", "Pneumonia"])
    assert (report.done, report.doubted, report.bad) == (2, 4, [])
    assert stream(Brightness(), pictures(tmp_path / "more", 2), tmp_path / "out", ["Edema"]).doubted == 0


def test_links_are_written_only_when_asked(tmp_path: Path) -> None:
    items = pictures(tmp_path / "in", 1)
    for _ in range(2):  # a second start adds nothing
        stream(Brightness(), items, tmp_path / "out", ["Edema"], links=tmp_path / "private" / "links.csv")
    with (tmp_path / "private" / "links.csv").open(newline="", encoding="utf-8") as handle:
        (link,) = csv.DictReader(handle)
    assert link["id"] == rows(tmp_path / "out")[0]["id"]
    assert link["path"] == str(items[0][0])


def test_processes_share_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pictures(tmp_path / "in", 5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        stream(Brightness(), items, tmp_path / "out", ["Edema"])
    assert len(rows(tmp_path / "out")) == 5


def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    items = pictures(tmp_path / "in", 3)
    stream(Brightness(), items[:1], tmp_path / "out", ["Edema"])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            stream(Brightness(), items, tmp_path / "out", ["Edema"], batch_size=1)
    assert len(rows(tmp_path / "out")) == 1
    report = stream(Brightness(), items, tmp_path / "out", ["Edema"])
    assert (report.done, report.skipped) == (2, 1)


def test_a_model_without_a_size_is_refused(tmp_path: Path) -> None:
    system = Brightness()
    system.size = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="at which size"):
        stream(system, [], tmp_path, ["Edema"])


def test_the_key_is_made_once_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COUNTERSCAN_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert secret_key() == secret_key()
    assert (tmp_path / "counterscan" / "key").stat().st_mode & 0o077 == 0
    assert pseudonym("a", b"1") != pseudonym("a", b"2")


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    items, out = pictures(tmp_path / "in", 2), tmp_path / "out"

    def of(steps: int):
        return lambda finding: {"checkpoint": "a", "refine": {"steps": steps, "views": (1, 2)}}

    stream(Brightness(), items[:1], out, ["Edema"], settings=of(50))
    assert stream(Brightness(), items, out, ["Edema"], settings=of(50)).skipped == 1
    with pytest.raises(InputError, match=r"refine\.steps was 50, now 200"):
        stream(Brightness(), items, out, ["Edema"], settings=of(200))
    assert stream(Brightness(), items, out, ["Pneumonia"], settings=of(200)).done == 2  # nothing there yet
    assert len(rows(out)) == 4
