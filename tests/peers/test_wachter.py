from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import Care
from counterscan.counterpart import Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.peers.wachter import Wachter
from tests.peers.tiny import Plane, Steep, own_settings

PLAIN = Care()
REMOVE, ADD = Query("Edema"), Query("Edema", direction="add")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_torchs_adam(net: nn.Module, x: Tensor, sign: int, distance: float, steps: int, rate: float) -> Tensor:
    """One image at a time, no rounds, until the probability is at most .05."""
    answers = []
    for image in x.split(1):
        changed = image.clone().requires_grad_()
        optimizer = torch.optim.Adam([changed], lr=rate)
        for _ in range(steps):
            toward = sign * net(changed)[0, 0]
            if toward.sigmoid() <= 0.05:
                break
            optimizer.zero_grad()
            (F.softplus(toward) + distance * (changed - image).square().sum()).backward()
            optimizer.step()
            changed.data.clamp_(-1, 1)
        answers.append(changed.detach())
    return torch.cat(answers)


@pytest.mark.parametrize(("query", "sign"), [(REMOVE, 1), (ADD, -1)])
def test_equals_torchs_adam_image_by_image(query: Query, sign: int, images: Tensor) -> None:
    net = Steep().eval()
    expected = with_torchs_adam(net, images, sign, 1e-2, 100, 0.01)
    for size in (64, 3):
        method = Wachter(net, distance=1e-2, care=PLAIN, internal_batch_size=size)
        answers = method.counterparts(StudyBatch(images), query)
        found = torch.stack([answer.counterpart for answer in answers])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.equal(expected, images)


@pytest.mark.parametrize(("query", "sign"), [(REMOVE, 1), (ADD, -1)])
def test_answers_are_complete_and_true(query: Query, sign: int, images: Tensor) -> None:
    net = Steep().eval()
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[..., :4] = False
    batch = StudyBatch(images, valid=valid, sources=[StudyRef(f"s{i}") for i in range(4)])
    answers = Wachter(net, care=PLAIN, masker=lambda e, _: e > e.mean()).counterparts(batch, query)
    moved = 0
    for i, answer in enumerate(answers):
        assert answer.counterpart is not None
        assert answer.path is not None
        assert answer.mask is not None
        assert answer.source == StudyRef(f"s{i}")
        assert answer.counterpart.abs().max() <= 1
        assert torch.equal(answer.counterpart[..., :4], images[i, ..., :4])
        torch.testing.assert_close(answer.evidence, (images[i] - answer.counterpart).abs())
        logits = net(torch.stack([images[i], answer.counterpart])).detach()
        assert answer.score_before == pytest.approx(logits[0, 0].sigmoid().item(), abs=1e-5)
        assert answer.score_after == pytest.approx(logits[1, 0].sigmoid().item(), abs=1e-5)
        assert (sign * logits[1, 0]).sigmoid() <= 0.0501
        assert answer.verdict == "ok"
        assert answer.figures == {"flipped": 1.0}
        moved += not torch.equal(answer.counterpart, images[i])
        assert answer.path.strengths.tolist() == pytest.approx([k / 10 for k in range(11)])
        for share, frame in zip(answer.path.strengths, answer.path.frames, strict=True):
            torch.testing.assert_close(frame, images[i] + share * (answer.counterpart - images[i]))
        torch.testing.assert_close(
            answer.path.outputs, net(answer.path.frames).detach().sigmoid(), atol=1e-4, rtol=1e-4
        )
        assert not answer.path.frames.requires_grad
    assert moved >= 2
    assert Wachter(net).counterparts(StudyBatch(images[:0]), query) == []


def test_every_pixel_of_an_even_plane_moves_alike() -> None:
    # Equal slopes: Adam moves every pixel by the same; the first step is rate exactly, whatever the slope.
    net = Plane(torch.full((1, 1, 4, 4), 0.5), offset=1.0)
    x = torch.zeros(1, 1, 4, 4)
    (one,) = Wachter(net, steps=1, rounds=1, rate=0.1, distance=0.0, care=PLAIN).counterparts(StudyBatch(x), REMOVE)
    torch.testing.assert_close(one.counterpart, torch.full((1, 4, 4), -0.1))
    # 1 - 0.5 * 16 * 0.1 = 0.2: still seen.
    assert one.score_after == pytest.approx(1 / (1 + math.exp(-0.2)))
    assert "not flipped: the classifier still sees the finding in the counterpart (p = 0.55)" in one.verdict
    assert "1 steps did not bring it there" in one.verdict
    assert one.figures == {"flipped": 0.0}
    (added,) = Wachter(net, steps=1, rounds=1, rate=0.1, care=PLAIN).counterparts(
        StudyBatch(x), Query("Lung Lesion", direction="add")
    )
    assert "does not see the finding in the counterpart (p = 0.45)" in added.verdict


def test_what_is_there_already_is_left_alone() -> None:
    net = Plane(torch.ones(1, 1, 4, 4), offset=-5.0)
    x = torch.zeros(2, 1, 4, 4)
    for answer in Wachter(net).counterparts(StudyBatch(x), REMOVE):
        assert torch.equal(answer.counterpart, x[0])
        assert not answer.evidence.any()
        assert answer.verdict == "ok"
    assert not Wachter(net).attribute(x, 0).any()


def test_lambda_is_lowered_where_it_stands_in_the_way() -> None:
    net = Plane(torch.full((1, 1, 4, 4), 0.5), offset=2.0)
    batch = StudyBatch(torch.zeros(1, 1, 4, 4))
    (stuck,) = Wachter(net, distance=10.0, rounds=1, rate=0.02, care=PLAIN).counterparts(batch, REMOVE)
    (freed,) = Wachter(net, distance=10.0, rounds=4, rate=0.02, care=PLAIN).counterparts(batch, REMOVE)
    assert stuck.verdict.startswith("not flipped")
    assert freed.verdict == "ok"
    assert freed.score_after == pytest.approx(0.05, abs=0.02)


def test_the_squared_loss_is_flat_where_the_classifier_is_sure() -> None:
    net = Plane(torch.full((1, 1, 4, 4), 2.0), offset=40.0)
    batch = StudyBatch(torch.full((1, 1, 4, 4), 1.0))
    settings = {"steps": 300, "rounds": 1, "care": PLAIN}
    (squared,) = Wachter(net, loss="squared", **settings).counterparts(batch, REMOVE)
    (entropy,) = Wachter(net, loss="bce", **settings).counterparts(batch, REMOVE)
    assert torch.equal(squared.counterpart, batch.images[0])
    assert (entropy.counterpart < 0).all()
    unsure = Plane(torch.full((1, 1, 4, 4), 2.0), offset=2.0)
    (answer,) = Wachter(unsure, loss="squared", **settings).counterparts(StudyBatch(torch.zeros(1, 1, 4, 4)), REMOVE)
    assert answer.verdict == "ok"


def test_settings_and_unusable_ones() -> None:
    net = Steep()
    assert own_settings(Wachter(net)) == {
        "frames": 11,
        "loss": "bce",
        "target": 0.0,
        "tolerance": 0.05,
        "distance": 1e-2,
        "rate": 0.01,
        "steps": 100,
        "rounds": 3,
    }
    for wrong in (
        {"loss": "hinge"},
        {"target": 0.6},
        {"tolerance": 0.0},
        {"distance": -1.0},
        {"rate": 0.0},
        {"steps": 0},
        {"rounds": 0},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Wachter(net, **wrong)  # type: ignore[arg-type]
