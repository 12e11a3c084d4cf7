from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.equalised import EqualLinear, unit_moment
from counterscan.nets.stylegan2 import PRESETS, Generator, ModulatedConv, StyleGANConfig, preset


def tiny(**changes: Any) -> StyleGANConfig:
    fields = {"size": 16, "labels": 3, "z_dim": 8, "w_dim": 12, "channels": (8, 6, 4)} | changes
    return StyleGANConfig(**fields)


def generator(**changes: Any) -> Generator:
    """With noise and biases that matter, which they do not at the start."""
    torch.manual_seed(0)
    net = Generator(tiny(**changes))
    for name, p in net.named_parameters():
        if name.endswith(("strength", "bias")) and "affine" not in name:
            nn.init.normal_(p, std=0.3)
    return net.eval()


def latents(count: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, generator=random), torch.rand(count, 3, generator=random)


# The formulas, one image at a time


def plain_conv(conv: ModulatedConv, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
    """One image (1, C, h, w) with its own modulated and demodulated kernel, as the papers write it."""
    kernel = conv.weight / math.sqrt(conv.weight[0].numel()) * style.view(1, -1, 1, 1)
    kernel = kernel / (kernel.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if conv.up:  # zeros between the pixels, convolution, then the filter [1, 3, 3, 1] in both directions
        y = F.conv_transpose2d(x, kernel.flip(2, 3).transpose(0, 1), stride=2)
        line = torch.tensor([1.0, 3, 3, 1]) / 4
        blur = torch.outer(line, line).expand(y.shape[1], 1, 4, 4)
        y = F.conv2d(F.pad(y, (1, 1, 1, 1)), blur, groups=y.shape[1])
    else:
        y = F.conv2d(x, kernel, padding=1)
    if noise is not None:
        y = y + conv.strength * noise
    return F.leaky_relu(y + conv.bias.view(1, -1, 1, 1), 0.2) * math.sqrt(2)


def plain_image(net: Generator, styles: list[Tensor], const_noise: bool) -> Tensor:
    x, image = net.const.permute(2, 0, 1)[None], torch.zeros(1, 1, 2, 2)
    left = iter(styles)
    for convs, gray in zip(net.convs, net.grays, strict=True):
        for conv in convs:  # type: ignore[attr-defined]
            x = plain_conv(conv, x, next(left), conv.noise_const if const_noise else None)
        kernel = (gray.weight / math.sqrt(len(gray.weight)) * next(left)).view(1, -1, 1, 1)
        y = F.conv2d(x, kernel) + gray.bias
        image = F.interpolate(image, scale_factor=2.0, mode="bilinear") + y
    return image


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("noise", ["const", "none"])
def test_it_equals_a_kernel_for_each_image(convolutions: int, noise: Any) -> None:
    net = generator(convolutions=convolutions)
    styles = net.styles(net.map(*latents()))
    expected = torch.cat([plain_image(net, [s[i] for s in styles], noise == "const") for i in range(4)])
    torch.testing.assert_close(net.synthesize(styles=styles, noise=noise), expected, atol=1e-5, rtol=1e-5)


def test_upsampling_inside_the_convolution_is_the_filter_and_then_the_convolution() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(1, 1, 4, 16, up=True)
    ramp = torch.arange(8.0).expand(8, 8)
    up = F.interpolate(ramp[None, None], scale_factor=2.0, mode="bilinear")
    expected = F.conv2d(up, conv.weight / 3, padding=1)
    places = F.conv2d(ramp[None, None], conv.kernels(), padding=1)
    # Inside, bilinear interpolation is [1, 3, 3, 1]; pixel_shuffle puts the four pixels of a place where they belong.
    torch.testing.assert_close(F.pixel_shuffle(places, 2)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3])


def test_demodulated_features_have_unit_variance() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(32, 64, 4, 32, up=False)
    x = torch.randn(8, 32, 32, 32)
    style = torch.randn(8, 32) * 3
    with torch.no_grad():
        y, factor = conv(x, torch.ones(8, 32), style, None)
    y = (y * factor[:, None, None])[:, 2:-2, 2:-2] / math.sqrt(2)
    before = torch.where(y < 0, y / 0.2, y)  # undo the leaky ReLU
    deviations = before.std(dim=(1, 2))
    assert deviations.mean() == pytest.approx(1, abs=0.02)
    assert (deviations - 1).abs().max() < 0.25


def test_the_path_length_can_be_penalised() -> None:
    net = generator(channels=(4, 4, 4)).double()
    ws = net.map(*latents(2)).double().detach().requires_grad_()

    def length(ws: Tensor) -> Tensor:
        image = net.synthesize(ws)
        return torch.autograd.grad((image * torch.linspace(-1, 1, 16)).sum(), ws, create_graph=True)[0].square().sum()

    conv = net.convs[1][0].weight  # type: ignore[index]
    assert_slope(lambda: length(ws), conv)


def assert_slope(value: Any, weight: Tensor) -> None:
    """The gradient of value() along a direction is its central difference, in float64."""
    (gradient,) = torch.autograd.grad(value(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=weight.dtype)
    with torch.no_grad():
        weight += 1e-6 * direction
    above = value().item()
    with torch.no_grad():
        weight -= 2e-6 * direction
    below = value().item()
    assert (gradient * direction).sum().item() == pytest.approx((above - below) / 2e-6, rel=1e-4)


# Latents


def test_shapes_and_layers_of_the_presets() -> None:
    layers = {name: Generator(preset(name, labels=2)).style_layers for name in ("cxr64-cpu", "cxr64-lite")}
    assert [layer.name for layer in layers["cxr64-cpu"][:4]] == ["4.conv0", "4.gray", "8.conv0", "8.gray"]
    assert [layer.width for layer in layers["cxr64-cpu"]] == [64, 64, 64, 64, 64, 64, 64, 32, 32, 16]
    assert [layer.is_to_gray for layer in layers["cxr64-lite"]] == [False, True] * 5
    full = Generator(tiny(convolutions=2))
    assert [layer.name for layer in full.style_layers] == [
        "4.conv0", "4.gray", "8.conv0", "8.conv1", "8.gray", "16.conv0", "16.conv1", "16.gray",
    ]  # fmt: skip
    assert [layer.w for layer in full.style_layers] == [0, 1, 1, 2, 3, 3, 4, 5]  # gray reads what the next conv reads
    assert [layer.resolution for layer in full.style_layers] == [4, 4, 8, 8, 8, 16, 16, 16]
    assert full.num_ws == 6
    for name in PRESETS:
        config = preset(name)
        assert config.resolutions[-1] == config.size


def test_styles_are_the_normal_path() -> None:
    net = generator()
    ws = net.map(*latents())
    styles = net.styles(ws)
    assert [s.shape for s in styles] == [(4, layer.width) for layer in net.style_layers]
    assert torch.equal(net.synthesize(styles=styles), net.synthesize(ws))
    styles[0] = styles[0] + 1
    assert not torch.allclose(net.synthesize(styles=styles), net.synthesize(ws))


def test_each_w_reaches_its_own_layers() -> None:
    net = generator()
    ws = net.map(*latents())
    moved = ws.clone()
    moved[:, 2] += 1
    before, after = net.styles(ws), net.styles(moved)
    for layer, a, b in zip(net.style_layers, before, after, strict=True):
        assert torch.equal(a, b) == (layer.w != 2)


def test_mapping_is_the_formula() -> None:
    net = generator(mapping_layers=1, mapping_rate=0.5)
    z, c = latents()
    inner = net.embed.linear.weight / 2 @ torch.cat([c, torch.ones(4, 1)], dim=1).T  # type: ignore[union-attr]
    e = inner.T / inner.T.square().mean(dim=1, keepdim=True).sqrt()
    x = torch.cat([z / z.square().mean(dim=1, keepdim=True).sqrt(), e], dim=1)
    first = net.mapping[0]
    w = F.leaky_relu(x @ (first.weight * 0.5 / 4).T + 0.5 * first.bias, 0.2) * math.sqrt(2)
    torch.testing.assert_close(net.map(z, c), w[:, None].expand(4, net.num_ws, 12))
    torch.testing.assert_close(net.map(3 * z, c), net.map(z, c))  # only the direction of z counts


def test_psi_zero_is_one_image_per_label_and_truncation_is_linear() -> None:
    net = generator()
    z, c = latents()
    same = c[:1].expand(4, -1)
    middle = net.map(z, same, psi=0)
    torch.testing.assert_close(middle, net.centre(same)[:, None].expand_as(middle))
    torch.testing.assert_close(middle[:1].expand_as(middle), middle)
    assert not torch.allclose(net.map(z, c, psi=0)[0], net.map(z, c, psi=0)[1])  # another label, another middle
    ws = net.map(z, same)
    torch.testing.assert_close(net.map(z, same, psi=0.3), middle + 0.3 * (ws - middle))
    torch.testing.assert_close(net.map(z, same, psi=0.3, cutoff=2)[:, 2:], ws[:, 2:])
    torch.testing.assert_close(net.map(z, same, psi=0.3, cutoff=2)[:, :2], net.map(z, same, psi=0.3)[:, :2])


def test_without_findings_the_middle_is_w_avg() -> None:
    net = generator(labels=0)
    ws = net.map(latents(64)[0])
    net.update_w_avg(ws)
    torch.testing.assert_close(net.map(latents(5)[0], psi=0), net.w_avg.expand(5, net.num_ws, -1))
    torch.testing.assert_close(net.w_avg, ws[:, 0].mean(dim=0))
    torch.testing.assert_close(net.w_sd, ws[:, 0].std(dim=0, correction=0))


def test_w_avg_is_a_running_mean_that_forgets() -> None:
    net = generator(labels=0)
    for value in (1.0, 3.0, 8.0):
        net.update_w_avg(torch.full((2, 12), value))
    torch.testing.assert_close(net.w_avg, torch.full((12,), 4.0))  # still a plain mean
    net.update_w_avg(torch.full((2, 12), 8.0), beta=0.5)
    torch.testing.assert_close(net.w_avg, torch.full((12,), 6.0))


def test_centre_is_the_mean_over_z() -> None:
    net = generator()
    c = latents(70)[1]
    found = net.centre(c)
    z = torch.randn(20000, 8, generator=torch.Generator().manual_seed(5))
    ws = net.map(z, c[66:67].expand(20000, -1))[:, 0]
    error = (found[66] - ws.mean(dim=0)) / (ws.std(dim=0) / math.sqrt(256))
    assert error.abs().max() < 4


def test_soft_labels_lie_between() -> None:
    net = generator()
    z = latents(1)[0]
    at = [net.embed(torch.tensor([[p, 0.0, 1.0]])) for p in (0.0, 0.5, 1.0)]  # type: ignore[misc]
    torch.testing.assert_close(at[1].square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(unit_moment(net.embed.linear(torch.tensor([[0.5, 0, 1, 1]]))), at[1])  # type: ignore[union-attr]
    assert F.cosine_similarity(at[0], at[1]) > F.cosine_similarity(at[0], at[2])
    assert F.cosine_similarity(at[2], at[1]) > F.cosine_similarity(at[0], at[2])
    images = [net(z, torch.tensor([[p, 0.0, 1.0]])) for p in (0.0, 0.5, 0.501)]
    assert 0 < (images[2] - images[1]).abs().max() < 0.05 * (images[1] - images[0]).abs().max()


def test_mixing() -> None:
    net = generator()
    a, b = net.map(*latents(seed=1)), net.map(*latents(seed=2))
    mixed = net.mix(a, b, 3)
    assert torch.equal(mixed[:, :3], a[:, :3])
    assert torch.equal(mixed[:, 3:], b[:, 3:])
    each = net.mix(a, b, torch.tensor([0, 1, 2, net.num_ws]))
    assert torch.equal(each[0], b[0])
    assert torch.equal(each[3], a[3])
    assert torch.equal(each[1, 0], a[1, 0])
    assert torch.equal(each[1, 1:], b[1, 1:])


# Images


def test_noise() -> None:
    net = generator()
    ws = net.map(*latents())
    const, none = net.synthesize(ws), net.synthesize(ws, noise="none")
    assert torch.equal(const, net.synthesize(ws))
    assert not torch.allclose(const, none)
    seeded = [net.synthesize(ws, noise="random", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.allclose(seeded[0], seeded[2])
    for conv in (part for part in net.modules() if isinstance(part, ModulatedConv)):
        nn.init.zeros_(conv.strength)
    assert torch.allclose(net.synthesize(ws, noise="random"), none, atol=1e-6)  # as at the start of training
    assert all(conv.strength == 0 for conv in Generator(tiny()).modules() if isinstance(conv, ModulatedConv))


def test_parts_of_bounded_memory_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    net = generator()
    ws = net.map(*latents(5)).detach()
    whole = net.synthesize(ws, noise="random", generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("counterscan.nets.stylegan2._CHUNK", 2 * 16 * 16)
    with torch.no_grad():
        parts = net.synthesize(ws, noise="random", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(parts, whole)
    assert net.synthesize(ws[:0]).shape == (0, 1, 16, 16)


def test_bfloat16_is_close_and_trains() -> None:
    net = generator()
    z, c = latents()
    exact = net(z, c)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.map(z, c).dtype == torch.float32
        assert all(s.dtype == torch.float32 for s in net.styles(net.map(z, c)))
        half = net(z, c)
    assert half.dtype == exact.dtype == torch.float32
    assert (half - exact).abs().max() < 0.03 * exact.abs().max()
    half.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_equalised_rate() -> None:
    torch.manual_seed(0)
    layer = EqualLinear(400, 300, bias=2.0, rate=0.01)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.02)
    y = layer(torch.randn(500, 400))
    assert (y - 2).std().item() == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(layer(torch.zeros(1, 400)), torch.full((1, 300), 2.0))
    net = Generator(tiny(channels=(32, 32, 32), mapping_layers=4, w_dim=128))
    w = net.map(torch.randn(200, 8), torch.rand(200, 3))
    assert 0.7 < w.square().mean().sqrt() < 1.4
    styles = net.styles(w)
    assert all(s.mean().item() == pytest.approx(1, abs=0.3) for s in styles)


def test_features_keep_their_size_through_depth() -> None:
    torch.manual_seed(0)
    net = Generator(StyleGANConfig(channels=(64, 64, 64, 32, 32), convolutions=2))
    sizes: list[float] = []
    for part in net.modules():
        if isinstance(part, ModulatedConv):
            part.register_forward_hook(
                lambda _, __, out: sizes.append((out[0] * tiled(*out)).square().mean().sqrt().item())
            )

    def tiled(y: Tensor, factor: Tensor) -> Tensor:
        return factor.repeat(1, y.shape[3] // factor.shape[1])[:, None, None]

    net(torch.randn(8, 64))
    assert len(sizes) == 9
    assert 0.7 < sizes[0] < 1.3
    for up, after in zip(sizes[1::2], sizes[2::2], strict=True):
        assert after / up == pytest.approx(1, abs=0.2)
    for before, up in zip(sizes[0:-1:2], sizes[1::2], strict=True):  # rough features lose power to the filter
        assert 0.6 < up / before < 1.25


def test_copies_and_state() -> None:
    net = generator()
    net.update_w_avg(net.map(*latents()))
    twin = copy.deepcopy(net)
    other = generator()
    nn.init.zeros_(other.const)
    other.load_state_dict(net.state_dict())
    z, c = latents()
    for again in (twin, other):
        assert torch.equal(again(z, c, psi=0.5), net(z, c, psi=0.5))
        assert torch.equal(again.w_avg, net.w_avg)


# What is refused


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"size": 48}, "size"), ({"size": 8, "channels": (4, 4)}, "size"), ({"channels": (8, 8)}, "channels"),
        ({"channels": (8, 0, 8)}, "channels"), ({"d_channels": (8, 8, 8, 8)}, "d_channels"), ({"labels": -1}, "labels"),
        ({"z_dim": 0}, "z_dim"), ({"w_dim": 0}, "w_dim"), ({"mapping_layers": 0}, "mapping_layers"),
        ({"mapping_rate": 0.0}, "mapping_rate"), ({"convolutions": 3}, "convolutions"), ({"d_kind": "big"}, "d_kind"),
        ({"minibatch_stddev": 0}, "minibatch_stddev"),
    ],
)  # fmt: skip
def test_config_errors_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        tiny(**changes)
    assert caught.value.field == field


def test_what_is_refused() -> None:
    net, (z, c) = generator(), latents()
    ws = net.map(z, c)
    with pytest.raises(InputError, match="one of"):
        preset("cxr1024")
    with pytest.raises(InputError, match="latents"):
        net.map(z[:, :5], c)
    with pytest.raises(InputError, match="expected labels"):
        net.map(z)
    with pytest.raises(InputError, match="expected labels"):
        net.map(z, c[:2])
    with pytest.raises(InputError, match="NaN or outside"):
        net.map(z, c + torch.tensor([0, 0, math.nan]))
    with pytest.raises(InputError, match="knows no findings"):
        generator(labels=0).map(z, c)
    with pytest.raises(InputError, match="cutoff"):
        net.map(z, c, psi=0.5, cutoff=9)
    with pytest.raises(InputError, match="either"):
        net.synthesize(ws, styles=net.styles(ws))
    with pytest.raises(InputError, match="either"):
        net.synthesize()
    with pytest.raises(InputError, match="expected ws"):
        net.synthesize(ws[:, :2])
    with pytest.raises(InputError, match="expected styles"):
        net.synthesize(styles=net.styles(ws)[:-1])
    with pytest.raises(InputError, match="noise"):
        net.synthesize(ws, noise="loud")  # type: ignore[arg-type]
