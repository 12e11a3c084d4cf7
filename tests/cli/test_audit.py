"""The audit as it is typed: tables and folders, mixed sizes, a damaged file, contrast, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from counterscan.classify import save_pretrained
from counterscan.cli.audit import AUDIT, audit_command
from counterscan.cli.main import Lazy, run_commands
from counterscan.cli.synthetic import synthetic_table
from counterscan.data.prepare import prepare
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier
from tests.classify.planted import TINY, planted

FINDING = "Lung Lesion"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


def write(folder: Path, store: PreparedStore, depth: int = 8, patients: bool = True, **columns) -> Path:
    """A study table of PNG files; 12 bit is as scanners export it, in 16-bit files."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = (store.images()[:, 0].numpy() + 1) / 2
    rows = []
    for i, plane in enumerate(grey):
        pixels = np.rint(plane * (2**depth - 1)).astype(np.uint8 if depth == 8 else np.uint16)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        rows.append({"image": f"{i:03d}.png", "patient": store.patients[i], "split": store.split[i]})
        rows[-1][FINDING] = int(store.labels[i, 0])
    frame = pd.DataFrame(rows).assign(**columns)
    frame = frame if patients else frame.drop(columns=["patient", "split"])
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of 12-bit images, and an untrained classifier."""
    folder = tmp_path_factory.mktemp("real")
    table = StudyTable.read(write(folder / "images", planted(160, size=16), depth=12))
    prepare(table, folder / "store", size=16, workers=1)
    torch.manual_seed(0)
    classifier = Classifier(TINY, (FINDING,)).eval()
    classifier.trained_on = {"size": 16, "blank": "zero"}
    save_pretrained(classifier, folder / "classifier")
    return folder


def audit(*arguments: object) -> int:
    commands = {"audit": Lazy(AUDIT, audit_command)}
    return run_commands("counterscan augment", commands, ["audit", *map(str, arguments)])


def test_a_table_of_synthetic_images(real, tmp_path, capsys):
    made = write(tmp_path / "made", planted(60, size=16, seed=3), patients=False)
    for i, size in ((0, (20, 12)), (1, (33, 33))):  # mixed sizes
        Image.open(tmp_path / "made" / f"{i:03d}.png").resize(size).save(tmp_path / "made" / f"{i:03d}.png")
    (tmp_path / "made" / "002.png").write_bytes(b"\x89PNG broken")
    extractor = torch.jit.script(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()))
    extractor.save(str(tmp_path / "views.pt"))
    out = tmp_path / "out"
    assert audit(
        *(made, real / "store", "--out", out, "--classifier", real / "classifier", "--links", tmp_path / "links.csv"),
        *("--features", f"views={tmp_path / 'views.pt'}", "--features-adapter.size", "None", "--pairs", "2"),
        *("--features-adapter.channels", "1"),
    ) in (0, None)
    card = json.loads((out / "card.json").read_text())
    assert card["counts"]["synthetic images"] == 59
    assert card["counts"]["unreadable, synthetic"] == 1
    assert card["sections"]["Memorisation"]["verdict"] == "good"
    assert card["settings"]["spaces"] == ["in-domain", "views"]
    figures = card["sections"]["Fidelity"]["figures"]
    assert {"Fidelity, in-domain features", "Fidelity, views features"} <= figures.keys()
    # 8-bit files beside 12-bit ones: read with their own range, so that grey values agree.
    greys = [figures["Pixels"][name]["Mean grey"][0] for name in ("synthetic", "training")]
    assert greys[0] == pytest.approx(greys[1], abs=0.1)
    assert len(card["near_copies"]) == 2
    assert len(pd.read_csv(tmp_path / "links.csv")) == 4
    said = capsys.readouterr().out
    assert "Memorisation: good" in said
    assert "002.png" in said
    page = (out / "report.html").read_text()
    for name in (str(real), "images/", ".png"):
        assert name not in page


def test_a_folder_and_a_trained_classifier(real, tmp_path):
    write(tmp_path / "made", planted(40, size=16, seed=3))
    (tmp_path / "made" / "table.csv").unlink()
    out = tmp_path / "out"
    audit(tmp_path / "made", real / "store", "--out", out, "--steps", "1", "--usefulness", "1", "--pairs", "0")
    card = json.loads((out / "card.json").read_text())
    assert (out / "classifier" / "config.yaml").is_file()
    assert card["counts"]["synthetic images"] == 40
    assert card["sections"]["Label truth"]["said"] == "The synthetic images have no labels."
    assert card["sections"]["Usefulness"]["verdict"] == "not judged"


def test_contrast_as_told(real, tmp_path):
    made = write(tmp_path / "made", planted(30, size=16, seed=3))
    common = ("--classifier", real / "classifier", "--pairs", "0", "--intensity")
    audit(made, real / "store", "--out", tmp_path / "dark", *common, "real")
    notes = json.loads((tmp_path / "dark" / "card.json").read_text())["notes"]
    assert any("Mean grey is -0.9" in note for note in notes)
    audit(made, real / "store", "--out", tmp_path / "right", *common, "full")
    assert json.loads((tmp_path / "right" / "card.json").read_text())["notes"] == []


def test_stores_are_taken_as_they_are(real, tmp_path):
    audit(real / "store", real / "store", "--out", tmp_path, "--classifier", real / "classifier")
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["sections"]["Memorisation"]["verdict"] == "poor"
    assert not (tmp_path / "store_synthetic").exists()
    assert card["near_copies"][0]["synthetic"] == card["near_copies"][0]["training"]


def test_a_real_table_needs_a_size_unless_a_classifier_knows_it(real, tmp_path):
    made, table = write(tmp_path / "made", planted(30, size=16, seed=3)), real / "images" / "table.csv"
    with pytest.raises(InputError, match="--size"):
        audit(made, table, "--out", tmp_path / "out")
    audit(made, table, "--out", tmp_path / "out", "--classifier", real / "classifier", "--pairs", "0")
    assert (tmp_path / "out" / "store_real" / "store.json").is_file()
    with pytest.raises(InputError, match="trained at 16"):
        audit(made, table, "--out", tmp_path / "other", "--size", "24", "--judge", real / "classifier")


def test_synthetic_tables_and_folders(tmp_path):
    store = planted(4, size=16)
    path = write(tmp_path / "made", store, patients=False)
    table = synthetic_table(path)
    assert table.findings == (FINDING,)
    assert table.frame["patient"].nunique() == 4
    assert synthetic_table(write(tmp_path / "own", store)).frame["patient"].nunique() == 2
    frame = pd.read_csv(path).rename(columns={FINDING: "Shadow", "image": " Image "})
    frame.to_csv(path, index=False)
    assert synthetic_table(path, ("Shadow",)).findings == ("Shadow",)
    assert synthetic_table(tmp_path / "made").findings == ()
    assert len(synthetic_table(tmp_path / "made")) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image found"):
        synthetic_table(tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        synthetic_table(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("given", "problem"), [("views", "NAME=FILE"), ("=x.pt", "NAME=FILE"), ("a=b.pt", "no such file")]
)
def test_extractors_that_cannot_be_had(real, tmp_path, given, problem):
    with pytest.raises(InputError, match=problem):
        audit(tmp_path, real / "store", "--out", tmp_path / "out", "--features", given)
    with pytest.raises(InputError, match="classifier"):
        audit(tmp_path, real / "store", "--out", tmp_path / "out", "--features", f"a={real / 'classifier'}")
