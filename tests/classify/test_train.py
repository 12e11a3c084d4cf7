from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from counterscan.classify import (
    evaluate_classifier,
    from_pretrained,
    load_classifier,
    predict_logits,
    save_pretrained,
    train_classifier,
)
from counterscan.errors import InputError
from counterscan.files import read_json
from counterscan.metrics.classification import roc_auc
from counterscan.nets.cnn import Classifier
from tests.classify.planted import QUICK, UNTRAINED, planted, relabelled

TWO = ("Lung Lesion", "Edema")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train_classifier(planted(400, findings=TWO), folder, replace(QUICK, steps=120))


def test_learns_planted_findings_that_chance_does_not_see(trained: tuple[Path, Classifier]) -> None:
    fresh = planted(400, findings=TWO, seed=5)
    found = evaluate_classifier(trained[1], fresh, fresh.split == "test", resamples=200)
    for name in TWO:
        assert found["findings"][name]["roc_auc"][0] > 0.9
        assert found["findings"][name]["roc_auc"][1] > 0.8
    # Untrained ones lean either way, as their weights fell; on average they see nothing.
    untrained = []
    for seed in range(12):
        torch.manual_seed(seed)
        logits = predict_logits(Classifier(QUICK.model, TWO).eval(), fresh)
        untrained.append(roc_auc(logits, torch.from_numpy(fresh.labels)))
    assert (torch.stack(untrained).mean(0) - 0.5).abs().max() < 0.25


def test_run_folder_holds_settings_weights_calibration_and_card(trained: tuple[Path, Classifier]) -> None:
    folder, classifier = trained
    system = yaml.safe_load((folder / "config.yaml").read_text())["system"]
    assert system["findings"] == list(TWO)
    assert system["model"]["widths"] == [8, 16, 24]
    assert system["data"]["size"] == 24
    assert read_json(folder / "calibration.json")["checkpoint"] == classifier.digest
    card = (folder / "README.md").read_text()
    assert "Not a medical device" in card
    assert "| Lung Lesion |" in card
    assert "validation/auc" in (folder / "metrics.jsonl").read_text()


def test_loads_as_it_was_frozen_and_in_evaluation_mode(trained: tuple[Path, Classifier]) -> None:
    folder, classifier = trained
    again = load_classifier(folder)
    images = planted(8).images()
    assert torch.equal(again(images), classifier(images))
    assert torch.equal(again.probabilities(again(images)), classifier.probabilities(classifier(images)))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert again.findings == TWO
    assert again.digest == classifier.digest
    assert len(again.digest) == 64
    assert not torch.equal(again.temperature, torch.ones(2))


def test_the_untrained_step_is_not_given_the_trained_ones_calibration(tmp_path: Path) -> None:
    store = planted(80)
    train_classifier(store, tmp_path, replace(UNTRAINED, rate=1e-3))
    calibration = tmp_path / "calibration.json"
    calibration.write_text(calibration.read_text().replace('"checkpoint": "', '"checkpoint": "x'))
    assert torch.equal(load_classifier(tmp_path).temperature, torch.ones(1))


def test_pretrained_folder_gives_the_same_classifier(trained: tuple[Path, Classifier], tmp_path: Path) -> None:
    classifier = trained[1]
    save_pretrained(classifier, tmp_path / "shipped")
    again = from_pretrained(tmp_path / "shipped")
    images = planted(8).images()
    assert torch.equal(again(images), classifier(images))
    for name in ("temperature", "offset", "threshold"):
        assert torch.equal(getattr(again, name), getattr(classifier, name))
    assert again.trained_on == classifier.trained_on
    save_pretrained(again, tmp_path / "twice")
    assert from_pretrained(tmp_path / "twice").digest == again.digest
    assert sorted(p.name for p in (tmp_path / "shipped").iterdir()) == [
        "README.md",
        "calibration.json",
        "config.yaml",
        "model.safetensors",
    ]


