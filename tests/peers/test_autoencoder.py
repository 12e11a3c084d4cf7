from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from counterscan.classify.task import predict_logits
from counterscan.counterpart import Query, StudyBatch
from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.peers.autoencoder import (
    AutoencoderConfig,
    AutoencoderShape,
    ConvAutoencoder,
    load_autoencoder,
    reconstruction_loss,
    train_autoencoder,
)
from counterscan.peers.latent_shift import LatentShift
from counterscan.training import read_metrics
from tests.peers.tiny import TwoStages

TINY = AutoencoderShape(base=8, halvings=2, codes=8)
QUICK = AutoencoderConfig(shape=TINY, steps=80, batch_size=16, rate=5e-3, ema_half_life=10, tensorboard=False)


def ramps(count: int = 48, size: int = 16, split: tuple[str, ...] = ("train", "train", "val")) -> PreparedStore:
    """Images that brighten in some direction, with a disc: easy to code, far from their mean."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / (size - 1) - 0.5
    images = []
    for _ in range(count):
        angle, y, x = rng.uniform(0, 2 * np.pi), *rng.uniform(-0.3, 0.3, 2)
        image = 128 + 100 * (np.cos(angle) * rows + np.sin(angle) * columns)
        images.append(np.where((rows - y) ** 2 + (columns - x) ** 2 < 0.03, 240, image))
    return PreparedStore.from_arrays(
        np.array(images).clip(0, 255).astype(np.uint8),
        labels=np.zeros((count, 1)),
        findings=("Edema",),
        split=[split[i % len(split)] for i in range(count)],
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConvAutoencoder]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train_autoencoder(ramps(), folder, QUICK)


def test_sizes_of_codes_and_images() -> None:
    for shape, code in ((AutoencoderShape(), (64, 4, 4)), (AutoencoderShape(halvings=3, codes=32), (32, 8, 8))):
        net = ConvAutoencoder(shape)
        x = torch.zeros(2, 1, 64, 64)
        assert net.encode(x).shape == (2, *code)
        assert net(x).shape == x.shape
    net = ConvAutoencoder(TINY)
    assert net.encode(torch.zeros(1, 1, 16, 20)).shape == (1, 8, 4, 5)
    assert net(torch.zeros(1, 1, 16, 20)).shape == (1, 1, 16, 20)
    for base in (4, 6):  # any number of channels
        assert ConvAutoencoder(AutoencoderShape(base, halvings=1, codes=3))(torch.zeros(1, 1, 4, 4)).shape[-1] == 4
    with pytest.raises(InputError, match="multiples of 4"):
        net.encode(torch.zeros(1, 1, 16, 18))


def test_images_do_not_meet_and_the_output_is_unbounded() -> None:
    net = ConvAutoencoder(TINY)
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    net.decoder[-1].bias.data.fill_(5.0)
    assert net(x).min() > 1


def test_loss_by_hand() -> None:
    # r = [[1, 0], [0, 2]]: mean |r| 3/4; along rows |-1|, |2|: 3/2; down columns |-1|, |2|: 3/2.
    r = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    x = torch.full_like(r, 0.3)
    assert reconstruction_loss(x + r, x, edges=0.1).item() == pytest.approx(0.75 + 0.1 * 3)
    assert reconstruction_loss(x + 1, x, edges=9.0).item() == pytest.approx(1.0)


def test_learns_to_reconstruct_images_it_has_not_seen(trained: tuple[Path, ConvAutoencoder]) -> None:
    folder, net = trained
    held = ramps().subset(ramps().split == "val").images()
    error = (net(held) - held).abs().mean()
    level = (held.mean((2, 3), keepdim=True) - held).abs().mean()
    assert error < 0.4 * level
    last = [line for line in read_metrics(folder) if "validation/l1" in line][-1]
    assert last["validation/l1"] == pytest.approx(float((net(held).clamp(-1, 1) - held).abs().mean()), rel=1e-3)
    squared = (net(held).clamp(-1, 1) - held).square().mean((1, 2, 3))
    assert last["validation/psnr"] == pytest.approx(float((10 * torch.log10(4 / squared)).mean()), rel=1e-3)


def test_run_folder_and_what_is_loaded_from_it(trained: tuple[Path, ConvAutoencoder]) -> None:
    folder, net = trained
    system = yaml.safe_load((folder / "config.yaml").read_text())["system"]
    assert system["kind"] == "autoencoder"
    assert system["shape"] == {"base": 8, "halvings": 2, "codes": 8}
    assert system["data"]["size"] == 16
    assert "Not a medical device" in (folder / "README.md").read_text()
    assert list((folder / "samples").iterdir())
    again = load_autoencoder(folder)
    x = ramps(4).images()
    assert torch.equal(again(x), net(x))
    assert again.digest == net.digest
    assert len(again.digest) == 64
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert train_autoencoder(ramps(), folder, QUICK).digest == net.digest
    with pytest.raises(InputError, match=r"edges.*0\.25.*0\.5"):
        train_autoencoder(ramps(), folder, replace(QUICK, edges=0.5))


def test_same_seed_same_weights_and_validation_rows_are_optional(tmp_path: Path) -> None:
    config = replace(QUICK, steps=4, augment=AugmentConfig.none())
    first, second = (train_autoencoder(ramps(), tmp_path / name, config) for name in ("a", "b"))
    other = train_autoencoder(ramps(), tmp_path / "c", replace(config, seed=1))
    x = ramps(4).images()
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), other(x))
    train_autoencoder(ramps(split=("train",)), tmp_path / "d", config)
    assert not any("validation/l1" in line for line in read_metrics(tmp_path / "d"))


def test_latent_shift_runs_on_it(trained: tuple[Path, ConvAutoencoder]) -> None:
    _, coder = trained
    net = TwoStages().eval()
    images = ramps(6).images()
    logits = predict_logits(net, ramps(6))
    net.head.weight.data *= 100
    net.head.bias.data = (net.head.bias.data - logits.mean(0)) * 100 + 1
    batch = StudyBatch(images)
    method = LatentShift(net, coder, max_change=0.5)
    answers = method.counterparts(batch, Query("Edema"))
    assert method.settings()["autoencoder"] == f"ConvAutoencoder {coder.digest}"
    for answer, image in zip(answers, images, strict=True):
        assert answer.path is not None
        scores = answer.path.outputs[:, 0]
        assert scores[-1] <= scores[0]
        torch.testing.assert_close(answer.extras["reconstruction"], coder(image[None])[0].clamp(-1, 1))
    assert any(answer.path.outputs[-1, 0] < answer.path.outputs[0, 0] - 0.1 for answer in answers if answer.path)
    assert not any(p.requires_grad for p in coder.parameters())


def test_unusable_data_settings_and_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='no image is in the split "train"'):
        train_autoencoder(ramps(split=("val",)), tmp_path / "a", QUICK)
    with pytest.raises(InputError, match="multiples of 32"):
        train_autoencoder(ramps(), tmp_path / "b", replace(QUICK, shape=replace(TINY, halvings=5)))
    assert not (tmp_path / "b").exists()
    for wrong in ({"rate": 0.0}, {"edges": -1.0}, {"decay": -1.0}, {"warmup": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            AutoencoderConfig(**wrong)  # type: ignore[arg-type]
    for wrong_shape in ({"base": 0}, {"halvings": 0}, {"codes": 0}):
        with pytest.raises(InputError, match=next(iter(wrong_shape))):
            AutoencoderShape(**wrong_shape)
    with pytest.raises(InputError, match=r"config\.yaml: no such file"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.yaml").write_text("system: {kind: taggan}")
    with pytest.raises(InputError, match="does not describe an autoencoder"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.yaml").write_text("system: {kind: autoencoder, shape: {base: 8, depth: 9}}")
    with pytest.raises(InputError, match=r"unknown settings \['depth'\]"):
        load_autoencoder(tmp_path)
