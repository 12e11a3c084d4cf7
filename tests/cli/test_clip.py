"""``counterscan augment clip train`` on a handful of phantom films."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterscan.cli.main import main
from counterscan.data.phantom import PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.splits import split_by_patient
from counterscan.text.clip import load_clip
from counterscan.text.zeroshot import ZeroShot


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    config = PhantomConfig(size=32, findings=("Cardiomegaly", "Pleural Effusion"), prevalence=0.5)
    made = write_phantom(folder / "phantom", 160, config, 0, workers=1)
    prepare(split_by_patient(made, {"train": 0.8, "val": 0.2}, 0), folder / "store", size=32, workers=1)
    return folder / "store"


def test_trains_and_says_what_it_knows(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["augment", "clip", "train", str(store), "--out", str(tmp_path / "clip"), "--steps", "3"]) == 0
    known = ZeroShot.load(tmp_path / "clip" / "zeroshot.json")
    assert set(known.auc) == {"Cardiomegaly", "Pleural Effusion"}
    assert "zero-shot AUC" in "".join(capsys.readouterr())
    assert load_clip(tmp_path / "clip").embed_texts(["cardiomegaly"]).shape[0] == 1


def test_a_folder_that_is_no_clip_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["augment", "clip", "train", str(store), "--out", str(tmp_path / "run"), "--pretrained", str(tmp_path)]
    assert main(arguments) != 0
    assert str(tmp_path) in capsys.readouterr().err


def test_a_control_does_not_take_true_labels(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["augment", "clip", "train", str(store), "--out", str(tmp_path / "run"), "--view", "shuffled"]
    assert main(arguments) != 0
    assert "--loss info-nce" in capsys.readouterr().err
