"""A set on which TagGAN can be tried in seconds: noise, and a bright blob where the finding is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.data.store import PreparedStore

FINDINGS = ("Consolidation", "Pneumothorax")


def blob_store(count: int = 48, size: int = 16, findings: int = 1, seed: int = 0) -> PreparedStore:
    """Finding 0 is a bright square on the left, finding 1 a dark one on the right; patients have two images."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, findings)) < 0.5).astype(np.float32)
    labels[:4, 0], labels[4:8, 0] = 1, 0
    if findings > 1:
        labels[:8, 1] = [0, 1] * 4
    images = rng.normal(128, 6, (count, size, size))
    masks = {name: np.zeros((count, size, size), bool) for name in FINDINGS[:findings]}
    for i in range(count):
        for column, (left, change) in enumerate(((2, 80), (size - 6, -80))[:findings]):
            if labels[i, column]:
                top = rng.integers(2, size - 6)
                masks[FINDINGS[column]][i, top : top + 4, left : left + 4] = True
                images[i, top : top + 4, left : left + 4] += change
    patients = [f"p{i // 2}" for i in range(count)]
    split = ["val" if i // 2 % 4 == 3 else "train" for i in range(count)]
    return PreparedStore.from_arrays(
        images.clip(0, 255).astype(np.uint8),
        labels=labels,
        findings=FINDINGS[:findings],
        patients=patients,
        split=split,
        masks=masks,
    )


class BlobClassifier(nn.Module):
    """Knows the answer: brightest place on the left, darkest on the right."""

    def __init__(self, findings: int = 1) -> None:
        super().__init__()
        self.findings = FINDINGS[:findings]
        self.pool = nn.AvgPool2d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = self.pool(x)
        half = places.shape[-1] // 2
        bright = places[..., :half].flatten(1).amax(dim=1) - 0.3
        dark = -places[..., half:].flatten(1).amin(dim=1) - 0.3
        return 10 * torch.stack([bright, dark], dim=1)[:, : len(self.findings)]
