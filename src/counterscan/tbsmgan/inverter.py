"""What is this image made from, and can the answer be trusted? An encoder with its generator, saved and asked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import counterscan
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity, unlike
from counterscan.files import read_json, write_json, write_text
from counterscan.metrics.validity import psnr, ssim
from counterscan.nets.cnn import Classifier
from counterscan.nets.latent_encoder import LatentEncoder, LatentEncoderConfig
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.tbsmgan.inversion import Latents, Likeness, LikenessConfig, RefineConfig, check_images, refine, render
from counterscan.training.checkpoint import weights_digest

SETTINGS, WEIGHTS = "encoder.json", "encoder.safetensors"
_BATCH = 32


@dataclass(frozen=True)
class Limits:
    """What an inversion must reach.

    Attributes:
        psnr: of the reconstruction, in dB, at least.
        distance: of the latents from the mean w, in standard deviations, at most.
    """

    psnr: float
    distance: float


@dataclass(frozen=True)
class Inversion:
    """Images, found again. All on the CPU.

    Attributes:
        latents: what they are made from.
        images: (N, 1, S, S) in [-1, 1], the reconstructions.
        psnr: (N,) dB, data range 2. ssim: (N,).
        distance: (N,) root mean square of (w - m) / sd. Samples have about 1; do not trust edits far beyond.
        verdicts: (N,) "ok", or why not.
    """

    latents: Latents
    images: Tensor
    psnr: Tensor
    ssim: Tensor
    distance: Tensor
    verdicts: tuple[str, ...]


@dataclass
class Inverter:
    """Finds the latents of images. Edit images of patients that the generator learned from, or your own test is lost.

    Attributes:
        gan: the generator.
        encoder: E, in evaluation mode, without gradients.
        likeness: the distance that latents are refined by.
        config: of the refinement.
        limits: from validation images; None judges nothing.
        familiarity: of images, in the features of the likeness's classifier, where it is one of ours; None takes every
            image for one of the kind that the generator learned from.
    """

    gan: StyleGAN
    encoder: LatentEncoder
    likeness: Likeness = field(default_factory=Likeness)
    config: RefineConfig = field(default_factory=RefineConfig)
    limits: Limits | None = None
    familiarity: Familiarity | None = None

    def __post_init__(self) -> None:
        self.encoder.to(self.gan.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """(N, 1, S, S) in [-1, 1] to ws (N, num_ws, w_dim), in one pass, on the generator's device."""
        check_images(self.gan, x)
        return torch.cat([self.encoder(part.to(self.gan.device)) for part in x.split(_BATCH)])

    def invert(self, x: Tensor, config: RefineConfig | None = None) -> Inversion:
        """Encode, refine, judge.

        Args:
            x: (N, 1, S, S) in [-1, 1].
            config: instead of ``self.config``; with 0 steps the encoder's answer is taken as it is.

        Raises:
            InputError: images of another shape or range.
        """
        return self.judge(x, refine(self.gan, x, self.encode(x), config or self.config, self.likeness))

    @torch.no_grad()
    def judge(self, x: Tensor, latents: Latents, gan: StyleGAN | None = None) -> Inversion:
        """How good given latents are for images, with the generator or, say, a tuned copy of it."""
        gan, parts = gan or self.gan, []
        for start in range(0, len(x), _BATCH):
            rows = slice(start, start + _BATCH)
            noises = {name: maps[rows].to(gan.device) for name, maps in latents.noises.items()}
            parts.append(render(gan.generator, latents.ws[rows].to(gan.device), noises).clamp(-1, 1).cpu())
        images, own = torch.cat(parts), x.detach().cpu()
        reached, alike = psnr(own, images), ssim(own, images)
        away = self.encoder.standardised(latents.ws.to(self.gan.device)).square().mean(dim=(1, 2)).sqrt().double().cpu()
        strange = torch.zeros(len(own))
        if self.familiarity is not None and isinstance(self.likeness.classifier, Classifier):
            strange = self.familiarity.strangeness([self.likeness.classifier], own)
        each = zip(reached.tolist(), away.tolist(), strange.tolist(), strict=True)
        kept = Latents(latents.ws.cpu(), {name: maps.cpu() for name, maps in latents.noises.items()})
        return Inversion(kept, images, reached, alike, away, tuple(self._verdict(*numbers) for numbers in each))

    def _verdict(self, reached: float, away: float, strange: float) -> str:
        if self.limits is None:
            return "not judged: no limits are known"
        if strange > 1:
            return f"not to be edited: {unlike(strange)}"
        if reached < self.limits.psnr:
            return f"not well inverted: PSNR {reached:.1f} dB, {self.limits.psnr:.1f} dB are usual at least"
        if away > self.limits.distance:
            return (
                f"not to be edited: latents {away:.1f} sd from the mean, {self.limits.distance:.1f} are usual at most"
            )
        return "ok"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the encoder; the generator is not written again, and must be given to ``from_pretrained``.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        familiar = self.familiarity
        write_tensors(folder / WEIGHTS, self.encoder.state_dict() | ({} if familiar is None else familiar.tensors()))
        classifier = self.likeness.classifier
        settings = {
            "version": counterscan.__version__,
            "generator": weights_digest(self.gan.generator),
            "classifier": weights_digest(classifier) if classifier is not None else None,
            "network": dataclasses.asdict(self.encoder.config),
            "likeness": dataclasses.asdict(self.likeness.config),
            "refine": dataclasses.asdict(self.config),
            "limits": dataclasses.asdict(self.limits) if self.limits is not None else None,
            "familiarity": None if familiar is None else familiar.limit,
        }
        write_text(folder / "README.md", _card(self))
        write_json(folder / SETTINGS, settings)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, gan: StyleGAN, classifier: nn.Module | None = None) -> Inverter:
        """Read an encoder.

        Args:
            folder: written by ``encoder_training.train_encoder`` or ``save_pretrained``.
            gan: the generator that it was trained for.
            classifier: the one whose features it was trained with; None refines without features.

        Raises:
            InputError: no encoder, a damaged one, or another generator or classifier.
        """
        folder = model_folder(Path(folder), SETTINGS, "Train an encoder first", inner="encoder")
        settings: dict[str, Any] = read_json(folder / SETTINGS)
        config = gan.generator.config
        with reading(folder, "encoder"):
            for name, given in (("generator", gan.generator), ("classifier", classifier)):
                if given is not None and weights_digest(given) != settings[name]:
                    raise InputError(
                        f"the encoder was trained with another {name}",
                        path=folder,
                        field=name,
                        remedy="Give that one, or train an encoder for this one",
                    )
            network = LatentEncoderConfig(**settings["network"])
            encoder = LatentEncoder(network, config.size, gan.generator.num_ws, config.w_dim)
            tensors = safetensors.torch.load_file(folder / WEIGHTS)
            familiarity = Familiarity.out_of(tensors, settings.get("familiarity"))  # earlier versions had none
            encoder.load_state_dict(tensors)
            limits = Limits(**settings["limits"]) if settings["limits"] is not None else None
            likeness = Likeness(LikenessConfig(**settings["likeness"]), classifier)
            return cls(gan, encoder, likeness, RefineConfig(**settings["refine"]), limits, familiarity)


def _card(inverter: Inverter) -> str:
    limits = inverter.limits
    judged = (
        f"An inversion is called ok from {limits.psnr:.1f} dB on, with latents up to {limits.distance:.1f} standard "
        "deviations from the mean."
        if limits is not None
        else "No limits are known."
    )
    return f"""---
library_name: counterscan
tags: [medical-imaging, gan-inversion]
---
# Encoder of a StyleGAN

From images of {inverter.gan.size} x {inverter.gan.size} pixels in [-1, 1] to the latents (W+) that generator
{inverter.gan.checkpoint} makes them from (counterscan {counterscan.__version__}). {judged}

**Research use only. Not a medical device.** Reconstructions are synthetic images; what the generator cannot show, a
rare finding first of all, is missing in them.
"""
