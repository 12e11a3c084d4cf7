from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from counterscan.classify import ClassifierTask, ClassifyConfig, masked_bce, predict_logits
from counterscan.classify.task import LabelledRows
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier
from tests.classify.planted import QUICK, TINY, planted


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 5.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, math.nan]])
    expected = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 3
    assert masked_bce(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_smoothing_by_hand() -> None:
    loss = masked_bce(torch.tensor([[1.5]]), torch.tensor([[1.0]]), smoothing=0.1)
    p = 1 / (1 + math.exp(-1.5))
    assert loss.item() == pytest.approx(-0.95 * math.log(p) - 0.05 * math.log(1 - p), rel=1e-6)


def test_unknown_targets_send_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    targets = torch.tensor([[1.0, math.nan, 0.0]] * 4)
    masked_bce(logits, targets, 0.1).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, [0, 2]] != 0).all()
    nothing = masked_bce(logits, torch.full((4, 3), math.nan))
    assert nothing.item() == 0.0


def test_what_is_unknown_of_an_image_does_not_change_the_loss_of_the_rest() -> None:
    logits = torch.randn(6, 2)
    targets = torch.tensor([[1.0, math.nan]] * 3 + [[0.0, math.nan]] * 3)
    assert masked_bce(logits, targets).item() == pytest.approx(masked_bce(logits[:, :1], targets[:, :1]).item())


def test_rows_pair_images_with_targets() -> None:
    store = planted(12)
    rows = LabelledRows(store, store.table.targets())
    batch = rows.batch(np.array([5, 2]))
    assert torch.equal(batch["image"], store.images([5, 2]))
    assert np.array_equal(batch["target"], store.labels[[5, 2]])


def test_decay_spares_norms_and_biases() -> None:
    classifier = Classifier(TINY, ("A",))
    groups = ClassifierTask(classifier, QUICK).optimizers["classifier"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert all(p.ndim == 4 for p in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(classifier.parameters()))


def test_prediction_does_not_depend_on_batches() -> None:
    store, classifier = planted(20), Classifier(TINY, ("Lung Lesion",)).eval()
    assert torch.allclose(predict_logits(classifier, store, 3), predict_logits(classifier, store), atol=1e-5)
    assert predict_logits(classifier, store.subset([])).shape == (0, 1)


class Brightness(torch.nn.Module):
    """No parameters; maybe a buffer, which must then be on the images' device."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        if device is not None:
            self.register_buffer("threshold", torch.zeros(1, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + (self.threshold if hasattr(self, "threshold") else 0)


def test_a_classifier_without_parameters_predicts_where_its_buffers_are() -> None:
    store = planted(6)
    expected = store.images().mean((2, 3))
    assert torch.equal(predict_logits(Brightness(), store), expected)
    assert torch.equal(predict_logits(Brightness("cpu"), store), expected)
    with pytest.raises(NotImplementedError, match="meta"):  # the images went there; only fetching the answer fails
        predict_logits(Brightness("meta"), store)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"policy": "maybe"}, "policy"),
        ({"blank": "maybe"}, "blank"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"warmup": -0.1}, "warmup"),
        ({"rate": 0.0}, "rate"),
        ({"decay": -1.0}, "decay"),
    ],
)
def test_bad_settings_are_named(options: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        ClassifyConfig(**options)
    assert caught.value.field == field


def test_rates_rise_and_fall() -> None:
    training = ClassifyConfig(steps=200).training()
    factors = [training.rate_factor(step) for step in range(200)]
    assert np.argmax(factors) == 30
    assert factors[30] == pytest.approx(1.0)
    assert factors[0] < 0.05
    assert factors[-1] < 0.001
