from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from counterscan.care import Care
from counterscan.classify import ClassifyConfig
from counterscan.counterpart import Query, StudyBatch
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.localisation import pixel_average_precision
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.taggan import NetworkConfig, TagGAN, TagGANConfig, fit
from counterscan.training import read_metrics
from tests.taggan.blobs import FINDINGS, BlobClassifier, blob_store

SMALL = NetworkConfig(base=8, levels=2, back_base=4, back_levels=2, critic_base=4, critic_stages=2)


def config(steps: int = 60, **objective: object) -> TagGANConfig:
    base = TagGANConfig()
    weights = replace(base.objective, rate_generator=3e-3, lam=4.0, **objective)  # type: ignore[arg-type]
    loop = replace(
        base.training,
        steps=steps,
        batch_size=16,
        warmup=0,
        validate_every=20,
        checkpoint_every=20,
        sample_every=steps,
        ema_half_life=5,
        precision="fp32",
        tensorboard=False,
    )
    classifier = ClassifyConfig(model=ClassifierConfig(widths=(8, 16)), steps=20, batch_size=16, tensorboard=False)
    return replace(
        base, training=loop, networks=SMALL, objective=weights, classifier=classifier, care=Care(), min_area=0.0
    )


def test_fit_finds_the_blobs_and_reloads(tmp_path: Path) -> None:
    store = blob_store()
    tagger = fit(store, tmp_path, config(), classifiers=[BlobClassifier()])
    ill = np.flatnonzero(store.labels[:, 0] == 1)
    evidence = tagger.evidence(tagger.attribute(store.images(ill), 0), store.images(ill))
    assert pixel_average_precision(evidence, store.masks(ill)).mean() > 0.8
    names = {name for line in read_metrics(tmp_path) for name in line}
    assert {"cycle", "back", "critic_abnormal/loss", "validation/criterion"} <= names  # bGAN joined late


def test_two_findings_in_one_model_light_their_own_lesions(tmp_path: Path) -> None:
    store = blob_store(64, findings=2)
    tagger = fit(store, tmp_path, config(150, cycle=0.0, back=0.0), classifiers=[BlobClassifier(2)])
    for column, finding in enumerate(FINDINGS):
        both = np.flatnonzero((store.labels == 1).all(axis=1))
        evidence = tagger.evidence(tagger.attribute(store.images(both), finding), store.images(both))
        own, other = (
            pixel_average_precision(evidence, store.masks(both, FINDINGS[k])).mean() for k in (column, 1 - column)
        )
        assert own > 0.6
        assert own > 2 * other


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    store = blob_store()
    tagger = fit(store, tmp_path / "run", config(10))
    again = TagGAN.from_pretrained(tmp_path / "run")
    query = Query(FINDINGS[0])
    for before, after in zip(
        tagger.counterparts(store.batch([0, 1]), query), again.counterparts(store.batch([0, 1]), query), strict=True
    ):
        assert torch.equal(before.evidence, after.evidence)
        assert before.score_before == pytest.approx(after.score_before)
        assert before.mask is not None
        assert torch.equal(before.mask, after.mask)  # type: ignore[arg-type]
    twice = TagGAN.from_pretrained([tmp_path / "run", tmp_path / "run" / "model"])
    assert torch.allclose(twice.attribute(store.images([0]), 0), tagger.attribute(store.images([0]), 0))


def test_images_of_another_kind_are_told_apart_also_after_loading(tmp_path: Path) -> None:
    store = blob_store()
    tagger = fit(store, tmp_path, config(20))
    own = store.images(np.flatnonzero(store.split == "val")[:4])
    noise = torch.rand(4, *own.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    averaged = TagGAN.from_pretrained([tmp_path, tmp_path])
    for system in (tagger, TagGAN.from_pretrained(tmp_path), averaged):
        known, strange = (system.counterparts(StudyBatch(x, store.findings), Query(FINDINGS[0])) for x in (own, noise))
        assert not any("unlike" in answer.verdict for answer in known)
        assert all("unlike the training images" in answer.verdict for answer in strange)
        assert all(answer.figures["strangeness"] > 1 and not answer.trusted for answer in strange)


def test_without_a_classifier_of_ours_nobody_is_a_stranger(tmp_path: Path) -> None:
    tagger = fit(blob_store(), tmp_path, config(20), classifiers=[BlobClassifier()])
    assert tagger.familiarity is None
    (answer,) = tagger.counterparts(StudyBatch(torch.full((1, 1, 16, 16), 0.9), FINDINGS[:1]), Query(FINDINGS[0]))
    assert "strangeness" not in answer.figures


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    store, settings = blob_store(), config(10)
    first = fit(store, tmp_path, settings, classifiers=[BlobClassifier()])
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    second = fit(store, tmp_path, settings, classifiers=[BlobClassifier()])
    assert first.checkpoint == second.checkpoint
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


def test_what_counts_after_the_training_and_its_length_may_change(tmp_path: Path) -> None:
    store, settings = blob_store(), config(4)
    fit(store, tmp_path, settings, classifiers=[BlobClassifier()])
    longer = replace(settings, percentile=90.0, training=replace(settings.training, steps=6, log_every=1))
    assert fit(store, tmp_path, longer, classifiers=[BlobClassifier()]).rules[FINDINGS[0]].percentile == 90.0


def test_a_run_is_not_taken_up_with_other_splits_labels_or_classifiers(tmp_path: Path) -> None:
    store, settings = blob_store(), config(2)
    fit(store, tmp_path, settings, classifiers=[BlobClassifier()])
    moved = blob_store()
    patients = [int(name[1:]) for name in moved.patients]
    moved.split = np.array(["val" if patient % 4 == 1 else "train" for patient in patients])
    with pytest.raises(InputError, match="division"):
        fit(moved, tmp_path, settings, classifiers=[BlobClassifier()])
    with pytest.raises(InputError, match="classifiers"):
        fit(store, tmp_path, settings, classifiers=[Classifier(ClassifierConfig(widths=(4,)), store.findings)])


def resplit(store: PreparedStore, names: list[str]) -> PreparedStore:
    store.split = np.array(names)
    return store


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda s: s.subset(s.labels[:, 0] == 1), "no training image is labelled as without it"),
        (lambda s: resplit(s, ["train"] * len(s)), "no row is in the split 'val'"),
        (lambda s: resplit(s, ["train", "val"] * (len(s) // 2)), "patient"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, spoil: Callable[[PreparedStore], PreparedStore], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        fit(spoil(blob_store()), tmp_path, config(), classifiers=[BlobClassifier()])


def test_a_batch_too_small_for_the_groups_is_refused(tmp_path: Path) -> None:
    settings = replace(config(), training=replace(config().training, batch_size=2))
    with pytest.raises(InputError, match="at least 4"):
        fit(blob_store(findings=2), tmp_path, settings, classifiers=[BlobClassifier(2)])


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    fit(blob_store(), tmp_path, config(2))
    (tmp_path / "model" / "map.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="damaged"):
        TagGAN.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no taggan\.json"):
        TagGAN.from_pretrained(tmp_path / "classifiers")
