from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.nets.latent_encoder import LatentEncoderConfig
from counterscan.tbsmgan import StyleGAN, TrainingPatients
from counterscan.tbsmgan.encoder_training import EncoderConfig, train_encoder
from counterscan.tbsmgan.inversion import Latents, RefineConfig
from counterscan.tbsmgan.inverter import Inverter, Limits
from tests.tbsmgan.lively import FINDINGS, lively_gan, sampled_store

BASE = EncoderConfig()
CONFIG = replace(
    BASE,
    training=replace(
        BASE.training,
        steps=120,
        batch_size=8,
        validate_every=40,
        checkpoint_every=60,
        sample_every=60,
        tensorboard=False,
        ema_half_life=5,
        warmup=5,
    ),
    network=LatentEncoderConfig(base=8, most=16),
    refine=RefineConfig(steps=20),
    rate=4e-3,
)
SHORT = replace(CONFIG, training=replace(CONFIG.training, steps=2, validate_every=2, sample_every=0))
ENCODER = RefineConfig(steps=0)


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Classifier(ClassifierConfig(widths=(8, 8)), FINDINGS).eval()


@pytest.fixture(scope="module")
def gan() -> StyleGAN:
    return lively_gan()


@pytest.fixture(scope="module")
def trained(gan: StyleGAN, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inverter, Path]:
    folder = tmp_path_factory.mktemp("encoder")
    return train_encoder(gan, sampled_store(gan), folder, CONFIG, classifier=classifier()), folder


def test_the_encoder_learns_and_descent_betters_it(gan: StyleGAN, trained: tuple[Inverter, Path]) -> None:
    inverter, _ = trained
    x = gan.sample(6, psi=1.0, seed=77)
    mean = inverter.judge(x, Latents(gan.generator.w_avg.expand(6, gan.generator.num_ws, -1), {}))
    encoded, refined = inverter.invert(x, ENCODER), inverter.invert(x)
    assert float(encoded.psnr.mean()) > float(mean.psnr.mean()) + 2
    assert float(refined.psnr.mean()) > float(encoded.psnr.mean()) + 0.5
    assert float(mean.distance.max()) < 1e-5
    assert encoded.images.shape == x.shape
    assert encoded.images.abs().max() <= 1
    torch.testing.assert_close(encoded.images, gan.synthesize(encoded.latents.ws).clamp(-1, 1))


def test_images_unlike_all_others_get_another_verdict(trained: tuple[Inverter, Path]) -> None:
    inverter, _ = trained
    board = torch.ones(1, 1, 16, 16)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = -1
    assert "unlike the training images" in inverter.invert(board).verdicts[0]
    inverter = replace(inverter, familiarity=None)
    assert "not well inverted" in inverter.invert(board).verdicts[0]
    assert inverter.limits is not None
    x = inverter.gan.sample(1, psi=0.3)
    far = Latents(inverter.encode(x) + 20 * inverter.encoder.spread, {})
    good = replace_limits(inverter, Limits(psnr=0.0, distance=2.0))
    assert "not to be edited" in good.judge(x, far).verdicts[0]
    assert good.invert(x, ENCODER).verdicts == ("ok",)
    assert "not judged" in replace_limits(inverter, None).invert(x, ENCODER).verdicts[0]


def replace_limits(inverter: Inverter, limits: Limits | None) -> Inverter:
    return replace(inverter, limits=limits)


def test_limits_come_from_validation_images(gan: StyleGAN, trained: tuple[Inverter, Path]) -> None:
    inverter, _ = trained
    held = sampled_store(gan)
    found = inverter.invert(held.images(range(20, 40)), ENCODER)
    assert inverter.limits is not None
    assert inverter.limits.psnr == pytest.approx(float(found.psnr.quantile(0.02)) - 1)
    assert inverter.limits.distance >= 1.5
    assert found.verdicts.count("ok") >= 18


def test_it_is_the_same_after_loading(gan: StyleGAN, trained: tuple[Inverter, Path]) -> None:
    inverter, folder = trained
    loaded = Inverter.from_pretrained(folder, gan, classifier())
    x = gan.sample(2, psi=1.0)
    assert torch.equal(loaded.invert(x).latents.ws, inverter.invert(x).latents.ws)
    assert (loaded.limits, loaded.config) == (inverter.limits, inverter.config)
    assert loaded.invert(x).verdicts == inverter.invert(x).verdicts
    assert loaded.familiarity is not None
    plain = Inverter.from_pretrained(folder / "encoder", gan)
    assert torch.equal(plain.encode(x), inverter.encode(x))
    assert plain.likeness.classifier is None


def test_another_generator_or_classifier_is_refused(gan: StyleGAN, trained: tuple[Inverter, Path]) -> None:
    _, folder = trained
    with pytest.raises(InputError, match="another generator"):
        Inverter.from_pretrained(folder, lively_gan(seed=1))
    with pytest.raises(InputError, match="another classifier"):
        Inverter.from_pretrained(folder, gan, classifier(1))
    with pytest.raises(InputError, match="Train an encoder"):
        Inverter.from_pretrained(folder / "nowhere", gan)


def test_a_damaged_encoder_is_refused(gan: StyleGAN, trained: tuple[Inverter, Path], tmp_path: Path) -> None:
    inverter, _ = trained
    place = inverter.save_pretrained(tmp_path)
    write_json(place / "encoder.json", read_json(place / "encoder.json") | {"network": {"bass": 1}})
    with pytest.raises(InputError, match="damaged"):
        Inverter.from_pretrained(place, gan)


def test_a_finished_run_is_not_trained_again(gan: StyleGAN, trained: tuple[Inverter, Path]) -> None:
    inverter, folder = trained
    again = train_encoder(gan, sampled_store(gan), folder, CONFIG, classifier=classifier())
    x = gan.sample(2)
    assert torch.equal(again.encode(x), inverter.encode(x))
    assert {"metrics.jsonl", "encoder", "samples"} <= {path.name for path in folder.iterdir()}


def test_a_generator_without_findings_is_inverted_too(tmp_path: Path) -> None:
    gan = lively_gan(labels=0)
    inverter = train_encoder(gan, sampled_store(gan), tmp_path, SHORT)
    assert inverter.invert(gan.sample(2)).psnr.isfinite().all()


def test_validation_patients_that_the_generator_learned_from_are_refused(tmp_path: Path) -> None:
    gan = lively_gan()
    gan.patients = TrainingPatients.of(["p000030"], "salt")
    with pytest.raises(InputError, match="learned from 1"):
        train_encoder(gan, sampled_store(gan), tmp_path, SHORT)


def test_other_input_is_refused(gan: StyleGAN, tmp_path: Path) -> None:
    store = sampled_store(gan)
    with pytest.raises(InputError, match="no row is in the split 'val'"):
        train_encoder(gan, store.subset(store.split == "train"), tmp_path, SHORT)
    for settings in ({"prior": -1.0}, {"rate": 0.0}, {"trust": 0.0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            EncoderConfig(**settings)
