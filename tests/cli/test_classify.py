from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterscan.cli.main import main
from counterscan.files import read_json
from tests.data import published

TRAIN = ["--steps", "2", "--widths", "4", "8", "--batch-size", "8", "--no-tensorboard", "--workers", "1"]


def make_table(root: Path, count: int = 24) -> Path:
    lines = ["image,patient,split,Mass,Edema"]
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / f"images/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8)).save(path)
        lines.append(f"images/{i}.png,p{i},{('train', 'val', 'test')[i % 3]},{i // 3 % 2},{i // 6 % 2}")
    return published.text(root / "table.csv", "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("classify")
    table = make_table(root)
    assert main(["classify", "train", str(table), "--out", str(root / "run"), "--size", "16", *TRAIN]) == 0
    return table, root / "run"


def test_trains_from_a_table_and_evaluates_its_store(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run
    assert main(["classify", "evaluate", str(folder), str(folder / "store"), "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    assert "test: 8 images of 8 patients" in out
    assert all(word in out for word in ("Lung Lesion", "Edema", "ROC-AUC", "ECE"))
    found = read_json(folder / "metrics.json")
    assert found["split"] == "test"
    assert found["findings"]["Lung Lesion"]["present"] == 4


def test_evaluates_a_table_in_another_folder(run: tuple[Path, Path], tmp_path: Path) -> None:
    table, folder = run
    arguments = ["--split", "all", "--out", str(tmp_path), "--resamples", "20"]
    assert main(["classify", "evaluate", str(folder), str(table), *arguments]) == 0
    assert read_json(tmp_path / "metrics.json")["images"] == 24
    assert (tmp_path / "store_evaluated" / "store.json").is_file()


def test_options_reach_the_nested_settings(run: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = run
    options = ["--flip", "0", "--strong", "--pool", "gap", "--findings", "Mass", *TRAIN]
    assert main(["classify", "train", str(folder / "store"), "--out", str(tmp_path), *options]) == 0
    text = (tmp_path / "config.yaml").read_text()
    assert "flip: 0.0" in text
    assert "erase: 0.5" in text
    assert "pool: gap" in text
    assert "Edema" not in text


def test_errors_are_one_line(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, folder = run
    for arguments, message in (
        (["train", str(table), "--out", str(tmp_path / "a")], "no size was given"),
        (["train", str(folder), "--out", str(tmp_path / "a")], "is not a finished store"),
        (["train", str(folder / "store"), "--out", str(tmp_path / "a"), "--size", "32"], "is prepared at 16 px"),
        (["train", str(folder / "store"), "--out", str(tmp_path / "a"), "--findings", "Gout"], "no label 'Gout'"),
        (["evaluate", str(tmp_path), str(folder / "store")], "no such file"),
    ):
        assert main(["classify", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_nothing_heavy_at_the_top() -> None:
    code = "import sys, counterscan.cli.classify; print([m for m in ('torch', 'pandas', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout in (
        "[]\n",
        "['rich']\n",
    )
