from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.medxgan.published import PublishedConfig, PublishedMedXGAN
from counterscan.medxgan.published_training import (
    LADDERS,
    LadderConfig,
    LadderCritic,
    LadderGenerator,
    PublishedObjective,
    PublishedTask,
    class_loss,
)
from counterscan.training import TrainConfig, read_metrics
from tests.medxgan.ladders import QUICK, SMALL, Blobs, Mean, lively
from tests.taggan.blobs import blob_store


def test_generators_have_the_published_sizes() -> None:
    # 1100 -> 768 with bias; kernels of 25 and 64 weights without; two numbers for each normalised channel. With three
    # channels instead of one the last layers have three times as many: 11,943,296 and 11,465,728.
    ladder = 768 * 384 * 25 + 384 * 256 * 25 + 256 * 192 * 25 + 2 * (384 + 256 + 192)
    expected = {
        64: 1100 * 768 + 768 + ladder + 192 * 64,
        128: 110 * 768 + 768 + ladder + 192 * 64 * 25 + 2 * 64 + 64 * 64,
    }
    assert expected == {64: 11_943_296 - 2 * 192 * 64, 128: 11_465_728 - 2 * 64 * 64}
    for size, sides in ((64, [5, 13, 29, 64]), (128, [5, 13, 29, 61, 128])):
        config = LADDERS[size]
        with torch.device("meta"):
            generator = LadderGenerator(config)
            x = generator(torch.empty(2, config.anatomy), torch.empty(2, config.pathology))
            seen, h = [], torch.empty(2, config.widths[0], 1, 1)
            for stage in generator.stages:
                h = stage(h)
                seen += [h.shape[-1]] if isinstance(stage, nn.ConvTranspose2d) else []
        assert sum(p.numel() for p in generator.parameters()) == expected[size]
        assert x.shape == (2, 1, size, size)
        assert config.size == size
        assert seen == sides


def test_critics_have_the_published_sizes() -> None:
    convolutions = 9 * (16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    norms = 2 * (32 + 64 + 128 + 256 + 512)
    for size, side in ((64, 5), (128, 13)):
        with torch.device("meta"):
            critic = LadderCritic(LADDERS[size])
            assert critic(torch.empty(2, 1, size, size)).shape == (2,)
        assert sum(p.numel() for p in critic.parameters()) == convolutions + norms + side * side * 512 + 1
        assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in critic.modules()) == 6
    with pytest.raises(InputError, match="critic_widths: too many for images of 16 px"):
        LadderCritic(replace(SMALL, critic_widths=(8,) * 6))


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    config = LadderConfig(anatomy=100, pathology=10, widths=(64, 48, 32))
    for net in (LadderGenerator(config), LadderCritic(config)):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert module.bias is None
                if module.weight.numel() > 2000:
                    assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            if isinstance(module, nn.BatchNorm2d):
                assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.02)
                assert 0.005 < float(module.weight.detach().std()) < 0.04
                assert not module.bias.any()
    default = LadderGenerator(config).project.weight
    assert float(default.detach().abs().max()) == pytest.approx(1 / math.sqrt(110), rel=0.01)


@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_the_double_softmax_is_that_of_the_public_code(wanted: float) -> None:
    logits = torch.linspace(-8, 5, 33)
    probabilities = torch.stack([torch.zeros_like(logits), logits], dim=1).softmax(dim=1)
    expected = F.cross_entropy(probabilities, torch.full((33,), int(wanted)))
    assert float(class_loss(logits, torch.full((33,), wanted), True)) == pytest.approx(float(expected), rel=1e-5)
    expected = F.cross_entropy(probabilities.log(), torch.full((33,), int(wanted)))
    assert float(class_loss(logits, torch.full((33,), wanted))) == pytest.approx(float(expected), rel=1e-4)


def test_the_double_softmax_has_a_floor_and_no_slope_where_it_is_needed() -> None:
    one = torch.ones(1)
    assert float(class_loss(50 * one, one, True)) == pytest.approx(0.3133, abs=1e-4)
    assert float(class_loss(-50 * one, one, True)) == pytest.approx(1.3133, abs=1e-4)
    assert float(class_loss(50 * one, one)) == pytest.approx(0, abs=1e-6)
    slopes = {}
    for double in (False, True):
        for s in (-6.0, 0.0):
            logit = torch.tensor([s], dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(class_loss(logit, one.double(), double), logit)
            slopes[double, s] = float(slope)
    assert slopes[False, -6.0] == pytest.approx(-0.9975, abs=1e-4)
    assert slopes[True, -6.0] == pytest.approx(-0.0036, abs=1e-4)
    assert slopes[False, -6.0] / slopes[True, -6.0] == pytest.approx(277, abs=1)
    assert slopes[False, 0.0] == pytest.approx(2 * slopes[True, 0.0])  # so that lambda_C = 1 does what 2 did


class Watched(nn.Module):
    """In place of G: remembers its codes, paints every image in one grey."""

    def __init__(self, grey: float) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(grey))
        self.codes: list[tuple[Tensor, Tensor]] = []

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        self.codes.append((z1, z2))
        return self.grey.expand(len(z1), 1, 16, 16)


class Half(nn.Module):
    """In place of D: undecided."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.mean(dim=(1, 2, 3))


class Losses:
    """In place of the loop's context: keeps the losses."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def update(self, name: str, loss: Tensor) -> None:
        self.seen[name] = loss


