from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.text_image import ImageTower, TextTower, TinyClip, TinyClipConfig, bounded_scale

SMALL = TinyClipConfig(widths=(8, 16), text_width=16, text_heads=2, text_length=8, embedding=12)


def test_towers_meet_in_one_space_at_any_image_size() -> None:
    torch.manual_seed(0)
    image, text = ImageTower(SMALL), TextTower(SMALL, 20)
    for side in (16, 24, 33):
        assert image(torch.zeros(3, 1, side, side)).shape == (3, 12)
    assert text(torch.tensor([[1, 5, 6, -1], [1, 7, -1, -1]])).shape == (2, 12)


def test_empty_places_after_a_text_do_not_change_it() -> None:
    torch.manual_seed(0)
    text = TextTower(SMALL, 20).eval()
    short = text(torch.tensor([[1, 5, 6]]))
    padded = text(torch.tensor([[1, 5, 6, -1, -1], [1, 2, 3, 4, 5]]))[:1]
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(short, text(torch.tensor([[1, 6, 5]])), atol=1e-3)


def test_logits_are_scaled_cosines() -> None:
    torch.manual_seed(0)
    net = TinyClip(SMALL, 20).eval()
    images, ids = torch.randn(3, 1, 16, 16), torch.tensor([[1, 4], [1, 5]])
    logits = net(images, ids)
    assert logits.shape == (3, 2)
    expected = F.cosine_similarity(net.image(images)[:, None], net.text(ids)[None], dim=-1) / 0.07
    torch.testing.assert_close(logits, expected)


def test_scale_is_bounded() -> None:
    assert float(bounded_scale(torch.tensor(math.log(20.0)))) == pytest.approx(20)
    assert float(bounded_scale(torch.tensor(9.0))) == 50


def test_gradients_reach_the_image() -> None:
    images = torch.zeros(1, 1, 16, 16, requires_grad=True)
    TinyClip(SMALL, 20)(images, torch.tensor([[1, 4]])).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("widths", (12,)), ("widths", ()), ("grid", 0), ("text_width", 10), ("text_length", 2), ("scale", 60.0)],
)
def test_bad_shapes_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        TinyClipConfig(**{field: value})  # type: ignore[arg-type]
