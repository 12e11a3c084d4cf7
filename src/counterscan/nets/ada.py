"""Adaptive discriminator augmentation for radiographs (Karras et al. 2020, "Training GANs with limited data").

The discriminator sees real and generated images only through random views. With p, the probability of each change, kept
low enough, the generator cannot pass the views off as data; p rises when the discriminator starts to know the training
images by heart.

The paper's pipeline mirrors, turns by 90 degrees and inverts images. A chest has its heart on one side, hangs one way
up, and is bright where it is dense, so nothing of the kind is here. All moves are one affine map and one resampling,
whose borders reflect: a border of zeros would be copied by the generator as a dark frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError

_CURVE_LIMIT = 0.5  # at this much x + a (1 - x^2) still rises everywhere in [-1, 1]


@dataclass(frozen=True)
class ViewConfig:
    """How far the changes go; each is applied to an image with probability p, 0 leaves one out.

    Attributes:
        shift: whole-pixel move of up to this share of the width, along both axes.
        scale: magnification 2^N(0, scale).
        degrees: rotation up to this angle either way.
        stretch: magnification 2^N(0, stretch) along one axis and its inverse along the other.
        fraction: move by N(0, fraction) of the width, along both axes.
        brightness: N(0, brightness) is added.
        contrast: values are multiplied by 2^N(0, contrast) about mid-grey, 0.
        curve: x + a (1 - x^2) with a = N(0, curve), a gamma curve without its pole at black.
        noise: Gaussian noise of sigma |N(0, noise)|.
        cutout: a square of this share of the width becomes mid-grey.

    Raises:
        InputError: a value is out of range; names the field.
    """

    shift: float = 0.125
    scale: float = 0.15
    degrees: float = 15.0
    stretch: float = 0.1
    fraction: float = 0.05
    brightness: float = 0.15
    contrast: float = 0.3
    curve: float = 0.0
    noise: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not 0 <= value < math.inf:
                raise InputError(f"{value} must be a number of at least 0", field=option.name)
        for name, most in (("shift", 0.5), ("degrees", 45.0), ("cutout", 1.0)):
            if getattr(self, name) > most:
                raise InputError(f"{getattr(self, name)} is above {most:g}", field=name)


def random_views(
    images: Tensor, p: float, config: ViewConfig | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Each change of ``config`` on each image with probability ``p``; differentiable twice in the images.

    Values may leave [-1, 1]; they are not clipped, so that gradients pass.

    Args:
        images: (N, 1, H, W), real or generated.
        p: 0 to 1. At 0 the images come back as they are; an image that no move was drawn for is not resampled.
        config: how far the changes go.
        generator: on the images' device; None draws from torch's own.

    Raises:
        InputError: images of another shape, or p outside [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(f"expected (N, 1, H, W), got {tuple(images.shape)}", field="images")
    if not 0 <= p <= 1:
        raise InputError(f"{p} is no probability", field="p")
    if p == 0 or not len(images):
        return images
    config, dice = config or ViewConfig(), _Dice(images, p, generator)
    return _covered(_exposed(_moved(images, dice, config), dice, config), dice, config)


class _Dice:
    """Random numbers per image, "nothing" where the gate stays shut."""

    def __init__(self, images: Tensor, p: float, generator: torch.Generator | None) -> None:
        self.count, self.p, self.generator = len(images), p, generator
        self.device = images.device

    def uniform(self) -> Tensor:
        """(N,) in [0, 1)."""
        return torch.rand(self.count, generator=self.generator, device=self.device)

    def normal(self) -> Tensor:
        """(N,) standard normal."""
        return torch.randn(self.count, generator=self.generator, device=self.device)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, one number a pixel."""
        return torch.randn(like.shape, generator=self.generator, device=self.device, dtype=like.dtype)

    def gate(self) -> Tensor:
        """(N,) bool, True with probability p."""
        return self.uniform() < self.p


def _moved(images: Tensor, dice: _Dice, config: ViewConfig) -> Tensor:
    """The geometric changes as one map from places of the view to places of the image."""
    if not (config.shift or config.scale or config.degrees or config.stretch or config.fraction):
        return images
    height, width = images.shape[-2:]
    one = torch.ones(dice.count, device=dice.device)
    zero = torch.zeros_like(one)
    touched = torch.zeros(dice.count, dtype=torch.bool, device=dice.device)
    # Lengths are shares of the width along both axes, from the centre, until the last line: rotations stay rotations.
    place = torch.eye(3, device=dice.device).expand(dice.count, 3, 3)

    def then(gate: Tensor, map_: Tensor) -> None:
        nonlocal place, touched
        place = place @ torch.where(gate[:, None, None], map_, torch.eye(3, device=dice.device))
        touched = touched | gate

    if config.shift:
        right, down = (((2 * dice.uniform() - 1) * config.shift * width).round() / width for _ in range(2))
        then(dice.gate(), _affine(one, zero, right, zero, one, down))
    if config.scale:
        size = torch.exp2(-config.scale * dice.normal())
        then(dice.gate(), _affine(size, zero, zero, zero, size, zero))
    turned = dice.gate() & (config.degrees > 0)

    def turn() -> None:
        """Half of a rotation: one before and one after the stretch, so that it goes along any axis."""
        angle = torch.deg2rad((2 * dice.uniform() - 1) * config.degrees / 2)
        then(turned, _affine(angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero))

    turn()
    if config.stretch:
        ratio = torch.exp2(-config.stretch * dice.normal())
        then(dice.gate(), _affine(ratio, zero, zero, zero, 1 / ratio, zero))
    turn()
    if config.fraction:
        right, down = (config.fraction * dice.normal() for _ in range(2))
        then(dice.gate(), _affine(one, zero, right, zero, one, down))
    aspect = width / height
    to_grid = torch.tensor([[2.0, 0, 0], [0, 2 * aspect, 0], [0, 0, 1]], device=dice.device)
    theta = (to_grid @ place @ to_grid.inverse())[:, :2].to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return torch.where(touched[:, None, None, None], warped, images)


