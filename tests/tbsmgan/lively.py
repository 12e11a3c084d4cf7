"""An untrained generator whose images differ, and stores of its samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from counterscan.data.intensity import IntensityRecipe
from counterscan.data.store import PreparedStore
from counterscan.nets.stylegan2 import Generator
from counterscan.tbsmgan import LabelMix, StyleGAN, TrainingPatients
from counterscan.tbsmgan.export import quantised
from tests.tbsmgan.small import NETWORK

FINDINGS = ("Edema", "Cardiomegaly")


def lively_gan(labels: int = 2, seed: int = 0, noise: float = 0.1) -> StyleGAN:
    """16 px; w has the mean and spread that training would have counted."""
    torch.manual_seed(seed)
    generator = Generator(replace(NETWORK, labels=labels)).eval()
    conditions = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 1]])[:, :labels]
    with torch.no_grad():
        for name, p in generator.named_parameters():
            if name.endswith("strength"):
                p.fill_(noise)
        c = conditions.repeat(100, 1) if labels else None
        generator.update_w_avg(generator.map(torch.randn(400, NETWORK.z_dim), c))
    return StyleGAN(
        generator,
        FINDINGS[:labels],
        LabelMix.of(conditions) if labels else None,
        IntensityRecipe("range"),
        "0123456789abcdef",
        TrainingPatients.of([f"p{i:06d}" for i in range(20)], "salt"),
        learned={"Edema": True, "Cardiomegaly": False} if labels else {},
    )


def sampled_store(gan: StyleGAN, count: int = 40, train: int = 20, seed: int = 5) -> PreparedStore:
    """Samples as if they were real: the first ``train`` rows in train, the others in val."""
    labels = gan.draw_labels(count, seed)
    images = gan.sample(labels=labels, psi=1.0, seed=seed)
    return PreparedStore.from_arrays(
        np.stack([quantised(image, 16) for image in images]),
        labels=labels.numpy(),
        findings=gan.findings,
        split=["train" if i < train else "val" for i in range(count)],
    )
