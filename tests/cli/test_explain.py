from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
import torch
from PIL import Image

from counterscan.classify import AdapterConfig, load_external, save_pretrained
from counterscan.cli.inputs import Items, is_table
from counterscan.cli.main import main
from counterscan.data.prepare import prepare
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.medxgan import ExplainConfig, MedXGAN, MedXGANNetworks, NetworkConfig, RefineConfig
from counterscan.nets.cnn import Classifier
from counterscan.systems import ClassifierRecord, load_system
from tests.classify.planted import TINY
from tests.taggan.blobs import FINDINGS, blob_store

OPTIONS = {
    "training.steps": "2",
    "witness.widths": "4",
    "witness.steps": "2",
    "training.batch-size": "8",
    "training.validate-every": "2",
    "training.precision": "fp32",
    "networks.base": "4",
    "networks.halvings": "1",
    "networks.anatomy": "2",
    "networks.critic-base": "4",
    "networks.critic-stages": "2",
    "explain.refine.steps": "1",
}
SHORT = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)] + ["--training.no-tensorboard"]
# Sees blobs; takes three channels from 0 to 255 and returns probabilities.
MODULE = """
import torch
from tests.taggan.blobs import BlobClassifier

def build():
    net = BlobClassifier(2)
    return lambda x: net(x.mean(1, keepdim=True) / 127.5 - 1).sigmoid()

def flat():
    return lambda x: x.mean((2, 3)) * 0 + torch.tensor([1.0, 2.0])

def choosy():
    net = build()

    def ask(x):
        if float(x.amax((1, 2, 3)).min()) < 1:
            raise ValueError("all is black")
        return net(x) * (float("nan") if float(x.mean((1, 2, 3)).max()) > 200 else 1)

    return ask
"""
ADAPTER = AdapterConfig(channels=3, pixel_range=(0.0, 255.0), outputs="probabilities")
FLAGS = ["--adapter.channels", "3", "--adapter.pixel-range", "0", "255", "--adapter.outputs", "probabilities"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, table.csv, store/, classifier/, a module of a foreign classifier, and run/, which explains
    that one."""
    folder, made = tmp_path_factory.mktemp("study"), blob_store(32, findings=2)
    rows = []
    for i in range(len(made)):
        pixels = (made.images([i])[0, 0].numpy() * 127.5 + 127.5).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"smith_{i}.png")
        labels = {finding: int(made.labels[i, column]) for column, finding in enumerate(FINDINGS)}
        rows.append({"image": f"smith_{i}.png", "patient": made.patients[i], "split": made.split[i], **labels})
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prepare(StudyTable.read(folder / "table.csv"), folder / "store", size=16, workers=1)
    torch.manual_seed(0)
    own = Classifier(TINY, FINDINGS).eval()
    with torch.no_grad():  # half of the images are called positive
        own.head.bias -= own(made.images()).median(dim=0).values
    save_pretrained(own, folder / "classifier")
    (folder / "blobs_of_mine.py").write_text(MODULE)
    explainer(folder)
    return folder


def explainer(folder: Path) -> None:
    """run/, as training would leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        classifier = load_external("blobs_of_mine:build", FINDINGS, ADAPTER)
        ClassifierRecord.of(classifier, "blobs_of_mine:build", ADAPTER).write(folder / "run")
    networks = MedXGANNetworks(NetworkConfig(base=4, halvings=1, anatomy=2), 2)
    donors = {finding: torch.ones(2, 2, 8, 8) for finding in FINDINGS[:1]}
    config = ExplainConfig(refine=RefineConfig(steps=1), frames=4)
    MedXGAN(networks, classifier, config=config, donors=donors, size=16).save_pretrained(folder / "run" / "model")


@pytest.fixture(autouse=True)
def _from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the foreign classifier's module known from an earlier test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "blobs_of_mine", raising=False)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def told(out: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.rglob("*_explanation.json"))]


# --- run ---


def test_run_writes_the_explanation_beside_the_maps(study: Path, tmp_path: Path) -> None:
    command = ["explain", "run", str(study / "run"), str(study / "smith_0.png"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (first, second) = rows(tmp_path / "out")
    assert (first["finding"], second["finding"]) == FINDINGS
    for finding in ("consolidation", "pneumothorax"):
        names = {path.name for path in (tmp_path / "out" / finding).iterdir()}
        assert names == {
            first["id"] + ending
            for ending in (
                ".npz",
                "_map.nii.gz",
                "_evidence.nii.gz",
                "_counterpart.png",
                "_overlay.png",
                "_strip.png",
                "_path.gif",
                "_maps.npz",
                "_explanation.json",
            )
        }
    numbers = told(tmp_path / "out")[0]
    assert numbers["id"] == first["id"]
    assert numbers["scores"]["before"] == pytest.approx(float(first["score_before"]), rel=1e-5)
    assert set(numbers["probabilities"]) == set(FINDINGS)
    assert len(numbers["strengths"]) == 4
    assert numbers["made_by"]["settings"]["refine"]["steps"] == 1
    written = "".join(str(path) for path in (tmp_path / "out").rglob("*")) + str(numbers) + str(rows(tmp_path / "out"))
    assert "smith" not in written


def test_options_reach_the_explainer(study: Path, tmp_path: Path) -> None:
    command = ["explain", "run", str(study / "run" / "model"), str(study / "smith_1.png"), "--out", str(tmp_path / "o")]
    options = ["--steps", "0", "--frames", "3", "--animation", "none", "--finding", "pneumothorax", "--formats", "npz"]
    assert main([*command, *options, "--links", str(tmp_path / "links.csv")]) == 0
    (numbers,) = told(tmp_path / "o")
    assert len(numbers["strengths"]) == 3
    assert numbers["made_by"]["settings"]["refine"]["steps"] == 0
    assert numbers["query"]["finding"] == "Pneumothorax"
    endings = {path.name.removeprefix(numbers["id"]) for path in (tmp_path / "o" / "pneumothorax").iterdir()}
    assert endings == {".npz", "_strip.png", "_maps.npz", "_explanation.json"}
    assert (tmp_path / "links.csv").is_file()


def test_tables_folders_and_dicom_are_explained_and_what_is_done_is_skipped(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom = Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm"
    command = ["explain", "run", str(study / "run"), "--out", str(tmp_path / "out")]
    options = ["--steps", "0", "--frames", "2", "--animation", "none", "--formats", "--finding", FINDINGS[0]]
    (tmp_path / "in").mkdir()
    for i in (0, 1):
        shutil.copy(study / f"smith_{i}.png", tmp_path / "in")
    assert main([*command[:3], str(tmp_path / "in"), str(dicom), *command[3:], *options]) == 0
    assert len(rows(tmp_path / "out")) == 3
    lines = (study / "table.csv").read_text(encoding="utf-8").splitlines()
    table = study / "short.csv"
    table.write_text("\n".join(lines[:4]), encoding="utf-8")
    for expected in ("3 answered, 3 done before", "0 answered, 6 done before"):
        assert main([*command[:3], str(table), str(tmp_path / "in"), str(dicom), *command[3:], *options]) == 0
        assert expected in capsys.readouterr().out
    assert len(rows(tmp_path / "out")) == 6


def test_both_directions_share_a_folder(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", "run", str(study / "run"), str(study / "smith_0.png"), "--out", str(tmp_path / "out")]
    options = ["--finding", "Consolidation", "--animation", "apng", "--formats", "png", "--direction"]
    for direction in ("remove", "add", "add"):
        assert main([*command, *options, direction]) == 0
    assert "0 answered, 1 done before" in capsys.readouterr().out
    assert [row["direction"] for row in rows(tmp_path / "out")] == ["remove", "add"]
    assert [numbers["query"]["direction"] for numbers in told(tmp_path / "out")] == ["remove", "add"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "consolidation",
        "consolidation_add",
        "results.csv",
        "settings.json",
    ]
    assert len(list((tmp_path / "out").rglob("*_path.png"))) == 2


def test_a_bad_file_costs_nobody_else(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    inputs = [str(study / "smith_0.png"), str(tmp_path / "bad.png"), str(study / "smith_1.png")]
    options = ["--steps", "0", "--frames", "2", "--animation", "none", "--formats", "npz"]
    assert main(["explain", "run", str(study / "run"), *inputs, "--out", str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert "2 answered, 0 done before, 1 unusable" in said
    assert "bad.png" in said
    assert len(told(tmp_path / "out")) == 4
    assert main(["explain", "run", str(study / "run"), inputs[1], "--out", str(tmp_path / "none"), *options]) == 1


def test_an_image_that_the_classifier_fails_on_costs_nobody_else(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)
    (tmp_path / "in").mkdir()
    for name, level in (("black", 0), ("white", 255)):
        pixels = np.full((16, 16), level, dtype=np.uint8)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    shutil.copy(study / "smith_0.png", tmp_path / "in")
    command = ["explain", "run", "run", str(tmp_path / "in"), "--classifier", "blobs_of_mine:choosy"]
    options = ["--steps", "0", "--frames", "2", "--animation", "none", "--formats", "npz", "--finding", FINDINGS[0]]
    assert main([*command, "--out", str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert "1 answered, 0 done before, 2 unusable" in said
    assert "the classifier fails on it (all is black)" in said
    assert "the classifier returns NaN or infinite values for Consolidation" in said


def test_adapter_flags_stand_in_for_what_was_recorded_one_by_one(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explain", "run", str(study / "run"), str(study / "smith_0.png"), "--out", str(tmp_path / "out")]
    options = ["--steps", "0", "--frames", "2", "--animation", "none", "--formats", "npz"]
    assert main([*command, *options]) == 0
    assert main([*command, *options, "--adapter.channels", "3"]) == 0  # as recorded, like all the rest
    assert "0 answered, 1 done before" in capsys.readouterr().out
    assert main([*command, *options, "--adapter.pixel-range", "0", "200"]) == 2
    assert "under other settings: adapter.pixel_range" in capsys.readouterr().err


def test_answers_inside_the_images_folder_are_no_images(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(study / "smith_0.png", tmp_path / "in")
    (tmp_path / "in" / "torn.dcm").write_bytes(b"")
    command = ["explain", "run", str(study / "run"), str(tmp_path / "in"), "--out", str(tmp_path / "in" / "out")]
    for expected in ("1 answered, 0 done before, 1 unusable", "0 answered, 1 done before, 1 unusable"):
        assert main([*command, "--steps", "0", "--frames", "2"]) == 0
        said = capsys.readouterr().out
        assert expected in said
        assert "passed over: 1 x folder of answers" in said


def test_an_answer_whose_explanation_cannot_be_written_is_not_done(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from counterscan.report import strips

    command = ["explain", "run", str(study / "run"), str(study / "smith_0.png"), "--out", str(tmp_path / "out")]

    def full(*_: object) -> None:
        raise InputError("cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(strips, "write_json", full)
        assert main([*command, "--animation", "none"]) == 2
    assert rows(tmp_path / "out") == []
    assert main([*command, "--animation", "none"]) == 0
    assert len(rows(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{run}", "{image}", "--finding", "Edema"], "does not know 'Edema'. It knows Consolidation, Pneumothorax"),
        (["{run}", "{image}", "--direction", "add"], "no example of 'Pneumothorax'"),
        (["{run}", "{image}", "--steps", "-1"], "--steps: must be 0 or more"),
        (["{run}", "{image}", "--frames", "1"], "frames: must be at least 2"),
        (["{run}", "{image}", "--threads", "-1"], "--threads: -1 must be 0 or more"),
        (["{run}", "{image}", "--device", "foo"], "--device: 'foo' cannot be used"),
        (["{run}", "{image}", "--batch-size", "0"], "batch_size: 0 must be at least 1"),
        (["{run}", "{image}", "nowhere.png"], "no such file"),
        (["{run}", "nowhere.png"], "no such file"),
        (["{run}"], "no image is named"),
        (["{store}", "{image}"], "no medxgan.json"),
        (["{run}", "{image}", "--classifier", "{classifier}"], "needs no adapter"),
        (["{run}", "{image}", "--classifier", "gone.ts"], "gone.ts: no such file"),
        (["{bare}", "{image}"], "not kept with it"),
        (["{lost}", "{image}"], "--classifier SPEC"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    """A run that lost its record, and one whose record names what is no longer there."""
    for name in ("bare", "lost"):
        shutil.copytree(study / "run" / "model", tmp_path / name / "model")
    record = ClassifierRecord("gone_module:build", FINDINGS, folder=str(tmp_path / "gone"))
    record.write(tmp_path / "lost")
    places = {name: study / name for name in ("run", "store", "classifier")}
    places |= {"image": study / "smith_0.png", "bare": tmp_path / "bare", "lost": tmp_path / "lost"}
    command = ["explain", "run", *(argument.format(**places) for argument in arguments), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert problem in said
    assert not list((tmp_path / "out").rglob("*_strip.png"))


def test_a_classifier_is_named_anew(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(study / "run" / "model", tmp_path / "model")
    command = ["explain", "run", str(tmp_path / "model"), str(study / "smith_0.png"), "--out", str(tmp_path / "out")]
    monkeypatch.syspath_prepend(study)
    assert main([*command, "--classifier", "blobs_of_mine:build", *FLAGS, "--animation", "none"]) == 0
    assert main(["explain", "run", str(study / "run"), *command[3:5], str(tmp_path / "recorded")]) == 0
    scores = [[row["score_before"] for row in rows(tmp_path / name)] for name in ("out", "recorded")]
    assert scores[0] == scores[1]


# --- train ---


def test_a_foreign_classifier_is_trained_for_recorded_and_found_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["explain", "train", str(study / "store"), "--out", str(run), "--findings", *FINDINGS, *SHORT, *FLAGS]
    monkeypatch.chdir(study)
    assert main([*command, "--classifier", "blobs_of_mine:build"]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1
    assert "Consolidation, Pneumothorax as blobs_of_mine:build sees it; validation: psnr" in said[0]
    record = ClassifierRecord.read(run)
    assert record is not None
    assert (record.findings, record.folder, record.kept) == (FINDINGS, str(study), False)
    assert AdapterConfig(**record.adapter) == ADAPTER
    for name in ("config.yaml", "metrics.jsonl", "model/medxgan.json", "model/README.md", "checkpoints"):
        assert (run / name).exists()
    monkeypatch.chdir(tmp_path)
    assert load_system(run).findings == FINDINGS
    options = ["--animation", "none", "--formats", "npz", "--frames", "2"]
    assert main(["explain", "run", str(run), str(study / "smith_0.png"), "--out", str(tmp_path / "out"), *options]) == 0
    assert len(told(tmp_path / "out")) == 2


def test_our_own_classifier_comes_with_the_model(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "classifier", tmp_path / "classifier")
    command = ["explain", "train", str(study / "store"), "--out", "run", *SHORT, "--classifier"]
    assert main([*command, "classifier"]) == 0
    record = ClassifierRecord.read("run")
    assert record is not None
    assert (record.spec, record.kept) == (str(tmp_path / "classifier"), True)
    assert record.digest
    shutil.rmtree("classifier")
    options = ["--animation", "none", "--formats", "npz", "--frames", "2"]
    assert main(["explain", "run", "run", str(study / "smith_0.png"), "--out", str(tmp_path / "out"), *options]) == 0
    other = Classifier(TINY, FINDINGS).eval()
    save_pretrained(other, tmp_path / "other")
    assert main([*command, "other"]) == 2
    assert "this run explains another classifier" in capsys.readouterr().err


def test_a_refused_training_can_be_asked_for_again_with_its_remedy(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sure = Classifier(TINY, FINDINGS).eval()
    torch.nn.init.constant_(sure.head.bias, -100.0)
    save_pretrained(sure, tmp_path / "sure")
    command = ["explain", "train", str(study / "store"), "--out", "run", *SHORT, "--classifier"]
    assert main([*command, "sure"]) == 2
    assert "calls no training image positive" in capsys.readouterr().err
    assert main([*command, str(study / "classifier"), "--findings", FINDINGS[1]]) == 0
    record = ClassifierRecord.read("run")
    assert record is not None
    assert record.findings == FINDINGS[1:]
    options = ["--animation", "none", "--formats", "npz", "--frames", "2", "--out", "out"]
    assert main(["explain", "run", "run", str(study / "smith_0.png"), *options]) == 0
    assert [row["finding"] for row in rows(Path("out"))] == [FINDINGS[1]]


def test_an_exported_program_that_converts_its_numbers_can_be_explained(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterscan.training.precision.bfloat16_is_fast", lambda device: True)
    own = load_external(str(study / "classifier"))

    class Converts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = own

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).float()

    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.zeros(2, 1, 16, 16),)
    program = torch.export.export(Converts().eval(), example, dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "net.pt2")
    short = ["auto" if part == "fp32" else part for part in SHORT]
    command = ["explain", "train", str(study / "store"), "--out", "run", *short, "--findings", *FINDINGS]
    assert main([*command, "--classifier", "net.pt2"]) == 0
    options = ["--animation", "none", "--formats", "npz", "--frames", "2", "--out", "out"]
    assert main(["explain", "run", "run", str(study / "smith_0.png"), *options]) == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--classifier", "blobs_of_mine:build", "--findings", *FINDINGS], "outputs=probabilities"),
        (["--classifier", "blobs_of_mine:build", *FLAGS], "name the findings"),
        (["--classifier", "blobs_of_mine:flat", "--findings", *FINDINGS], "the same for every image"),
        (["--classifier", "classifier", "--adapter.channels", "3"], "needs no adapter"),
        (["--classifier", "wrong_size"], "prepared at 16 px, and the classifier was trained at 32"),
        (["--classifier", "gone.ts", "--findings", "A"], "no such file"),
    ],
)
def test_a_bad_classifier_is_refused_before_training(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(study)
    if "wrong_size" in options:
        own = Classifier(TINY, FINDINGS).eval()
        own.trained_on = {"size": 32}
        save_pretrained(own, study / "wrong_size")
    assert main(["explain", "train", "store", "--out", str(tmp_path / "run"), *SHORT, *options]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert not (tmp_path / "run").exists()


# --- evaluate ---


def test_evaluate_writes_figures_and_a_page_and_goes_on(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())).save(
        str(tmp_path / "inception.ts")
    )
    command = ["explain", "evaluate", str(study / "run"), str(study / "store"), "--out", str(tmp_path / "out")]
    options = ["--split", "val", "--finding", "consolidation", "--quick", "--sample", "2", "--cases", "1"]
    options += ["--oracle", str(study / "classifier"), "--inception", str(tmp_path / "inception.ts")]
    for _ in range(2):
        assert main([*command, *options, "--inception-adapter.size", "16", "16"]) == 0
        said = capsys.readouterr().out
        assert "medXGAN+" in said
        assert "Grad-CAM is left out" in said  # what runs inside a plain function shows no layers
        assert said.strip().endswith("report.html")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("Not a medical device", "RISE", "Latent Shift", "KID, Inception", "KID, in-domain", 'class="strip"'):
        assert words in page
    names = {path.name for path in (tmp_path / "out" / "consolidation").iterdir()}
    assert names == {"evaluation.json", "per_image.csv", "realism.json", "parts"}
    assert "smith" not in page


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--split", "holdout"], "no image is in the split 'holdout'"),
        (["--finding", "Edema"], "does not know 'Edema'"),
        (["--oracle", "nowhere"], "no such file"),
        (["--published", "nowhere"], "no such file"),
        (["--inception", "gone.ts"], "no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    command = ["explain", "evaluate", str(study / "run"), str(study / "store"), "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert problem in said[-1]


def test_an_oracle_that_is_the_explained_classifier_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_external(str(study / "classifier"))
    networks = MedXGANNetworks(NetworkConfig(base=4, halvings=1, anatomy=2), 2)
    MedXGAN(networks, own, size=16).save_pretrained(tmp_path / "model")
    command = ["explain", "evaluate", str(tmp_path / "model"), str(study / "store"), "--out", str(tmp_path / "out")]
    assert main([*command, "--split", "val", "--oracle", str(study / "classifier")]) == 2
    assert "the oracle is the explained classifier" in capsys.readouterr().err


# --- what the verbs share ---


def test_tables_are_told_from_images_folders_and_stores(study: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert is_table(study / "table.csv")
    assert is_table(Path("nowhere.PARQUET"))
    for path in (study / "store", study / "smith_0.png", tmp_path / "folder.csv"):
        assert not is_table(path)
    listed = list(Items([study / "smith_0.png", study / "table.csv"], False, tmp_path / "out"))
    assert len(listed) == 33
    assert listed[-1][0] == study / "smith_0.png"


@pytest.mark.parametrize("command", ["train", "run", "evaluate"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["explain", command, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "--classifier SPEC" in said
    assert "--adapter.pixel-range" in said


def test_the_list_of_commands_does_not_import_torch() -> None:
    code = "import sys; from counterscan.cli.main import main; main(['explain']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
