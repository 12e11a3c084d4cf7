from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from counterscan.classify import evaluate_classifier
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier
from tests.classify.planted import TINY


class Brightness(Classifier):
    """Logits are the mean brightness, so that figures can be computed by hand."""

    def __init__(self, findings: tuple[str, ...] = ("Lung Lesion",)) -> None:
        super().__init__(TINY, findings)
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None].expand(-1, len(self.findings)) * 4


def graded(labels: np.ndarray, seed: int = 0) -> PreparedStore:
    levels = np.random.default_rng(seed).integers(0, 256, len(labels)).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None], (len(labels), 8, 8)).copy()
    patients = [f"p{i // 3}" for i in range(len(labels))]
    findings = ["Lung Lesion", "Edema"][: labels.shape[1]]
    return PreparedStore.from_arrays(images, labels=labels, findings=findings, patients=patients, split="test")


def labels_of(count: int = 90, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, 1)).astype(float)


def test_figures_agree_with_scikit_learn() -> None:
    store = graded(labels_of())
    classifier = Brightness()
    classifier.temperature.fill_(2.0)
    classifier.threshold.fill_(0.6)
    found = evaluate_classifier(classifier, store, store.split == "test", resamples=200)
    row, y = found["findings"]["Lung Lesion"], store.labels[:, 0]
    logits = (store.images().mean((1, 2, 3)) * 4).numpy()
    probability = 1 / (1 + np.exp(-logits / 2))
    assert row["roc_auc"][0] == pytest.approx(roc_auc_score(y, logits))
    assert row["pr_auc"][0] == pytest.approx(average_precision_score(y, logits))
    assert row["roc_auc"][1] < row["roc_auc"][0] < row["roc_auc"][2]
    assert row["brier"] == pytest.approx(np.mean((probability - y) ** 2), rel=1e-5)
    assert row["brier_raw"] == pytest.approx(np.mean((1 / (1 + np.exp(-logits)) - y) ** 2), rel=1e-5)
    assert row["sensitivity"] == pytest.approx(np.mean(probability[y == 1] >= 0.6))
    assert row["specificity"] == pytest.approx(np.mean(probability[y == 0] < 0.6))
    assert (row["present"], row["absent"]) == (int(y.sum()), int((1 - y).sum()))
    assert (found["images"], found["patients"], found["checkpoint"]) == (90, 30, "")


def test_uncertain_labels_are_skipped_and_blanks_as_in_training() -> None:
    labels = labels_of(40)
    labels[:5], labels[5:12] = -1, math.nan
    store, classifier = graded(labels), Brightness()
    counts = []
    for blank in (None, "zero", "ignore"):
        row = evaluate_classifier(classifier, store, blank=blank, resamples=10)["findings"]["Lung Lesion"]  # type: ignore[arg-type]
        counts.append(row["present"] + row["absent"])
    classifier.trained_on["blank"] = "ignore"
    row = evaluate_classifier(classifier, store, resamples=10)["findings"]["Lung Lesion"]
    assert [*counts, row["present"] + row["absent"]] == [35, 35, 28, 28]


def test_findings_are_matched_by_name() -> None:
    labels = np.concatenate([labels_of(60, 1), labels_of(60, 2)], axis=1)
    store = graded(labels)
    found = evaluate_classifier(Brightness(("Edema",)), store, resamples=10)
    logits = store.images().mean((1, 2, 3)).numpy()
    assert list(found["findings"]) == ["Edema"]
    assert found["findings"]["Edema"]["roc_auc"][0] == pytest.approx(roc_auc_score(labels[:, 1], logits))


def test_a_finding_with_one_class_has_no_auc_and_spares_the_mean() -> None:
    labels = np.concatenate([labels_of(60), np.zeros((60, 1))], axis=1)
    found = evaluate_classifier(Brightness(("Lung Lesion", "Edema")), graded(labels), resamples=10)
    assert math.isnan(found["findings"]["Edema"]["roc_auc"][0])
    assert math.isnan(found["findings"]["Edema"]["sensitivity"])
    assert found["mean_roc_auc"] == pytest.approx(found["findings"]["Lung Lesion"]["roc_auc"][0])


def test_what_cannot_be_judged_is_refused() -> None:
    store, classifier = graded(labels_of()), Brightness()
    with pytest.raises(InputError, match="no image to evaluate on"):
        evaluate_classifier(classifier, store, store.split == "val")
    with pytest.raises(InputError, match="no label 'Edema'"):
        evaluate_classifier(Brightness(("Edema",)), store)
    classifier.trained_on["size"] = 64
    with pytest.raises(InputError, match=r"8 px.*64 px"):
        evaluate_classifier(classifier, store)


def test_gives_the_classifier_back_unchanged() -> None:
    classifier = Brightness().eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    evaluate_classifier(classifier, graded(labels_of()), resamples=10)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
