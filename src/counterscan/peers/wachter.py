"""Counterfactuals in pixel space (Wachter, Mittelstadt and Russell 2017)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import Care
from counterscan.counterpart import Direction
from counterscan.errors import InputError
from counterscan.peers.base import Masker
from counterscan.peers.counterfactual import CounterfactualPeer, Search, margin

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class Wachter(CounterfactualPeer):
    """The closest image that the classifier answers as wanted: ``min_x' L(f(x'), t) + lambda |x' - x|_2^2`` by Adam.

    f is the probability of the finding when it is to be removed and 1 - that when it is to be added; L is
    ``(f - t)^2``, the paper's, or the cross-entropy -t log f - (1 - t) log(1 - f), which still has a slope where the
    classifier is sure and is therefore the default. An image is done at the first step at which ``f <= t + tolerance``.
    As in the paper, lambda is lowered for images that do not get there: by 10 in each further round, which goes on from
    the best image so far. ``attribute`` gives x - x', evidence is |x - x'|.

    Args:
        classifier: see ``counterscan.peers.base``.
        loss: L.
        target: t.
        tolerance: how far from it is near enough: the defaults ask for a probability of at most .05.
        distance: lambda of the first round; |.|_2^2 is the sum over pixels, in units of [-1, 1]. Rather too high, since
            it is lowered where it must be, than too low, when Adam moves every pixel as far as those that matter.
        rate: Adam's step size, the most that a pixel moves in a step: .01 is 0.5 % of the range. After each step pixels
            are brought back to [-1, 1].
        steps: Adam's steps in each round.
        rounds: how many.
        frames: K, of the path, on the straight line from x to x'.
        internal_batch_size: images searched together; bounds memory.
        care: averaging and smoothing; by default the evidence, noisy from pixel to pixel, is smoothed with sigma = 2 %
            of the width.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: a value is out of range.
    """

    name = "Wachter"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        loss: Literal["bce", "squared"] = "bce",
        target: float = 0.0,
        tolerance: float = 0.05,
        distance: float = 1e-2,
        rate: float = 0.01,
        steps: int = 100,
        rounds: int = 3,
        frames: int = 11,
        internal_batch_size: int = 64,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(
            classifier,
            frames=frames,
            internal_batch_size=internal_batch_size,
            care=care or Care(smoothing=0.02),
            masker=masker,
        )
        if loss not in ("bce", "squared"):
            raise InputError(f"no loss {loss!r}", field="loss", remedy="Use bce or squared")
        if not (target >= 0 and tolerance > 0 and target + tolerance < 0.5):
            raise InputError(
                f"target {target} must be at least 0, tolerance {tolerance} above 0, their sum below 0.5",
                field="target",
            )
        if not (distance >= 0 and rate > 0):
            raise InputError(f"distance {distance} must not be negative, rate {rate} positive", field="rate")
        for name, value in (("steps", steps), ("rounds", rounds)):
            if value < 1:
                raise InputError(f"{value} must be at least 1", field=name)
        self.loss, self.target, self.tolerance, self.distance = loss, target, tolerance, distance
        self.rate, self.steps, self.rounds = rate, steps, rounds

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "loss": self.loss,
            "target": self.target,
            "tolerance": self.tolerance,
            "distance": self.distance,
            "rate": self.rate,
            "steps": self.steps,
            "rounds": self.rounds,
        }

    def _search(self, images: Tensor, columns: Tensor, direction: Direction, valid: Tensor) -> Search:
        best, score = images.clone(), torch.full_like(columns, 2, dtype=torch.float32)  # worse than any
        for number in range(self.rounds):
            left = (score > self.target + self.tolerance).nonzero()[:, 0]
            if not len(left):
                break
            best[left], score[left] = self._descend(
                images[left], best[left], columns[left], direction, valid[left], self.distance / 10**number
            )
        failed = (score > self.target + self.tolerance).tolist()
        steps = self.rounds * self.steps

        def frame(share: float) -> Tensor:
            return torch.lerp(images, best, share)

        shares = torch.linspace(0, 1, self.frames).tolist()
        return Search(
            images - best,
            torch.stack([frame(share) for share in shares], dim=1),
            frame,
            [f"{steps} steps did not bring it there" if fail else "" for fail in failed],
        )

    def _descend(
        self, images: Tensor, start: Tensor, columns: Tensor, direction: Direction, valid: Tensor, distance: float
    ) -> tuple[Tensor, Tensor]:
        """Adam from ``start``; the first image that is near enough, or else the best, and its score (N,)."""
        best, best_score = start.clone(), torch.full_like(columns, 2, dtype=torch.float32)
        active = torch.arange(len(images), device=images.device)
        x, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step in range(self.steps + 1):
            x = x.detach().requires_grad_()
            toward = margin(self.classifier(x), columns[active], direction)
            score = toward.detach().sigmoid()
            better = score < best_score[active]
            best[active[better]], best_score[active[better]] = x.detach()[better], score[better]
            going = score > self.target + self.tolerance
            if step == self.steps or not bool(going.any()):
                break
            loss = self._loss(toward) + distance * (x - images[active]).square().sum(dim=(1, 2, 3))
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            active, x = active[going], x.detach()[going]
            gradient = gradient[going] * valid[active]
            mean = _BETAS[0] * mean[going] + (1 - _BETAS[0]) * gradient
            square = _BETAS[1] * square[going] + (1 - _BETAS[1]) * gradient.square()
            slope, spread = mean / (1 - _BETAS[0] ** (step + 1)), square / (1 - _BETAS[1] ** (step + 1))
            # No projection where nothing may change, so that padding keeps its very values.
            moved = (x - self.rate * slope / (spread.sqrt() + _EPSILON)).clamp(-1, 1)
            x = torch.where(valid[active] > 0, moved, x)
        return best, best_score

    def _loss(self, toward: Tensor) -> Tensor:
        if self.loss == "squared":
            return (toward.sigmoid() - self.target).square()
        goal = torch.full_like(toward, self.target)
        return F.binary_cross_entropy_with_logits(toward, goal, reduction="none")
