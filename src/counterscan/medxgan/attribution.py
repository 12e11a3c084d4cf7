"""What a path from the counterpart to the image says about the classifier.

A path is K + 1 frames g_0 ... g_K of each image, (K + 1, N, 1, H, W): g_0 the counterpart, g_K the image or its
reconstruction. F is one output of the classifier, the logit of a fixed finding; never the arg-max class at a point,
which changes on the way and leaves no axiom standing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Output = Callable[[Tensor], Tensor]
LEAST_RISE = 0.5  # of a logit from one end of a path to the other, below which no share of it is told
_NEGLIGIBLE = 0.005  # of a logit
_PARTS = (3, 9, 27)  # of a step, tried in turn


def path_integrated_gradients(
    path: Tensor,
    output: Output,
    *,
    tolerance: float = float("inf"),
    known: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Latent integrated gradients (LIG) in path form.

        LIG_i = sum_k dF/dx_i((g_k + g_{k+1}) / 2) * (g_{k+1,i} - g_{k,i})

    The published form multiplies the gradients of the curved path by the straight displacement x - x0 and so sums to
    F(x) - F(x0) only when the path is straight. This one does up to discretisation, which ``tolerance`` bounds: where
    an image's sum is wrong, the steps that are furthest from the rise of F in them are cut into thirds, then ninths,
    then 27 parts, with a gradient in the middle of each; a third of these is known already.

    Args:
        path: (K + 1, N, 1, H, W).
        output: (M, 1, H, W) to (M,).
        tolerance: share of F(g_K) - F(g_0) that the sum may miss; 0.005 of F never matters.
        known: (K + 1, N), F at the frames, where it was asked already.
        batch_size: images per pass.

    Returns:
        (N, 1, H, W), signed: positive where the way to the image raised F.
    """
    steps = path.diff(dim=0)

    def gradients(rows: Tensor, places: list[float]) -> Tensor:
        """Of some of the K N steps, the mean over places between 0 and 1 in them."""
        starts, ways = (part.flatten(0, 1)[rows] for part in (path[:-1], steps))
        points = torch.cat([starts + place * ways for place in places])
        return gradients_of(points, output, batch_size=batch_size).view(len(places), *starts.shape).mean(dim=0)

    mean = gradients(torch.arange(steps.shape[0] * steps.shape[1], device=path.device), [0.5])
    if math.isfinite(tolerance):
        rises = (_outputs(path, output, batch_size) if known is None else known).diff(dim=0)
        allowed = (tolerance * rises.sum(dim=0).abs()).clamp_min(_NEGLIGIBLE)
        for parts in _PARTS:
            missed = (mean.view_as(steps) * steps).flatten(2).sum(dim=2) - rises
            wrong = (missed.sum(dim=0).abs() > allowed) & (missed.abs() > allowed / len(steps))
            rows = torch.nonzero(wrong.flatten())[:, 0]
            if not len(rows):
                break
            new = [(part + 0.5) / parts for part in range(parts) if part % 3 != 1]  # the others are known
            mean[rows] = (mean[rows] + 2 * gradients(rows, new)) / 3
    return (mean.view_as(steps) * steps).sum(dim=0)


@torch.no_grad()
def _outputs(path: Tensor, output: Output, batch_size: int) -> Tensor:
    """(K + 1, N): F at the frames."""
    parts = [output(part) for part in path.flatten(0, 1).split(batch_size)]
    return torch.cat(parts).view(path.shape[:2])


def displacement_integrated_gradients(path: Tensor, output: Output, *, batch_size: int = 128) -> Tensor:
    """LIG as published: (x - x0) times the mean gradient at the frames, x0 = g_0 and x = g_K."""
    gradients = gradients_of(path.flatten(0, 1), output, batch_size=batch_size).view_as(path)
    return (path[-1] - path[0]) * gradients.mean(dim=0)


def straight_path(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """(steps + 1, N, 1, H, W) on the straight line; path-integrated over it is Integrated Gradients from ``start``."""
    strengths = torch.linspace(0, 1, steps + 1, device=start.device).view(-1, 1, 1, 1, 1)
    return start + strengths * (end - start)


def gradients_of(images: Tensor, output: Output, *, batch_size: int = 128) -> Tensor:
    """dF/dx at (M, 1, H, W) images, shaped like them, in passes of ``batch_size``."""
    parts = []
    for part in images.split(batch_size):
        with torch.inference_mode(False), torch.enable_grad():
            x = part.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(output(x).sum(), x)
        parts.append(gradient.detach())
    return torch.cat(parts) if parts else torch.zeros_like(images)
