"""What edits start from: new bodies of the generator, or real training images that were inverted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from counterscan.tbsmgan.edits.base import Origin
from counterscan.tbsmgan.generator import PSI, StyleGAN
from counterscan.tbsmgan.judgement import Sign


@dataclass(frozen=True)
class Bodies:
    """What edits start from.

    Attributes:
        origin: N latents.
        labels: (N, K) what they show: 1, 0, NaN for unknown; columns as the generator's findings.
        patients: (N,) whose; made-up ones for samples. An edited image of a patient is an image of that patient.
        rows: (N,) rows of the gate's training images that they were inverted from; None for samples.
    """

    origin: Origin
    labels: Tensor
    patients: Sequence[str]
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.origin)

    def take(self, numbers: Tensor) -> Bodies:
        """Some of them."""
        rows = None if self.rows is None else self.rows[numbers]
        patients = [self.patients[k] for k in numbers.tolist()]
        return Bodies(self.origin.take(numbers), self.labels[numbers], patients, rows)


class Supply(Protocol):
    """Gives bodies without end, or until there are no more."""

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies | None:
        """The ``number``-th batch of up to ``count`` bodies to edit a finding in, the same for the same arguments.

        Returns:
            Bodies that lack the finding for sign 1, that have it for -1; None when there are no more.
        """
        ...


@dataclass(frozen=True)
class Sampled:
    """Bodies that the generator makes up, with the training images' mixture of labels.

    Findings that it has not learnt are never asked for: the label would say what the image does not show.
    """

    gan: StyleGAN
    psi: float = PSI
    seed: int = 0

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies:
        """See ``Supply``."""
        gan = self.gan
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {finding} {sign} {number}".encode()).digest()[:6], "big")
        labels = gan.draw_labels(count, seed).clone()
        for at, name in enumerate(gan.findings):
            if name == finding:
                labels[:, at] = 0.0 if sign > 0 else 1.0
            elif not gan.learned.get(name, False):
                labels[:, at] = 0.0
        origin = Origin.sample(gan, labels, self.psi, seed)
        tag = f"synthetic-{gan.checkpoint}-{seed:012x}"
        return Bodies(origin, labels, [f"{tag}-{k:03d}" for k in range(count)])


@dataclass(frozen=True)
class Inverted:
    """Real training images, inverted: each is edited once at most.

    Attributes:
        w: (N, num_ws, w_dim) of images of the split "train".
        labels: (N, K) of the study table, columns as the generator's findings.
        findings: K names.
        patients: (N,).
        rows: (N,) which of the rows of the split "train" they are.
    """

    w: Tensor
    labels: Tensor
    findings: Sequence[str]
    patients: Sequence[str]
    rows: Tensor

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies | None:
        """See ``Supply``."""
        fits = torch.nonzero(self.labels[:, list(self.findings).index(finding)] == (0.0 if sign > 0 else 1.0))[:, 0]
        chosen = fits[number * count : (number + 1) * count]
        if not len(chosen):
            return None
        patients = [self.patients[i] for i in chosen.tolist()]
        return Bodies(Origin(self.w[chosen.to(self.w.device)]), self.labels[chosen], patients, self.rows[chosen])
