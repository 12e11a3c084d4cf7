from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import evaluating
from counterscan.classify import AdaptedClassifier, AdapterConfig
from counterscan.classify.adapter import CLAMP, softmax_margins
from counterscan.errors import InputError
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.peers.layercam import LayerCAM

ONE, THREE = ("Edema",), ("Edema", "Lung Lesion", "Pneumonia")


def images(count: int = 4, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def returning(value: Any) -> Callable[[Tensor], Any]:
    """The same answer whatever the images."""
    return lambda _: value


class Residual(nn.Module):
    """Two stages with a skip, a pool and a gate of 1 x 1 maps between them; one ReLU serves twice."""

    def __init__(self, channels: int = 1, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.unused = nn.Conv2d(4, 4, 1)
        self.pool = nn.MaxPool2d(2)
        self.stage = Block()
        self.last_pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.unused(x)
        return self.head(self.last_pool(self.stage(self.pool(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv(x))
        return self.relu(x + h * self.gate(h.mean((2, 3), keepdim=True)))


# --- what the classifier returns, by hand ---


def test_multilabel_logits_are_margins_already() -> None:
    logits = torch.tensor([[0.3, -2.0, 50.0]])
    adapted = AdaptedClassifier(returning(logits), THREE)
    assert torch.equal(adapted(images(1)), logits)
    assert torch.equal(adapted.probabilities(logits), logits.sigmoid())
    assert torch.equal(adapted.threshold, torch.full((3,), 0.5))


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_sigmoid_of_multiclass_margins_is_the_softmax(outputs: str) -> None:
    logits = torch.tensor([[1.0, 2.0, -0.5], [7.0, -7.0, 0.0], [0.0, 0.0, 0.0]])
    p = logits.softmax(1)
    given = logits if outputs == "logits" else p
    margins = AdaptedClassifier(returning(given), THREE, AdapterConfig("multiclass", outputs))(images(3))
    torch.testing.assert_close(margins.sigmoid(), p)
    assert margins[0, 0].item() == pytest.approx(1 - math.log(math.exp(2) + math.exp(-0.5)), rel=1e-5)
    assert margins[2, 1].item() == pytest.approx(-math.log(2), rel=1e-5)


def test_multiclass_margins_and_gradients_stay_exact_where_the_softmax_has_rounded_to_one() -> None:
    logits = torch.tensor([[60.0, 1.0, 0.0], [-60.0, -60.0, 40.0]], requires_grad=True)
    others = torch.stack([logits[:, [j for j in range(3) if j != c]].logsumexp(1) for c in range(3)], 1)
    expected = logits - others
    torch.testing.assert_close(softmax_margins(logits), expected)
    for c in range(3):
        (ours,) = torch.autograd.grad(softmax_margins(logits)[:, c].sum(), logits)
        (reference,) = torch.autograd.grad(expected[:, c].sum(), logits, retain_graph=True)
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize(
    ("columns", "findings", "expected"),
    [(None, ONE, [-1.5]), ((0,), ONE, [1.5]), ((1, 0), THREE[:2], [-1.5, 1.5]), (None, THREE[:2], [1.5, -1.5])],
)
def test_binary_with_two_outputs(
    columns: tuple[int, ...] | None, findings: tuple[str, ...], expected: list[float]
) -> None:
    config = AdapterConfig("binary", columns=columns)
    adapted = AdaptedClassifier(returning(torch.tensor([[2.0, 0.5]])), findings, config)
    torch.testing.assert_close(adapted(images(1)), torch.tensor([expected]))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)])
def test_binary_with_one_output(shape: tuple[int, ...]) -> None:
    scores = torch.tensor([0.1, 0.5, 0.9, 0.25]).reshape(shape)
    margins = AdaptedClassifier(returning(scores), ONE, AdapterConfig("binary", "probabilities"))(images(4))
    torch.testing.assert_close(margins, scores.reshape(4, 1).logit())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_image_whose_batch_dimension_was_squeezed_away(shape: tuple[int, ...]) -> None:
    assert AdaptedClassifier(returning(torch.full(shape, 2.0)), ONE)(images(1)).tolist() == [[2.0]]
    assert AdaptedClassifier(returning(torch.ones(3)), THREE)(images(1)).shape == (1, 3)


def test_columns_choose_among_more_outputs_after_the_softmax_over_all() -> None:
    logits = torch.tensor([[1.0, 2.0, -0.5, 0.0]])
    config = AdapterConfig("multiclass", columns=(2, 0))
    margins = AdaptedClassifier(returning(logits), ["Edema", "Pneumonia"], config)(images(1))
    torch.testing.assert_close(margins.sigmoid(), logits.softmax(1)[:, [2, 0]])


def test_probabilities_of_zero_and_one_give_the_clamped_margin_and_keep_the_gradient() -> None:
    p = torch.tensor([[0.0, 1.0, 1e-9]], requires_grad=True)
    margins = AdaptedClassifier(lambda _: p, THREE, AdapterConfig(outputs="probabilities"))(images(1))
    limit = math.log((1 - CLAMP) / CLAMP)
    assert margins.tolist()[0] == pytest.approx([-limit, limit, -limit], rel=0.01)
    (gradient,) = torch.autograd.grad(margins.sum(), p)
    assert gradient.tolist()[0] == pytest.approx([1 / CLAMP] * 3, rel=0.1)
    together = AdaptedClassifier(lambda _: p, THREE, AdapterConfig("multiclass", "probabilities"))(images(1))
    assert together.isfinite().all()
    assert (torch.autograd.grad(together[0, 0], p)[0] != 0).all()


@pytest.mark.parametrize(
    ("result", "output"),
    [
        (("label", torch.ones(2, 1), torch.zeros(2, 1)), None),
        ([torch.zeros(2, 1), torch.ones(2, 1)], 1),
        ({"features": torch.zeros(2, 5), "logits": torch.ones(2, 1)}, "logits"),
    ],
)
def test_the_prediction_is_found_among_several_outputs(result: Any, output: int | str | None) -> None:
    assert AdaptedClassifier(returning(result), ONE, AdapterConfig(output=output))(images(2)).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("result", "output", "remedy"),
    [
        ({"logits": torch.ones(2, 1), "z": 0}, None, "'logits', 'z'"),
        ({"logits": torch.ones(2, 1)}, "prediction", "'logits'"),
        ((torch.ones(2, 1),), 3, "one of 0"),
        (torch.ones(2, 1), 0, "Leave output out"),
        ((), None, "empty"),
        (torch.ones(2, 1).numpy(), None, "NumPy"),
        (torch.ones(2, dtype=torch.long), None, "argmax"),
    ],
)
def test_no_prediction_among_the_outputs(result: Any, output: int | str | None, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as caught:
        AdaptedClassifier(returning(result), ONE, AdapterConfig(output=output))(images(2))
    assert caught.value.field == "output"


# --- what the classifier is given ---


def seen(config: AdapterConfig, x: Tensor) -> Tensor:
    return AdaptedClassifier(returning(torch.zeros(1, 1)), ONE, config).prepare(x)


def test_pixels_channels_mean_and_std_by_hand() -> None:
    x = torch.tensor([[[[-1.0, 0.0, 1.0]]]])
    assert torch.equal(seen(AdapterConfig(), x), x)
    assert seen(AdapterConfig(pixel_range=(-1024, 1024)), x).flatten().tolist() == [-1024, 0, 1024]
    assert seen(AdapterConfig(pixel_range=(255, 0)), x).flatten().tolist() == [255, 127.5, 0]
    config = AdapterConfig(channels=3, pixel_range=(0, 1), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    expected = torch.tensor([[-1.0, 0, 1], [-1, 1, 3], [0, 0.25, 0.5]])
    torch.testing.assert_close(seen(config, x)[0, :, 0], expected)
    assert seen(AdapterConfig(channels=3, std=(2.0,)), x)[0, :, 0].tolist() == [[-0.5, 0, 0.5]] * 3


def test_a_classifier_that_works_in_place_leaves_the_images_alone() -> None:
    x = images(2)
    kept = x.clone()
    AdaptedClassifier(lambda y: y.mul_(0).mean((2, 3)), ONE)(x)
    assert torch.equal(x, kept)


def test_resampling_is_antialiased_bilinear_and_differentiable() -> None:
    x = images(2, 16)
    assert seen(AdapterConfig(size=(24, 20)), x).shape == (2, 1, 24, 20)
    torch.testing.assert_close(seen(AdapterConfig(size=8), torch.full_like(x, 0.3)), torch.full((2, 1, 8, 8), 0.3))
    stripes = torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(1, 1, 16, 4)
    assert seen(AdapterConfig(size=4), stripes).abs().max() < 0.2  # without antialiasing all would be white
    torch.testing.assert_close(
        seen(AdapterConfig(size=32), x), F.interpolate(x, size=32, mode="bilinear", align_corners=False)
    )
    y = torch.rand(1, 1, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(seen(AdapterConfig(size=10), y).sum(), y)
    assert gradient.sum().item() == pytest.approx(100, rel=1e-5)


def test_batches_are_split_and_filled_up() -> None:
    sizes = []

    def four_at_once(x: Tensor) -> dict[str, Tensor]:
        sizes.append(len(x))
        return {"p": x.mean((2, 3))}

    x = images(6).requires_grad_()
    fixed = AdaptedClassifier(four_at_once, ONE, AdapterConfig(output="p", batch=(4, 4)))
    margins = fixed(x)
    torch.testing.assert_close(margins, x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(margins.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 256))
    AdaptedClassifier(four_at_once, ONE, AdapterConfig(output="p", batch=(2, 5)))(x)
    assert sizes == [4, 4, 5, 2]
    assert fixed.cam_layers == []


def test_no_image() -> None:
    assert AdaptedClassifier(Residual(), THREE)(images(0)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type(dtype: torch.dtype) -> None:
    x = images(2).requires_grad_()
    adapted = AdaptedClassifier(Residual().to(dtype), THREE)
    margins = adapted(x)
    assert adapted.prepare(x).dtype == dtype
    assert margins.dtype == torch.float32
    assert torch.autograd.grad(margins.sum(), x)[0].dtype == torch.float32


# --- the module ---


def test_frozen_in_evaluation_mode_but_inputs_are_differentiable() -> None:
    net = Residual().train()
    adapted = AdaptedClassifier(net, THREE)
    assert not any(p.requires_grad for p in adapted.parameters())
    adapted.train()
    assert not any(m.training for m in adapted.modules())
    net.train()
    x = images().requires_grad_()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with evaluating(adapted):
        adapted(x).sum().backward()
    assert net.training  # as it was
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_digest_is_of_the_weights() -> None:
    net = Residual()
    digest = AdaptedClassifier(net, THREE).digest
    assert len(digest) == 64
    assert AdaptedClassifier(copy.deepcopy(net), THREE, AdapterConfig(pixel_range=(0, 1))).digest == digest
    with torch.no_grad():
        net.head.bias += 1
    assert AdaptedClassifier(net, THREE).digest != digest
    assert AdaptedClassifier(returning(torch.zeros(1, 1)), ONE).digest == ""


def test_findings_get_their_canonical_names() -> None:
    assert AdaptedClassifier(returning(None), ["Effusion", "Nodule"]).findings == ("Pleural Effusion", "Lung Lesion")
    assert AdaptedClassifier(returning(None), "Edema").findings == ONE


def test_stages_are_the_last_modules_at_each_size_at_which_convolutions_work() -> None:
    net = Residual()
    adapted = AdaptedClassifier(net, THREE)
    assert adapted.cam_layers == [net.stem, net.stage]
    assert not any(m._forward_hooks for m in net.modules())
    assert AdaptedClassifier(net, THREE, cam_layers=[net.stage.conv]).cam_layers == [net.stage.conv]
    with torch.inference_mode():
        assert AdaptedClassifier(net, THREE).cam_layers == [net.stem, net.stage]


def test_a_module_that_runs_twice_is_no_stage() -> None:
    first, second, relu = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU()
    net = nn.Sequential(first, relu, second, relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert AdaptedClassifier(net, THREE).cam_layers == [first, second]


def test_without_convolutions_there_are_no_stages() -> None:
    flat = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(64 * 64, 1))
    assert AdaptedClassifier(flat, ONE).cam_layers == []
    assert AdaptedClassifier(lambda x: x.mean((2, 3)), ONE).cam_layers == []


def test_maps_of_the_outputs_are_no_stage() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 1), pooled)
    assert AdaptedClassifier(net, THREE).cam_layers == [net[1]]
    bare = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), pooled)
    assert AdaptedClassifier(bare, THREE).cam_layers == [bare[0]]


def test_stages_are_looked_for_at_the_size_last_seen() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 1))
    adapted = AdaptedClassifier(net, ONE)
    with pytest.raises(InputError, match="of the right size first"):
        _ = adapted.cam_layers
    adapted(images(side=16))
    assert adapted.cam_layers == [net[1]]


