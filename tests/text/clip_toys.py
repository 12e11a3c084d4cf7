"""Small images of two findings with sides, and reports of them, for tests that train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.nets.text_image import TinyClipConfig
from counterscan.text.clip_config import ClipConfig

FINDINGS = ("Edema", "Pleural Effusion")
SHAPE = TinyClipConfig(widths=(8, 16), text_width=16, text_heads=2, text_layers=1, text_length=24, embedding=16)
QUICK = ClipConfig(
    model=SHAPE,
    augment=AugmentConfig.none(),
    steps=100,
    batch_size=32,
    rate_image=1e-2,
    rate_text=1e-2,
    rate_projection=1e-2,
    precision="fp32",
    tensorboard=False,
)
SHORT = replace(QUICK, steps=2, batch_size=8)


def films(count: int = 256, seed: int = 0) -> tuple[PreparedStore, list[str]]:
    """16 x 16 noise. Edema is a bright square in the upper half, an effusion one below; on the left or the right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 2)).astype(float)
    right = rng.integers(0, 2, (count, 2))
    images = rng.normal(100, 15, (count, 16, 16))
    reports = []
    for row in range(count):
        said = []
        for k, name in enumerate(("edema", "pleural effusion")):
            if labels[row, k]:
                side = "right" if right[row, k] else "left"
                images[row, 8 * k + 2 : 8 * k + 6, 8 * right[row, k] + 2 : 8 * right[row, k] + 6] += 80
                said.append(f"Mild {side} {name}.")
            else:
                said.append(f"No {name}.")
        reports.append(" ".join(said))
    store = PreparedStore.from_arrays(
        images.clip(0, 255).astype(np.uint8),
        labels=labels,
        findings=FINDINGS,
        patients=[f"p{seed}-{k:04d}" for k in range(count)],
        split=[("train", "train", "val", "test")[k % 4] for k in range(count)],
    )
    return store, reports


def said(sentence: str) -> tuple[float, float]:
    """Edema and effusion as a sentence states them."""
    value = 0.0 if sentence.startswith("No") else 1.0
    return (
        value if "edema" in sentence else float("nan"),
        value if "effusion" in sentence else float("nan"),
    )


def labels_of(store: PreparedStore) -> Tensor:
    """(N, 2)."""
    return torch.from_numpy(store.labels)
