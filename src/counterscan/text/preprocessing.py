"""What images go through before a pretrained model sees them, in a way that passes gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.files import read_json

PREPARATION = ("preprocessor_config.json", "processor_config.json")
_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; Lanczos (1) and others become bicubic


@dataclass(frozen=True)
class Preprocessing:
    """What a model's images go through after [0, 1].

    Attributes:
        size: side of the square the model takes.
        mean, std: of the channels.
        mode: of the interpolation, as torch names it.
        crop: bring the shorter side to ``size`` and cut the middle out; else squash both sides.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"
    crop: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, C, size, size), C the number of channels of ``mean``; differentiable."""
        height, width = images.shape[-2:]
        if self.crop:
            share = self.size / min(height, width)
            target = (max(self.size, round(height * share)), max(self.size, round(width * share)))
        else:
            target = (self.size, self.size)
        x = (images.float() + 1) / 2
        if target != (height, width):
            smooth = self.mode != "nearest"
            x = F.interpolate(x, target, mode=self.mode, antialias=smooth, align_corners=False if smooth else None)
            x = x.clamp(0, 1)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        x = x[..., top : top + self.size, left : left + self.size]
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x.expand(-1, mean.shape[1], -1, -1) - mean) / std


def read_preprocessing(folder: Path, fallback: int) -> Preprocessing:
    """Of ``preprocessor_config.json`` or, as newer versions write it, of ``processor_config.json``."""
    path = next((folder / name for name in PREPARATION if (folder / name).is_file()), None)
    if path is None:
        raise InputError(
            "has no preprocessor_config.json, so that the brightness it expects is not known",
            path=folder,
            remedy="Copy that file from where the model came",
        )
    found = read_json(path)
    found = found.get("image_processor", found)
    crop = bool(found.get("do_center_crop", False))
    wanted = found.get("crop_size") if crop else found.get("size")
    size = wanted.get("height", wanted.get("shortest_edge", fallback)) if isinstance(wanted, dict) else wanted
    mean, std = found.get("image_mean") or [0.0], found.get("image_std") or [1.0]
    if not found.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    mode = _MODES.get(int(found.get("resample", 3)), "bicubic")
    return Preprocessing(int(size or fallback), tuple(map(float, mean)), tuple(map(float, std)), mode, crop)
