"""Occlusion (Zeiler and Fergus, ECCV 2014), computed by Captum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterscan.care import Care
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker
from counterscan.peers.captum import captum_method
from counterscan.peers.integrated_gradients import Baseline, baseline_images, baseline_name, check_baseline


class Occlusion(AttributionPeer):
    """How far S falls when a square is covered: at each pixel the mean of S(x) - S(x covered) over squares holding it.

    Squares are slid over the whole image; the last ones may reach beyond the right and lower border.

    Args:
        classifier: see ``counterscan.peers.base``.
        window: side of the square, as a share of the width: about the size of what is looked for, because a part of a
            lesion that stays in view can uphold the score.
        stride: of the square, likewise; no more than ``window``. Time goes with 1 / stride^2: the defaults need about
            400 passes.
        baseline: what covers it: a grey in [-1, 1], or one of ``integrated_gradients.baseline_images``; by default the
            image's own mean, the paper's grey square.
        internal_batch_size: covered images per pass; bounds memory.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: Captum is not installed, or a value is out of range.
    """

    name = "Occlusion"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        window: float = 0.15,
        stride: float = 0.05,
        baseline: Baseline | float = "mean",
        internal_batch_size: int = 128,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        if not 0 < stride <= window <= 1:
            raise InputError(
                f"window {window} and stride {stride} must be shares of the width, above 0 and at most 1, "
                "the stride no larger than the window",
                field="stride",
            )
        if internal_batch_size < 1:
            raise InputError(f"{internal_batch_size} must be at least 1", field="internal_batch_size")
        if not isinstance(baseline, int | float):
            check_baseline(baseline)
        self.window, self.stride, self.baseline = window, stride, baseline
        self.internal_batch_size = internal_batch_size
        self._method = captum_method("Occlusion")(classifier)

    def settings(self) -> dict[str, Any]:
        given = self.baseline
        return super().settings() | {
            "window": self.window,
            "stride": self.stride,
            "baseline": given if isinstance(given, int | float) else baseline_name(given),
        }

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        height, width = inputs.shape[-2:]
        side, step = (max(1, round(share * width)) for share in (self.window, self.stride))
        part = self.internal_batch_size
        maps = []
        for images, columns in zip(inputs.split(part), target.split(part), strict=True):
            given = self.baseline
            maps.append(
                self._method.attribute(
                    images,
                    sliding_window_shapes=(1, min(side, height), side),
                    strides=(1, min(step, height), step),
                    baselines=given if isinstance(given, int | float) else baseline_images(given, images),
                    target=columns,
                    perturbations_per_eval=max(1, part // len(images)),
                )
            )
        return torch.cat(maps)
