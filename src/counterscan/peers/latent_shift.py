"""Latent Shift (Cohen et al., "Gifsplanation via Latent Shift", MIDL 2021, arXiv 2102.09475)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from counterscan.care import Care, evaluating
from counterscan.counterpart import Direction
from counterscan.errors import InputError
from counterscan.peers.base import Masker
from counterscan.peers.counterfactual import CounterfactualPeer, Search, margin


class Autoencoder(Protocol):
    """Anything that takes an image apart and puts it together again; differentiable from code to image."""

    def encode(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to codes of any shape, batch first."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Codes to (N, 1, H, W)."""
        ...


class LatentShift(CounterfactualPeer):
    """``x_lambda = decode(z + lambda g)`` with ``z = encode(x)`` and ``g = dS(decode(z))/dz``, taken once.

    S is the logit (the paper differentiates the probability; the direction is the same). Lambda is counted in logits,
    ``x_lambda = decode(z +- lambda g / |g|^2)``: to first order a lambda of 1 changes S by 1, so that the same steps
    serve steep and flat classifiers and large and small codes. The search starts from 0, in the direction in which the
    finding fades (or, to add it, appears), with a step that grows by a tenth of lambda each time, and ends where

    * the probability is below ``below`` (to add: above 1 - ``below``), or has changed by ``drop``;
    * it stopped changing in the wanted direction, or the pixels changed by more than ``max_change``, in which cases the
      step before counts (the public code keeps the step at which it noticed);
    * lambda reached ``max_shift``.

    The path has K frames, evenly spaced from lambda = 0 to that bound, where the counterpart is. Extras hold the
    "reconstruction", decode(encode(x)), figures the "shift", that lambda.

    Args:
        classifier: see ``counterscan.peers.base``.
        autoencoder: encodes and decodes; its mode, its parameters and their gradients are left as they were.
        heatmap: evidence is "int", the mean of \\|frame k - frame k + 1\\|, or "mm", \\|first - last\\|.
        residual_transfer: show x + (frame - reconstruction) instead of the frame, which keeps what the autoencoder
            loses; classifier, gradient and search then see that image. Not in the paper.
        below: see above.
        drop: see above.
        max_change: share of |x_0|_1, the sum of the reconstruction's absolute values in [-1, 1].
        step: the first, in logits.
        max_shift: the largest lambda, in logits.
        frames: K.
        internal_batch_size: images searched together; bounds memory.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: the autoencoder lacks a function, or a value is out of range.
    """

    name = "Latent Shift"

    def __init__(
        self,
        classifier: nn.Module,
        autoencoder: Autoencoder,
        *,
        heatmap: Literal["int", "mm"] = "int",
        residual_transfer: bool = False,
        below: float = 0.05,
        drop: float = 0.8,
        max_change: float = 0.05,
        step: float = 0.25,
        max_shift: float = 100.0,
        frames: int = 11,
        internal_batch_size: int = 64,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, frames=frames, internal_batch_size=internal_batch_size, care=care, masker=masker)
        for method in ("encode", "decode"):
            if not callable(getattr(autoencoder, method, None)):
                raise InputError(
                    f"it has no function {method}",
                    field="autoencoder",
                    remedy="See counterscan.peers.latent_shift.Autoencoder",
                )
        if heatmap not in ("int", "mm"):
            raise InputError(f"no heatmap {heatmap!r}", field="heatmap", remedy="Use int or mm")
        for name, value in (("below", below), ("drop", drop)):
            if not 0 < value < 1:
                raise InputError(f"{value} must be between 0 and 1", field=name)
        for name, value in (("max_change", max_change), ("step", step), ("max_shift", max_shift)):
            if not value > 0:
                raise InputError(f"{value} must be positive", field=name)
        self.autoencoder, self.heatmap, self.residual_transfer = autoencoder, heatmap, residual_transfer
        self.below, self.drop, self.max_change = below, drop, max_change
        self.step, self.max_shift = step, max_shift

    def settings(self) -> dict[str, Any]:
        known = getattr(self.autoencoder, "digest", "")
        return super().settings() | {
            "autoencoder": " ".join([type(self.autoencoder).__name__, known]).strip(),
            "heatmap": self.heatmap,
            "residual_transfer": self.residual_transfer,
            "below": self.below,
            "drop": self.drop,
            "max_change": self.max_change,
            "step": self.step,
            "max_shift": self.max_shift,
        }

    def _held(self) -> contextlib.AbstractContextManager[Any]:
        inner = self.autoencoder
        return evaluating(inner) if isinstance(inner, nn.Module) else contextlib.nullcontext()

    def _search(self, images: Tensor, columns: Tensor, direction: Direction, valid: Tensor) -> Search:
        with torch.no_grad():
            z = self.autoencoder.encode(images)
        z = z.detach().requires_grad_()
        decoded = self.autoencoder.decode(z)
        if decoded.shape != images.shape:
            raise InputError(
                f"the autoencoder makes {tuple(decoded.shape)} of images {tuple(images.shape)}", field="autoencoder"
            )
        reconstruction = decoded.detach()
        fixed = images - reconstruction if self.residual_transfer else torch.zeros_like(images)

        def shown(decoded: Tensor, rows: Tensor) -> Tensor:
            return torch.where(valid[rows] > 0, decoded + fixed[rows], images[rows])

        everything = torch.arange(len(images), device=images.device)
        toward = margin(self.classifier(shown(decoded, everything)), columns, direction)
        (gradient,) = torch.autograd.grad(toward.sum(), z)
        squared = gradient.flatten(1).square().sum(dim=1).view(-1, *[1] * (z.ndim - 1))
        unit = -gradient / squared.clamp_min(1e-30)  # to first order the logit falls by 1
        z = z.detach()

        @torch.no_grad()
        def at(rows: Tensor, shift: Tensor) -> Tensor:
            """(n, 1, H, W) of some images, their codes moved by ``shift`` (n,) logits."""
            codes = z[rows] + shift.view(-1, *[1] * (z.ndim - 1)).to(z) * unit[rows]
            return shown(self.autoencoder.decode(codes), rows).clamp(-1, 1)

        bound, ended = self._bounds(at, columns, direction, squared.flatten() > 0)
        frames = torch.stack([at(everything, share * bound) for share in torch.linspace(0, 1, self.frames)], dim=1)
        change = frames.diff(dim=1).abs().mean(dim=1) if self.heatmap == "int" else (frames[:, 0] - frames[:, -1]).abs()
        return Search(
            change,
            frames,
            lambda share: at(everything, share * bound),
            ended,
            {"reconstruction": reconstruction.clamp(-1, 1)},
            {"shift": bound},
        )

    @torch.no_grad()
    def _bounds(
        self, at: Callable[[Tensor, Tensor], Tensor], columns: Tensor, direction: Direction, steep: Tensor
    ) -> tuple[Tensor, list[str]]:
        """Lambda (N,) at which each search ends, and why; ``at`` gives images by rows and shifts."""
        count, device = len(columns), columns.device
        everything, bound = torch.arange(count, device=device), torch.zeros(count, device=device)
        first = at(everything, bound)
        last = margin(self.classifier(first), columns, direction)
        start, most = last.sigmoid(), self.max_change * first.abs().sum(dim=(1, 2, 3))
        ended = ["" if slope else "the logit does not depend on the code" for slope in steep.tolist()]
        active = (steep & (start >= self.below)).nonzero()[:, 0]
        shift = 0.0
        while len(active) and shift < self.max_shift:
            shift = min(shift + self.step + shift / 10, self.max_shift)
            images = at(active, torch.full((len(active),), shift, device=device))
            now = margin(self.classifier(images), columns[active], direction)
            rose = now > last[active]
            torn = (images - first[active]).abs().sum(dim=(1, 2, 3)) > most[active]
            there = (now.sigmoid() < self.below) | (start[active] - now.sigmoid() > self.drop)
            for i, up, far in zip(active.tolist(), rose.tolist(), torn.tolist(), strict=True):
                if up:
                    ended[i] = "further along the gradient it stopped changing"
                elif far:
                    ended[i] = f"further along, pixels would have changed by more than {self.max_change:.0%}"
            kept = ~rose & ~torn
            bound[active[kept]], last[active[kept]] = shift, now[kept]
            active = active[kept & ~there]
        for i in active.tolist():
            ended[i] = f"the shift reached its limit of {self.max_shift:g} logits"
        return bound, ended