def _affine(*rows: Tensor) -> Tensor:
    """(N, 3, 3) from the six numbers of its first two rows, each (N,)."""
    last = torch.zeros_like(rows[0])
    return torch.stack([*rows, last, last, torch.ones_like(last)], dim=1).view(-1, 3, 3)


def _exposed(images: Tensor, dice: _Dice, config: ViewConfig) -> Tensor:
    def column(values: Tensor, otherwise: float) -> Tensor:
        return torch.where(dice.gate(), values, otherwise).to(images.dtype)[:, None, None, None]

    if config.curve:
        bend = column((config.curve * dice.normal()).clamp(-_CURVE_LIMIT, _CURVE_LIMIT), 0.0)
        images = images + bend * (1 - images.square()).clamp_min(0)
    if config.brightness:
        images = images + column(config.brightness * dice.normal(), 0.0)
    if config.contrast:
        images = images * column(torch.exp2(config.contrast * dice.normal()), 1.0)
    if config.noise:
        images = images + column(config.noise * dice.normal().abs(), 0.0) * dice.noise(images)
    return images


def _covered(images: Tensor, dice: _Dice, config: ViewConfig) -> Tensor:
    if not config.cutout:
        return images
    height, width = images.shape[-2:]
    half, hide = config.cutout * width / 2, dice.gate()
    inside = []
    for length in (height, width):
        offset = torch.arange(length, device=dice.device) + 0.5 - length * dice.uniform()[:, None]
        inside.append(offset.abs() < half)
    square = inside[0][:, :, None] & inside[1][:, None, :] & hide[:, None, None]
    return images.masked_fill(square[:, None], 0.0)


@dataclass(frozen=True)
class AdaptiveConfig:
    """How p follows the discriminator.

    Attributes:
        target: r_t at which p stands still.
        kimg: thousands of images in which p could go from 0 to 1; 500 in the paper, less for short runs.
        interval: steps between two changes of p.
        ceiling: p never exceeds it; near 1 the views leak into what is generated.
        start: the first p.

    Raises:
        InputError: a value is out of range; names the field.
    """

    target: float = 0.6
    kimg: float = 50.0
    interval: int = 4
    ceiling: float = 0.6
    start: float = 0.0

    def __post_init__(self) -> None:
        if not -1 < self.target < 1:
            raise InputError(f"{self.target} must lie between -1 and 1", field="target")
        if not self.kimg > 0:
            raise InputError("must be positive", field="kimg")
        if self.interval < 1:
            raise InputError("must be at least 1", field="interval")
        if not 0 <= self.start <= self.ceiling <= 1:
            raise InputError("needs 0 <= start <= ceiling <= 1", field="ceiling")


class AdaptiveP:
    """The probability p, steered by r_t = E sign D(real): 0 when the discriminator cannot tell, 1 when it is sure.

    Every ``interval`` steps p += sign(r_t - target) * images / (1000 kimg), images being those of these steps, and p
    stays within [0, ceiling] (Karras et al. 2020, section 3.1).

    Attributes:
        p: the probability now.
        r_t: over the latest full interval; NaN before the first.
    """

    def __init__(self, config: AdaptiveConfig | None = None) -> None:
        self.config = config or AdaptiveConfig()
        self.p, self.r_t = self.config.start, math.nan
        self._steps, self._images, self._signs = 0, 0.0, 0.0

    def update(self, real_logits: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> float:
        """Take in one step, change p when it is due; returns p.

        Args:
            real_logits: (N,) of this process's views of real images.
            total: sums a (2,) tensor over the processes, so that all follow the same p.
        """
        signs = real_logits.detach().float().sign()
        sums = torch.stack([signs.sum(), torch.full_like(signs.sum(), len(signs))])
        summed, images = total(sums).tolist()
        self._signs, self._images, self._steps = self._signs + summed, self._images + images, self._steps + 1
        if self._steps == self.config.interval:
            self.r_t = self._signs / self._images
            direction = (self.r_t > self.config.target) - (self.r_t < self.config.target)
            moved = self.p + direction * self._images / (1000 * self.config.kimg)
            self.p = min(max(moved, 0.0), self.config.ceiling)
            self._steps, self._images, self._signs = 0, 0.0, 0.0
        return self.p

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it; r_t is None before the first interval."""
        r_t = None if math.isnan(self.r_t) else self.r_t
        return {"p": self.p, "r_t": r_t, "steps": self._steps, "images": self._images, "signs": self._signs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.p, self.r_t = state["p"], math.nan if state["r_t"] is None else state["r_t"]
        self._steps, self._images, self._signs = state["steps"], state["images"], state["signs"]


def ramped_p(done: float, highest: float) -> float:
    """p that rises along a half cosine from 0 to ``highest`` over the first half of training and stays.

    For losses under which r_t means nothing: with a relativistic loss the sign of D(real) - D(fake) is nearly always
    positive and would drive p up without end.

    Args:
        done: share of training done, 0 to 1.
    """
    return highest * (1 - math.cos(math.pi * min(1.0, 2 * done))) / 2
