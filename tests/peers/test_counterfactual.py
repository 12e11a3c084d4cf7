from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterscan.care import Care, smooth
from counterscan.counterpart import Counterpart, Direction, Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.peers.counterfactual import CounterfactualPeer, Search, margin
from counterscan.peers.latent_shift import LatentShift
from counterscan.peers.wachter import Wachter
from tests.peers.tiny import Blocks, Plane, Steep, TwoStages, own_settings

PLAIN = Care()
REMOVE, ADD = Query("Edema"), Query("Edema", direction="add")
REAL = [
    pytest.param(partial(Wachter, steps=5, rounds=1, care=PLAIN), id="Wachter"),
    pytest.param(partial(LatentShift, autoencoder=Blocks()), id="LatentShift"),
]


class Dimmer(CounterfactualPeer):
    """Darkens what may change by ``by`` to remove, brightens it to add; its way starts ``lost`` brighter than x."""

    name = "Dimmer"

    def __init__(self, classifier: nn.Module, *, by: float = 0.5, lost: float = 0.0, ended: str = "", **given: Any):
        super().__init__(classifier, **given)
        self.by, self.lost, self.ended = by, lost, ended

    def _search(self, images: Tensor, columns: Tensor, direction: Direction, valid: Tensor) -> Search:
        change = (self.by if direction == "remove" else -self.by) * valid

        def frame(share: float) -> Tensor:
            return images + self.lost - share * change

        frames = torch.stack([frame(share) for share in torch.linspace(0, 1, self.frames).tolist()], dim=1)
        first = torch.arange(1.0, len(images) + 1)
        return Search(change, frames, frame, [self.ended] * len(images), {"valid": valid}, {"number": first})


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dimmed(offset: float, query: Query = REMOVE, **settings: Any) -> Counterpart:
    """Of a black 4 x 4 image; the classifier's logit is the mean grey plus ``offset``."""
    net = Plane(torch.full((1, 1, 4, 4), 1 / 16), offset)
    (answer,) = Dimmer(net, care=PLAIN, **settings).counterparts(StudyBatch(torch.zeros(1, 1, 4, 4)), query)
    return answer


def test_the_logit_that_a_search_lowers() -> None:
    logits = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    columns = torch.tensor([1, 0])
    assert margin(logits, columns, "remove").tolist() == [-2.0, 3.0]
    assert margin(logits, columns, "add").tolist() == [2.0, -3.0]
    assert margin(logits, columns, "add").dtype == torch.float32


@pytest.mark.parametrize(("query", "sign"), [(REMOVE, 1), (ADD, -1)])
def test_an_answer_holds_everything(query: Query, sign: int) -> None:
    x = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.1)])
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., :2] = False
    net = Plane(torch.full((1, 1, 4, 4), 1 / 16), 0.2 * sign)
    peer = Dimmer(net, frames=3, care=PLAIN, masker=lambda evidence, _: evidence > 0.1)
    answers = peer.counterparts(StudyBatch(x, valid=valid, sources=[StudyRef("a"), StudyRef("b")]), query)
    for i, (answer, grey) in enumerate(zip(answers, (0.0, 0.1), strict=True)):
        # Half of the pixels move by 0.5, and the mean with them by 0.25.
        change = 0.5 * valid[i].float()
        assert answer.counterpart is not None
        assert answer.path is not None
        torch.testing.assert_close(answer.counterpart, x[i] - sign * change)
        torch.testing.assert_close(answer.evidence, change)
        assert torch.equal(answer.mask, valid[i])
        assert answer.score_before == pytest.approx(sigmoid(grey + 0.2 * sign))
        assert answer.score_after == pytest.approx(sigmoid(grey + 0.2 * sign - 0.25 * sign))
        assert answer.path.strengths.tolist() == [0, 0.5, 1]
        torch.testing.assert_close(answer.path.frames[1], x[i] - sign * change / 2)
        logits = [grey + 0.2 * sign - share * 0.25 * sign for share in (0, 0.5, 1)]
        expected = torch.tensor([[sigmoid(logit), sigmoid(-logit)] for logit in logits])
        torch.testing.assert_close(answer.path.outputs, expected)
        assert torch.equal(answer.extras["valid"], valid[i].float())
        flipped = (logits[-1] < 0) == (sign == 1)
        assert answer.figures == {"number": i + 1.0, "flipped": float(flipped)}
        assert (answer.verdict == "ok") == flipped
        assert answer.source == StudyRef("ab"[i])
        assert answer.made_by.settings["frames"] == 3
    assert peer.counterparts(StudyBatch(x[:0]), query) == []


