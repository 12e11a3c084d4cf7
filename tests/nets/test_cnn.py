from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier, ClassifierConfig, PreActivationBlock, pool_logits

ARCHS = ("small", "resnet18", "densenet121")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(pool: str = "lse", findings: tuple[str, ...] = ("A", "B")) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(widths=(4, 8), pool=pool), findings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (37, 50)])
def test_takes_any_size(arch: str, size: tuple[int, int]) -> None:
    classifier = Classifier(ClassifierConfig(arch=arch), ("A", "B", "C")).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = classifier(torch.rand(2, 1, *size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


def test_sizes_are_the_published_ones() -> None:
    # Published with 3 channels and 1000 classes: 11,689,512 and 7,978,856 weights. One channel takes away 2 x 64 x 49
    # of the stem, one finding 999 rows of the head.
    resnet = Classifier(ClassifierConfig(arch="resnet18"), ("A",))
    densenet = Classifier(ClassifierConfig(arch="densenet121"), ("A",))
    assert count(resnet) == 11_689_512 - 2 * 64 * 49 - 999 * (512 + 1)
    assert count(densenet) == 7_978_856 - 2 * 64 * 49 - 999 * (1024 + 1)


@pytest.mark.parametrize("arch", ARCHS)
def test_cam_layers_run_from_high_resolution_to_the_last_features(arch: str) -> None:
    classifier = Classifier(ClassifierConfig(arch=arch), ("A",)).eval()  # type: ignore[arg-type]
    seen: list[torch.Tensor] = []
    for layer in classifier.cam_layers:
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    image = torch.rand(1, 1, 64, 64)
    features = classifier.features(image)
    sides = [out.shape[-1] for out in seen]
    assert sides == {"small": [64, 32, 16, 8], "resnet18": [16, 8, 4, 2], "densenet121": [16, 8, 4, 2]}[arch]
    assert torch.equal(seen[-1], features)


def test_lse_lies_between_mean_and_maximum() -> None:
    places = torch.randn(50, 3, 7, 5) * 3
    pooled = pool_logits(places, "lse")
    assert (pooled >= places.mean((2, 3)) - 1e-5).all()
    assert (pooled <= places.amax((2, 3)) + 1e-5).all()
    assert (pooled >= places.amax((2, 3)) - math.log(35) / 4 - 1e-5).all()
    assert torch.allclose(pool_logits(torch.full((1, 1, 3, 3), 0.7), "lse"), torch.tensor([[0.7]]))


def test_pools_by_hand() -> None:
    places = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    assert pool_logits(places, "gap").item() == pytest.approx(0.25)
    assert pool_logits(places, "topk").item() == pytest.approx(1.0)
    assert pool_logits(places, "lse").item() == pytest.approx(math.log((3 + math.e**4) / 4) / 4)
    many = torch.arange(24.0).view(1, 1, 4, 6)
    assert pool_logits(many, "topk").item() == pytest.approx(22.5)  # the two highest of 24


def test_first_block_is_its_equation() -> None:
    block = PreActivationBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 6, 6)
    silu, scale = nn.functional.silu, 1 / math.sqrt(1 + 1e-5)
    h = silu(x * scale)
    change = nn.functional.conv2d(h, block.first.weight, padding=1)
    expected = x + nn.functional.conv2d(silu(change * scale), block.second.weight, padding=1)
    assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_halving_block_pools_its_skip(size: tuple[int, int]) -> None:
    block = PreActivationBlock(4, 8, 2).eval()
    nn.init.zeros_(block.second.weight)
    h = nn.functional.silu(block.first_norm(x := torch.randn(2, 4, *size)))
    assert block.skip is not None
    assert torch.allclose(block(x), block.skip(nn.functional.avg_pool2d(h, 2, ceil_mode=True)), atol=1e-6)


@pytest.mark.parametrize("pool", ["lse", "gap", "topk"])
def test_dropout_only_while_training(pool: str) -> None:
    classifier, image = tiny(pool), torch.rand(4, 1, 16, 16)
    assert torch.equal(classifier(image), classifier(image))
    classifier.train()
    assert not torch.equal(classifier(image), classifier(image))


def test_gradients_reach_every_weight_and_the_image() -> None:
    classifier = tiny().train()
    image = torch.rand(4, 1, 16, 16, requires_grad=True)
    classifier(image).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in classifier.parameters())
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_logits_are_float32_under_autocast_and_compilable_copies_keep_everything() -> None:
    classifier, image = tiny(), torch.rand(2, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier(image).dtype == torch.float32
    other = copy.deepcopy(classifier)
    assert torch.equal(other(image), classifier(image))
    assert other.cam_layers[0] is not classifier.cam_layers[0]


def test_probabilities_are_calibrated_logits() -> None:
    classifier = tiny()
    logits = torch.tensor([[1.0, -2.0]])
    assert torch.equal(classifier.probabilities(logits), logits.sigmoid())
    classifier.temperature.copy_(torch.tensor([2.0, 4.0]))
    classifier.offset.copy_(torch.tensor([0.5, 1.0]))
    assert torch.allclose(classifier.probabilities(logits), torch.tensor([[1.0, 0.5]]).sigmoid())
    assert "temperature" not in classifier.state_dict()


@pytest.mark.parametrize(
    ("options", "field"),
    [({"arch": "vgg"}, "arch"), ({"pool": "max"}, "pool"), ({"widths": ()}, "widths"), ({"dropout": 1.0}, "dropout")],
)
def test_bad_settings_are_named(options: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        ClassifierConfig(**options)
    assert caught.value.field == field
    with pytest.raises(InputError, match="finding"):
        Classifier(ClassifierConfig(), ())
