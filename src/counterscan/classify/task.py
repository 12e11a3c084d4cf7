"""One training job: a classifier on random views, with a cross-entropy that skips what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.classify.config import ClassifyConfig
from counterscan.data.augment import augment
from counterscan.data.store import PreparedStore
from counterscan.metrics.classification import mean_over_classes, roc_auc
from counterscan.nets.cnn import Classifier
from counterscan.training import Context, Task


def masked_bce(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy over the known targets; 0 when none is.

    Args:
        logits: (N, C).
        targets: (N, C) of 0, 1 and NaN; NaN neither counts nor sends gradients.
        smoothing: targets become y (1 - smoothing) + smoothing / 2.
    """
    known = ~targets.isnan()
    wanted = torch.where(known, targets, 0.5) * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


class LabelledRows:
    """Rows of a store with their targets, as the loop reads them.

    Args:
        store: images.
        targets: (N, C) of 0, 1 and NaN.
    """

    def __init__(self, store: PreparedStore, targets: np.ndarray) -> None:
        self.store, self.targets = store, targets

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Any) -> dict[str, Any]:
        """ "image" (B, 1, S, S) in [-1, 1] and "target" (B, C)."""
        return {"image": self.store.images(indices), "target": self.targets[indices]}


class ClassifierTask(Task):
    """Trains one classifier.

    Args:
        classifier: to be trained.
        config: see ``ClassifyConfig``.
        validation: rows to validate on; None or an empty one for no validation.
    """

    def __init__(self, classifier: Classifier, config: ClassifyConfig, validation: LabelledRows | None = None) -> None:
        self.config, self.validation = config, validation
        self.modules = {"classifier": classifier}
        # Norms and biases are few and set scale or level; decay is for the weights that can learn images by heart.
        weights = [p for p in classifier.parameters() if p.ndim > 1]
        others = [p for p in classifier.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizers = {"classifier": torch.optim.AdamW(groups, lr=config.rate)}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update on random views."""
        views, logits = self.seen(ctx, batch)
        ctx.update("classifier", self.objective(logits, views, batch))
        return {}

    def seen(self, ctx: Context, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Random views (B, 1, S, S) of a batch, and their logits (B, C)."""
        views, _ = augment(batch["image"], None, self.config.augment)
        with ctx.autocast():
            return views, ctx.compile(self.modules["classifier"])(views)

    def objective(self, logits: Tensor, views: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What the logits (B, C) of random views (B, 1, S, S) of a batch are to lessen."""
        return masked_bce(logits, batch["target"], self.config.label_smoothing)

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Mean AUC over findings, and the cross-entropy."""
        if self.validation is None or not len(self.validation):
            return {}
        logits = predict_logits(self.modules["classifier"], self.validation.store)
        targets = torch.from_numpy(self.validation.targets)
        return {"auc": mean_over_classes(roc_auc(logits, targets)), "loss": float(masked_bce(logits, targets))}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """The mean AUC, if the best weights are to be kept."""
        return metrics.get("auc") if self.config.keep_best else None


@torch.no_grad()
def predict_logits(classifier: nn.Module, store: PreparedStore, batch_size: int = 64) -> Tensor:
    """Logits (N, C) float32 on the CPU of all rows of a store, by a classifier in evaluation mode on its own device.

    A classifier without parameters is where its buffers are, or on the CPU.
    """
    device = next((t.device for t in chain(classifier.parameters(), classifier.buffers())), torch.device("cpu"))
    parts = [
        classifier(store.images(slice(start, start + batch_size)).to(device)).float().cpu()
        for start in range(0, len(store), batch_size)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, len(store.findings))
