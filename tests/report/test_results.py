from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest

from counterscan.errors import InputError
from counterscan.report.results import COLUMNS, ResultsFile, result_row
from tests.report.answers import answer, attribution


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_lines_are_there_at_once_and_known_on_return(tmp_path):
    path = tmp_path / "out" / "results.csv"
    with ResultsFile(path) as results:
        results.append(result_row("s1", answer()))
        assert len(rows_of(path)) == 1
        assert ("s1", "Lung Lesion") in results
    with ResultsFile(path) as results:
        assert results.done == {("s1", "Lung Lesion")}
        assert ("s2", "Lung Lesion") not in results
        results.append(result_row("s2", attribution()))
    first, second = rows_of(path)
    assert tuple(first) == COLUMNS
    assert float(first["mean_magnitude"]) == pytest.approx((16 * 0.25 + 4 * 0.125) / 256, rel=1e-4)
    assert float(first["mask_area"]) == pytest.approx(16 / 256)
    assert second["mask_area"] == second["score_after"] == ""


def test_a_torn_line_is_dropped_and_done_again(tmp_path):
    path = tmp_path / "results.csv"
    with ResultsFile(path) as results:
        results.append(result_row("s1", answer()))
    whole = path.read_bytes()
    path.write_bytes(whole + b"s2,Lung Les")
    with ResultsFile(path) as results:
        assert results.done == {("s1", "Lung Lesion")}
    assert path.read_bytes() == whole
    path.write_bytes(b"id,fin")
    with ResultsFile(path) as results:
        assert results.done == set()
    assert rows_of(path) == []


def test_awkward_values_stay_on_their_line(tmp_path):
    path = tmp_path / "results.csv"
    name = 'a, "quoted"\nname'
    with ResultsFile(path) as results:
        results.append(result_row(name, answer(verdict="x\r\ny, z")))
    (row,) = rows_of(path)
    assert row["verdict"] == "x y, z"
    assert len(path.read_text().splitlines()) == 2
    with ResultsFile(path) as results:
        assert ('a, "quoted" name', "Lung Lesion") in results
        assert (name, "Lung Lesion") in results


def test_bad_files_and_lines_are_explained(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("id,other\n1,2\n")
    with pytest.raises(InputError, match="Move it away"):
        ResultsFile(path)
    assert path.read_text() == "id,other\n1,2\n"
    with ResultsFile(tmp_path / "r.csv", ("id", "x"), ("id",)) as results, pytest.raises(InputError, match="check y"):
        results.append({"id": 1, "x": 2, "y": 3})


@pytest.mark.parametrize("content", [b"x,y\n1,2\n3,4", b"no line ends here", b"\x89PNG\r\n\x1a\nbytes\nand more"])
def test_files_of_somebody_else_stay_as_they_are(tmp_path, content):
    (tmp_path / "theirs").write_bytes(content)
    with pytest.raises(InputError, match="has the columns"):
        ResultsFile(tmp_path / "theirs")
    assert (tmp_path / "theirs").read_bytes() == content


def test_torn_headings_are_written_again(tmp_path):
    (tmp_path / "results.csv").write_bytes(b"id,find")
    with ResultsFile(tmp_path / "results.csv") as results:
        assert not results.done
    assert (tmp_path / "results.csv").read_text().startswith("id,finding,direction,")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    with ResultsFile(path) as results:
        results.append(result_row("s1", answer()))
        before = path.read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(InputError, match="disk is full"):
            results.append(result_row("s2", answer()))
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert ("s2", "Lung Lesion") not in results
        results.append(result_row("s2", answer()))
    assert len(rows_of(path)) == 2


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "results.csv"
    code = (
        "import sys; from counterscan.report.results import ResultsFile\n"
        "with ResultsFile(sys.argv[1], ('id', 'x'), ('id',)) as r:\n"
        "    for i in range(50): r.append({'id': f'{sys.argv[2]}-{i}', 'x': 'y' * 300})\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(path), str(rank)]) for rank in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert len({row["id"] for row in rows_of(path)}) == 100
