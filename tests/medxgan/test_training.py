from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.medxgan import (
    MedXGAN,
    MedXGANConfig,
    MedXGANNetworks,
    ObjectiveConfig,
    PersuadeConfig,
    WitnessConfig,
    fit,
)
from counterscan.medxgan.objective import MedXGANTask
from counterscan.medxgan.training import Validation, calls
from counterscan.training import TrainConfig
from tests.medxgan.grids import QUICK, SMALL
from tests.medxgan.ladders import Blobs
from tests.taggan.blobs import FINDINGS, blob_store

VIEWS = replace(ObjectiveConfig().augment, flip=0.0)
CONFIG = MedXGANConfig(
    training=TrainConfig(
        steps=300,
        batch_size=8,
        validate_every=150,
        checkpoint_every=150,
        sample_every=150,
        ema_half_life=20,
        tensorboard=False,
        grad_clip=5.0,
        schedule="cosine",
        warmup=10,
    ),
    networks=replace(SMALL, base=8),
    objective=ObjectiveConfig(augment=VIEWS, rate=3e-3, adv=0.0),
    witness=WitnessConfig(widths=(4,), steps=20, batch_size=8),
    explain=QUICK,
)
SHORT = replace(CONFIG, training=replace(CONFIG.training, steps=2, validate_every=0, sample_every=0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[MedXGAN, Path]:
    folder = tmp_path_factory.mktemp("medxgan")
    return fit(blob_store(), Blobs(), folder, CONFIG), folder


def test_it_learns_to_take_away_what_the_classifier_sees(trained: tuple[MedXGAN, Path]) -> None:
    explainer, _ = trained
    store = blob_store()
    rows = np.flatnonzero((store.split == "val") & (store.labels[:, 0] == 1))
    answers = explainer.explain(store.images(rows), FINDINGS[0])
    assert np.mean([a.figures["flipped"] for a in answers]) >= 0.9
    truth = store.masks(rows)
    inside = torch.stack([a.delta.abs() for a in answers])
    assert (inside * truth).sum() / truth.sum() > 3 * (inside * ~truth).sum() / (~truth).sum()
    assert np.median([a.figures["completeness_gap"] for a in answers]) < 0.1


def test_a_run_holds_what_it_should_and_goes_on(trained: tuple[MedXGAN, Path]) -> None:
    explainer, folder = trained
    assert (folder / "metrics.jsonl").is_file()
    assert (folder / "model" / "medxgan.json").is_file()
    again = fit(blob_store(), Blobs(), folder, CONFIG)  # finished: nothing is trained anew
    assert again.checkpoint == explainer.checkpoint
    assert explainer.donors[FINDINGS[0]].shape[1:] == (2, 8, 8)
    assert explainer.limits[FINDINGS[0]].psnr > 0


def test_it_is_the_same_after_loading(trained: tuple[MedXGAN, Path]) -> None:
    explainer, folder = trained
    x = blob_store().images([0, 1])
    loaded = MedXGAN.from_pretrained(folder, Blobs())
    for ours, theirs in zip(explainer.explain(x, 0), loaded.explain(x, 0), strict=True):
        assert torch.equal(ours.delta, theirs.delta)
        assert ours.verdict == theirs.verdict
    assert loaded.settings() == explainer.settings()
    assert len(loaded.witnesses) == 1
    assert loaded.explain(x, 0, "add")[0].counterpart is not None


def test_images_of_another_kind_are_told_apart_also_after_loading(trained: tuple[MedXGAN, Path]) -> None:
    explainer, folder = trained
    again = MedXGAN.from_pretrained(folder, Blobs())
    store = blob_store()
    own = store.images(np.flatnonzero(store.split == "val")[:4])
    noise = torch.rand(4, *own.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    for system in (explainer, again):
        assert not any("unlike" in answer.verdict for answer in system.explain(own, FINDINGS[0]))
        assert all("unlike" in answer.verdict for answer in system.explain(noise, FINDINGS[0]))


def test_descents_of_earlier_settings_are_read(trained: tuple[MedXGAN, Path], tmp_path: Path) -> None:
    folder = trained[0].save_pretrained(tmp_path)
    settings = read_json(folder / "medxgan.json")
    for name, within in (("persuade", 0.2), ("insist", 0.0)):
        del settings["explain"][name]["felt"]
        settings["explain"][name]["within"] = within
    write_json(folder / "medxgan.json", settings)
    config = MedXGAN.from_pretrained(folder, Blobs()).config
    assert config.persuade.felt == PersuadeConfig().felt
    assert config.insist.felt == 0


def test_another_or_no_classifier_is_refused(trained: tuple[MedXGAN, Path]) -> None:
    _, folder = trained
    with pytest.raises(InputError, match="not kept with it"):
        MedXGAN.from_pretrained(folder)
    with pytest.raises(InputError, match="another classifier"):
        MedXGAN.from_pretrained(folder, Blobs(offset=1.0))
    with pytest.raises(InputError, match=r"no medxgan\.json"):
        MedXGAN.from_pretrained(folder / "samples", Blobs())


def test_a_damaged_model_is_named(trained: tuple[MedXGAN, Path], tmp_path: Path) -> None:
    explainer, _ = trained
    explainer.save_pretrained(tmp_path)
    weights = tmp_path / "networks.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        MedXGAN.from_pretrained(tmp_path, Blobs())


def test_our_own_classifier_is_kept_with_the_model(tmp_path: Path) -> None:
    from counterscan.classify import ClassifyConfig, train_classifier
    from counterscan.nets.cnn import ClassifierConfig

    store = blob_store()
    quick = ClassifyConfig(
        model=ClassifierConfig(widths=(4, 8)), steps=60, batch_size=8, precision="fp32", tensorboard=False
    )
    classifier = train_classifier(store, tmp_path / "classifier", quick)
    fit(store, classifier, tmp_path / "run", SHORT)
    assert MedXGAN.from_pretrained(tmp_path / "run").findings == FINDINGS[:1]


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_several_findings_and_the_critic_run(tmp_path: Path, adversarial: float) -> None:
    classifier = Blobs(2)
    config = replace(SHORT, objective=replace(SHORT.objective, adv=adversarial))
    explainer = fit(blob_store(findings=2), classifier, tmp_path, config)
    assert set(explainer.donors) == set(FINDINGS)


def test_positive_is_what_the_classifier_calls_so() -> None:
    store = blob_store()
    called = calls(Blobs(), store)
    assert called.shape == (len(store), 1)
    assert (calls(Blobs(offset=99.0), store) == 1).all()


def test_a_classifier_of_one_opinion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calls no training image negative"):
        fit(blob_store(), Blobs(offset=99.0), tmp_path, CONFIG)


def test_batches_too_small_and_missing_splits_are_refused(tmp_path: Path) -> None:
    small = replace(CONFIG, training=replace(CONFIG.training, batch_size=2))
    with pytest.raises(InputError, match="at least 4"):
        fit(blob_store(findings=2), Blobs(2), tmp_path, small)
    store = blob_store()
    only = store.subset(store.split == "train")
    with pytest.raises(InputError, match="no row is in the split 'val'"):
        fit(only, Blobs(), tmp_path, CONFIG)


def test_donors_are_other_images_called_positive_for_the_same_finding() -> None:
    columns, positive = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([True, False, True, True, False])
    donors = MedXGANTask._donors(columns, positive)
    assert donors.tolist() == [3, 3, 2, 0, 2]  # the only positive of finding 1 lends to itself


def test_watching_a_run_leaves_its_networks_as_they_lie_in_memory(tmp_path: Path) -> None:
    classifier, networks = Blobs(), MedXGANNetworks(SMALL, 1)
    before = [p.stride() for p in networks.parameters()]
    val = blob_store().parts("train", "val")[1]
    Validation(val, calls(classifier, val), QUICK)(networks, classifier)
    assert [p.stride() for p in networks.parameters()] == before
    fit(blob_store(), classifier, tmp_path, SHORT)
    made = MedXGAN.from_pretrained(tmp_path, classifier)
    wide = [p for p in made.networks.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
