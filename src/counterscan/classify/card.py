"""The model card of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from counterscan.nets.cnn import Classifier

if TYPE_CHECKING:
    from counterscan.classify.config import ClassifyConfig


def model_card(
    classifier: Classifier,
    config: ClassifyConfig | None = None,
    trained: int = 0,
    validated: int = 0,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Markdown.

    Args:
        classifier: trained and calibrated.
        config: how it was trained, when that is known.
        trained, validated: number of images.
        metrics: of the last validation.
    """
    weights = sum(p.numel() for p in classifier.parameters())
    size = classifier.trained_on.get("size", "?")
    lines = [
        "# Classifier",
        "",
        "For research. Not a medical device.",
        "",
        f"* network: {classifier.config.arch}, {weights:,} weights, logits pooled by {classifier.config.pool}",
        f"* input: (N, 1, {size}, {size}) float32 in [-1, 1], padding -1; other sizes run, but were not trained",
        f"* checkpoint: {classifier.digest}",
    ]
    if config is not None:
        lines += [
            f"* trained on {trained:,} images, {config.steps:,} steps of {config.batch_size}, seed {config.seed}; "
            f"uncertain labels: {config.policy}; unmentioned: {config.blank}",
            f"* calibrated on {validated:,} validation images"
            if validated
            else "* not calibrated: there were no validation images",
        ]
    lines += [f"* last validation, {name}: {value:.3f}" for name, value in (metrics or {}).items()]
    lines += ["", "| finding | temperature | offset | threshold |", "|---|---|---|---|"]
    columns = (classifier.temperature, classifier.offset, classifier.threshold)
    for finding, *values in zip(classifier.findings, *(column.tolist() for column in columns), strict=True):
        lines.append(f"| {finding} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    lines += [
        "",
        "P(finding) = sigmoid(logit / temperature + offset); from the threshold on it counts as present. Threshold and "
        "calibration hold for images like the validation images, at their frequency of the finding.",
        "",
    ]
    return "\n".join(lines)
