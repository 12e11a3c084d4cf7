"""Binary masks from evidence, with a threshold that no pixel label was used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from counterscan.errors import InputError


@dataclass(frozen=True)
class MaskRule:
    """Evidence above a threshold, without specks.

    Attributes:
        threshold: in units of the evidence.
        min_area: connected regions smaller than this share of the image are dropped.
        percentile: what the threshold was set to, for the record.
    """

    threshold: float
    min_area: float = 0.001
    percentile: float = 99.0

    def __call__(self, evidence: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, 1, H, W) >= 0 to (N, 1, H, W) bool; padding is never part of a mask."""
        above = evidence > self.threshold
        if valid is not None:
            above = above & valid
        fewest = round(self.min_area * evidence.shape[-1] * evidence.shape[-2])
        if fewest <= 1 or not bool(above.any()):
            return above
        planes = [_without_specks(plane, fewest) for plane in above.cpu().numpy()[:, 0]]
        return torch.from_numpy(np.stack(planes))[:, None].to(evidence.device)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _without_specks(plane: np.ndarray, fewest: int) -> np.ndarray:
    regions, count = ndimage.label(plane)
    if not count:
        return plane
    large = np.bincount(regions.ravel(), minlength=count + 1) >= fewest
    large[0] = False
    return large[regions]


def calibrate(
    healthy: Tensor, valid: Tensor | None = None, *, percentile: float = 99.0, min_area: float = 0.001
) -> MaskRule:
    """Set the threshold so that a fixed share of the pixels of healthy validation images lies above it.

    Args:
        healthy: (N, 1, H, W) evidence of images without the finding.
        valid: (N, 1, H, W) bool, False on padding.
        percentile: of the evidence in those pixels.
        min_area: see ``MaskRule``.

    Raises:
        InputError: no healthy image.
    """
    values = healthy[valid] if valid is not None else healthy.flatten()
    if not len(values):
        raise InputError(
            "there is no validation image without the finding to set the threshold on",
            field="split",
            remedy="Put healthy patients into the validation split",
        )
    return MaskRule(float(np.percentile(values.cpu().numpy(), percentile)), min_area, percentile)


def hide_and_seek(
    mask: Tensor, image: Tensor, healed: Tensor, logit_of: Callable[[Tensor], Tensor], *, share: float = 0.1
) -> Tensor:
    """Keep the regions of one mask that bring the finding back when they alone are shown on the healed image.

    After "hide-and-seek attribution" (arXiv 2512.06849): a region that the classifier does not miss is a change the
    generator made for other reasons.

    Args:
        mask: (1, H, W) bool.
        image: (1, H, W) in [-1, 1].
        healed: (1, H, W) in [-1, 1].
        logit_of: (K, 1, H, W) to the finding's logit (K,).
        share: of the whole rise from healed image to image that a region must bring back.

    Returns:
        (1, H, W) bool, part of ``mask``.
    """
    regions, count = ndimage.label(mask[0].cpu().numpy())
    if not count:
        return mask
    shown = [torch.from_numpy(ndimage.binary_dilation(regions == k + 1, iterations=2)) for k in range(count)]
    reveal = torch.stack(shown)[:, None].to(image.device)  # (K, 1, H, W)
    with torch.no_grad():
        logits = logit_of(torch.cat([torch.where(reveal, image, healed), healed[None], image[None]]))
    rise, whole = logits[:-2] - logits[-2], logits[-1] - logits[-2]
    kept = torch.nonzero(rise >= share * whole.clamp_min(0))[:, 0] + 1
    return torch.isin(torch.from_numpy(regions).to(mask.device), kept.to(mask.device))[None]
