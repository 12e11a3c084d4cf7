"""Integrated Gradients (Sundararajan et al., ICML 2017), computed by Captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterscan.care import Care, smooth
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker, Part
from counterscan.peers.captum import captum_method

Baseline = Literal["black", "blur", "mean"] | Callable[[Tensor], Tensor]


def check_baseline(baseline: Baseline) -> None:
    """Raise InputError if ``baseline_images`` would not know it."""
    if not callable(baseline) and baseline not in ("black", "blur", "mean"):
        raise InputError(
            f"no baseline {baseline!r}", field="baseline", remedy="Use black, blur or mean, or a function of images"
        )


def baseline_name(baseline: Baseline) -> str:
    """How settings call it: its own name, or the function's."""
    return str(getattr(baseline, "__name__", type(baseline).__name__)) if callable(baseline) else baseline


def baseline_images(baseline: Baseline, inputs: Tensor) -> Tensor:
    """What stands for "nothing there" in each image.

    Args:
        baseline: "black" (-1 everywhere), "blur" (the image blurred with sigma = 10 % of its width), "mean" (each
            image's own mean grey), or a function from images to baseline images.
        inputs: (N, 1, H, W) in [-1, 1].

    Returns:
        Shaped like ``inputs``.

    Raises:
        InputError: the function gives another shape.
    """
    if callable(baseline):
        images = baseline(inputs).detach().to(inputs)
        if images.shape != inputs.shape:
            raise InputError(
                f"expected baseline images {tuple(inputs.shape)}, got {tuple(images.shape)}",
                field="baseline",
                remedy="Return one baseline image per image",
            )
        return images
    if baseline == "blur":
        return smooth(inputs, 0.1)
    if baseline == "mean":
        return inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs)
    return torch.full_like(inputs, -1.0)


class IntegratedGradients(AttributionPeer):
    """``(x - b) * integral of dS/dx`` on the straight line from a baseline b to the image, Gauss-Legendre.

    ``attribute`` returns the signed attributions, which sum to S(x) - S(b). Evidence is their positive part, what
    speaks for the finding, or their magnitude.

    Args:
        classifier: see ``counterscan.peers.base``.
        baseline: see ``baseline_images``. A function can give each image its negative counterpart, the closest image
            without the finding: what stays equal in both gets nothing (Shih et al., GANMEX, 2021).
        n_steps: points on the line.
        part: which part of the attributions is evidence.
        internal_batch_size: images per pass inside Captum; bounds memory, which otherwise grows with N x n_steps.
        care: averaging and smoothing; by default the evidence, noisy from pixel to pixel, is smoothed with sigma = 2 %
            of the width, which serves it better than none.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: Captum is not installed, or there is no such baseline.
    """

    name = "Integrated Gradients"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        baseline: Baseline = "black",
        n_steps: int = 50,
        part: Part = "positive",
        internal_batch_size: int = 128,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care or Care(smoothing=0.02), masker=masker, part=part)
        check_baseline(baseline)
        self.baseline, self.n_steps, self.internal_batch_size = baseline, n_steps, internal_batch_size
        self._method = captum_method("IntegratedGradients")(classifier)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "baseline": baseline_name(self.baseline),
            "n_steps": self.n_steps,
            "part": self.part,
        }

    def baselines(self, inputs: Tensor) -> Tensor:
        """(N, 1, H, W) where the line starts."""
        return baseline_images(self.baseline, inputs)

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        return self._method.attribute(
            inputs,
            baselines=self.baselines(inputs),
            target=target,
            n_steps=self.n_steps,
            internal_batch_size=max(self.internal_batch_size, len(inputs)),
        )
