"""Choosing a checkpoint without masks.

Maps peak early and may drift, and no pixel label may tell when. Two figures need image labels only:

    healed    = share of validation images called positive by the classifiers that are called negative once healed
    contrast  = AUC of mean |M| of images with the finding against images without it
    parsimony = 1 - mean |M| without the finding / mean |M| with it, not below 0

    criterion = healed * contrast * parsimony, averaged over findings

A map that is too weak heals nothing; one that drifts changes healthy images as much as ill ones. Either costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.metrics.classification import roc_auc


@dataclass
class LabelOnlySelection:
    """Figures of a generator on validation images.

    Attributes:
        images: (N, 1, H, W) in [-1, 1].
        labels: (N, C) 1, 0, -1 or NaN.
        findings: names of the columns.
        valid: (N, 1, H, W) bool, False on padding.
        limit: at most so many images per finding and label are used.
    """

    images: Tensor
    labels: Tensor
    findings: tuple[str, ...]
    valid: Tensor | None = None
    limit: int = 64

    @torch.no_grad()
    def __call__(self, generator: nn.Module, classifiers: Sequence[nn.Module]) -> dict[str, float]:
        """``healed``, ``contrast``, ``parsimony`` and ``criterion``, means over findings."""
        with evaluating(generator):
            figures = [self._of(column, generator, classifiers) for column in range(len(self.findings))]
        known = torch.tensor([row for row in figures if row is not None], dtype=torch.float64)
        if not len(known):
            return {}
        names = ("healed", "contrast", "parsimony", "criterion")
        return dict(zip(names, known.mean(dim=0).tolist(), strict=True))

    def _of(
        self, column: int, generator: nn.Module, classifiers: Sequence[nn.Module]
    ) -> tuple[float, float, float, float] | None:
        with_it = torch.nonzero(self.labels[:, column] == 1)[: self.limit, 0]
        without = torch.nonzero(self.labels[:, column] == 0)[: self.limit, 0]
        if not len(with_it) or not len(without):
            return None
        rows = torch.cat([with_it, without])
        device = next(generator.parameters()).device
        x = self.images[rows].to(device)
        maps = [generator(part, torch.full((len(part),), column, device=device)).float() for part in x.split(32)]
        m = torch.cat(maps)
        if self.valid is not None:
            m = m * self.valid[rows].to(device)
        energy = m.abs().mean(dim=(1, 2, 3)).cpu()
        ill = torch.arange(len(rows)) < len(with_it)
        contrast = float(roc_auc(energy, ill.float()))
        parsimony = max(0.0, 1 - float(energy[~ill].mean() / energy[ill].mean().clamp_min(1e-9)))
        healed = self._healed(x[: len(with_it)], (x - m)[: len(with_it)], column, classifiers)
        return healed, contrast, parsimony, healed * contrast * parsimony

    @staticmethod
    def _healed(x: Tensor, y: Tensor, column: int, classifiers: Sequence[nn.Module]) -> float:
        """Share of the images called positive that are called negative once healed; 1 without classifiers."""
        if not classifiers:
            return 1.0
        before = torch.stack([f(x)[:, column] for f in classifiers]).mean(dim=0)
        after = torch.stack([f(y)[:, column] for f in classifiers]).mean(dim=0)
        called = before > 0
        return float((after[called] <= 0).float().mean()) if bool(called.any()) else 0.0
