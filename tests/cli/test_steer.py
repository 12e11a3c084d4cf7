from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.classify import load_classifier, save_pretrained
from counterscan.cli.graft import COMMANDS as GRAFT
from counterscan.cli.main import run_commands
from counterscan.cli.steer import COMMANDS
from counterscan.data.prepare import prepare
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier
from counterscan.nets.latent_encoder import LatentEncoder, LatentEncoderConfig
from counterscan.nets.stylegan2 import Generator
from counterscan.nets.text_image import TinyClipConfig
from counterscan.taggan import MapGenerator, NetworkConfig, TagGAN
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.gate import Gate, GateConfig, Limits
from counterscan.tbsmgan.generator import LabelMix
from counterscan.tbsmgan.inversion import Likeness
from counterscan.tbsmgan.inverter import Inverter
from counterscan.tbsmgan.judgement import Judgement, Sign
from counterscan.text.clip import TinyTextImage
from counterscan.text.tokenizer import ReportTokenizer
from counterscan.text.zeroshot import ZeroShot
from tests.classify.planted import TINY
from tests.taggan.blobs import FINDINGS, blob_store
from tests.tbsmgan.small import NETWORK

TEXTS = ["left pneumothorax", "no pneumothorax", "consolidation", "no consolidation", "no finding"] * 3


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gan/, clip/, classifier/, store/ and scan.png: untrained networks of 16 px that know each other's findings."""
    import dataclasses

    folder = tmp_path_factory.mktemp("steer")
    torch.manual_seed(0)
    config = dataclasses.replace(NETWORK, labels=2)
    mix = LabelMix(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.ones(3) / 3)
    gan = StyleGAN(Generator(config), FINDINGS, mix, learned={FINDINGS[0]: True, FINDINGS[1]: False})
    gan.save_pretrained(folder / "gan")
    tokenizer = ReportTokenizer.fit(TEXTS, least=1)
    clip = TinyTextImage(tokenizer, TinyClipConfig((8, 8), text_width=16, text_layers=1, embedding=8))
    clip.save(folder / "clip")
    auc = dict(zip(FINDINGS, (0.9, 0.9), strict=True))
    counts = dict.fromkeys(FINDINGS, 9)
    ZeroShot("clip", "contrast", auc, auc, counts, counts, {}).save(folder / "clip" / "zeroshot.json")
    save_pretrained(Classifier(TINY, FINDINGS).eval(), folder / "classifier")
    made, rows = blob_store(200, findings=2), []
    for i in range(len(made)):
        pixels = (made.images([i])[0, 0].numpy() * 127.5 + 127.5).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"scan_{i}.png")
        labels = dict(zip(FINDINGS, made.labels[i].tolist(), strict=True))
        rows.append({"image": f"scan_{i}.png", "patient": made.patients[i], "split": made.split[i], **labels})
    import pandas as pd

    table = StudyTable.from_frame(pd.DataFrame(rows), folder)
    prepare(table, folder / "store", size=16, workers=1)
    return folder


def edit(study: Path, out: Path, text: str, *more: str) -> int:
    models = ["--generator", str(study / "gan"), "--text-model", str(study / "clip"), "--out", str(out)]
    quick = ["--steps", "2", "--cache", str(study / "cache")]
    return run_commands("augment", COMMANDS, ["edit", str(study / "scan_0.png"), text, *models, *quick, *more])


def synthesize(study: Path, out: Path, *findings: str, more: tuple[str, ...] = ()) -> int:
    places = [str(study / name) for name in ("gan", "clip", "store")]
    options = ["--classifier", str(study / "classifier"), "--out", str(out), "--cache", str(study / "cache")]
    command = ["synthesize", *places, "--findings", *findings, *options, "--method", "label-swap", *more]
    return run_commands("augment", COMMANDS, command)


