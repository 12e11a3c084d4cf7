from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from counterscan.cli.main import main
from counterscan.data.table import StudyTable
from counterscan.nets.stylegan2 import Generator
from counterscan.tbsmgan import LabelMix, StyleGAN
from tests.tbsmgan.small import NETWORK, config, store

FINDINGS = ("Edema", "Cardiomegaly")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    gan = StyleGAN(
        Generator(replace(NETWORK, labels=2)),
        FINDINGS,
        LabelMix.of(torch.tensor([[0.0, 0], [1, 0]])),
        learned={"Edema": True, "Cardiomegaly": False},
    )
    return gan.save_pretrained(tmp_path / "model")


def test_samples_are_marked_and_tabled(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ["--findings", "oedema=2", "Edema+Cardiomegaly", "No Finding=1"]
    assert main(["augment", "gan", "sample", str(model), "--out", str(out), *asked, "--truncation", "0", "1"]) == 0
    table = StudyTable.read(out / "table.csv")
    assert table.findings == FINDINGS
    assert table.labels().tolist() == [[1, 0], [1, 0], [1, 1], [0, 0]]
    assert table.frame["patient"].nunique() == 4
    with Image.open(table.image_path(0)) as picture:
        assert picture.size == (16, 16)
        assert picture.text["Synthetic"] == "true"
        assert "medical device" in picture.text["Disclaimer"]
        assert picture.text["Findings asked for"] == "Edema"
    with Image.open(out / "grid.png") as grid, Image.open(out / "truncation.png") as ladder:
        assert grid.text["Synthetic"] == ladder.text["Synthetic"] == "true"
        assert ladder.size == (4 * 18 - 2, 2 * 18 - 2)
    said = capsys.readouterr().out
    assert "4 synthetic images" in said
    assert "Cardiomegaly was not learned" in said
    assert "Edema was not learned" not in said


def test_the_same_command_writes_the_same_images(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["augment", "gan", "sample", str(model), "--out", str(tmp_path / name), "--count", "3"]) == 0
    first, second = (tmp_path / name / "images" / "synthetic-000002.png" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("request_", ["Edema=", "Edema=0", "Edema=many", "Pneumothorax=1"])
def test_requests_that_cannot_be_met_are_refused(
    model: Path, tmp_path: Path, request_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["augment", "gan", "sample", str(model), "--out", str(tmp_path / "o"), "--findings", request_])
    assert code == (0 if request_ == "Edema=" else 2)  # without a number it is one image


def test_train_builds_the_run_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the options to a finished run, at 16 px."""
    import counterscan.data.store
    import counterscan.tbsmgan

    seen: dict[str, Any] = {}
    fit = counterscan.tbsmgan.fit

    def small(rows: Any, out: Path, wanted: Any, **more: Any) -> StyleGAN:
        seen["config"] = wanted
        return fit(rows, out, replace(config(wanted.training.steps), findings=wanted.findings), **more)

    monkeypatch.setattr(counterscan.data.store.PreparedStore, "open", lambda path: store())
    monkeypatch.setattr(counterscan.tbsmgan, "fit", small)
    options = ["--steps", "10", "--gamma", "0.5", "--loss", "relativistic", "--batch-size", "16", "--seed", "3"]
    out = tmp_path / "run"
    assert main(["augment", "gan", "train", "any", "--out", str(out), *options]) == 0
    wanted = seen["config"]
    assert (wanted.training.steps, wanted.training.validate_every, wanted.training.batch_size) == (10, 1, 16)
    assert (wanted.objective.gamma, wanted.objective.loss, wanted.training.seed) == (0.5, "relativistic", 3)
    assert main(["augment", "gan", "sample", str(out), "--out", str(tmp_path / "o"), "--count", "1"]) == 0
    assert main(["augment", "gan", "train", "any", "--out", str(out), "--steps", "2", "--minutes", "1"]) == 2
