"""Exponential moving average of weights: the copy that is validated, shown and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_decay(elapsed: float, seen: float, half_life: float, ramp: float = 0.0) -> float:
    """Weight of the old average after ``elapsed`` more units (steps or images).

    ``0.5 ** (elapsed / h)`` with ``h = min(half_life, ramp * seen)``; the ramp (StyleGAN2-ADA's ``ema_rampup``) makes
    the average follow closely at first, so that the initial weights are forgotten.

    Args:
        elapsed: units since the last update.
        seen: units since the start of training, ``elapsed`` included.
        half_life: in the same units.
        ramp: share of ``seen`` that bounds the half-life; 0 for no ramp.
    """
    bound = min(half_life, ramp * seen) if ramp > 0 else half_life
    return 0.5 ** (elapsed / bound)


class EMA:
    """An averaged copy of a module, in evaluation mode and without gradients.

    Parameters are averaged; buffers (batch-norm statistics, spectral-norm vectors) are copied, since an average of them
    belongs to no weights the network ever had.

    Args:
        source: the module in training; needs ``torch.nn.utils.parametrizations`` rather than the old weight hooks.
        half_life: units in which the weight of the past halves.
        ramp: see ``ema_decay``.
    """

    def __init__(self, source: nn.Module, half_life: float, ramp: float = 0.0) -> None:
        self.source, self.half_life, self.ramp = source, half_life, ramp
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, elapsed: float, seen: float) -> None:
        """Move the average towards the current weights."""
        decay = ema_decay(elapsed, seen, self.half_life, self.ramp)
        for average, current in zip(self.module.parameters(), self.source.parameters(), strict=True):
            average.lerp_(current.detach(), 1 - decay)
        for copied, original in zip(self.module.buffers(), self.source.buffers(), strict=True):
            copied.copy_(original)
