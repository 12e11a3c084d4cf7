"""The explained classifier and its oracle: how they are read, and which images are asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.bench.subjects import rows_of
from counterscan.care import evaluating
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.inputs import device_of
from counterscan.nets.cnn import Classifier
from counterscan.training.checkpoint import weights_digest

_AT_ONCE = 128  # images


class Reading:
    """One finding as a classifier sees it. Images may be on any device; answers are on the CPU.

    Args:
        classifier: (M, 1, H, W) in [-1, 1] to logits (M, C), with ``findings``.
        finding: one of them.
        calibrated: read one of counterscan's own classifiers by its calibrated probability and threshold; else by
            sigmoid and one half, which is what explanations are about.
        field: what it is called in an error.

    Raises:
        InputError: it does not know the finding.
    """

    def __init__(
        self, classifier: nn.Module, finding: str, *, calibrated: bool = False, field: str = "classifier"
    ) -> None:
        findings = tuple(getattr(classifier, "findings", ()))
        if finding not in findings:
            remedy = f"It knows {', '.join(findings)}" if findings else "Give it an attribute findings"
            raise InputError(f"it does not know {finding!r}", field=field, remedy=remedy)
        self.classifier, self.column = classifier, findings.index(finding)
        self.own = classifier if calibrated and isinstance(classifier, Classifier) else None
        self.threshold = 0.5 if self.own is None else float(self.own.threshold[self.column])
        self.device = device_of(classifier)

    @torch.no_grad()
    def margins(self, images: Tensor) -> Tensor:
        """(M, 1, H, W) to logits (M,)."""
        return self._logits(images)[:, self.column].cpu()

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """(M, 1, H, W) to probabilities (M,)."""
        logits = self._logits(images)
        p = logits.sigmoid() if self.own is None else self.own.probabilities(logits)
        return p[:, self.column].cpu()

    def of(self, store: PreparedStore, rows: np.ndarray) -> np.ndarray:
        """(n,) probabilities of images of a store, which are read some at a time."""
        parts = [self.probabilities(store.images(rows[i : i + _AT_ONCE])) for i in range(0, len(rows), _AT_ONCE)]
        return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)

    def _logits(self, images: Tensor) -> Tensor:
        with evaluating(self.classifier):
            parts = [self.classifier(part.to(self.device)).float() for part in images.split(_AT_ONCE)]
        return torch.cat(parts) if parts else torch.zeros(0, self.column + 1)


def oracle_reading(classifier: nn.Module, oracle: nn.Module | None, finding: str) -> Reading | None:
    """The oracle's reading of a finding, by its own calibration; None without an oracle.

    Raises:
        InputError: it does not know the finding, or has the weights of the explained classifier.
    """
    if oracle is None:
        return None
    bare = [getattr(c, "classifier", c) for c in (classifier, oracle)]
    digests = [weights_digest(c) if isinstance(c, nn.Module) and c.state_dict() else id(c) for c in bare]
    if digests[0] == digests[1]:
        raise InputError(
            "the oracle is the explained classifier",
            field="oracle",
            remedy="Train another one, with another seed and architecture",
        )
    return Reading(oracle, finding, calibrated=True, field="oracle")


def agreement_on_negatives(
    classifier: nn.Module, oracle: nn.Module, store: PreparedStore, rows: Any, finding: str
) -> tuple[int, int]:
    """On how many of the real images that the classifier calls negative the oracle agrees, and how many these are.

    A counterpart is to be such an image, so an oracle's flip rate is to be read against this share.
    """
    chosen, reading = rows_of(store, rows), Reading(classifier, finding)
    judge = Reading(oracle, finding, calibrated=True, field="oracle")
    negative = chosen[reading.of(store, chosen) < reading.threshold]
    return int((judge.of(store, negative) < judge.threshold).sum()), len(negative)


def called_positive(
    classifier: nn.Module, store: PreparedStore, rows: Any, finding: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a classifier calls positive: those labelled so too, and the others.

    In a store without that label, all of them count among the former.

    Raises:
        InputError: there are none, or the classifier does not know the finding.
    """
    chosen, reading = rows_of(store, rows), Reading(classifier, finding)
    called = chosen[reading.of(store, chosen) >= reading.threshold]
    ill = np.ones(len(called), dtype=bool)
    if finding in store.findings:
        ill = store.labels[called, store.findings.index(finding)] == 1
    if not ill.any():
        raise InputError(
            f"the classifier calls {len(called)} of {len(chosen)} images positive, none of them labelled so",
            path=store.folder,
            field=finding,
            remedy="Choose a split that has the finding, and check what the classifier takes and returns",
        )
    return called[ill], called[~ill]


def without(store: PreparedStore, split: str, finding: str, classifier: nn.Module) -> np.ndarray:
    """Rows of a split without the finding: labelled so or, in a store that has no such label, called so."""
    rows = np.flatnonzero(store.split == split)
    if finding in store.findings:
        return rows[store.labels[rows, store.findings.index(finding)] == 0]
    reading = Reading(classifier, finding)
    return rows[reading.of(store, rows) < reading.threshold]
