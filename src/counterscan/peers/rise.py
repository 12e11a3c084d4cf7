"""RISE: randomised input sampling for explanation (Petsiuk et al., BMVC 2018)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import Care
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker


class RISE(AttributionPeer):
    """``1 / (n E[M]) sum_i f(b + M_i (x - b)) M_i``: the mean score of masked images, given that a pixel is in view.

    Masks M_i are random grids of zeros and ones, upsampled bilinearly and shifted at random; all images of a call share
    them, and they depend on seed and image size alone. E[M] is the mean of the masks drawn, pixel by pixel, where the
    paper takes its expectation ``p1``: with that, pixels that happened to be in view more often would look important.

    ``attribute`` returns the map as the paper has it. All of its values are near the mean score of masked images;
    evidence is what rises above the image's lowest value, which keeps the order of pixels and lets images be compared.

    Args:
        classifier: see ``counterscan.peers.base``.
        n_masks: masks, each one pass per image. The paper uses 4,000 to 8,000 at 224 px.
        cells: the grid has this many cells along each side.
        p1: chance that a cell is in view.
        substrate: what masked pixels b are: black (-1), as in the paper, or each image's own mean.
        score: f is the probability, the sigmoid of the logit, as in the paper, or the logit.
        internal_batch_size: masked images per pass; bounds memory.
        seed: of the masks.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: a value is out of range.
    """

    name = "RISE"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        n_masks: int = 2000,
        cells: int = 7,
        p1: float = 0.5,
        substrate: Literal["black", "mean"] = "black",
        score: Literal["probability", "logit"] = "probability",
        internal_batch_size: int = 128,
        seed: int = 0,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        for name, value in (("n_masks", n_masks), ("cells", cells), ("internal_batch_size", internal_batch_size)):
            if value < 1:
                raise InputError(f"{value} must be at least 1", field=name)
        if not 0 < p1 < 1:
            raise InputError(f"{p1} must be between 0 and 1", field="p1")
        if substrate not in ("black", "mean"):
            raise InputError(f"no substrate {substrate!r}", field="substrate", remedy="Use black or mean")
        if score not in ("probability", "logit"):
            raise InputError(f"no score {score!r}", field="score", remedy="Use probability or logit")
        self.n_masks, self.cells, self.p1, self.substrate, self.score = n_masks, cells, p1, substrate, score
        self.internal_batch_size, self.seed = internal_batch_size, seed

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "n_masks": self.n_masks,
            "cells": self.cells,
            "p1": self.p1,
            "substrate": self.substrate,
            "score": self.score,
            "seed": self.seed,
        }

    def _speaks_for(self, attributions: Tensor) -> Tensor:
        return attributions - attributions.amin(dim=(2, 3), keepdim=True)

    @torch.no_grad()
    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        grids, down, right = self._draw(*inputs.shape[-2:])
        black = torch.full_like(inputs[:, :, :1, :1], -1.0)
        b = black if self.substrate == "black" else inputs.mean(dim=(2, 3), keepdim=True)
        total, seen = torch.zeros_like(inputs), torch.zeros_like(inputs[:1])
        part = self.internal_batch_size
        at_once = max(1, part // len(inputs))
        for start in range(0, self.n_masks, at_once):
            chosen = slice(start, start + at_once)
            masks = random_masks(grids[chosen], down[chosen], right[chosen], *inputs.shape[-2:]).to(inputs)
            masked = (b[:, None] + masks[None] * (inputs - b)[:, None]).flatten(0, 1)  # (N m, 1, H, W), image by image
            columns = target.repeat_interleave(len(masks))
            logits = torch.cat([self.classifier(images) for images in masked.split(part)])
            scores = logits.gather(1, columns[:, None]).view(len(inputs), len(masks)).to(inputs)
            scores = scores if self.score == "logit" else scores.sigmoid()
            total += (scores @ masks.flatten(1)).view_as(inputs)
            seen += masks.sum(0)
        return total / seen.clamp_min(1e-12)

    def _draw(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Grids (n, 1, cells, cells) of 0 and 1, and shifts (n,) down and right; on the CPU, so that devices agree."""
        generator = torch.Generator().manual_seed(self.seed)
        grids = (torch.rand(self.n_masks, 1, self.cells, self.cells, generator=generator) < self.p1).float()
        down, right = (
            torch.randint(math.ceil(side / self.cells), (self.n_masks,), generator=generator)
            for side in (height, width)
        )
        return grids, down, right


def random_masks(grids: Tensor, down: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Upsample grids by one cell more than the image has, and cut the image's size out of them.

    Args:
        grids: (n, 1, cells, cells) of 0 and 1.
        down, right: (n,) where the cut starts, from 0 to below the cell's size, ceil(side / cells).
        height, width: of the image.

    Returns:
        (n, 1, height, width) in [0, 1].
    """
    cells = grids.shape[-1]
    sides = [(cells + 1) * math.ceil(side / cells) for side in (height, width)]
    large = F.interpolate(grids, size=sides, mode="bilinear", align_corners=False)[:, 0]
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    return large[torch.arange(len(grids))[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]
