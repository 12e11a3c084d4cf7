"""What edits start from: new bodies of the generator, or real training images that were inverted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from counterscan.data.store import PreparedStore
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
    """Gives bodies without end, or until there are no more.

    Attributes:
        name: "new" or "real".
    """

    name: ClassVar[str]

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

    name: ClassVar[str] = "new"
    gan: StyleGAN
    psi: float = PSI
    seed: int = 0

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies:
        """See ``Supply``."""
        gan = self.gan
        seed = _number(f"{self.seed} {finding} {sign} {number}")
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
    """Real training images, inverted: each is edited once at most, and keeps what the generator cannot show of it.

    Attributes:
        gan: the generator.
        encode: (N, 1, S, S) to w (N, num_ws, w_dim), as ``Inverter.encode``.
        images: the split "train" that the gate was calibrated on.
        labels: (N, K) of these, 1, 0 or NaN; columns as the generator's findings.
        seed: of their order.
    """

    name: ClassVar[str] = "real"
    gan: StyleGAN
    encode: Callable[[Tensor], Tensor]
    images: PreparedStore
    labels: Tensor
    seed: int = 0

    @classmethod
    def of(
        cls,
        gan: StyleGAN,
        encode: Callable[[Tensor], Tensor],
        images: PreparedStore,
        labels: np.ndarray,
        findings: Sequence[str],
        seed: int = 0,
    ) -> Inverted:
        """From labels (N, C) with columns of their own; what the generator knows beside these findings is unknown."""
        own = np.full((len(labels), len(gan.findings)), np.nan, dtype=np.float32)
        for column, name in enumerate(gan.findings):
            if name in findings:
                own[:, column] = labels[:, list(findings).index(name)]
        return cls(gan, encode, images, torch.from_numpy(own), seed)

    def __call__(self, finding: str, sign: Sign, number: int, count: int) -> Bodies | None:
        """See ``Supply``."""
        fits = np.flatnonzero(self.labels[:, self.gan.findings.index(finding)].numpy() == (0.0 if sign > 0 else 1.0))
        dice = np.random.default_rng(_number(f"{self.seed} {finding} {sign}"))
        rows = dice.permutation(fits)[number * count : (number + 1) * count]
        if not len(rows):
            return None
        x = self.images.images(rows)
        origin = Origin.of_images(self.gan, x, self.encode(x))
        return Bodies(origin, self.labels[rows], self.images.patients[rows].tolist(), torch.from_numpy(rows))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
