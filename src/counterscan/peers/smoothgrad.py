"""SmoothGrad (Smilkov et al., 2017), computed by Captum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterscan.care import Care
from counterscan.peers.base import AttributionPeer, Masker, Part
from counterscan.peers.captum import captum_method, check_sampling, seeded


class SmoothGrad(AttributionPeer):
    """``1/n sum_i dS/dx (x + e_i)`` with ``e_i ~ N(0, sigma^2)``: the gradient, averaged over noisy copies.

    ``attribute`` returns the signed mean; its sign says whether brightening a pixel raises S, not whether the pixel
    speaks for the finding, so that evidence is its magnitude, as in the paper's figures. Every image is given the same
    draws of noise, so that its map does not depend on its batch.

    Args:
        classifier: see ``counterscan.peers.base``.
        sigma: of the noise, in units of [-1, 1]; 0.3 is 15 % of the range, the middle of the paper's 10 to 20 %.
        n_samples: noisy copies of each image; the paper sees little gain beyond 50.
        squared: average the squared gradients (Hooker et al. 2019, who found that to rank pixels better).
        part: which part of the attributions is evidence.
        internal_batch_size: copies per pass; bounds memory.
        seed: of the noise.
        care: averaging and smoothing; by default the evidence is smoothed with sigma = 2 % of the width, as that of
            Integrated Gradients.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: Captum is not installed, or a value is out of range.
    """

    name = "SmoothGrad"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        sigma: float = 0.3,
        n_samples: int = 50,
        squared: bool = False,
        part: Part = "magnitude",
        internal_batch_size: int = 128,
        seed: int = 0,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care or Care(smoothing=0.02), masker=masker, part=part)
        check_sampling(sigma, n_samples, internal_batch_size)
        self.sigma, self.n_samples, self.squared = float(sigma), n_samples, squared
        self.internal_batch_size, self.seed = internal_batch_size, seed
        self._method = captum_method("NoiseTunnel")(captum_method("Saliency")(classifier))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "sigma": self.sigma,
            "n_samples": self.n_samples,
            "squared": self.squared,
            "part": self.part,
            "seed": self.seed,
        }

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        maps = []
        for image, column in zip(inputs.split(1), target.split(1), strict=True):
            with seeded(self.seed, inputs.device):
                maps.append(
                    self._method.attribute(
                        image,
                        nt_type="smoothgrad_sq" if self.squared else "smoothgrad",
                        nt_samples=self.n_samples,
                        nt_samples_batch_size=self.internal_batch_size,
                        stdevs=self.sigma,
                        target=column,
                        abs=False,
                    )
                )
        return torch.cat(maps)
