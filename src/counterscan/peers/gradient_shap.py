"""GradientSHAP, also called expected gradients (Lundberg and Lee 2017; Erion et al. 2021), computed by Captum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterscan.care import Care
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker, Part
from counterscan.peers.captum import captum_method, check_sampling, seeded
from counterscan.peers.integrated_gradients import Baseline, baseline_images, baseline_name, check_baseline


class GradientSHAP(AttributionPeer):
    """``E[(x + e - b) dS/dx (b + a (x + e - b))]``, ``a ~ U(0, 1)``, ``e ~ N(0, sigma^2)``, b drawn from baselines.

    Without noise the signed attributions sum, but for sampling error, to S(x) - E S(b). Every image is given the same
    draws, so that its map does not depend on its batch.

    Args:
        classifier: see ``counterscan.peers.base``.
        baseline: what baselines are drawn from: (B, 1, H, W) background images, which the method is meant for (some
            twenty to a hundred healthy training images), or one baseline for each image, see
            ``integrated_gradients.baseline_images``.
        sigma: of the noise, in units of [-1, 1]; 0.1 is 5 % of the range.
        n_samples: draws per image.
        part: which part of the attributions is evidence: what speaks for the finding, or their magnitude.
        internal_batch_size: draws per pass; bounds memory.
        seed: of the draws.
        care: averaging and smoothing; by default the evidence is smoothed with sigma = 2 % of the width, as that of
            Integrated Gradients.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: Captum is not installed, or a value is out of range.
    """

    name = "GradientSHAP"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        baseline: Baseline | Tensor = "black",
        sigma: float = 0.1,
        n_samples: int = 50,
        part: Part = "positive",
        internal_batch_size: int = 128,
        seed: int = 0,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care or Care(smoothing=0.02), masker=masker, part=part)
        check_sampling(sigma, n_samples, internal_batch_size)
        if not isinstance(baseline, Tensor):
            check_baseline(baseline)
        elif baseline.ndim != 4 or baseline.shape[1] != 1 or not len(baseline):
            raise InputError(f"expected images (B, 1, H, W), got {tuple(baseline.shape)}", field="baseline")
        self.baseline, self.sigma, self.n_samples = baseline, float(sigma), n_samples
        self.internal_batch_size, self.seed = internal_batch_size, seed
        self._method = captum_method("GradientShap")(classifier)

    def settings(self) -> dict[str, Any]:
        given = self.baseline
        return super().settings() | {
            "baseline": f"{len(given)} images" if isinstance(given, Tensor) else baseline_name(given),
            "sigma": self.sigma,
            "n_samples": self.n_samples,
            "part": self.part,
            "seed": self.seed,
        }

    def _background(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to draw from for one image (1, 1, H, W)."""
        if not isinstance(self.baseline, Tensor):
            return baseline_images(self.baseline, image)
        if self.baseline.shape[1:] != image.shape[1:]:
            raise InputError(
                f"background images are {tuple(self.baseline.shape[2:])}, images {tuple(image.shape[2:])}",
                field="baseline",
                remedy="Take background images from the same store",
            )
        return self.baseline.detach().to(image).clone()  # autograd takes no inference tensors

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        maps = []
        for image, column in zip(inputs.split(1), target.split(1), strict=True):
            background, total = self._background(image), torch.zeros_like(image)
            with seeded(self.seed, inputs.device):
                for done in range(0, self.n_samples, self.internal_batch_size):
                    draws = min(self.internal_batch_size, self.n_samples - done)
                    total += draws * self._method.attribute(
                        image, baselines=background, n_samples=draws, stdevs=self.sigma, target=column
                    )
            maps.append(total / self.n_samples)
        return torch.cat(maps)
