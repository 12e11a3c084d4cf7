"""StyleGAN2's discriminator for one channel and many findings, and the settings that it shares with the generator.

    x -> lrelu(conv(x)) + skip(x)         halving the resolution, down to 4 x 4
    4 x 4, minibatch-stddev -> features f
    logit = a f + <f, e(c)> / sqrt(dim f)     projection on the label's embedding (Miyato and Koyama 2018)
    findings = B f                            auxiliary logits, one per finding

Written from Karras et al. 2020 (arXiv 1912.04958 and 2006.06676). Halving is a 4x4 convolution of stride 2, of which
averaging 2 x 2 after a 3x3 convolution is a special case; the skip averages before its 1x1 convolution. "lite" has one
convolution per halving and starts on the image itself; "residual" has a 1x1 stem and two. Gains of the activation
(sqrt 2) and of the sum (1 / sqrt 2) are multiplied into weights, not onto features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.equalised import EqualConv, EqualLinear, LabelEmbedding, checked_labels


@dataclass(frozen=True)
class StyleGANConfig:
    """Sizes of both networks.

    Attributes:
        size: side of the image in pixels, a power of two from 16.
        labels: K findings that condition the image; 0 for none.
        z_dim, w_dim: lengths of the latents.
        mapping_layers: of the MLP from z to w.
        mapping_rate: factor on its learning rate, through the equalised weights.
        channels: of the generator, one per resolution from 4x4 up.
        convolutions: modulated convolutions per resolution, 1 ("lite") or 2 ("full"); 4x4 has one.
        d_channels: of the discriminator, one per resolution from 4x4 up; None for the generator's. The last one is of
            "residual" only: "lite" starts at half the resolution.
        d_kind: "lite", one convolution per halving, or "residual", two.
        minibatch_stddev: images that a group compares, see ``Discriminator``; 1 for none.
        auxiliary: with an output for each finding.

    Raises:
        InputError: a value is out of range; names the field.
    """

    size: int = 64
    labels: int = 0
    z_dim: int = 64
    w_dim: int = 128
    mapping_layers: int = 2
    mapping_rate: float = 0.01
    channels: tuple[int, ...] = (64, 64, 64, 32, 16)
    convolutions: int = 1
    d_channels: tuple[int, ...] | None = None
    d_kind: Literal["lite", "residual"] = "lite"
    minibatch_stddev: int = 4
    auxiliary: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 16 or self.size & (self.size - 1):
            raise InputError(f"{self.size} must be a power of two, at least 16", field="size")
        levels = self.size.bit_length() - 2
        for name in ("channels", "d_channels"):
            widths = getattr(self, name)
            if widths is None and name == "d_channels":
                continue
            object.__setattr__(self, name, tuple(widths))
            if len(widths) != levels or min(widths) < 1:
                raise InputError(
                    f"{tuple(widths)} must be {levels} positive counts, for 4 to {self.size} pixels", field=name
                )
        for name, least in (("labels", 0), ("z_dim", 1), ("w_dim", 1), ("mapping_layers", 1), ("minibatch_stddev", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{getattr(self, name)} must be at least {least}", field=name)
        if not 0 < self.mapping_rate <= 1:
            raise InputError("must be above 0 and at most 1", field="mapping_rate")
        if self.convolutions not in (1, 2):
            raise InputError(f"{self.convolutions} must be 1 or 2", field="convolutions")
        if self.d_kind not in ("lite", "residual"):
            raise InputError(f"{self.d_kind!r} must be lite or residual", field="d_kind")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8, ... size."""
        return tuple(4 * 2**k for k in range(len(self.channels)))


PRESETS: dict[str, dict[str, Any]] = {
    "cxr64-cpu": {},
    "cxr64-lite": {"channels": (32, 32, 32, 32, 16), "d_channels": (48, 48, 48, 32, 16), "w_dim": 64},
    "cxr128": {
        "size": 128, "channels": (256, 256, 256, 128, 64, 32), "z_dim": 256, "w_dim": 256, "mapping_layers": 4,
        "convolutions": 2, "d_kind": "residual",
    },
    "cxr256": {
        "size": 256, "channels": (256, 256, 256, 256, 128, 64, 32), "z_dim": 256, "w_dim": 256, "mapping_layers": 4,
        "convolutions": 2, "d_kind": "residual", "minibatch_stddev": 8,
    },
}  # fmt: skip


