"""Distance to a cloud of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from counterscan.errors import InputError

_LEAST = 1e-9  # share of the largest variance below which a direction counts as having that


@dataclass(frozen=True)
class Mahalanobis:
    """Mahalanobis distance to features, their covariance shrunk as Ledoit and Wolf (2004) do.

    Made by ``fit``.

    Attributes:
        mean: (D,).
        whitening: (D, D); what it makes of features minus their mean has unit covariance.
    """

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Mahalanobis:
        """Distance to these features.

        Args:
            features: (N, D), at least two.

        Raises:
            InputError: another shape, fewer, or not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"expected (N, D) with N >= 2, got {tuple(features.shape)}", field="features")
        if not bool(features.isfinite().all()):
            raise InputError("not finite", field="features", remedy="Look at the images and the network they come from")
        known = features.detach().double().cpu()
        covariance, _ = ledoit_wolf(known.numpy())
        values, vectors = np.linalg.eigh(covariance)
        most = float(values.max()) or 1.0  # 0 where all features are the same
        whitening = torch.from_numpy(vectors / np.sqrt(np.maximum(values, most * _LEAST)))
        return cls(known.mean(0).float(), whitening.float())

    def __call__(self, features: Tensor) -> Tensor:
        """(M, D) to distances (M,), on the CPU."""
        return ((features.detach().float().cpu() - self.mean) @ self.whitening).norm(dim=1)
