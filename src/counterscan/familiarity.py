"""Is an image like those that a model learned from? One of another modality or range of intensities is not.

Networks answer whatever they are shown, and a generator repeats a knee as well as a lung. What gives strangers away is
where a classifier's features of them lie: far from those of the training images (Lee and others 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.mahalanobis import Mahalanobis
from counterscan.metrics.realism import InDomainFeatures, features_of
from counterscan.nets.cnn import Classifier

MARGIN = 1.25  # on the distance that validation images keep: hospitals and scanners differ, too
_FITTED, _HELD = 20_000, 5_000  # images at most that the cloud and the limit are told from
_LEAST = 1e-6  # distance that is allowed where all images are alike
_MEAN, _WHITENING = "familiarity/mean", "familiarity/whitening"


@dataclass(frozen=True)
class Familiarity:
    """How far images are from the training images, in classifiers' features of them.

    Made by ``fit``; which classifiers it belongs to is for its owner to know.

    Attributes:
        distance: to the training images' features, those of all classifiers side by side.
        limit: the distance from which an image is a stranger.
    """

    distance: Mahalanobis
    limit: float

    @classmethod
    def fit(
        cls, classifiers: Sequence[Classifier], learn: PreparedStore, val: PreparedStore, share: float
    ) -> Familiarity:
        """Distance to the training images' features; the limit is a quantile of the validation images' distances times
        ``MARGIN``.

        Args:
            classifiers: at least one.
            learn, val: images.
            share: the quantile, in (0, 1].
        """

        def features(store: PreparedStore, most: int) -> Tensor:
            return store.over(spaced(np.arange(len(store)), most), partial(_features, classifiers))

        distance = Mahalanobis.fit(features(learn, _FITTED))
        kept = float(distance(features(val, _HELD)).quantile(share))
        return cls(distance, MARGIN * max(kept, _LEAST))

    def strangeness(self, classifiers: Sequence[Classifier], images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N,), on the CPU: distance in units of the limit, more than 1 for strangers."""
        return self.distance(_features(classifiers, images)) / self.limit

    def tensors(self) -> dict[str, Tensor]:
        """What is to be saved beside the limit."""
        return {_MEAN: self.distance.mean, _WHITENING: self.distance.whitening}

    @classmethod
    def out_of(cls, tensors: dict[str, Tensor], limit: float | None) -> Familiarity | None:
        """Take what ``tensors`` gave out of ``tensors``, so that the rest is left there; None without a limit."""
        if limit is None:
            return None
        return cls(Mahalanobis(tensors.pop(_MEAN), tensors.pop(_WHITENING)), limit)


def check_share(share: float, field: str) -> None:
    """Refuse a share that ``Familiarity.fit`` could not use, before hours of training.

    Raises:
        InputError: it is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"{share} must be above 0 and at most 1", field=field)


def unlike(strangeness: float) -> str:
    """What a verdict says of a stranger."""
    return (
        f"the image is unlike the training images ({strangeness:.2f} times as far from them as may be); check its "
        "modality, view and intensities"
    )


def _features(classifiers: Sequence[Classifier], images: Tensor) -> Tensor:
    """(N, D) of all of them, on the CPU."""
    parts = []
    for classifier in classifiers:
        device = next(classifier.parameters()).device
        parts.append(features_of(InDomainFeatures(classifier), images.to(device)).float().cpu())
    return torch.cat(parts, dim=1)