def test_edit_writes_a_strip_over_the_strengths(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert edit(study, tmp_path, "consolidation", "--strength", "-2", "1", "2") == 0
    (about,) = (json.loads(path.read_text()) for path in tmp_path.glob("*_explanation.json"))
    assert about["strengths"] == [-2.0, 0.0, 1.0, 2.0]
    assert about["query"] == {
        "finding": "Consolidation",
        "direction": "remove",
        "strength": 2.0,
        "text": "consolidation",
    }
    assert set(about["probabilities"]) == {"Consolidation"}
    assert "not calibrated" in about["verdict"]
    assert about["made_by"]["settings"]["method"] == "style"
    (strip,) = tmp_path.glob("*_strip.png")
    assert Image.open(strip).text["Synthetic"] == "true"  # type: ignore[attr-defined]
    assert list(tmp_path.glob("*_path.gif"))
    assert "scan_0" not in " ".join(path.name for path in tmp_path.iterdir())
    said = capsys.readouterr().out
    assert "strength +2: cosine with the text" in said
    assert "not judged: without an encoder" in said
    assert len(list((study / "cache").glob("channels-*.safetensors"))) == 1


def test_edit_with_a_classifier_gives_its_probabilities(study: Path, tmp_path: Path) -> None:
    more = ("--classifier", str(study / "classifier"), "--method", "label-swap")
    assert edit(study, tmp_path, "right-sided consolidation", *more) == 0
    (about,) = (json.loads(path.read_text()) for path in tmp_path.glob("*_explanation.json"))
    assert set(about["probabilities"]) == set(FINDINGS)
    assert len(about["strengths"]) == 5
    assert about["strengths"][2] == 0.0
    assert "not calibrated" not in about["verdict"]


def test_an_edited_film_keeps_its_own_texture_and_the_side_that_nobody_asked_about(study: Path, tmp_path: Path) -> None:
    assert edit(study, tmp_path, "left consolidation", "--strength", "1", "--method", "label-swap") == 0
    with np.load(next(tmp_path.glob("*_maps.npz"))) as maps:
        before, after = maps["frames"]
        again = maps["reconstruction"]
    film = np.asarray(Image.open(study / "scan_0.png"), dtype=np.float32) / 127.5 - 1
    np.testing.assert_allclose(before, film, atol=0.02)
    assert np.abs(again - film).mean() > 0.05  # an untrained generator
    half = film.shape[1] // 2 - 1
    np.testing.assert_array_equal(after[:, :half], before[:, :half])  # the patient's right
    assert np.abs(after - before)[:, half + 2 :].mean() > 1e-4


def test_edit_inverts_with_the_classifier_that_the_encoder_was_trained_with(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan, own = StyleGAN.from_pretrained(study / "gan"), load_classifier(study / "classifier")
    invert, seen = Inverter.invert, []

    def watched(self: Inverter, *given: object) -> object:
        seen.append(self.likeness.classifier)
        return invert(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Inverter, "invert", watched)
    torch.manual_seed(1)
    for number, classifier in enumerate((own, Classifier(TINY, FINDINGS), None)):
        network = LatentEncoder(LatentEncoderConfig(), 16, gan.generator.num_ws, gan.generator.config.w_dim)
        folder = Inverter(gan, network, Likeness(classifier=classifier)).save_pretrained(tmp_path / f"e{number}")
        more = ("--encoder", str(folder), "--strength", "1", "--method", "label-swap")
        assert edit(study, tmp_path / f"out{number}", "consolidation", *more) == 0
    assert isinstance(seen[0], Classifier)
    assert seen[1:] == [None, None]


def test_edit_refuses_what_cannot_be_had(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="speaks of nothing known"):
        edit(study, tmp_path, "a banana")
    with pytest.raises(InputError, match="has not learnt it"):
        edit(study, tmp_path, "left pneumothorax")
    with pytest.raises(InputError, match="no encoder"):
        edit(study, tmp_path, "consolidation", "--encoder", str(tmp_path))
    with pytest.raises(InputError, match="steps"):
        edit(study, tmp_path, "consolidation", "--steps", "-1")
    assert not list(tmp_path.iterdir())
    assert edit(study, tmp_path, "left pneumothorax", "--force", "--strength", "1") == 0


def test_what_the_text_model_knows_is_measured_where_no_record_lies(study: Path, tmp_path: Path) -> None:
    (study / "clip" / "zeroshot.json").rename(tmp_path / "kept.json")
    try:
        with pytest.raises(InputError, match="nobody measured"):
            edit(study, tmp_path / "out", "consolidation")
        with pytest.raises(InputError, match=r"hardly knows it|could not be judged"):
            edit(study, tmp_path / "out", "consolidation", "--store", str(study / "store"))
        assert list((study / "cache").glob("zeroshot-*.json"))
    finally:
        (tmp_path / "kept.json").rename(study / "clip" / "zeroshot.json")


def test_synthesize_tells_what_was_rejected(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert synthesize(study, tmp_path, "Consolidation=3", more=("--tries", "2")) == 1
    said = capsys.readouterr().out
    assert "Consolidation: 0 of 3 studies" in said
    assert "the budget of 6 tries is spent" in said
    assert "What the gate let through" in said
    assert json.loads((tmp_path / "synthesis.json").read_text())["rates"][0]["tried"] == 6
    assert (tmp_path / "gate" / "gate.json").is_file()


def test_synthesize_writes_a_study_table(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calibrate, opinions = Gate.calibrate, Gate.opinions

    def lenient(*given: object) -> Gate:
        made = calibrate(*given)  # type: ignore[arg-type]
        made.limits = Limits(2.0, 2.0, 1e9, -1.0, "anything")
        made.config = GateConfig(sure=1e-9, off=0.999)
        return made

    monkeypatch.setattr(Gate, "calibrate", lenient)
    monkeypatch.setattr(Gate, "opinions", lambda self, images: 0.4 * opinions(self, images))  # nobody has it before
    assert synthesize(study, tmp_path, "Consolidation=3", more=("--strength", "3", "--tries", "20")) == 0
    table = StudyTable.read(tmp_path / "table.csv", labelled=False)
    assert len(table) == 3
    assert set(table.frame["Consolidation"]) == {1.0}
    assert set(table.frame["Pneumothorax"]) == {0.0}  # not learnt, so never asked for
    assert "3 synthetic studies" in capsys.readouterr().out
    assert synthesize(study, tmp_path, "Consolidation=3", more=("--strength", "3", "--tries", "20")) == 0


def test_synthesize_refuses_requests_that_say_nothing(study: Path, tmp_path: Path) -> None:
    for request in ("Consolidation", "Consolidation=0", "=5", "Consolidation=many"):
        with pytest.raises(InputError, match="what and how many"):
            synthesize(study, tmp_path, request)
    with pytest.raises(InputError, match="asked for twice"):
        synthesize(study, tmp_path, "Consolidation=2", "left consolidation=2")
    with pytest.raises(InputError, match="has not learnt it"):
        synthesize(study, tmp_path, "Pneumothorax=2")


def test_training_images_are_edited_once_each(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    more = ("--bodies", "real", "--tries", "500")
    with pytest.raises(InputError, match="Train an encoder first"):
        synthesize(study, tmp_path / "none", "Consolidation=2", more=more)
    gan = StyleGAN.from_pretrained(study / "gan")
    encoder = LatentEncoder(LatentEncoderConfig(), 16, gan.generator.num_ws, gan.generator.config.w_dim)
    Inverter(gan, encoder).save_pretrained(tmp_path / "encoder")
    calibrate, opinions = Gate.calibrate, Gate.opinions

    def lenient(*given: object) -> Gate:
        made = calibrate(*given)  # type: ignore[arg-type]
        made.limits, made.config = Limits(2.0, 2.0, 1e9, -1.0, "anything"), GateConfig(sure=1e-9, off=0.999)
        return made

    monkeypatch.setattr(Gate, "calibrate", lenient)
    monkeypatch.setattr(Gate, "opinions", lambda self, images: 0.4 * opinions(self, images))
    out = tmp_path / "out"
    assert synthesize(study, out, "Consolidation=500", more=(*more, "--encoder", str(tmp_path / "encoder"))) == 0
    store, made = PreparedStore.open(study / "store"), StudyTable.read(out / "table.csv", labelled=False).frame
    bodies = store.patients[(store.split == "train") & (store.labels[:, 0] == 0)]
    assert sorted(made["patient"]) == sorted(bodies)
    assert f"all {len(bodies)} images that could be edited were tried" in capsys.readouterr().out
    with pytest.raises(InputError, match="another request"):
        synthesize(study, out, "Consolidation=500", more=("--tries", "500"))


@pytest.fixture(scope="module")
def tagger(study: Path) -> Path:
    """Untrained maps."""
    torch.manual_seed(0)
    TagGAN([MapGenerator(NetworkConfig(base=4, levels=2), 2)], FINDINGS, size=16).save_pretrained(study / "tagger")
    return study / "tagger"


def graft(study: Path, tagger: Path, out: Path, *findings: str) -> int:
    places = [str(tagger), str(study / "store"), "--classifier", str(study / "classifier"), "--out", str(out)]
    return run_commands(
        "augment", GRAFT, ["graft", *places, "--healed", "--filler-steps", "2", "--findings", *findings]
    )


def test_graft_tells_what_was_rejected(
    study: Path, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert graft(study, tagger, tmp_path, "Consolidation=3") == 1
    said = capsys.readouterr().out
    assert "Consolidation: 0 graft, 0 control, 0 healed" in said
    assert "Consolidation (-)" in said.split("Consolidation: 0")[0]  # the finding is not cut in a narrow terminal
    rates = json.loads((tmp_path / "grafts.json").read_text())["rates"]
    assert [row["finding"] for row in rates] == ["Consolidation (-)"]


def test_graft_writes_a_study_table(
    study: Path, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_pass(
        self: Gate, before: torch.Tensor, after: torch.Tensor, finding: str, sign: Sign, **_: object
    ) -> Judgement:
        size = len(after)
        number = torch.full((size,), 0.9 if sign > 0 else 0.1)
        return Judgement(
            finding, sign, torch.ones(size, 5, dtype=torch.bool), 1 - number, number, *[number * 0] * 5, number[:, None]
        )

    monkeypatch.setattr(Gate, "judge", all_pass)
    assert graft(study, tagger, tmp_path, "Consolidation=3") == 0
    assert "9 synthetic studies" in capsys.readouterr().out
    table = StudyTable.read(tmp_path / "table.csv")
    assert table.frame["method"].tolist() == ["graft"] * 3 + ["control"] * 3 + ["healed"] * 3
    assert table.frame["Consolidation"].tolist() == [1.0] * 3 + [0.0] * 6
    assert graft(study, tagger, tmp_path, "Consolidation=3") == 0  # nothing is left to do


def test_graft_refuses_a_store_without_the_taggers_findings(study: Path, tmp_path: Path) -> None:
    other = TagGAN([MapGenerator(NetworkConfig(base=4, levels=2), 1)], ("Edema",), size=16)
    other.save_pretrained(tmp_path / "tagger")
    with pytest.raises(InputError, match="no 'Edema'"):
        graft(study, tmp_path / "tagger", tmp_path / "out", "Edema=3")
