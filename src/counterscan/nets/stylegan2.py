"""StyleGAN2's generator for one channel and many findings (Karras et al. 2020, arXiv 1912.04958 and 2006.06676).

    z, c -> w             mapping: z and the label's embedding, each of unit second moment, through a slow MLP
    w -> s = A w + 1      one style per layer (the S space), a factor for each channel that the layer reads
    x <- sqrt(2) lrelu(d conv(s x) + strength noise + b),   d = 1 / sqrt(sum over inputs of (s W)^2)
    y <- up(y) + gray(s x)                                  the image, added up over resolutions

Written from the formulas and arranged for plain PyTorch:

* One convolution serves the batch: styles scale what it reads, not its kernel. As lrelu(d u) = d lrelu(u) for d > 0,
  d and sqrt(2) are carried on to the next layer's style instead of being multiplied onto the features.
* Upsampling with the filter [1, 3, 3, 1] and the 3x3 convolution that reads it are one 3x3 convolution of the small
  map with a kernel for each of the four pixels of a place. The large map that it would read never exists.
* Noise and bias enter by one small matrix product, so that noise is not spread over the channels first.
* Features lie channels last. Styles, demodulation and kernels are float32 under autocast too.

The image is upsampled bilinearly: the same filter inside, and at the border it repeats the image, where zeros (grey)
would bleed into a black background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.discriminator import PRESETS, StyleGANConfig, preset
from counterscan.nets.equalised import SQRT2, EqualLinear, LabelEmbedding, checked_labels, unit_moment

__all__ = ["PRESETS", "Generator", "Noise", "StyleGANConfig", "StyleLayer", "preset"]

Noise = Literal["random", "const", "none"]
_CHUNK = 2**20  # pixels of the image that one pass makes where no gradient is asked for
_PROBES = 256  # draws of z whose mean is a label's centre
# Taps of a 3x3 kernel, by pixel of a place (2) and tap (3), on the places before, here and after: [1, 3, 3, 1] / 4.
_PHASES = (((3, 1, 0), (1, 3, 0), (0, 3, 1)), ((1, 3, 0), (0, 3, 1), (0, 1, 3)))


class StyleLayer(NamedTuple):
    """One layer of the S space.

    Attributes:
        name: "16.conv0", "16.conv1" or "16.gray".
        width: length of its style.
        resolution: side of the map that it makes.
        is_to_gray: whether it makes the image, or features.
        w: which of the ws it is made from.
    """

    name: str
    width: int
    resolution: int
    is_to_gray: bool
    w: int


def interleave(x: Tensor) -> Tensor:
    """(N, h, w, 4 C), the four pixels of each place row by row, to (N, 2 h, 2 w, C)."""
    n, h, w, c = x.shape
    return x.view(n, h, w, 2, 2, c // 4).transpose(2, 3).reshape(n, 2 * h, 2 * w, c // 4)


class ModulatedConv(nn.Module):
    """Modulated 3x3 convolution, demodulation, noise, bias and leaky ReLU.

    Args:
        inputs, outputs: channels.
        w_dim: length of w.
        resolution: of what it makes.
        up: doubles the resolution first.
    """

    noise_const: Tensor
    phases: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.gain = 1 / math.sqrt(9 * inputs)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        taps = torch.tensor(_PHASES) / 4  # pixel of a place, tap, place
        both = torch.einsum("psu,qtv->stpquv", taps, taps).reshape(9, 36)
        self.register_buffer("phases", both, persistent=False)

    def kernels(self) -> Tensor:
        """The convolution's weight: (outputs, inputs, 3, 3), or with ``up`` (4 outputs, inputs, 3, 3)."""
        weight = self.weight * self.gain
        if not self.up:
            return weight
        outputs, inputs = weight.shape[:2]
        kernels = (weight.reshape(-1, 9) @ self.phases).view(outputs, inputs, 4, 9)
        return kernels.permute(2, 0, 1, 3).reshape(4 * outputs, inputs, 3, 3)

    def forward(self, x: Tensor, carried: Tensor, style: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features x (N, h, w, inputs) times carried (N, inputs), to features and factor of the same kind.

        With ``up`` the features are (N, h, w, 4 outputs): the four pixels of each place, see ``interleave``.

        Args:
            x, carried: what the layer reads is their product.
            style: (N, inputs).
            noise: (N, H, W) standard normal.
        """
        n, h, w, _ = x.shape
        pixels = 4 if self.up else 1
        with torch.autocast(x.device.type, enabled=False):
            kernels = self.kernels()
            power = (self.weight * self.gain).square().sum(dim=(2, 3))
            deviation = (style.square() @ power.T + 1e-8).sqrt()  # (N, outputs), 1 / d
            # What is added must be as large as the features before d: strength / d and b / d, for every pixel.
            added = (self.bias * deviation).repeat(1, pixels)[:, None]
            if noise is not None:
                own = torch.eye(pixels, device=x.device, dtype=deviation.dtype)
                strengths = own[:, :, None] * (self.strength * deviation)[:, None, None]
                added = torch.cat([added, strengths.flatten(2)], dim=1)
            scale = (carried * style)[:, None, None]
        y = F.conv2d((x * scale.to(x.dtype)).permute(0, 3, 1, 2), kernels, padding=1).permute(0, 2, 3, 1)
        basis = torch.ones(n, h * w, 1, device=x.device, dtype=y.dtype)
        if noise is not None:
            noise = noise.to(y.dtype)
            if self.up:
                noise = noise.view(n, h, 2, w, 2).transpose(2, 3)
            basis = torch.cat([basis, noise.reshape(n, h * w, pixels)], dim=2)
        width = y.shape[3]
        y = torch.baddbmm(y.reshape(n, h * w, width), basis, added.to(y.dtype))
        return F.leaky_relu(y, 0.2, inplace=True).view(n, h, w, width), SQRT2 / deviation


class ToGray(nn.Module):
    """Modulated 1x1 convolution to one channel, without demodulation."""

    def __init__(self, inputs: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(inputs))
        self.gain = 1 / math.sqrt(inputs)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, carried: Tensor, style: Tensor) -> Tensor:
        """(N, h, w, P inputs) times (N, inputs) to (N, h, w, P)."""
        n, h, w, width = x.shape
        weight = (self.weight * self.gain * carried * style)[:, :, None]
        pixels = width // weight.shape[1]
        image = torch.bmm(x.reshape(n, h * w * pixels, weight.shape[1]), weight.to(x.dtype))
        return image.view(n, h, w, pixels).to(self.bias.dtype) + self.bias


class Generator(nn.Module):
    """z, c -> w -> s -> image.

    Attributes:
        config: its sizes.
        num_ws: how many ws an image is made from (W+): one per convolution and one for the last ``ToGray``.
        style_layers: the layers of the S space, in the order of ``styles``.
        w_avg: (w_dim,) running mean of w, and ``w_sd`` its standard deviation; see ``update_w_avg``.
    """

    w_avg: Tensor
    w_sd: Tensor
    w_updates: Tensor
    probes: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.config = config
        width, rate = config.w_dim, config.mapping_rate
        self.embed = LabelEmbedding(config.labels, config.z_dim) if config.labels else None
        first = config.z_dim * (2 if config.labels else 1)
        self.mapping = nn.Sequential(
            *(EqualLinear(width if k else first, width, rate=rate, active=True) for k in range(config.mapping_layers))
        )
        self.const = nn.Parameter(torch.randn(4, 4, config.channels[0]))
        self.convs, self.grays = nn.ModuleList(), nn.ModuleList()
        layers: list[StyleLayer] = []
        before, w = config.channels[0], 0
        for resolution, channels in zip(config.resolutions, config.channels, strict=True):
            block = nn.ModuleList()
            for k in range(1 if resolution == 4 else config.convolutions):
                up = k == 0 and resolution > 4
                block.append(ModulatedConv(before, channels, width, resolution, up))
                layers.append(StyleLayer(f"{resolution}.conv{k}", before, resolution, False, w))
                before, w = channels, w + 1
            self.convs.append(block)
            self.grays.append(ToGray(channels, width))
            layers.append(StyleLayer(f"{resolution}.gray", channels, resolution, True, w))
        self.style_layers, self.num_ws = tuple(layers), w + 1
        self.register_buffer("w_avg", torch.zeros(width))
        self.register_buffer("w_sd", torch.ones(width))
        self.register_buffer("w_updates", torch.zeros((), dtype=torch.long))
        probes = torch.randn(_PROBES, config.z_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("probes", probes, persistent=False)

    # Z to W

    def map(self, z: Tensor, c: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Latents to ws, truncated: w' = m + psi (w - m).

        The middle m is ``w_avg`` for a network without findings and the label's own, see ``centre``, with: towards a
        mean over all labels, truncation would take rare findings away.

        Args:
            z: (N, z_dim), standard normal.
            c: (N, K) in [0, 1], soft labels welcome; None without findings.
            psi: 1 for no truncation, 0 for the middle.
            cutoff: truncate the first so many ws only; None for all.

        Returns:
            (N, num_ws, w_dim) float32.

        Raises:
            InputError: a wrong shape, or, in eval mode, a label that is NaN or outside of [0, 1].
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise InputError(f"expected latents (N, {self.config.z_dim}), got {tuple(z.shape)}", field="z")
        c = checked_labels(c, self.config.labels, len(z))
        # In training the look would make a GPU wait.
        if c is not None and not self.training and not bool(((c >= 0) & (c <= 1)).all()):
            raise InputError(
                "labels are NaN or outside of [0, 1]", field="c", remedy="Fill in unknown ones, say by 0.5"
            )
        ws = self._mapped(z, c)[:, None].repeat(1, self.num_ws, 1)
        if psi == 1:
            return ws
        middle = self.w_avg.expand(len(z), -1) if c is None else self.centre(c)
        cut = self.num_ws if cutoff is None else cutoff
        if not 0 <= cut <= self.num_ws:
            raise InputError(f"{cut} must be from 0 to {self.num_ws}", field="cutoff")
        return torch.cat([torch.lerp(middle[:, None].expand_as(ws), ws, psi)[:, :cut], ws[:, cut:]], dim=1)

    def _mapped(self, z: Tensor, c: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            x = unit_moment(z.to(self.const.dtype))
            if self.embed is not None and c is not None:
                x = torch.cat([x, self.embed(c)], dim=1)
            return self.mapping(x)

    def centre(self, c: Tensor) -> Tensor:
        """The mean w of each label, (N, K) to (N, w_dim), over 256 draws of z that never change."""
        means = []
        for part in c.split(64):
            z = self.probes.repeat(len(part), 1)
            w = self._mapped(z, part.repeat_interleave(_PROBES, dim=0))
            means.append(w.view(len(part), _PROBES, -1).mean(dim=1))
        return torch.cat(means) if means else c.new_zeros(0, self.config.w_dim)

    @torch.no_grad()
    def update_w_avg(self, ws: Tensor, beta: float = 0.995) -> None:
        """Take a batch of ws, untruncated, into ``w_avg`` and ``w_sd``.

        A running mean over all batches until ``beta`` forgets faster. With several processes give each the ws of all,
        or average the buffers.

        Args:
            ws: (N, num_ws, w_dim) or (N, w_dim).
            beta: memory of the exponential mean.
        """
        w = ws.detach().reshape(-1, self.config.w_dim).to(self.w_avg.dtype)
        self.w_updates += 1
        share = torch.maximum(1 / self.w_updates, torch.as_tensor(1 - beta, device=w.device)).to(w.dtype)
        self.w_avg.lerp_(w.mean(dim=0), share)
        spread = (w - self.w_avg).square().mean(dim=0)
        self.w_sd.copy_(self.w_sd.square().lerp(spread, share).sqrt())

    def mix(self, ws_a: Tensor, ws_b: Tensor, cut: int | Tensor) -> Tensor:
        """Style mixing: the first ``cut`` ws of a, the others of b.

        Args:
            ws_a, ws_b: (N, num_ws, w_dim).
            cut: 0 to num_ws, one or (N,).
        """
        cuts = torch.as_tensor(cut, device=ws_a.device).view(-1, 1, 1)
        return torch.where(torch.arange(self.num_ws, device=ws_a.device)[None, :, None] < cuts, ws_a, ws_b)

    # W to S to the image

    def styles(self, ws: Tensor) -> list[Tensor]:
        """(N, num_ws, w_dim) to one (N, width) per layer, as ``style_layers`` names them.

        Raises:
            InputError: ws has another shape.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.config.w_dim):
            raise InputError(f"expected ws (N, {self.num_ws}, {self.config.w_dim}), got {tuple(ws.shape)}", field="ws")
        with torch.autocast(ws.device.type, enabled=False):
            ws = ws.to(self.const.dtype)
            return [part.affine(ws[:, layer.w]) for part, layer in zip(self._parts(), self.style_layers, strict=True)]

    def _parts(self) -> list[Any]:
        pairs = zip(self.convs, self.grays, strict=True)
        return [part for convs, gray in pairs for part in (*convs, gray)]  # type: ignore[misc]

    def synthesize(
        self,
        ws: Tensor | None = None,
        *,
        styles: Sequence[Tensor] | None = None,
        noise: Noise = "const",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Ws or styles to images; without gradients in parts of bounded memory.

        Args:
            ws: (N, num_ws, w_dim).
            styles: as ``styles`` gives them, instead of ws.
            noise: drawn anew ("random"), the network's own ("const") or left out ("none").
            generator: for random noise, on its device; None for the global one.

        Returns:
            (N, 1, size, size) float32, about in [-1, 1] and not clipped.

        Raises:
            InputError: both or neither of ws and styles, a wrong shape, or an unknown kind of noise.
        """
        if (ws is None) == (styles is None):
            raise InputError("give either ws or styles", field="ws")
        if noise not in ("random", "const", "none"):
            raise InputError(f"{noise!r} must be random, const or none", field="noise")
        given = self.styles(ws) if ws is not None else list(styles or ())
        count = len(given[0]) if given else 0
        expected = [(count, layer.width) for layer in self.style_layers]
        if [tuple(style.shape) for style in given] != expected:
            raise InputError(f"expected styles of shapes {expected}", field="styles")
        noises = self._noises(noise, count, generator)
        step = count if torch.is_grad_enabled() else max(1, _CHUNK // self.config.size**2)
        parts = [
            self._image([s[at : at + step] for s in given], [None if m is None else m[at : at + step] for m in noises])
            for at in range(0, max(count, 1), max(step, 1))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _noises(self, noise: Noise, count: int, generator: torch.Generator | None) -> list[Tensor | None]:
        """(N, H, W) for each convolution."""
        convs = [part for part in self._parts() if isinstance(part, ModulatedConv)]
        if noise == "none":
            return [None for _ in convs]
        if noise == "const":
            return [conv.noise_const.expand(count, -1, -1) for conv in convs]
        device = self.const.device if generator is None else generator.device
        return [
            torch.randn(count, *conv.noise_const.shape, generator=generator, device=device).to(self.const.device)
            for conv in convs
        ]

    def _image(self, styles: list[Tensor], noises: list[Tensor | None]) -> Tensor:
        x = self.const.expand(len(styles[0]), -1, -1, -1)
        carried = torch.ones_like(styles[0])
        image: Tensor | None = None
        left, drawn = iter(styles), iter(noises)
        split = False  # whether x holds the four pixels of each place beside each other
        for convs, gray in zip(self.convs, self.grays, strict=True):
            for conv in convs:  # type: ignore[attr-defined]
                x, carried = conv(interleave(x) if split else x, carried, next(left), next(drawn))
                split = conv.up
            y = gray(x, carried, next(left))
            y = (interleave(y) if split else y).permute(0, 3, 1, 2)
            if image is not None:
                y = y + F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
            image = y
        assert image is not None
        return image.contiguous()

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        psi: float = 1.0,
        noise: Noise = "const",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``synthesize(map(z, c, psi))``: (N, z_dim), (N, K) to (N, 1, size, size)."""
        return self.synthesize(self.map(z, c, psi), noise=noise, generator=generator)
