"""The AUC-margin loss: scores that rank well, learned as a saddle point (Yuan et al. 2021, arXiv 2012.03173).

For one label with scores h, margin m and E+, E- the means over images with and without the finding, version "v2" is

    F(h, a, b, alpha) = E+ (h - a)^2 + E- (h - b)^2 + 2 alpha (m + E- h - E+ h) - alpha^2,

minimised over the network, a and b, maximised over alpha >= 0. Version "v1" is the form of the paper, a mean over all
images with the prior p of the finding in it; p is the batch's own share here, which makes it p (1 - p) times "v2".

The saddle is at a = E+ h, b = E- h, alpha = max(0, m + b - a) and has the value

    Var+ h + Var- h + max(0, m + E- h - E+ h)^2,

which equals the mean over all pairs of (m - h+ + h-)^2 whenever alpha > 0. Scores in [0, 1], such as sigmoid(logits),
with m = 1 leave no pair that is more than m apart, so that the loss is then exactly the squared hinge over all pairs,
E max(0, m - h+ + h-)^2, at the price of one pass.

LibAUC 2.0.1 has the same loss with two faults that this one does not share. Its "v2" takes the mean of the negatives'
scores inside the mean over the whole batch (a misplaced parenthesis), which scales it by 1 - p; and its mean divides by
the number of non-zero terms, which drops images whose score or residual is exactly 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from counterscan.errors import InputError

Version = Literal["v1", "v2"]
# Keeps 0 / 0 out of the gradient of a class that is not there.
_TINY = 1e-12


class AUCMargin(nn.Module):
    """AUC-margin loss of several labels, with its own a, b and alpha for each; to be trained with ``PESG``.

    A label in (0, 1) counts as positive with that weight and as negative with the rest. NaN counts as neither. A label
    whose known images are all of one class cannot be ranked: it adds nothing and sends no gradient.

    Args:
        labels: their number K.
        margin: m > 0, in units of the scores; 1 suits scores in [0, 1].
        version: "v2", without prior, or "v1", with each batch's own.

    Attributes:
        a, b: (K,) parameters, the running centres of positive and negative scores.
        alpha: (K,) parameter >= 0, ascended.

    Raises:
        InputError: a value is out of range; names the field.
    """

    def __init__(self, labels: int, margin: float = 1.0, version: Version = "v2") -> None:
        super().__init__()
        if labels < 1:
            raise InputError("must be at least 1", field="labels")
        if not margin > 0:
            raise InputError("must be positive", field="margin")
        if version not in ("v1", "v2"):
            raise InputError(f"{version!r} must be v1 or v2", field="version")
        self.margin, self.version = margin, version
        self.a, self.b, self.alpha = (nn.Parameter(torch.zeros(labels)) for _ in range(3))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Mean of the loss over the labels that can be ranked; 0 when none can.

        Args:
            scores: (N, K), higher for the finding.
            labels: (N, K) in [0, 1] or NaN.

        Raises:
            InputError: shapes that do not fit, or a label outside of [0, 1].
        """
        losses, ranked = self._losses(scores, labels, self.a, self.b, self.alpha)
        return torch.where(ranked, losses, 0.0).sum() / ranked.sum().clamp_min(1)

    def per_label(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(K,) losses at the present a, b and alpha; NaN for a label that cannot be ranked. See ``forward``."""
        losses, ranked = self._losses(scores, labels, self.a, self.b, self.alpha)
        return torch.where(ranked, losses, torch.nan)

    def saddle(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(K,) losses at the best a, b and alpha for these scores; NaN for a label that cannot be ranked."""
        losses, ranked = self._losses(scores, labels, *self._best(scores, labels))
        return torch.where(ranked, losses, torch.nan)

    @torch.no_grad()
    def settle(self, scores: Tensor, labels: Tensor) -> None:
        """Put a, b and alpha of the labels that can be ranked where these scores want them, to begin training there.

        From zero they take tens of steps to arrive, during which they pull the scores of both classes down.
        """
        _, ranked = self._losses(scores, labels, self.a, self.b, self.alpha)
        for parameter, best in zip((self.a, self.b, self.alpha), self._best(scores, labels), strict=True):
            parameter.copy_(torch.where(ranked, best, parameter))

    def _losses(self, scores: Tensor, labels: Tensor, a: Tensor, b: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """(K,) losses, and which labels have both classes."""
        scores, positive, negative = self._weights(scores, labels)
        p, q = positive.sum(0), negative.sum(0)
        mean_positive, mean_negative = (
            (weight * scores).sum(0) / weight.sum(0).clamp_min(_TINY) for weight in (positive, negative)
        )
        spread_positive = (positive * (scores - a).square()).sum(0) / p.clamp_min(_TINY)
        spread_negative = (negative * (scores - b).square()).sum(0) / q.clamp_min(_TINY)
        gap = self.margin + mean_negative - mean_positive
        losses = spread_positive + spread_negative + 2 * alpha * gap - alpha.square()
        if self.version == "v1":
            share = p / (p + q).clamp_min(_TINY)
            losses = share * (1 - share) * losses
        return losses, (p > 0) & (q > 0)

    def _best(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(K,) a, b and alpha of the saddle."""
        scores, positive, negative = self._weights(scores, labels)
        a, b = ((weight * scores).sum(0) / weight.sum(0).clamp_min(_TINY) for weight in (positive, negative))
        return a, b, (self.margin + b - a).clamp_min(0)

    def _weights(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores as float32, and how much each image counts as positive and as negative, (N, K) each."""
        count = len(self.a)
        if scores.ndim != 2 or scores.shape != labels.shape or scores.shape[1] != count:
            raise InputError(
                f"expected scores and labels (N, {count}), got {tuple(scores.shape)} and {tuple(labels.shape)}",
                field="labels",
                remedy="Give one column per label, NaN where it is unknown",
            )
        labels = labels.to(torch.float32)
        known = ~labels.isnan()
        if bool((known & ((labels < 0) | (labels > 1))).any()):
            raise InputError(
                "labels must lie in [0, 1]", field="labels", remedy="Turn uncertain labels (-1) into numbers or NaN"
            )
        positive = torch.where(known, labels, 0.0)
        return scores.float(), positive, torch.where(known, 1 - labels, 0.0)
