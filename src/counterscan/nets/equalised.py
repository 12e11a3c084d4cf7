"""Layers that StyleGAN's generator and discriminator share: equalised learning rate, and conditions as directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError

SQRT2 = math.sqrt(2)


def unit_moment(x: Tensor) -> Tensor:
    """Each row of (N, D) scaled to a mean square of 1; zeros stay zeros."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """A linear layer with equalised learning rate (Karras et al. 2018): weights N(0, 1) / rate, scaled when used.

    Args:
        inputs, outputs: lengths.
        bias: its start; None for none.
        rate: factor on the learning rate.
        active: sqrt(2) leaky ReLU after it.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: float | None = 0.0, rate: float = 1.0, active: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = None if bias is None else nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate, self.active = rate / math.sqrt(inputs), rate, active

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        bias = None if self.bias is None else self.bias * self.rate
        x = F.linear(x, self.weight * self.gain, bias)
        return F.leaky_relu(x, 0.2) * SQRT2 if self.active else x


class EqualConv(nn.Module):
    """A convolution with equalised learning rate, as ``EqualLinear``, and leaky ReLU.

    Args:
        inputs, outputs: channels.
        kernel, stride, padding: as usual.
        gain: of its answer.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, gain: float = SQRT2
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride, self.padding = stride, padding
        self.scale, self.gain = gain / math.sqrt(inputs * kernel**2), gain

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H', W')."""
        x = F.conv2d(x, self.weight * self.scale, self.bias * self.gain, self.stride, self.padding)
        return F.leaky_relu(x, 0.2, inplace=True)


class LabelEmbedding(nn.Module):
    """A soft multi-label vector as a direction: a linear layer on (c, 1), then scaled to unit second moment.

    The 1 gives the image without findings a direction of its own.
    """

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.labels = labels
        self.linear = EqualLinear(labels + 1, width, bias=None)

    def forward(self, c: Tensor) -> Tensor:
        """(N, labels) to (N, width), in the weights' precision."""
        c = c.to(self.linear.weight.dtype)
        return unit_moment(self.linear(torch.cat([c, torch.ones_like(c[:, :1])], dim=1)))


def checked_labels(c: Tensor | None, labels: int, count: int) -> Tensor | None:
    """The condition for ``count`` images of a network that knows ``labels`` findings; None without findings.

    Raises:
        InputError: missing, superfluous, or of another shape.
    """
    if labels == 0:
        if c is not None and c.numel():
            raise InputError("the network knows no findings", field="c", remedy="Leave the labels out")
        return None
    if c is None or c.shape != (count, labels):
        found = "none" if c is None else tuple(c.shape)
        raise InputError(f"expected labels ({count}, {labels}), got {found}", field="c")
    return c
