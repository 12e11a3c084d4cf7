from __future__ import annotations

import pytest
import torch

from counterscan.errors import InputError
from counterscan.nets.latent_encoder import LatentEncoder, LatentEncoderConfig


def encoder(size: int = 16, num_ws: int = 4, w_dim: int = 6) -> LatentEncoder:
    torch.manual_seed(0)
    return LatentEncoder(LatentEncoderConfig(base=4, most=8), size, num_ws, w_dim)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_every_layer_gets_a_w_that_depends_on_the_image(size: int) -> None:
    net = encoder(size)
    x = torch.rand(3, 1, size, size) * 2 - 1
    ws = net(x)
    assert ws.shape == (3, 4, 6)
    assert (ws[0] - ws[1]).abs().max() > 1e-4
    torch.testing.assert_close(net(x[1:2]), ws[1:2])  # images do not mix
    ws.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_it_starts_near_the_mean_w_in_units_of_its_spread() -> None:
    net, mean = encoder(), torch.arange(6.0)
    net.set_latents(mean, torch.full((6,), 100.0))
    ws = net(torch.rand(8, 1, 16, 16))
    assert net.standardised(ws).abs().mean() < 0.1
    torch.testing.assert_close(net.standardised(mean.expand(2, 4, 6)), torch.zeros(2, 4, 6))
    torch.testing.assert_close(net.standardised(mean + 100.0), torch.ones(6))


def test_with_its_last_layer_at_zero_all_layers_get_the_mean_w() -> None:
    net = encoder()
    net.set_latents(torch.arange(6.0), torch.ones(6))
    torch.nn.init.zeros_(net.head.weight)
    torch.testing.assert_close(net(torch.rand(2, 1, 16, 16)), torch.arange(6.0).expand(2, 4, 6))


def test_the_first_part_moves_all_layers_and_the_others_their_own() -> None:
    net = encoder()
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias.view(4, 6)[0] = 1.0
        net.head.bias.view(4, 6)[2] = 0.5
    expected = torch.tensor([1.0, 1.0, 1.5, 1.0]).view(4, 1).expand(4, 6)
    torch.testing.assert_close(net(torch.zeros(1, 1, 16, 16))[0], expected)


def test_a_direction_that_w_never_moves_along_keeps_figures_finite() -> None:
    net = encoder()
    net.set_latents(torch.zeros(6), torch.zeros(6))
    assert net.standardised(torch.ones(1, 4, 6)).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16), (16, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected images"):
        encoder()(torch.zeros(shape))


def test_settings_out_of_range_are_refused() -> None:
    for settings, name in (({"base": 0}, "base"), ({"base": 8, "most": 4}, "most")):
        with pytest.raises(InputError, match=name):
            LatentEncoderConfig(**settings)
    with pytest.raises(InputError, match="power of two"):
        encoder(size=24)
