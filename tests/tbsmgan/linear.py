"""A generator, a text-image model and a verifier in which everything is linear, so that the truth of an edit is known.

Channel k of the style brightens block k of the image (8 x 8 px, four blocks of 4 x 4); axis k of an embedding is the
brightness of block k. Edema is block 0, effusion block 1, left and right are the two signs of block 2, block 3 is the
body.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import Care
from counterscan.data.store import PreparedStore
from counterscan.nets.stylegan2 import StyleLayer
from counterscan.taggan.filling import Regions
from counterscan.tbsmgan.edits import TextDirections
from counterscan.tbsmgan.generator import LabelMix, StyleGAN
from counterscan.text.prompts import PromptBank
from counterscan.text.zeroshot import ZeroShot

FINDINGS = ("Edema", "Pleural Effusion")
STEP = 0.1  # brightness of a block per unit of style
SHIFT = 4.0  # of w by a condition's bit
BANK = PromptBank(
    {
        "Edema": {"names": ["edema"], "degrees": ["severe"], "negatives": ["no edema"]},
        "Pleural Effusion": {
            "names": ["pleural effusion"],
            "sites": ["left", "right"],
            "negatives": ["no pleural effusion"],
        },
    },
    ["normal"],
)


class LinearGenerator(nn.Module):
    """w = psi z + 4 c; styles 1 + w 2 sd of the first layer make the image, a second layer to grey makes nothing."""

    num_ws = 2
    style_layers = (StyleLayer("4.conv0", 4, 4, False, 0), StyleLayer("4.gray", 3, 4, True, 1))

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(labels=2, z_dim=4, w_dim=4, size=8)
        self.spread = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 0.5]))

    def centre(self, c: Tensor) -> Tensor:
        return F.pad(SHIFT * c, (0, 2))

    def map(self, z: Tensor, c: Tensor | None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        assert c is not None
        return (psi * z * self.spread + self.centre(c))[:, None].expand(-1, 2, -1)

    def styles(self, ws: Tensor) -> list[Tensor]:
        return [1 + ws[:, 0], ws.new_ones(len(ws), 3)]

    def synthesize(self, ws: Tensor | None = None, *, styles: Sequence[Tensor] | None = None, noise: str) -> Tensor:
        given = self.styles(ws) if ws is not None else styles
        assert given is not None
        return painted(STEP * (given[0] - 1))


def painted(blocks: Tensor) -> Tensor:
    """(N, 4) brightness of blocks to (N, 1, 8, 8)."""
    return F.interpolate(blocks.view(-1, 1, 2, 2), scale_factor=4, mode="nearest")


def blocks_of(images: Tensor) -> Tensor:
    """The reverse of ``painted``."""
    return F.avg_pool2d(images, 4).flatten(1)


def encoded(images: Tensor) -> Tensor:
    """Latents (N, 2, 4) that make the images."""
    return (blocks_of(images) / STEP)[:, None].expand(-1, 2, -1)


def linear_gan(**known: object) -> StyleGAN:
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    options = {"checkpoint": "linear", "learned": dict.fromkeys(FINDINGS, True)} | known
    return StyleGAN(LinearGenerator(), FINDINGS, LabelMix(labels, torch.ones(3) / 3), **options)  # type: ignore[arg-type]


class LinearText:
    """See the module. An embedding is the blocks' brightness beside a constant, of length 1."""

    name = digest = "linear text model"
    logit_scale = 10.0

    def __init__(self) -> None:
        self.images = 0

    def embed_images(self, images: Tensor) -> Tensor:
        self.images += len(images)
        blocks = blocks_of(images)
        return F.normalize(torch.cat([blocks, torch.full_like(blocks[:, :1], 2.0)], dim=1), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([self._said(text.split()) for text in texts]), dim=1)

    def unfamiliar(self, text: str) -> list[str]:
        known = {"no", "severe", "left", "right", "edema", "pleural", "effusion", "normal", "small"}
        return [word for word in text.split() if word not in known]

    def _said(self, words: list[str]) -> Tensor:
        sign = -1.0 if "no" in words else 1.0
        side = float("left" in words) - float("right" in words)
        said = [sign * ("edema" in words), sign * ("effusion" in words), 0.5 * side, 0.0, 0.5]
        return torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.5] if words == ["normal"] else said)


def texts(model: LinearText | None = None) -> TextDirections:
    return TextDirections(model or LinearText(), BANK, FINDINGS)  # type: ignore[arg-type]


def zero_shot(edema: float = 0.95, effusion: float = 0.95) -> ZeroShot:
    auc = dict(zip(FINDINGS, (edema, effusion), strict=True))
    return ZeroShot("linear", "contrast", auc, auc, dict.fromkeys(FINDINGS, 9), dict.fromkeys(FINDINGS, 9), {})


class BlockVerifier(nn.Module):
    """P(finding k) = sigmoid(50 (brightness of block k - 0.2)); its features are the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.findings = FINDINGS
        self.slope = nn.Parameter(torch.tensor(50.0))
        self.trained_on: dict[str, str] = {}

    def features(self, x: Tensor) -> Tensor:
        return blocks_of(x)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * (blocks_of(x)[:, :2] - 0.2)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class BlockTagger:
    """M of finding k is what block k is brighter than 0; ``flips``: sides look alike."""

    findings, size, checkpoint = FINDINGS, 8, "blocks"

    def __init__(self, flips: bool = False) -> None:
        self.care = Care(flips=flips)

    def maps(self, images: Tensor, finding: str) -> tuple[Tensor, None]:
        own = F.one_hot(torch.tensor(FINDINGS.index(finding)), 4)
        return painted(blocks_of(images).clamp_min(0) * own), None


class BlockFiller:
    """Under every region lies 0; ``blind`` leaves images as they are."""

    size = 8

    def __init__(self, blind: bool = False) -> None:
        self.net, self.blind = nn.Flatten(), blind

    def fill(self, images: Tensor, regions: Tensor) -> Tensor:
        return images if self.blind else images * ~regions


def block_regions(labels: np.ndarray) -> Regions:
    """Block k of each image that has finding k."""
    rows, columns = np.nonzero(labels == 1)
    return Regions(rows, columns, painted(F.one_hot(torch.from_numpy(columns), 4).float()) > 0)


def store(count: int = 200, seed: int = 0, images_per_patient: int = 1) -> PreparedStore:
    """Images of the kind that the generator makes, with a texture of their own."""
    dice = np.random.default_rng(seed)
    labels = dice.integers(0, 2, (count, 2)).astype(float)
    blocks = dice.normal(0, 0.1, (count, 4))
    blocks[:, :2] += 0.4 * labels
    images = painted(torch.from_numpy(blocks).float()).numpy()[:, 0] + dice.normal(0, 0.02, (count, 8, 8))
    patient = np.arange(count) // images_per_patient
    return PreparedStore.from_arrays(
        (images.clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8),
        labels=labels,
        findings=FINDINGS,
        patients=[f"p{number}" for number in patient],
        split=["val" if number % 4 == 0 else "train" for number in patient],
    )
