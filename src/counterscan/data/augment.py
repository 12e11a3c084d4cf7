"""Random views of images: small affine moves, brightness, noise, in one resampling.

What may vary between two exposures of the same body; strong enough that a classifier cannot learn the training images
by heart, weak enough that no finding is hidden or made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError

PADDING = -1.0
# Above this a pixel is image; padding, and air as dark as it, is not brightened.
_IMAGE_FROM = -0.97
_ERASED_AREA = (0.02, 0.12)


@dataclass(frozen=True)
class AugmentConfig:
    """How far views differ. The defaults are what a small classifier of brain slices learned best with.

    Attributes:
        flip: probability of a left-right mirror. A mirrored chest has its heart, stomach and liver on the wrong side
            (situs inversus): harmless where only "is there a finding" is asked, and doubling few images, but use 0
            where side carries meaning: dextrocardia, findings named by side, or side markers that must stay readable.
        degrees: rotation up to this angle either way.
        scale: exp(U(-scale, scale)) is the magnification.
        shift: share of the width moved either way, along both axes.
        gain: exp(U(-gain, gain)) multiplies the brightness over black, x + 1.
        bias: U(-bias, bias) is added where there is image.
        noise: Gaussian noise of sigma U(0, noise), each image its own.
        erase: probability that a rectangle of 2 to 12 % of the area is replaced by one grey, so that no single place
            decides (Zhong et al. 2020). It can cover a small finding: 0 unless the network is large.

    Raises:
        InputError: a value is negative, or a probability above 1; names the field.
    """

    flip: float = 0.5
    degrees: float = 8.0
    scale: float = 0.08
    shift: float = 0.04
    gain: float = 0.1
    bias: float = 0.06
    noise: float = 0.06
    erase: float = 0.0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not 0 <= value < math.inf:
                raise InputError(f"{value} must be a number of at least 0", field=option.name)
            if option.name in ("flip", "erase") and value > 1:
                raise InputError(f"{value} is no probability", field=option.name)

    @classmethod
    def none(cls) -> AugmentConfig:
        """Images as they are."""
        return cls(**{option.name: 0.0 for option in fields(cls)})

    @classmethod
    def strong(cls, flip: float = 0.5) -> AugmentConfig:
        """For networks of millions of weights."""
        return cls(flip=flip, degrees=15.0, scale=0.15, shift=0.08, gain=0.2, bias=0.12, noise=0.1, erase=0.5)


def augment(
    images: Tensor, generator: torch.Generator | None, config: AugmentConfig, *, masks: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A random view of each image.

    Args:
        images: (N, 1, H, W) in [-1, 1], padding -1.
        generator: on the images' device; None draws from torch's own.
        config: how far views differ.
        masks: (N, K, H, W) bool, moved along with the images.

    Returns:
        Images like ``images``; what moves in from outside is -1. Gain, bias and noise may leave [-1, 1] a little. And
        the masks, bool, or None.

    Raises:
        ValueError: images or masks are of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"expected images (N, 1, H, W), got {tuple(images.shape)}")
    if masks is not None and (len(masks), *masks.shape[2:]) != (len(images), *images.shape[2:]):
        raise ValueError(f"expected masks (N, K, H, W) for images {tuple(images.shape)}, got {tuple(masks.shape)}")
    if not len(images):
        return images, masks
    dice = _Dice(images, generator)
    # Zero is what grid_sample puts outside, so the images are moved as x + 1.
    planes = images - PADDING
    if masks is not None:
        planes = torch.cat([planes, masks.to(planes.dtype)], dim=1)
    if config.flip or config.degrees or config.scale or config.shift:
        grid = F.affine_grid(_moves(dice, config), list(images.shape), align_corners=False)
        planes = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    seen = _exposed(planes[:, :1], dice, config)
    return seen, None if masks is None else planes[:, 1:] > 0.5


def shift_together(images: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """One random shift for all images of a batch, what leaves on one side coming in on the other.

    Args:
        images: (N, 1, H, W).
        share: of the width, at most so far either way along both axes.
        generator: on the CPU; None draws from torch's own.
    """
    reach = round(share * images.shape[-1])
    if not reach:
        return images
    down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    return torch.roll(images, (down, right), dims=(-2, -1))


class _Dice:
    """Random numbers, one per image, on the images' device."""

    def __init__(self, images: Tensor, generator: torch.Generator | None) -> None:
        self.images, self.generator = images, generator

    def uniform(self, low: float, high: float) -> Tensor:
        """(N,) uniform in [low, high)."""
        like = self.images
        drawn = torch.rand(len(like), generator=self.generator, device=like.device, dtype=like.dtype)
        return drawn * (high - low) + low

    def normal(self) -> Tensor:
        """Shaped like the images, standard normal."""
        like = self.images
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


def _moves(dice: _Dice, config: AugmentConfig) -> Tensor:
    """(N, 2, 3) maps from places of the view to places of the image, in coordinates that run from -1 to 1."""
    height, width = dice.images.shape[-2:]
    angle = torch.deg2rad(dice.uniform(-config.degrees, config.degrees))
    size = torch.exp(dice.uniform(-config.scale, config.scale))
    mirror = torch.where(dice.uniform(0, 1) < config.flip, -1.0, 1.0).to(size.dtype)
    cosine, sine = torch.cos(angle) * size, torch.sin(angle) * size
    # Coordinates are shares of the width along x and of the height along y: rotations need the ratio to stay rotations.
    ratio = height / width
    right = dice.uniform(-2 * config.shift, 2 * config.shift)
    down = dice.uniform(-2 * config.shift, 2 * config.shift) / ratio
    rows = (
        torch.stack([cosine * mirror, -sine * ratio, right], dim=1),
        torch.stack([sine * mirror / ratio, cosine, down], dim=1),
    )
    return torch.stack(rows, dim=1)


def _exposed(light: Tensor, dice: _Dice, config: AugmentConfig) -> Tensor:
    """Brightness over black (N, 1, H, W) to an image with gain, bias, noise and erased rectangle."""
    column = (-1, 1, 1, 1)
    if config.gain:
        light = light * torch.exp(dice.uniform(-config.gain, config.gain)).view(column)
    image = light + PADDING
    if config.bias:
        image = image + dice.uniform(-config.bias, config.bias).view(column) * (image > _IMAGE_FROM)
    if config.noise:
        image = image + dice.normal() * dice.uniform(0, config.noise).view(column)
    if config.erase:
        image = torch.where(_rectangles(dice, config.erase), dice.uniform(-1, 1).view(column), image)
    return image


def _rectangles(dice: _Dice, probability: float) -> Tensor:
    """(N, 1, H, W) bool: one rectangle in a share ``probability`` of the images, sides in ratios from 1:2 to 2:1."""
    height, width = dice.images.shape[-2:]
    area = dice.uniform(*_ERASED_AREA) * (dice.uniform(0, 1) < probability)
    stretch = torch.exp(dice.uniform(-math.log(2) / 2, math.log(2) / 2))
    inside = []
    for length, side in ((height, area.sqrt() * stretch), (width, area.sqrt() / stretch)):
        start = dice.uniform(0, 1) * (1 - side)
        place = (torch.arange(length, device=area.device, dtype=area.dtype) + 0.5) / length
        inside.append((place >= start[:, None]) & (place < (start + side)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
