from __future__ import annotations

from pathlib import Path

import pytest

from counterscan.cli.data import IMPORTABLE, parse_columns
from counterscan.cli.main import main
from counterscan.data.importers import IMPORTERS
from counterscan.data.splits import assert_no_leak
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from tests.data import published


def make_table(root: Path, count: int = 12) -> Path:
    lines = ["image,group,label,age"]
    for i in range(count):
        published.picture(root / f"images/{i}.png", i)
        lines.append(f"images/{i}.png,g{i // 2},{i % 2},{60 + i}")
    return published.text(root / "table.csv", "\n".join(lines) + "\n")


COLUMNS = ["--column", "patient=group", "--column", "Brain Tumor=label"]


def test_check_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_table(tmp_path)
    assert main(["data", "check", str(path), *COLUMNS]) == 0
    out = capsys.readouterr().out
    assert "12 images, 6 patients" in out
    assert "Brain Tumor" in out


def test_check_names_the_missing_column_and_the_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_table(tmp_path)
    assert main(["data", "check", str(path)]) == 2
    assert "column 'patient': is missing. Name it with --column patient=" in capsys.readouterr().err
    (tmp_path / "images/4.png").unlink()
    assert main(["data", "check", str(path), *COLUMNS]) == 2
    err = capsys.readouterr().err
    assert "row 6: no such file" in err
    assert err.count("\n") == 1


def test_check_can_read_every_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_table(tmp_path)
    assert main(["data", "check", str(path), *COLUMNS, "--decode"]) == 0
    (tmp_path / "images/4.png").write_bytes(b"not an image")
    assert main(["data", "check", str(path), *COLUMNS, "--decode"]) == 1
    assert "1 of 12 images cannot be read" in capsys.readouterr().out


def test_unlabelled_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_table(tmp_path)
    assert main(["data", "check", str(path), "--column", "patient=group"]) == 2
    assert "no finding column" in capsys.readouterr().err
    assert main(["data", "check", str(path), "--column", "patient=group", "--unlabelled"]) == 0


def test_split_and_folds(tmp_path: Path) -> None:
    path = make_table(tmp_path)
    out = tmp_path / "split.csv"
    assert main(["data", "split", str(path), *COLUMNS, "--out", str(out), "--seed", "1"]) == 0
    table = StudyTable.read(out)
    table.validate(check_files=True)
    assert_no_leak(table)
    assert set(table.frame["split"]) == {"train", "val", "test"}
    # A table whose split cuts through patients is what this command mends.
    broken = table.frame.assign(split=["train", "test"] * 6)
    StudyTable(broken, table.root, table.findings).write(tmp_path / "broken.csv")
    assert main(["data", "split", str(tmp_path / "broken.csv"), "--out", str(out)]) == 0
    assert main(["data", "split", str(out), "--out", str(out), "--folds", "3"]) == 0
    folded = StudyTable.read(out).frame
    assert folded.groupby("patient")["fold"].nunique().max() == 1
    assert set(folded["fold"]) == {"0", "1", "2"}


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_table(tmp_path)
    (tmp_path / "images/4.png").write_bytes(b"not an image")
    command = ["data", "prepare", str(path), *COLUMNS, "--out", str(tmp_path / "store"), "--size", "16"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "11 images at 16 px (12 decoded now, 0 reused" in out
    assert "1 of 12 images cannot be read" in out
    assert "bad.csv" in out
    assert len(PreparedStore.open(tmp_path / "store")) == 11
    assert main(command) == 0
    assert "(0 decoded now, 12 reused" in capsys.readouterr().out


def test_phantom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "phantom", str(tmp_path / "phantom"), "--count", "6", "--size", "32", "--workers", "1"]
    assert main([*command, "--prevalence", "0.5"]) == 0
    assert "6 images" in capsys.readouterr().out
    StudyTable.read(tmp_path / "phantom/table.csv", labelled=False).validate(check_files=True, labelled=False)


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.chexpert(tmp_path / "set")
    out = tmp_path / "tables/chexpert.parquet"
    assert main(["data", "import", "chexpert", str(tmp_path / "set"), "--out", str(out), "--no-frontal-only"]) == 0
    assert "4 images, 3 patients" in capsys.readouterr().out
    StudyTable.read(out).validate(check_files=True)


def test_import_makes_files_beside_the_table(tmp_path: Path) -> None:
    published.lgg(tmp_path / "set")
    out = tmp_path / "lgg.csv"
    assert main(["data", "import", "lgg_mri", str(tmp_path / "set"), "--out", str(out), "--channel", "post"]) == 0
    table = StudyTable.read(out)
    table.validate(check_files=True)
    assert table.image_path(0).resolve().is_relative_to(tmp_path / "lgg_files")


def test_every_importer_has_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(IMPORTABLE) == set(IMPORTERS)
    for name in IMPORTABLE:
        with pytest.raises(SystemExit) as left:
            main(["data", "import", name, "--help"])
        assert left.value.code == 0
        assert "--out" in capsys.readouterr().out


def test_renamings() -> None:
    assert parse_columns(("a=b", "c d = e=f")) == {"a": "b", "c d": "e=f"}
    for wrong in ("a", "=b", "a="):
        with pytest.raises(InputError, match="is no renaming"):
            parse_columns((wrong,))
