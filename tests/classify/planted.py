"""Small images on which findings are blobs, for tests that train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from counterscan.classify import ClassifyConfig
from counterscan.data.store import PreparedStore
from counterscan.nets.cnn import ClassifierConfig

TINY = ClassifierConfig(widths=(8, 16, 24))
QUICK = ClassifyConfig(model=TINY, steps=80, batch_size=32, rate=1e-2, tensorboard=False)
UNTRAINED = replace(QUICK, steps=1, rate=1e-9)


def planted(
    count: int = 240, size: int = 24, findings: tuple[str, ...] = ("Lung Lesion",), seed: int = 0
) -> PreparedStore:
    """Noise; finding k is a bright (k even) or dark 5 x 5 blob at a random place. Half is train."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, len(findings))).astype(float)
    images = rng.normal(128, 24, (count, size, size))
    for row, column in np.argwhere(labels == 1):
        top, left = rng.integers(3, size - 8, 2)
        images[row, top : top + 5, left : left + 5] += 70 if column % 2 == 0 else -70
    return PreparedStore.from_arrays(
        images.clip(1, 255).astype(np.uint8),
        labels=labels,
        findings=findings,
        patients=[f"p{i // 2:04d}" for i in range(count)],
        split=[("train", "train", "val", "test")[i // 2 % 4] for i in range(count)],
    )


def relabelled(store: PreparedStore, labels: np.ndarray) -> PreparedStore:
    """The same images with other labels (N, C)."""
    return PreparedStore.from_arrays(
        (store.images().numpy()[:, 0] * 127.5 + 127.5).round().astype(np.uint8),
        labels=labels,
        findings=store.findings,
        patients=store.patients.tolist(),
        split=store.split.tolist(),
    )