def test_end_to_end_through_range_size_and_channels() -> None:
    config = AdapterConfig("multilabel", channels=3, pixel_range=(-1024, 1024), size=224)
    net = Residual(channels=3)
    adapted = AdaptedClassifier(net, THREE, config)
    x = images(2, 64).requires_grad_()
    margins = adapted(x)
    by_hand = F.interpolate(x, size=224, mode="bilinear", align_corners=False) * 1024
    torch.testing.assert_close(margins, net(by_hand.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-3)
    (gradient,) = torch.autograd.grad(margins[:, 1].sum(), x)
    assert gradient.shape == x.shape
    assert gradient.abs().sum() > 0
    x = x.detach()
    # Grad-CAM of the classifier itself on its own input, brought to the image's size.
    maps = net.stage(net.pool(net.stem(by_hand.detach().expand(-1, 3, -1, -1)))).detach().requires_grad_()
    net.head(net.last_pool(maps).mean((2, 3)))[:, 0].sum().backward()
    weights = maps.grad.mean((2, 3), keepdim=True)
    expected = F.interpolate((weights * maps).sum(1, keepdim=True).relu(), size=64, mode="bilinear")
    torch.testing.assert_close(GradCAM(adapted).attribute(x, "Edema"), expected.detach(), rtol=1e-4, atol=1e-4)
    assert expected.any()
    assert LayerCAM(adapted).attribute(x, "Edema").shape == x.shape
    pytest.importorskip("captum")
    method = IntegratedGradients(adapted, n_steps=20)
    attributions = method.attribute(x, "Lung Lesion")
    change = margins[:, 1] - adapted(torch.full_like(x, -1.0))[:, 1]
    torch.testing.assert_close(attributions.sum((1, 2, 3)), change.detach(), rtol=0.02, atol=0.5)


# --- bad settings ---


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"task": "regression"}, "task"),
        ({"outputs": "odds"}, "outputs"),
        ({"channels": 2}, "channels"),
        ({"pixel_range": (1.0, 1.0)}, "pixel_range"),
        ({"pixel_range": (0.0, math.inf)}, "pixel_range"),
        ({"pixel_range": (0.0,)}, "pixel_range"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.0, 0.5), "channels": 3}, "std"),
        ({"std": ()}, "std"),
        ({"size": 0}, "size"),
        ({"size": (8, 8, 8)}, "size"),
        ({"columns": ()}, "columns"),
        ({"columns": (-1,)}, "columns"),
        ({"batch": (0, 4)}, "batch"),
        ({"batch": (4, 2)}, "batch"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        AdapterConfig(**options)
    assert caught.value.field == field


def test_bad_findings_are_named() -> None:
    for findings in ((), ("Edema", "edema")):
        with pytest.raises(InputError, match="each finding once"):
            AdaptedClassifier(returning(None), findings)
    with pytest.raises(InputError, match="2 for 1 findings"):
        AdaptedClassifier(returning(None), ONE, AdapterConfig(columns=(0, 1)))
    with pytest.raises(InputError, match="cam_layers"):
        AdaptedClassifier(returning(None), ONE, AdapterConfig(batch=(1, 1)), cam_layers=[nn.Identity()])
    with pytest.raises(InputError, match=r"\(N, 1, H, W\)"):
        AdaptedClassifier(returning(None), ONE)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("task", "columns", "outputs", "field"),
    [
        ("binary", None, 3, "task"),
        ("multiclass", None, 1, "task"),
        ("multilabel", None, 2, "findings"),
        ("multiclass", None, 2, "findings"),
        ("multilabel", (2,), 2, "columns"),
    ],
)
def test_outputs_that_do_not_fit_task_or_findings(
    task: Any, columns: tuple[int, ...] | None, outputs: int, field: str
) -> None:
    adapted = AdaptedClassifier(returning(torch.zeros(2, outputs)), ONE, AdapterConfig(task, columns=columns))
    with pytest.raises(InputError) as caught:
        adapted(images(2))
    assert caught.value.field == field