def test_same_seed_same_weights_and_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    config = replace(QUICK, steps=6)
    first, second = (train_classifier(planted(), tmp_path / name, config) for name in ("a", "b"))
    other = train_classifier(planted(), tmp_path / "c", replace(config, seed=1))
    logits = [predict_logits(classifier, planted(20)) for classifier in (first, second, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert train_classifier(planted(), tmp_path / "a", config).digest == first.digest


@pytest.mark.parametrize("present", [0.0, 1.0])
def test_one_class_only_is_refused(present: float, tmp_path: Path) -> None:
    store = planted(40, findings=TWO)
    labels = store.labels.copy()
    labels[store.split == "train", 1] = present
    with pytest.raises(InputError, match=r"Edema.*none with.*leave the finding out"):
        train_classifier(relabelled(store, labels), tmp_path, QUICK)
    left = train_classifier(relabelled(store, labels), tmp_path, replace(UNTRAINED, findings=("Lung Lesion",)))
    assert left.findings == ("Lung Lesion",)


def test_missing_split_or_finding_is_refused(tmp_path: Path) -> None:
    store = planted(40)
    with pytest.raises(InputError, match='no image is in the split "train"'):
        train_classifier(store.subset(store.split == "val"), tmp_path, QUICK)
    with pytest.raises(InputError, match=r"no label 'Edema'.*Lung Lesion"):
        train_classifier(store, tmp_path, replace(QUICK, findings=("Edema",)))


def test_uncertain_labels_follow_the_policy(tmp_path: Path) -> None:
    store = planted(400)
    labels = store.labels.copy()
    rows = np.flatnonzero(labels[:, 0] == 1)
    labels[rows[::2]] = -1  # half of those that show it are called uncertain
    doubtful = relabelled(store, labels)
    config = replace(QUICK, steps=100, label_smoothing=0.0)
    learned = {
        policy: train_classifier(doubtful, tmp_path / policy, replace(config, policy=policy))
        for policy in ("zeros", "ones", "ignore")
    }
    fresh = planted(200, seed=9)
    ill = fresh.subset(fresh.labels[:, 0] == 1)
    means = {policy: predict_logits(c, ill).sigmoid().mean().item() for policy, c in learned.items()}
    # With zeros, what shows the finding is called absent as often as not; sampling by label keeps it near one half.
    assert means["zeros"] < means["ones"] - 0.1
    assert means["zeros"] < means["ignore"] - 0.1


def test_unmentioned_findings_count_as_absent_or_not_at_all(tmp_path: Path) -> None:
    store = planted(80)
    labels = store.labels.copy()
    labels[labels == 0] = np.nan
    blank = relabelled(store, labels)
    train_classifier(blank, tmp_path / "zero", UNTRAINED)
    with pytest.raises(InputError, match="none without"):
        train_classifier(blank, tmp_path / "ignore", replace(UNTRAINED, blank="ignore"))


def test_without_validation_images_nothing_is_calibrated(tmp_path: Path) -> None:
    store = planted(80)
    classifier = train_classifier(store.subset(store.split == "train"), tmp_path, UNTRAINED)
    assert torch.equal(classifier.temperature, torch.ones(1))
    assert torch.equal(classifier.threshold, torch.full((1,), 0.5))
    assert "not calibrated" in (tmp_path / "README.md").read_text()


def test_the_best_weights_can_be_kept(tmp_path: Path) -> None:
    store = planted(120)
    classifier = train_classifier(store, tmp_path, replace(QUICK, steps=100, keep_best=True))
    assert (tmp_path / "checkpoints" / "best.safetensors").is_file()
    held = store.subset(store.split == "val")
    logged = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "validation/auc" in line]
    best = max(float(yaml.safe_load(line)["validation/auc"]) for line in logged)
    assert roc_auc(predict_logits(classifier, held), torch.from_numpy(held.labels)).item() == pytest.approx(best)


def test_folders_without_a_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml: no such file"):
        load_classifier(tmp_path)
    (tmp_path / "config.yaml").write_text("system: {map: 1}")
    with pytest.raises(InputError, match="does not describe a classifier"):
        load_classifier(tmp_path)
    (tmp_path / "config.yaml").write_text("system: {model: {arch: small, depth: 9}, findings: [Lung Lesion]}")
    with pytest.raises(InputError, match=r"unknown settings \['depth'\]"):
        load_classifier(tmp_path)