@pytest.mark.parametrize("double", [False, True])
def test_one_step_by_hand(double: bool) -> None:
    task = PublishedTask(SMALL, PublishedObjective(lambda_c=0.7, double_softmax=double), Mean(gain=4.0), 0)
    generator = Watched(0.5)
    task.modules = {"generator": generator, "critic": Half()}
    calls = torch.tensor([0.0, 1.0, 1.0, 0.0] * 16)
    ctx = Losses()
    torch.manual_seed(0)
    batch = {"image": torch.zeros(64, 1, 16, 16), "target": calls[:, None]}
    task.step(ctx, batch)  # type: ignore[arg-type]
    assert float(ctx.seen["critic"].detach()) == pytest.approx(2 * math.log(2))
    # f = 4 * 0.5 everywhere, half of the calls are positive.
    p = 1 / (1 + math.exp(-2.0))
    positive = math.log(1 + math.exp(1 - 2 * p)) if double else -math.log(p)
    negative = math.log(1 + math.exp(2 * p - 1)) if double else -math.log(1 - p)
    expected = math.log(2) + 0.7 * (positive + negative) / 2
    assert float(ctx.seen["generator"].detach()) == pytest.approx(expected, rel=1e-5)
    assert ctx.seen["generator"].requires_grad
    (first_z1, for_critic), (second_z1, for_generator) = generator.codes
    assert first_z1.shape == (64, 6)
    assert float(first_z1.std()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(first_z1, second_z1)
    assert torch.equal(for_generator.any(dim=1), calls == 1)  # z2 = 0 for what is called negative
    drawn = for_critic.any(dim=1)
    assert 16 < int(drawn.sum()) < 48  # for D either kind is as likely
    assert not torch.equal(drawn, calls == 1)
    assert float(for_generator[calls == 1].std()) == pytest.approx(1, abs=0.2)


def config(steps: int = 6, **changes: Any) -> PublishedConfig:
    loop = TrainConfig(
        steps=steps, batch_size=16, validate_every=steps, checkpoint_every=5, sample_every=steps, tensorboard=False
    )
    return replace(PublishedConfig(training=loop, networks=SMALL, explain=QUICK), **changes)


def test_training_puts_what_the_classifier_sees_into_z2(tmp_path: Path) -> None:
    objective = PublishedObjective(lambda_c=3.0, rate=4e-3)
    fitted = PublishedMedXGAN.fit(blob_store(), Blobs(), tmp_path, config(100, objective=objective))
    lines = read_metrics(tmp_path)
    assert {"critic/loss", "generator/loss", "real", "class"} <= {name for line in lines for name in line}
    assert lines[-1]["validation/agreement"] > 0.9
    z1 = torch.randn(32, SMALL.anatomy, generator=torch.Generator().manual_seed(0))
    z2 = torch.randn(32, SMALL.pathology, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        without, with_it = (Blobs()(fitted.generator(z1, z))[:, 0].sigmoid() for z in (0 * z2, z2))
    assert float((without < 0.5).float().mean()) > 0.9
    assert float((with_it >= 0.5).float().mean()) > 0.9
    assert list((tmp_path / "samples").iterdir())


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    store = blob_store()
    straight = PublishedMedXGAN.fit(store, Blobs(), tmp_path / "a", config(8))
    PublishedMedXGAN.fit(store, Blobs(), tmp_path / "b", config(5))
    resumed = PublishedMedXGAN.fit(store, Blobs(), tmp_path / "b", config(8))
    for name, tensor in straight.generator.state_dict().items():
        assert torch.equal(tensor, resumed.generator.state_dict()[name]), name
    before = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    again = PublishedMedXGAN.fit(store, Blobs(), tmp_path / "a", config(8, explain=replace(QUICK, steps=1)))
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == before
    assert again.checkpoint == straight.checkpoint
    assert not torch.equal(straight.generator.project.weight, lively().project.weight)
    weaker = config(8, objective=PublishedObjective(lambda_c=0.5))
    with pytest.raises(InputError, match=r"lambda_c.*1\.0.*0\.5"):
        PublishedMedXGAN.fit(store, Blobs(), tmp_path / "a", weaker)
    with pytest.raises(InputError, match="classifier"):
        PublishedMedXGAN.fit(store, Blobs(offset=0.01), tmp_path / "a", config(8))


def only(store: PreparedStore, split: str) -> PreparedStore:
    store.split = np.array([split] * len(store))
    return store


@pytest.mark.parametrize(
    ("store", "classifier", "settings", "problem"),
    [
        (lambda: only(blob_store(), "val"), Blobs(), config(), "no row is in the split 'train'"),
        (blob_store, Blobs(offset=100.0), config(), "calls every training image positive"),
        (blob_store, Blobs(offset=-100.0), config(), "calls every training image negative"),
        (blob_store, Blobs(), config(networks=None), "Prepare images of 64 or 128 px, or set networks"),
        (blob_store, Blobs(), config(networks=LADDERS[64]), "Prepare images of 64 px, or set networks"),
        (blob_store, Blobs(2), config(), "name the one to explain. It knows Consolidation, Pneumothorax"),
        (blob_store, nn.Flatten(), config(), "no attribute findings"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path, store: Callable[[], PreparedStore], classifier: nn.Module, settings: PublishedConfig, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        PublishedMedXGAN.fit(store(), classifier, tmp_path, settings)
