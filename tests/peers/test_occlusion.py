from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.peers.occlusion import Occlusion
from tests.peers.tiny import IMAGE, ByHand, Squares, TwoStages, W, own_settings

pytest.importorskip("captum")


@torch.no_grad()
def by_brute_force(net: nn.Module, x: Tensor, cover: Tensor, side: int, step: int) -> Tensor:
    """Mean fall of logit 1 over the squares that hold a pixel; one starts at every step until the end is reached."""
    total, times = torch.zeros_like(x), torch.zeros_like(x)
    height, width = x.shape[-2:]

    def starts(length: int) -> list[int]:
        found = [0]
        while found[-1] + side < length:
            found.append(found[-1] + step)
        return found

    for top in starts(height):
        for left in starts(width):
            square = (..., slice(top, top + side), slice(left, left + side))
            covered = x.clone()
            covered[square] = cover[square]
            total[square] += (net(x) - net(covered))[:, 1].view(-1, 1, 1, 1)
            times[square] += 1
    return total / times


@pytest.mark.parametrize(("baseline", "cover"), [("mean", None), (0.3, 0.3), ("black", -1.0), (torch.sin, "sin")])
def test_equals_brute_force(baseline: object, cover: object) -> None:
    net = TwoStages().eval()
    x = torch.rand(3, 1, 11, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if cover == "sin":
        covers = x.sin()
    else:
        covers = x.mean((2, 3), keepdim=True).expand_as(x) if cover is None else torch.full_like(x, cover)
    method = Occlusion(net, window=0.3, stride=0.2, baseline=baseline)
    torch.testing.assert_close(method.attribute(x, 1), by_brute_force(net, x, covers, 3, 2), atol=1e-6, rtol=1e-4)


def test_by_hand() -> None:
    # Squares of one pixel; S = sum(w x^2), so that covering a pixel with b takes w (x^2 - b^2).
    method = Occlusion(Squares(W), window=0.5, stride=0.5, baseline="black")
    torch.testing.assert_close(method.attribute(IMAGE, 0), W * (IMAGE.square() - 1))
    assert (method.evidence(method.attribute(IMAGE, 0), IMAGE) == (W * (IMAGE.square() - 1)).relu()).all()


def test_passes_are_bounded() -> None:
    images = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    few, many = Squares(W), Squares(W)
    settings = {"window": 0.5, "stride": 0.5}
    bounded = Occlusion(few, internal_batch_size=2, **settings).attribute(images, 0)
    torch.testing.assert_close(bounded, Occlusion(many, **settings).attribute(images, 0))
    assert max(few.sizes) == 2
    assert max(many.sizes) == 20


def test_settings_and_unusable_ones() -> None:
    assert own_settings(Occlusion(ByHand(), baseline=0.5)) == {
        "window": 0.15,
        "stride": 0.05,
        "baseline": 0.5,
    }
    assert Occlusion(ByHand(), baseline=torch.sin).settings()["baseline"] == "sin"
    for window, stride in ((0.1, 0.2), (0.0, 0.0), (1.2, 0.1)):
        with pytest.raises(InputError, match="no larger than the window"):
            Occlusion(ByHand(), window=window, stride=stride)
    with pytest.raises(InputError, match="internal_batch_size"):
        Occlusion(ByHand(), internal_batch_size=0)
    with pytest.raises(InputError, match="black, blur or mean"):
        Occlusion(ByHand(), baseline="grey")  # type: ignore[arg-type]