def preset(name: str, **changes: Any) -> StyleGANConfig:
    """A named configuration: cxr64-cpu, the smaller cxr64-lite (1.2 times as fast), or cxr128 and cxr256 for a GPU.

    Args:
        name: of ``PRESETS``.
        changes: fields to set otherwise, first of all ``labels``.

    Raises:
        InputError: no such preset, or a change out of range.
    """
    if name not in PRESETS:
        raise InputError(f"{name!r} must be one of {', '.join(PRESETS)}", field="preset")
    return StyleGANConfig(**(PRESETS[name] | changes))


class Halving(nn.Module):
    """(sqrt(2) lrelu(conv(x)) + skip(x)) / sqrt(2) at half the resolution; "residual" convolves once more before."""

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.before = EqualConv(inputs, inputs, 3, padding=1) if residual else None
        self.down = EqualConv(inputs, outputs, 4, stride=2, padding=1, gain=1.0)
        self.skip = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.scale = 1 / math.sqrt(2 * inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        # Averaging 2 x 2 and a 1x1 convolution are one 2x2 convolution, the cheaper way to differentiate twice.
        skip = F.conv2d(x, (self.skip * (self.scale / 4)).expand(-1, -1, 2, 2), stride=2)
        return skip + self.down(x if self.before is None else self.before(x))


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append a channel that says how much images differ: the standard deviation over a group, its mean over features.

    Groups are neighbours in the batch, max(1, N // group) of them and as equal as can be, so that any N is served: 7
    images by 4 are one group, 9 are one of 5 and one of 4. A batch of one differs by nothing. Real and generated images
    in one batch stay apart when each are a multiple of ``group``, and processes whose shares are multiples of it make
    the groups that one process would.

    Args:
        x: (N, C, H, W).
        group: images in a group, at least.

    Returns:
        (N, C + 1, H, W).
    """
    n, _, h, w = x.shape
    groups = max(1, n // group)
    member = torch.arange(n, device=x.device) * groups // max(n, 1)
    belongs = (member[None] == torch.arange(groups, device=x.device)[:, None]).to(x.dtype)  # (groups, N)
    mean_of = belongs / belongs.sum(dim=1, keepdim=True)
    flat = x.flatten(1)
    variance = mean_of @ (flat - (mean_of @ flat)[member]).square()
    spread = (variance + 1e-8).sqrt().mean(dim=1)[member]
    return torch.cat([x, spread[:, None, None, None].expand(n, 1, h, w)], dim=1)


class DOutput(NamedTuple):
    """What the discriminator says.

    Attributes:
        logits: (N,), larger is more real.
        findings: (N, K) auxiliary logits; None without.
        features: (N, F).
    """

    logits: Tensor
    findings: Tensor | None
    features: Tensor


class Discriminator(nn.Module):
    """How real an image looks, given its findings.

    Attributes:
        config: its sizes.
    """

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        residual, widths = config.d_kind == "residual", config.d_channels or config.channels
        start = widths[-1] if residual else 1
        self.stem = EqualConv(1, start, 1) if residual else None
        inputs = [start, *widths[-2:0:-1]]
        self.halvings = nn.ModuleList(Halving(i, o, residual) for i, o in zip(inputs, widths[-2::-1], strict=True))
        width = widths[0]
        last = width + (config.minibatch_stddev > 1)
        self.last = EqualConv(last, width, 3, padding=1) if residual else None
        self.dense = EqualLinear(16 * (width if residual else last), width, active=True)
        self.head = EqualLinear(width, 1)
        self.embed = LabelEmbedding(config.labels, width) if config.labels else None
        self.auxiliary = EqualLinear(width, config.labels) if config.labels and config.auxiliary else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> DOutput:
        """Look at images. Can be differentiated twice (R1).

        Args:
            x: (N, 1, size, size).
            c: (N, K) in [0, 1], soft labels welcome; None without findings.

        Raises:
            InputError: a wrong shape.
        """
        size = self.config.size
        if x.shape[1:] != (1, size, size):
            raise InputError(f"expected images (N, 1, {size}, {size}), got {tuple(x.shape)}", field="x")
        c = checked_labels(c, self.config.labels, len(x))
        x = x.reshape(-1, size, size, 1).permute(0, 3, 1, 2)  # channels last, and visibly so with one channel
        if self.stem is not None:
            x = self.stem(x)
        for halving in self.halvings:
            x = halving(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.head.weight.dtype)
            if self.config.minibatch_stddev > 1:
                x = minibatch_stddev(x, self.config.minibatch_stddev)
            if self.last is not None:
                x = self.last(x)
            features = self.dense(x.flatten(1))
            logits = self.head(features)[:, 0]
            if self.embed is not None and c is not None:
                logits = logits + (features * self.embed(c)).sum(dim=1) / math.sqrt(features.shape[1])
            findings = None if self.auxiliary is None else self.auxiliary(features)
        return DOutput(logits, findings, features)
