from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import Care
from counterscan.counterpart import Counterpart, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.peers.latent_shift import LatentShift
from tests.peers.tiny import FINDINGS, Blocks, Plane, TwoStages, own_settings

REMOVE, ADD = Query("Edema"), Query("Edema", direction="add")
W = torch.tensor([[1.0, -4.0, 0.0], [2.0, 3.0, -2.0]])
X = torch.tensor([[[[0.2, -0.1, 0.3], [0.0, 0.1, -0.2]]]])


class Identity:
    """Codes are the image times ``scale``, in a row: not a module, and codes of another shape than the image."""

    def __init__(self, scale: float = 1.0, shape: tuple[int, int] = (2, 3)) -> None:
        self.scale, self.shape = scale, shape

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, *self.shape) / self.scale


class Valley(nn.Module):
    """Logit 0 = 1 + 8 (mean(x) - 0.5)^2: it cannot be brought below 1."""

    findings, cam_layers = FINDINGS, ()

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean((1, 2, 3))
        logit = 1 + 8 * (u - 0.5).square()
        return torch.stack([logit, -logit], dim=1)


def schedule(step: float = 0.25, most: float = 100.0) -> list[float]:
    """Lambdas: each step grows by a tenth of lambda."""
    found = [0.0]
    while found[-1] < most:
        found.append(min(found[-1] + step + found[-1] / 10, most))
    return found


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def answer_of(method: LatentShift, x: Tensor = X, query: Query = REMOVE) -> Counterpart:
    (answer,) = method.counterparts(StudyBatch(x), query)
    assert answer.counterpart is not None
    assert answer.path is not None
    return answer