def test_verdicts() -> None:
    assert dimmed(0.2).verdict == "ok"
    assert dimmed(-0.2).verdict == "ok"  # nothing to remove, and nothing appeared
    assert dimmed(-0.2, ADD).verdict == "ok"
    stays = dimmed(0.9, ended="it may go no further")
    assert stays.verdict == (
        f"not flipped: the classifier still sees the finding in the counterpart (p = {sigmoid(0.4):.2f}); "
        "it may go no further"
    )
    absent = dimmed(-0.9, ADD)
    assert absent.verdict == (
        f"not flipped: the classifier does not see the finding in the counterpart (p = {sigmoid(-0.4):.2f})"
    )
    lost = dimmed(-0.2, lost=0.5)
    assert lost.verdict.startswith(f"not faithful: the classifier gives the image p = {sigmoid(-0.2):.2f}")
    assert lost.verdict.endswith(f"p = {sigmoid(0.3):.2f}")


def test_strength_shortens_the_way_but_not_the_evidence(images: Tensor) -> None:
    method = Wachter(Steep().eval(), care=PLAIN)
    whole, half = (
        method.counterparts(StudyBatch(images), Query("Edema", strength=strength)) for strength in (1.0, 0.5)
    )
    for full, part, x in zip(whole, half, images, strict=True):
        torch.testing.assert_close(part.counterpart, (x + full.counterpart) / 2)
        assert torch.equal(part.evidence, full.evidence)
        assert part.path.strengths[-1] == 0.5
        assert torch.equal(part.path.frames[-1], part.counterpart)


def test_care_averages_and_smooths_the_change_and_not_the_counterpart(images: Tensor) -> None:
    net = Steep().eval()
    plain, mirrored = Wachter(net, care=PLAIN), Wachter(net, care=Care(flips=True, smoothing=0.05))
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[..., :4] = False
    answers = mirrored.counterparts(StudyBatch(images, valid=valid), REMOVE)
    straight = plain.counterparts(StudyBatch(images, valid=valid), REMOVE)
    other = plain.counterparts(StudyBatch(images.flip(-1), valid=valid.flip(-1)), REMOVE)
    for answer, one, two, seen in zip(answers, straight, other, valid, strict=True):
        mean = (one.delta + two.delta.flip(-1)) / 2
        torch.testing.assert_close(answer.evidence, smooth(mean.abs()[None], 0.05)[0] * seen, atol=1e-5, rtol=1e-4)
        assert torch.equal(answer.counterpart, one.counterpart)
    torch.testing.assert_close(
        plain.attribute(images, 0), torch.stack([a.delta for a in plain.counterparts(StudyBatch(images), REMOVE)])
    )


@pytest.mark.parametrize("peer", REAL)
def test_inference_mode_changes_nothing(peer: Any, images: Tensor) -> None:
    method = peer(Steep())
    with torch.inference_mode():
        inside = StudyBatch(images.clone(), valid=torch.ones_like(images, dtype=torch.bool))
        first = method.counterparts(inside, REMOVE)
    again = method.counterparts(StudyBatch(images), REMOVE)
    assert all(torch.equal(a.counterpart, b.counterpart) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("peer", [Dimmer, *REAL])
def test_settings_and_bad_input(peer: Any, images: Tensor) -> None:
    net = TwoStages()
    assert own_settings(peer(net, frames=5))["frames"] == 5
    for wrong in ({"frames": 1}, {"internal_batch_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            peer(net, **wrong)
    with pytest.raises(InputError, match="It knows Edema, Lung Lesion"):
        peer(net).counterparts(StudyBatch(images), Query("Fracture"))
    with pytest.raises(InputError, match=r"\(N, 1, H, W\)"):
        peer(net).counterparts(StudyBatch(images[0]), REMOVE)
