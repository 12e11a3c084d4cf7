from __future__ import annotations

import pytest
import torch

from counterscan.nets.latent import GridEncoder, GridGenerator, ResBlock


@pytest.mark.parametrize(("halvings", "height", "width"), [(1, 16, 24), (2, 16, 32), (3, 32, 32)])
def test_generator_mirrors_the_encoder(halvings: int, height: int, width: int) -> None:
    x = torch.rand(2, 1, height, width)
    codes = GridEncoder(5, 4, halvings)(x)
    assert codes.shape == (2, 5, height // 2**halvings, width // 2**halvings)
    assert GridGenerator(5, 4, halvings)(codes).shape == x.shape


def test_a_block_starts_as_its_skip() -> None:
    x = torch.rand(1, 8, 4, 4)
    same = ResBlock(8, 8)
    torch.testing.assert_close(same(x), x + same.second.bias.view(1, -1, 1, 1))
    block = ResBlock(8, 4)
    assert block.skip(x).shape == block(x).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_doubling_block_is_the_block_of_the_enlarged_image(normalised: bool) -> None:
    torch.manual_seed(0)
    doubling, plain = ResBlock(6, 4, normalised, doubled=True), ResBlock(6, 4, normalised)
    torch.nn.init.normal_(doubling.second.weight)
    plain.load_state_dict(doubling.state_dict())
    x = torch.randn(2, 6, 5, 8)
    enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(doubling(x), plain(enlarged), atol=1e-5, rtol=1e-4)


def test_a_code_keeps_its_place() -> None:
    torch.manual_seed(0)
    net = GridGenerator(3, 8, 2)
    for block in net.modules():
        if isinstance(block, ResBlock):
            torch.nn.init.normal_(block.second.weight, std=0.05)
    base = torch.zeros(1, 3, 16, 16)
    moved = base.clone()
    moved[:, :, 2, 2] = 3.0
    change = (net(moved) - net(base)).abs()[0, 0].detach()
    assert change[8:12, 8:12].mean() > 0
    assert (change[44:] == 0).all()
    assert (change[:, 44:] == 0).all()


def test_every_place_of_the_code_sees_the_whole_image() -> None:
    torch.manual_seed(0)
    net = GridEncoder(2, 4, 1)
    for block in net.modules():
        if isinstance(block, ResBlock):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    x = torch.rand(1, 1, 16, 16, requires_grad=True)
    net(x)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0, 0, 12:, 12:] != 0).any()
