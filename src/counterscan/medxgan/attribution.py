"""What a path from the negative counterpart to the image says about the classifier.

A path is K + 1 frames g_0 ... g_K of each image, (K + 1, N, 1, H, W): g_0 without the finding, g_K the image or its
reconstruction. F is one output of the classifier, the logit of a fixed finding; never the arg-max class at a point,
which changes on the way and leaves no axiom standing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Output = Callable[[Tensor], Tensor]
_NEGLIGIBLE = 0.005  # of a logit
_FINER = (2, 4, 8)  # points in each step, tried in turn


def path_integrated_gradients(
    path: Tensor, output: Output, *, tolerance: float = float("inf"), batch_size: int = 128
) -> Tensor:
    """Latent integrated gradients (LIG) in path form.

        LIG_i = sum_k dF/dx_i((g_k + g_{k+1}) / 2) * (g_{k+1,i} - g_{k,i})

    The published form multiplies the gradients of the curved path by the straight displacement x - x0 and so sums to
    F(x) - F(x0) only when the path is straight. This one does up to discretisation, which ``tolerance`` bounds: in
    images that need it, gradients are taken at 2, 4, then 8 points of every step (Gauss-Legendre), until the sum is
    right.

    Args:
        path: (K + 1, N, 1, H, W).
        output: (M, 1, H, W) to (M,).
        tolerance: share of F(g_K) - F(g_0) that the sum may miss; 0.005 of F never matters.
        batch_size: images per pass.

    Returns:
        (N, 1, H, W), signed: positive where the way to the finding raised F.
    """
    found = _integral(path, output, 1, batch_size)
    if not math.isfinite(tolerance):
        return found
    with torch.no_grad():
        ends = torch.cat([output(part) for part in path[[0, -1]].flatten(0, 1).split(batch_size)])
    start, end = ends.view(2, path.shape[1])
    rise = end - start
    allowed = (tolerance * rise.abs()).clamp_min(_NEGLIGIBLE)
    for points in _FINER:
        rows = torch.nonzero((found.flatten(1).sum(dim=1) - rise).abs() > allowed)[:, 0]
        if not len(rows):
            break
        found[rows] = _integral(path[:, rows], output, points, batch_size)
    return found


def _integral(path: Tensor, output: Output, points: int, batch_size: int) -> Tensor:
    """The sum over a path's steps, with gradients at the points of Gauss-Legendre quadrature in each."""
    steps, total = path.diff(dim=0), torch.zeros_like(path[0])
    for place, weight in zip(*np.polynomial.legendre.leggauss(points), strict=True):  # on [-1, 1], weights sum to 2
        between = path[:-1] + (place + 1) / 2 * steps
        gradients = gradients_of(between.flatten(0, 1), output, batch_size=batch_size).view_as(steps)
        total += (gradients * steps).sum(dim=0) * weight / 2
    return total


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