@pytest.mark.parametrize(("query", "sign"), [(REMOVE, 1), (ADD, -1)])
@pytest.mark.parametrize("scale", [1.0, 50.0, 0.02])
def test_a_plane_behind_the_identity_has_a_closed_form(query: Query, sign: int, scale: float) -> None:
    # x_lambda = x - lambda w / |w|^2 and S falls by lambda: whatever the scale of the code.
    offset = 1.0 * sign - float((W * X).sum())
    net = Plane(W.view(1, 1, 2, 3), offset)
    start = sigmoid(1.0)
    expected = next(v for v in schedule() if sigmoid(1 - v) < 0.05 or start - sigmoid(1 - v) > 0.8)
    answer = answer_of(LatentShift(net, Identity(scale), max_change=50.0), query=query)
    last = X[0] - sign * expected * W / W.square().sum()
    torch.testing.assert_close(answer.counterpart, last, atol=1e-5, rtol=0)
    assert answer.score_before == pytest.approx(sigmoid(sign))
    assert answer.score_after == pytest.approx(sigmoid(sign * (1 - expected)), rel=1e-4)
    assert answer.verdict == "ok"
    torch.testing.assert_close(answer.extras["reconstruction"], X[0])
    assert answer.figures == {"shift": pytest.approx(expected), "flipped": 1.0}
    torch.testing.assert_close(answer.path.strengths, torch.linspace(0, 1, 11))
    for share, frame, outputs in zip(torch.linspace(0, 1, 11), answer.path.frames, answer.path.outputs, strict=True):
        torch.testing.assert_close(frame, X[0] + share * (last - X[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(outputs, net(frame[None])[0].sigmoid(), atol=1e-4, rtol=1e-4)
    # A straight path: ten equal steps, of which "int" is the mean and "mm" the sum.
    whole = (X[0] - last).abs()
    torch.testing.assert_close(answer.evidence, whole / 10, atol=1e-6, rtol=0)
    ends = answer_of(LatentShift(net, Identity(scale), heatmap="mm", max_change=50.0), query=query)
    torch.testing.assert_close(ends.evidence, whole, atol=1e-5, rtol=0)


def test_the_classifiers_slope_does_not_change_how_far_the_logit_goes() -> None:
    for gain in (0.01, 1.0):
        net = Plane(gain * torch.tensor([[[[3.0, 4.0]]]]), offset=0.5)
        method = LatentShift(net, Identity(shape=(1, 2)), max_shift=0.25, max_change=1e9)
        found = answer_of(method, torch.tensor([[[[1e-3, 1e-3]]]]))
        # lambda = 0.25 at the first step; a flat classifier would need pixels beyond -1 and gets what fits.
        expected = (1e-3 - 0.25 * torch.tensor([[[3.0, 4.0]]]) / (25 * gain)).clamp(-1, 1)
        torch.testing.assert_close(found.counterpart, expected)


def test_it_stops_when_the_prediction_is_low_or_has_dropped_enough() -> None:
    net = Plane(W.view(1, 1, 2, 3), 2.0 - float((W * X).sum()))
    low = answer_of(LatentShift(net, Identity(), below=0.3, max_change=50.0))
    assert low.score_after == pytest.approx(sigmoid(2 - next(v for v in schedule() if sigmoid(2 - v) < 0.3)), rel=1e-4)
    dropped = answer_of(LatentShift(net, Identity(), drop=0.2, max_change=50.0))
    expected = next(v for v in schedule() if sigmoid(2) - sigmoid(2 - v) > 0.2)
    assert dropped.score_after == pytest.approx(sigmoid(2 - expected), rel=1e-4)
    assert dropped.verdict.startswith("not flipped")


def test_it_stops_before_the_pixels_change_too_much() -> None:
    net = Plane(W.view(1, 1, 2, 3), 2.0 - float((W * X).sum()))
    most = 0.15 * float(X.abs().sum())
    per_unit = float(W.abs().sum() / W.square().sum())
    expected = [v for v in schedule() if v * per_unit <= most][-1]
    assert 0 < expected < 2  # not flipped by then
    answer = answer_of(LatentShift(net, Identity(), max_change=0.15))
    torch.testing.assert_close(answer.counterpart, X[0] - expected * W / W.square().sum())
    assert "further along, pixels would have changed by more than 15%" in answer.verdict


def test_it_stops_at_the_largest_shift() -> None:
    net = Plane(W.view(1, 1, 2, 3), 2.0 - float((W * X).sum()))
    answer = answer_of(LatentShift(net, Identity(), max_shift=0.6, max_change=50.0))
    torch.testing.assert_close(answer.counterpart, X[0] - 0.6 * W / W.square().sum())
    assert answer.verdict.endswith("the shift reached its limit of 0.6 logits")


def test_it_stops_where_the_prediction_no_longer_falls() -> None:
    # u falls from 0.9 by lambda / slope; the logit 1 + 8 (u - 0.5)^2 is least at 0.5 and never below 1.
    x = torch.full((1, 1, 2, 3), 0.9)
    slope = 16 * 0.4
    logits = [1 + 8 * (0.4 - v / slope) ** 2 for v in schedule()]
    best = next(i for i in range(len(logits)) if logits[i + 1] > logits[i])
    answer = answer_of(LatentShift(Valley(), Identity(), max_change=50.0), x)
    assert answer.score_after == pytest.approx(sigmoid(logits[best]), rel=1e-5)
    torch.testing.assert_close(answer.counterpart, x[0] - schedule()[best] / slope)
    assert answer.verdict.endswith("further along the gradient it stopped changing")


def test_the_reconstruction_is_where_the_path_starts_and_its_error_can_be_put_back() -> None:
    net = Plane(torch.full((1, 1, 4, 4), 0.5), offset=3.0)
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    batch = StudyBatch(x)
    coarse = Blocks().eval().decode(F.avg_pool2d(x, 2))
    plain = LatentShift(net, Blocks(), max_change=50.0).counterparts(batch, REMOVE)
    kept = LatentShift(net, Blocks(), max_change=50.0, residual_transfer=True).counterparts(batch, REMOVE)
    for i, (one, two) in enumerate(zip(plain, kept, strict=True)):
        torch.testing.assert_close(one.path.frames[0], coarse[i])
        torch.testing.assert_close(one.extras["reconstruction"], coarse[i])
        torch.testing.assert_close(two.extras["reconstruction"], coarse[i])
        torch.testing.assert_close(two.path.frames[0], x[i])
        # The logit sees block means only, so that both move by the same: the texture stays.
        torch.testing.assert_close(two.delta, coarse[i] - one.counterpart, atol=1e-5, rtol=1e-4)
        assert two.delta.std() < 1e-5 < one.delta.std()
        assert two.made_by.settings["residual_transfer"] is True
        torch.testing.assert_close(two.evidence, one.evidence, atol=1e-6, rtol=1e-4)


def test_verdicts_name_a_lost_finding_and_a_blind_classifier() -> None:
    # Checkerboards vanish in block means.
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    net = Plane(board.view(1, 1, 4, 4), offset=-1.0)
    answer = answer_of(LatentShift(net, Blocks()), 0.5 * board.view(1, 1, 4, 4))
    assert answer.verdict.startswith("not faithful: the classifier gives the image p = 1.00")
    assert "p = 0.27" in answer.verdict
    blind = answer_of(LatentShift(Plane(torch.zeros(1, 1, 2, 3), offset=2.0), Identity()))
    assert blind.verdict.endswith("the logit does not depend on the code")
    assert torch.equal(blind.counterpart, X[0])


def test_what_is_absent_already_is_not_moved() -> None:
    net = Plane(W.view(1, 1, 2, 3), -5.0)
    answer = answer_of(LatentShift(net, Identity()))
    assert torch.equal(answer.counterpart, X[0])
    assert answer.verdict == "ok"
    assert not answer.evidence.any()


def test_strength_shortens_the_path_but_not_the_evidence() -> None:
    net = Plane(W.view(1, 1, 2, 3), 1.0 - float((W * X).sum()))
    method = LatentShift(net, Identity(), max_change=50.0)
    whole, half = answer_of(method), answer_of(method, query=Query("Edema", strength=0.5))
    torch.testing.assert_close(half.counterpart, (X[0] + whole.counterpart) / 2)
    assert torch.equal(half.evidence, whole.evidence)
    assert half.path.strengths[-1] == 0.5


def test_images_of_a_batch_are_searched_each_for_itself() -> None:
    net = TwoStages()
    net.head.weight.data *= 300
    net.head.bias.data = torch.tensor([50.0, 30.0])
    images = torch.rand(5, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[..., :4] = False
    together = LatentShift(net, Blocks()).counterparts(StudyBatch(images, valid=valid), REMOVE)
    parts = LatentShift(net, Blocks(), internal_batch_size=2).counterparts(StudyBatch(images, valid=valid), REMOVE)
    shifts = set()
    for i, answer in enumerate(together):
        (alone,) = LatentShift(net, Blocks()).counterparts(StudyBatch(images[i : i + 1], valid=valid[:1]), REMOVE)
        for other in (alone, parts[i]):
            torch.testing.assert_close(answer.counterpart, other.counterpart, atol=1e-4, rtol=0)
        assert torch.equal(answer.counterpart[..., :4], images[i, ..., :4])
        assert (answer.evidence[..., :4] == 0).all()
        shifts.add(round(float(answer.evidence.sum()), 4))
    assert len(shifts) > 2


def test_leaves_the_autoencoder_as_it_was() -> None:
    images = torch.rand(3, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coder = Blocks().train()
    coder.weight.grad = torch.full((), 7.0)
    method = LatentShift(TwoStages(), coder, max_shift=1.0)
    method.attribute(images, "Edema")
    method.counterparts(StudyBatch(images), REMOVE)
    assert coder.training
    assert coder.drop.training
    assert coder.weight == 1
    assert coder.weight.grad == 7
    assert coder.weight.requires_grad


def test_settings_and_bad_input() -> None:
    net = Plane(W.view(1, 1, 2, 3))
    assert own_settings(LatentShift(net, Identity(), care=Care(flips=True))) == {
        "frames": 11,
        "autoencoder": "Identity",
        "heatmap": "int",
        "residual_transfer": False,
        "below": 0.05,
        "drop": 0.8,
        "max_change": 0.05,
        "step": 0.25,
        "max_shift": 100.0,
    }
    for wrong in (
        {"heatmap": "max"},
        {"below": 0.0},
        {"drop": 1.0},
        {"max_change": 0.0},
        {"step": 0.0},
        {"max_shift": -1.0},
        {"frames": 1},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            LatentShift(net, Identity(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no function encode"):
        LatentShift(net, nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the autoencoder makes"):
        LatentShift(net, Identity(shape=(3, 2))).counterparts(StudyBatch(X), REMOVE)
