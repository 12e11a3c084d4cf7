from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from counterscan.classify import AdaptedClassifier, AdapterConfig, load_external, save_pretrained
from counterscan.counterpart import Query, StudyBatch
from counterscan.errors import InputError
from counterscan.files import read_json, write_json, write_text
from counterscan.medxgan import MedXGAN, MedXGANNetworks
from counterscan.medxgan import NetworkConfig as ExplainerNetworks
from counterscan.nets.cnn import Classifier
from counterscan.systems import ClassifierRecord, load_explainer, load_system
from counterscan.taggan import MapGenerator, NetworkConfig, TagGAN
from tests.classify.planted import TINY


def saved(folder: Path) -> TagGAN:
    tagger = TagGAN([MapGenerator(NetworkConfig(base=4, levels=2), 1)], ("Edema",), size=16)
    tagger.save_pretrained(folder)
    return tagger


def test_a_saved_tagger_is_found_by_its_settings(tmp_path: Path) -> None:
    saved(tmp_path)
    answers = load_system(tmp_path).counterparts(StudyBatch(torch.zeros(2, 1, 16, 16)), Query("Edema"))
    assert [answer.made_by.system for answer in answers] == ["TagGAN"] * 2


def test_a_run_folder_says_its_kind(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    write_text(tmp_path / "config.yaml", "system:\n  kind: taggan\n")
    assert isinstance(load_system(tmp_path), TagGAN)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("system:\n  kind: classifier\n", "'classifier' is no system"),
        ("system: {}\n", "does not say which system"),
        ("- [\n", "does not say which system"),
        (None, "no such file"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        write_text(tmp_path / "config.yaml", text)
    with pytest.raises(InputError, match=problem):
        load_system(tmp_path)


# --- explainers and the classifiers that they explain ---

BATCH, ASK = StudyBatch(torch.zeros(1, 1, 16, 16)), Query("Edema")
SETTINGS = AdapterConfig(channels=3, pixel_range=(0, 255))
MODULE = """
import torch
from pathlib import Path
scale = float(Path("scale.txt").read_text())
def build(): return lambda x: scale * x.mean((1, 2, 3))[:, None]
"""


def explainer(classifier: nn.Module, folder: Path) -> MedXGAN:
    torch.manual_seed(0)
    networks = MedXGANNetworks(ExplainerNetworks(base=4, halvings=1, anatomy=2), len(classifier.findings))
    made = MedXGAN(networks, classifier, size=16)
    made.save_pretrained(folder)
    return made


def run_of(classifier: nn.Module, spec: str, adapter: AdapterConfig, folder: Path) -> None:
    """As training leaves it."""
    explainer(classifier, folder / "model")
    ClassifierRecord.of(classifier, spec, adapter).write(folder)
    write_text(folder / "config.yaml", "system:\n  kind: medxgan\n")


def script(path: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.jit.script(net.eval()).save(str(path))
    return str(path)


def test_an_explainer_of_our_own_classifier_needs_nothing_else(tmp_path: Path) -> None:
    save_pretrained(Classifier(TINY, ("Edema",)).eval(), tmp_path / "classifier")
    run_of(load_external(str(tmp_path / "classifier")), str(tmp_path / "classifier"), AdapterConfig(), tmp_path / "run")
    (tmp_path / "classifier").rename(tmp_path / "moved")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        (answer,) = load_system(folder).counterparts(BATCH, ASK)
        assert answer.made_by.system == "medXGAN+"
    assert isinstance(load_explainer(tmp_path / "run", classifier=str(tmp_path / "moved")).classifier, Classifier)


def test_a_foreign_classifier_is_loaded_as_the_run_recorded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path / "net.ts")
    classifier = load_external("net.ts", ["edema"], SETTINGS)
    run_of(classifier, "net.ts", SETTINGS, tmp_path / "run")
    assert read_json(tmp_path / "run" / "classifier.json")["spec"] == str(tmp_path / "net.ts")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded = load_explainer(folder).classifier
        assert isinstance(loaded, AdaptedClassifier)
        assert (loaded.findings, loaded.config, loaded.digest) == (("Edema",), SETTINGS, classifier.digest)
        assert torch.equal(loaded(BATCH.images), classifier(BATCH.images))


def test_a_moved_classifier_must_be_named_and_keeps_its_settings(tmp_path: Path) -> None:
    spec = script(tmp_path / "net.ts")
    run_of(load_external(spec, ["Edema"], SETTINGS), spec, SETTINGS, tmp_path / "run")
    (tmp_path / "net.ts").rename(tmp_path / "moved.ts")
    with pytest.raises(InputError, match=r"cannot be loaded as recorded.*no such file.*--classifier"):
        load_system(tmp_path / "run")
    moved = str(tmp_path / "moved.ts")
    assert load_explainer(tmp_path / "run", classifier=moved).classifier.config == SETTINGS
    with pytest.raises(InputError, match="another classifier"):
        load_explainer(tmp_path / "run", classifier=script(tmp_path / "other.ts", seed=1))
    with pytest.raises(InputError, match=r"fails on 16 px images.*3 channels.*adapter settings"):
        load_explainer(tmp_path / "run", classifier=moved, adapter={"channels": 1})


def test_a_model_folder_without_a_record(tmp_path: Path) -> None:
    spec = script(tmp_path / "net.ts")
    explainer(load_external(spec, ["Edema"], SETTINGS), tmp_path / "model")
    with pytest.raises(InputError, match="not kept with it"):
        load_system(tmp_path / "model")
    with pytest.raises(InputError, match="which classifier"):
        load_explainer(tmp_path / "model", adapter=asdict(SETTINGS))
    loaded = load_explainer(tmp_path / "model", classifier=spec, adapter=asdict(SETTINGS))
    assert loaded.findings == ("Edema",)
    with pytest.raises(InputError, match="no such file"):
        load_explainer(tmp_path / "nowhere", classifier=spec)


def test_a_function_is_found_from_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "my_recorded.py", MODULE)
    write_text(tmp_path / "scale.txt", "3.5")
    classifier = load_external("my_recorded:build", ["Edema"])
    run_of(classifier, "my_recorded:build", AdapterConfig(), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delitem(sys.modules, "my_recorded")
    x = torch.full((1, 1, 16, 16), 0.5)
    assert load_explainer(tmp_path / "run").classifier(x).item() == pytest.approx(1.75)
    assert Path.cwd() == tmp_path / "elsewhere"
    write_text(Path("my_given.py"), MODULE)
    write_text(Path("scale.txt"), "2")
    assert load_explainer(tmp_path / "run", classifier="my_given:build").classifier(x).item() == pytest.approx(1.0)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    for values in ({}, [], {"spec": "a", "findings": ["Edema"], "colour": 1}):
        write_json(tmp_path / "classifier.json", values)
        with pytest.raises(InputError, match="does not name a classifier"):
            ClassifierRecord.read(tmp_path)
    write_json(tmp_path / "classifier.json", {"spec": "a", "findings": ["Edema"], "adapter": {"colour": 1}})
    record = ClassifierRecord.read(tmp_path)
    assert record is not None
    with pytest.raises(InputError, match="unknown settings"):
        record.load()
    assert ClassifierRecord.read(tmp_path / "nowhere") is None
