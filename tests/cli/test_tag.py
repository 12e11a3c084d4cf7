from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from PIL import Image

from counterscan.cli.main import main
from counterscan.data.prepare import prepare
from counterscan.data.table import StudyTable
from tests.taggan.blobs import FINDINGS, blob_store

OPTIONS = {
    "training.steps": "4",
    "training.batch-size": "8",
    "training.validate-every": "2",
    "training.precision": "fp32",
    "networks.base": "4",
    "networks.levels": "2",
    "networks.critic-base": "4",
    "networks.critic-stages": "2",
    "networks.back-base": "4",
    "networks.back-levels": "2",
    "classifier.steps": "4",
}
TINY = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with table.csv, store/ and run/, made as a user would make them."""
    folder, made = tmp_path_factory.mktemp("study"), blob_store(48)
    rows = []
    for i in range(len(made)):
        Image.fromarray((made.images([i])[0, 0].numpy() * 127.5 + 127.5).round().astype(np.uint8)).save(
            folder / f"{i}.png"
        )
        mask = made.masks([i])[0, 0].numpy()
        if mask.any():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{i}_mask.png")
        rows.append(
            {
                "image": f"{i}.png",
                "patient": made.patients[i],
                "split": "test" if i >= 40 else made.split[i],
                FINDINGS[0]: int(made.labels[i, 0]),
                "mask": f"{i}_mask.png" if mask.any() else "",
            }
        )
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(StudyTable.read(folder / "table.csv"), folder / "store", size=16, workers=1)
    assert main(["tag", "train", str(folder / "store"), "--out", str(folder / "run"), *TINY]) == 0
    return folder


def results(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_train_leaves_a_whole_run(study: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "choice.json", "model/taggan.json", "model/README.md", "checkpoints"):
        assert (study / "run" / name).exists()


def test_run_takes_files_folders_tables_and_dicom(study: Path, tmp_path: Path) -> None:
    dicom = Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm"
    assert main(["tag", "run", str(study / "run"), str(study / "0.png"), str(dicom), "--out", str(tmp_path / "a")]) == 0
    assert len(results(tmp_path / "a")) == 2
    table = str(study / "table.csv")
    assert (
        main(["tag", "run", str(study / "run" / "model"), table, "--out", str(tmp_path / "b"), "--formats", "npz"]) == 0
    )
    assert len(results(tmp_path / "b")) == 48
    both = [table, str(dicom)]
    assert main(["tag", "run", str(study / "run"), *both, "--out", str(tmp_path / "c"), "--formats", "npz"]) == 0
    assert len(results(tmp_path / "c")) == 49
    again = ["tag", "run", str(study / "run"), table, "--out", str(tmp_path / "b"), "--formats", "npz"]
    assert main(again) == 0
    assert len(results(tmp_path / "b")) == 48


def test_run_options(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    command = ["tag", "run", str(study / "run"), str(study / "1.png"), str(tmp_path / "bad.png")]
    options = ["--uncertainty", "--fast", "--hide-and-seek", "0.1", "--also", str(study / "run"), "--links"]
    assert main([*command, "--out", str(tmp_path / "out"), *options, str(tmp_path / "links.csv")]) == 0
    assert "1 answered, 0 done before, 1 unusable" in capsys.readouterr().out
    assert (tmp_path / "links.csv").is_file()
    assert list((tmp_path / "out").rglob("*_uncertainty.nii.gz"))
    (written,) = (tmp_path / "out").rglob("*.npz")
    assert "uncertainty" in np.load(written)


def test_evaluate_writes_figures_and_a_page(study: Path, tmp_path: Path) -> None:
    judge = str(study / "run" / "classifiers" / "0")
    command = ["tag", "evaluate", str(study / "run"), str(study / "store"), "--out", str(tmp_path), "--judge", judge]
    assert main([*command, "--ig-steps", "2", "--cases", "1"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not a medical device" in page
    for name in ("TagGAN", "Grad-CAM", "LayerCAM", "Integrated Gradients", "Raw intensity", "Mean lesion location"):
        assert name in page
    assert (tmp_path / "consolidation" / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "{run}", "nowhere.png"], "no such file"),
        (["run", "{store}", "{image}"], "no taggan.json"),
        (["run", "{run}", "{image}", "--finding", "Edema"], "does not know 'Edema'"),
        (["evaluate", "{run}", "{store}", "--split", "holdout"], "no image of the split 'holdout'"),
        (["train", "{image}"], ""),
        (["train", "{store}", "--percentile", "150"], "percentile: 150.0 must be between 0 and 100"),
        (
            ["train", "{store}", "--classifier.findings", "Consolidation"],
            "classifier.findings: maps are learned of all",
        ),
        (["train", "{store}", "--training.seed", "-1"], "seed: must be at least 0"),
    ],
)
def test_errors_are_one_line_and_exit_code_two(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    places = {"run": study / "run", "store": study / "store", "image": study / "0.png"}
    command = [argument.format(**places) for argument in arguments]
    code = main(["tag", *command, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 2
    assert problem in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_help_does_not_import_torch() -> None:
    import subprocess

    code = (
        "import sys; from counterscan.cli.main import main; main(['tag', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
