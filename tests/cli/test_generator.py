from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import safetensors.torch
import torch
from PIL import Image

from counterscan.classify import save_pretrained
from counterscan.cli.generator import COMMANDS
from counterscan.cli.main import run_commands
from counterscan.data.prepare import prepare
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.export import quantised
from tests.tbsmgan.lively import FINDINGS, lively_gan


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/ with model and classifier, images of "patients", table.csv with splits, store/."""
    folder, gan = tmp_path_factory.mktemp("study"), lively_gan()
    gan.save_pretrained(folder / "run")
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(widths=(8, 8)), FINDINGS)
    classifier.digest = "0" * 64
    save_pretrained(classifier, folder / "run" / "classifier")
    labels = gan.draw_labels(48, 3)
    rows = []
    for i, image in enumerate(gan.sample(labels=labels, psi=1.0, seed=3)):
        Image.fromarray(quantised(image, 8)).save(folder / f"smith_{i}.png")
        named = dict(zip(FINDINGS, labels[i].int().tolist(), strict=True))
        rows.append({"image": f"smith_{i}.png", "patient": f"q{i}", "split": "train" if i < 24 else "val", **named})
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(StudyTable.read(folder / "table.csv"), folder / "store", size=16, workers=1)
    return folder


def gan(*arguments: object) -> int:
    return run_commands("counterscan augment gan", COMMANDS, [str(a) for a in arguments])


def test_real_images_are_inverted_with_an_encoder_that_is_trained_once(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [study / f"smith_{i}.png" for i in (1, 2, 3)]
    out, links = tmp_path / "out", tmp_path / "links.csv"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    common = ["--encoder", tmp_path / "encoder", "--steps", 5, "--links", links]
    with pytest.raises(InputError, match="train it with --store"):
        gan("invert", study / "run", *images, "--out", out, *common)
    training = ["--store", study / "store", "--encoder-steps", 3]
    assert gan("invert", study / "run", *images, broken, "--out", out, *common, *training, "--noise") == 0
    assert (tmp_path / "encoder" / "encoder" / "encoder.json").is_file()
    with (out / "results.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3
    assert all(float(row["psnr"]) > 0 and row["verdict"] for row in rows)
    tensors = safetensors.torch.load_file(out / "latents.safetensors")
    assert tensors["ws"].shape == (3, 4, 8)
    assert tensors["noise/convs.0.0.noise_const"].shape == (3, 4, 4)
    with Image.open(out / "reconstructions" / f"{rows[0]['id']}.png") as picture:
        assert picture.text["Synthetic"] == "true"
    with Image.open(out / "inversions.png") as picture:
        assert picture.size == (3 * 18 - 2, 3 * 18 - 2)
    written = "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
    assert "smith" not in written
    assert links.read_text().count("smith") == 3
    said = capsys.readouterr().out
    assert "3 images" in said
    assert "1 unusable" in said
    again = ["--tune", 2, "--steps", 0]
    assert gan("invert", study / "run", *images, "--out", tmp_path / "b", *common[:2], *again) == 0
    tuned = StyleGAN.from_pretrained(tmp_path / "b" / "tuned")
    assert not tuned.patients.hashes
    assert tuned.checkpoint != StyleGAN.from_pretrained(study / "run").checkpoint


def test_nothing_that_can_be_read_is_said_so(study: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    training = ["--encoder", tmp_path / "e", "--store", study / "store", "--encoder-steps", 1]
    assert gan("invert", study / "run", broken, "--out", tmp_path, *training) == 1
    with pytest.raises(InputError, match="--steps"):
        gan("invert", study / "run", broken, "--out", tmp_path, *training, "--steps", -1)


def test_a_generator_is_judged_from_a_store_or_a_table(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samples", 40, "--quick"]
    assert gan("evaluate", study / "run", study / "store", "--out", tmp_path / "a", *options) == 0
    told = json.loads((tmp_path / "a" / "generator.json").read_text())
    assert told["settings"]["samples"] == 40
    assert told["findings"].keys() == set(FINDINGS)
    assert "Truncation" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "report:" in capsys.readouterr().out
    assert gan("evaluate", study / "run", study / "table.csv", "--out", tmp_path / "b", *options) == 0
    again = json.loads((tmp_path / "b" / "generator.json").read_text())
    assert again["held_out"] == told["held_out"]


@pytest.mark.parametrize("format", ["png16", "dicom8"])
def test_studies_are_exported(study: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--findings", "Edema=2", "No Finding", "Cardiomegaly", "--format", format, "--weights"]
    assert gan("export", study / "run", "--out", tmp_path, *asked) == 0
    table = StudyTable.read(tmp_path / "table.csv")
    assert table.labels().tolist() == [[1, 0], [1, 0], [0, 0], [0, 1]]
    if format == "dicom8":
        assert pydicom.dcmread(table.image_path(0)).SyntheticData == "YES"
    else:
        with Image.open(table.image_path(0)) as picture:
            assert np.asarray(picture).dtype == np.uint16
    loaded, made = StyleGAN.from_pretrained(tmp_path / "model"), lively_gan()
    torch.testing.assert_close(loaded.sample(2), made.sample(2))
    said = capsys.readouterr().out
    assert "4 synthetic studies" in said
    assert "Cardiomegaly was not learned" in said


def test_networks_are_exported(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from counterscan.tbsmgan import onnx_export

    asked = []
    monkeypatch.setattr(onnx_export, "export_onnx", lambda g, out: asked.append(out) or {"synthesis.onnx": 1e-6})
    assert gan("export", study / "run", "--out", tmp_path, "--onnx") == 0
    assert asked == [tmp_path]


def test_an_export_of_nothing_is_refused(study: Path, tmp_path: Path) -> None:
    for options, match in (([], "nothing to export"), (["--count", 2, "--findings", "Edema"], "either")):
        with pytest.raises(InputError, match=match):
            gan("export", study / "run", "--out", tmp_path, *options)
