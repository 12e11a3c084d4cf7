"""How good a classifier is on images it has not seen."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from counterscan.classify.task import predict_logits
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics import classification as metrics
from counterscan.metrics.intervals import Interval, pr_auc_intervals, roc_auc_intervals
from counterscan.nets.cnn import Classifier


def evaluate_classifier(
    classifier: Classifier,
    store: PreparedStore,
    rows: Any = None,
    *,
    blank: Literal["zero", "ignore"] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Discrimination and calibration per finding, with 95 % intervals over patients.

    Args:
        classifier: trained; its findings must be among the store's.
        store: prepared at the size the classifier was trained at.
        rows: indices, slice or (N,) bool mask of the rows to judge, such as ``store.split == "test"``; None for all.
        blank: whether an unmentioned finding counts as absent or is skipped; None for what it was in training.
            Uncertain labels are always skipped.
        resamples, seed: of the bootstrap.

    Returns:
        "images", "patients", "blank", "checkpoint", "mean_roc_auc", "mean_pr_auc", and "findings": name -> "present",
        "absent" (images), "roc_auc" and "pr_auc" as [value, low, high], "ece_raw", "ece", "brier_raw", "brier" before
        and after calibration, "threshold" (probability, from validation), "sensitivity", "specificity" at it. NaN where
        a figure does not exist.

    Raises:
        InputError: no rows, an unknown finding, or images of another size.
    """
    part = store if rows is None else store.subset(rows)
    _check(classifier, part)
    columns = [part.findings.index(name) for name in classifier.findings]
    meaning = blank or classifier.trained_on.get("blank", "zero")
    targets = torch.from_numpy(np.ascontiguousarray(part.table.targets("ignore", meaning)[:, columns]))
    logits = predict_logits(classifier, part)
    device = classifier.temperature.device
    raw, fitted = torch.sigmoid(logits), classifier.probabilities(logits.to(device)).cpu()
    patients = part.patients.tolist()
    rocs = roc_auc_intervals(logits, targets, patients, resamples=resamples, seed=seed)
    prs = pr_auc_intervals(logits, targets, patients, resamples=resamples, seed=seed)
    scores = {
        "ece_raw": metrics.expected_calibration_error(raw, targets),
        "ece": metrics.expected_calibration_error(fitted, targets),
        "brier_raw": metrics.brier(raw, targets),
        "brier": metrics.brier(fitted, targets),
    }
    found = {}
    for c, name in enumerate(classifier.findings):
        called, ill, well = fitted[:, c] >= classifier.threshold[c].cpu(), targets[:, c] == 1, targets[:, c] == 0
        found[name] = {
            "present": int(ill.sum()),
            "absent": int(well.sum()),
            "roc_auc": _triple(rocs[c]),
            "pr_auc": _triple(prs[c]),
            **{key: float(values[c]) for key, values in scores.items()},
            "threshold": float(classifier.threshold[c]),
            "sensitivity": float(called[ill].double().mean()),
            "specificity": float((~called[well]).double().mean()),
        }
    return {
        "images": len(part),
        "patients": len(set(patients)),
        "blank": meaning,
        "checkpoint": classifier.digest,
        "mean_roc_auc": float(np.nanmean([interval.value for interval in rocs])),
        "mean_pr_auc": float(np.nanmean([interval.value for interval in prs])),
        "findings": found,
    }


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def _check(classifier: Classifier, part: PreparedStore) -> None:
    if not len(part):
        raise InputError("no image to evaluate on", field="rows", remedy="Choose a split that has images")
    missing = [name for name in classifier.findings if name not in part.findings]
    if missing:
        raise InputError(
            f"the images have no label {missing[0]!r}, which the classifier predicts",
            field="findings",
            remedy=f"They have {', '.join(part.findings)}",
        )
    size = classifier.trained_on.get("size", part.size)
    if size != part.size:
        raise InputError(
            f"the images are prepared at {part.size} px, the classifier was trained at {size} px",
            field="size",
            remedy=f"Prepare them with --size {size}",
        )
