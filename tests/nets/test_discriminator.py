from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.losses import r1_penalty
from counterscan.nets.discriminator import Discriminator, Halving, StyleGANConfig, minibatch_stddev, preset

KINDS = ("lite", "residual")


def discriminator(kind: Any = "lite", **changes: Any) -> Discriminator:
    torch.manual_seed(0)
    fields = {"size": 16, "labels": 3, "channels": (8, 6, 4), "d_kind": kind} | changes
    net = Discriminator(StyleGANConfig(**fields))
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.3)
    return net


def images(count: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 16, 16, generator=random) * 2 - 1, torch.rand(count, 3, generator=random)


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_formulas(kind: str) -> None:
    net, (x, c) = discriminator(kind, minibatch_stddev=1), images()

    def conv(part: Any, x: Tensor, **where: int) -> Tensor:
        return F.conv2d(x, part.weight / math.sqrt(part.weight[0].numel()), part.bias, **where)

    y = x if net.stem is None else lrelu(conv(net.stem, x))
    for part in net.halvings:
        h: Any = part
        skip = F.conv2d(F.avg_pool2d(y, 2), h.skip / math.sqrt(h.skip.shape[1]))
        y = y if h.before is None else lrelu(conv(h.before, y, padding=1))
        y = (lrelu(conv(h.down, y, stride=2, padding=1)) + skip) / math.sqrt(2)
    y = y if net.last is None else lrelu(conv(net.last, y, padding=1))
    features = lrelu(y.flatten(1) @ net.dense.weight.T / math.sqrt(net.dense.weight.shape[1]) + net.dense.bias)
    inner = torch.cat([c, torch.ones(4, 1)], dim=1) @ net.embed.linear.weight.T  # type: ignore[union-attr]
    label = inner / inner.square().mean(dim=1, keepdim=True).sqrt()
    logits = features @ net.head.weight[0] / math.sqrt(8) + net.head.bias + (features * label).sum(1) / math.sqrt(8)
    found = net(x, c)
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    findings = features @ net.auxiliary.weight.T / math.sqrt(8) + net.auxiliary.bias  # type: ignore[union-attr]
    torch.testing.assert_close(found.findings, findings)


def test_shapes_with_and_without_findings() -> None:
    x, c = images()
    found = discriminator()(x, c)
    assert (found.logits.shape, found.features.shape) == ((4,), (4, 8))
    assert found.findings is not None
    assert found.findings.shape == (4, 3)
    assert discriminator(auxiliary=False)(x, c).findings is None
    plain = discriminator(labels=0)
    assert plain(x).findings is None
    assert plain(x, c[:, :0]).logits.shape == (4,)
    assert discriminator(d_channels=(10, 4, 4))(x, c).features.shape == (4, 10)


def test_labels_matter_and_soft_ones_lie_between() -> None:
    net, (x, _) = discriminator(), images(1)
    none, half, near, one = (net(x, torch.tensor([[p, 0.0, 0.0]])).logits.item() for p in (0.0, 0.5, 0.501, 1.0))
    assert len({none, half, one}) == 3
    assert 0 < abs(near - half) < 0.05 * abs(half - none)
    assert torch.equal(net(x, torch.zeros(1, 3)).features, net(x, torch.ones(1, 3)).features)


def test_minibatch_stddev_by_hand() -> None:
    x = torch.tensor([0.0, 2, 5, 5, 1, 3]).view(6, 1, 1, 1).expand(6, 2, 3, 3)
    added = minibatch_stddev(x, 2)
    assert added.shape == (6, 3, 3, 3)
    assert torch.equal(added[:, :2], x)
    torch.testing.assert_close(added[:, 2, 1, 1], torch.tensor([1.0, 1, 0, 0, 1, 1]), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [3]), (4, [4]), (7, [7]), (9, [5, 4]), (11, [6, 5])])
def test_groups_of_any_batch(count: int, sizes: list[int]) -> None:
    x = torch.randn(count, 5, 4, 4, generator=torch.Generator().manual_seed(count))
    found = minibatch_stddev(x, 4)[:, 5, 0, 0]
    expected = [part.std(dim=0, correction=0).mean().expand(len(part)) for part in x.split(sizes)]
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-4, rtol=1e-4)


def test_shares_of_a_batch_make_the_same_groups() -> None:
    net, (x, c) = discriminator(), images(16)
    whole = net(x, c).logits
    torch.testing.assert_close(torch.cat([net(x[i : i + 8], c[i : i + 8]).logits for i in (0, 8)]), whole)
    assert not torch.allclose(net(x[:1], c[:1]).logits, whole[:1])  # alone, an image differs from nothing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_r1_can_be_differentiated(kind: str, count: int) -> None:
    net, (x, c) = discriminator(kind).double(), images(count)

    def penalty() -> Tensor:
        real = x.double().requires_grad_()
        (gradient,) = torch.autograd.grad(net(real, c).logits.sum(), real, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    for name in ("halvings.0.down.weight", "halvings.1.skip", "dense.weight"):
        weight = net.get_parameter(name)
        (slope,) = torch.autograd.grad(penalty(), weight)
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weight += step * direction
            ends.append(penalty().item())
        with torch.no_grad():
            weight += 1e-6 * direction
        expected = (ends[0] - ends[1]) / 2e-6
        assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_r1_under_bfloat16(kind: str) -> None:
    net, (x, c) = discriminator(kind), images()
    exact = r1_penalty(lambda x: net(x, c).logits, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(x, c)
        half = r1_penalty(lambda x: net(x, c).logits, x)
    assert found.logits.dtype == found.features.dtype == torch.float32
    torch.testing.assert_close(found.logits, net(x, c).logits, atol=0.05, rtol=0.05)
    torch.testing.assert_close(half, exact, atol=1e-3, rtol=0.1)
    half.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_features_keep_their_size_through_depth(kind: str) -> None:
    torch.manual_seed(0)
    net = Discriminator(preset("cxr64-cpu", labels=2, d_kind=kind))
    sizes: list[float] = []
    for part in net.modules():
        if isinstance(part, Halving):
            part.register_forward_hook(lambda _, __, out: sizes.append(out.square().mean().sqrt().item()))
    smooth = F.interpolate(torch.randn(8, 1, 8, 8), size=64, mode="bilinear")
    found = net(smooth / smooth.std(), torch.rand(8, 2))
    assert len(sizes) == 4
    assert all(0.5 < size < 1.5 for size in sizes)
    assert 0.5 < found.features.square().mean().sqrt() < 1.5


def test_layout_does_not_matter() -> None:
    net, (x, c) = discriminator(), images()
    expected = net(x, c).logits
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last), c).logits, expected)
    torch.testing.assert_close(net(x.transpose(2, 3).contiguous().transpose(2, 3), c).logits, expected)


def test_copies_and_state() -> None:
    net, (x, c) = discriminator("residual"), images()
    other = discriminator("residual")
    nn.init.zeros_(other.head.weight)
    other.load_state_dict(net.state_dict())
    for again in (copy.deepcopy(net), other):
        assert torch.equal(again(x, c).logits, net(x, c).logits)


def test_what_is_refused() -> None:
    net, (x, c) = discriminator(), images()
    with pytest.raises(InputError, match="expected images"):
        net(x[:, :, :8, :8], c)
    with pytest.raises(InputError, match="expected labels"):
        net(x)
    with pytest.raises(InputError, match="knows no findings"):
        discriminator(labels=0)(x, c)
