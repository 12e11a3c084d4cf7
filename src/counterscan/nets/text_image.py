"""The two towers of a small CLIP: strided convolutions for images, a two-layer transformer for text.

Plain PyTorch: at this size a model from a library would bring nothing but its dependency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError

LARGEST_SCALE = 50.0


@dataclass(frozen=True)
class TinyClipConfig:
    """Shape of a small CLIP.

    Attributes:
        widths: channels of the image tower's stages, each of half the resolution of the one before.
        grid: the last stage is averaged to grid x grid places, which the embedding tells apart, for side and zone.
        text_width: width of the text tower.
        text_layers, text_heads: its depth and attention heads.
        text_length: longest text in tokens; longer ones are cut.
        embedding: d, length of the joint embedding.
        scale: first value of the logit scale tau; 1 / .07 in CLIP.

    Raises:
        InputError: a value is out of range; names the field.
    """

    widths: tuple[int, ...] = (24, 48, 96, 128)
    grid: int = 2
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 64
    embedding: int = 64
    scale: float = 1 / 0.07

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise InputError("must be multiples of 8", field="widths", remedy="For example 24 48 96 128")
        for name in ("grid", "text_width", "text_layers", "text_heads", "embedding"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        if self.text_width % self.text_heads:
            raise InputError(f"must be a multiple of the {self.text_heads} heads", field="text_width")
        if self.text_length < 4:
            raise InputError("must be at least 4 tokens", field="text_length")
        if not 0 < self.scale <= LARGEST_SCALE:
            raise InputError(f"must be above 0 and at most {LARGEST_SCALE:g}", field="scale")


class ImageTower(nn.Sequential):
    """(N, 1, H, W) in [-1, 1] to (N, d). H and W of at least 2 ** stages pixels."""

    def __init__(self, config: TinyClipConfig) -> None:
        layers: list[nn.Module] = []
        for before, width in zip((1, *config.widths), config.widths, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.GELU()]
        places = config.grid**2
        super().__init__(
            *layers,
            nn.AdaptiveAvgPool2d(config.grid),
            nn.Flatten(),
            nn.Linear(config.widths[-1] * places, config.embedding),
        )


class TextTower(nn.Module):
    """Token ids (N, L), -1 after the end, to (N, d): a pre-norm transformer and the mean over the tokens there are."""

    def __init__(self, config: TinyClipConfig, vocabulary: int) -> None:
        super().__init__()
        width = config.text_width
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(config.text_length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.text_heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.text_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.embedding, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        there = ids >= 0
        x = self.tokens(ids.clamp_min(0)) + self.places[: ids.shape[1]]
        x = self.norm(self.layers(x, src_key_padding_mask=~there))
        weight = there.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1).clamp_min(1))


class TinyClip(nn.Module):
    """Both towers and the logit scale.

    Attributes:
        log_scale: log of tau; ``scale`` bounds it.
        bias: of the sigmoid loss (SigLIP starts it at -10 for batches of thousands; -log of the batch does for small).
    """

    def __init__(self, config: TinyClipConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.image, self.text = ImageTower(config), TextTower(config, vocabulary)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits tau * cos (N, M) of images (N, 1, H, W) against texts (M, L), float32."""
        image, text = (F.normalize(x.float(), dim=1) for x in (self.image(images), self.text(ids)))
        return bounded_scale(self.log_scale) * image @ text.T


def bounded_scale(log_scale: Tensor) -> Tensor:
    """tau = exp(log_scale), at most 50: beyond it a small set is learnt by heart."""
    return log_scale.exp().clamp_max(LARGEST_SCALE)
