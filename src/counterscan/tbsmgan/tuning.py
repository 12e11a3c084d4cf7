"""Pivotal tuning: a copy of the generator that makes given images almost as they are, and others as before.

    G' <- argmin  L(G'(pivot), x) + locality L(G'(w_r), G(w_r)),   w_r on the way from a pivot to a random w

Source: PTI (Roich et al. 2021), with the distance L of ``tbsmgan.inversion``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.validity import psnr
from counterscan.nets.stylegan2 import Generator
from counterscan.tbsmgan.generator import StyleGAN, TrainingPatients
from counterscan.tbsmgan.inversion import Latents, Likeness, check_images, render
from counterscan.training.checkpoint import weights_digest


@dataclass(frozen=True)
class TuneConfig:
    """How a generator is tuned to images.

    Attributes:
        steps: of Adam.
        rate: its learning rate.
        locality: weight of staying as it was near the pivots.
        reach: how far from a pivot that is asked, in the usual distance of a w from the mean one. (PTI has a fixed
            length of 30, made for one generator.)
        batch_size: pivots per step, and as many places near them.
        enough: PSNR in dB, over all images, at which tuning ends early; None never ends it.
        seed: of the places.

    Raises:
        InputError: a value is out of range.
    """

    steps: int = 200
    rate: float = 3e-4
    locality: float = 0.1
    reach: float = 1.0
    batch_size: int = 8
    enough: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        for name in ("rate", "reach"):
            if not getattr(self, name) > 0:
                raise InputError("must be positive", field=name)
        if not self.locality >= 0:
            raise InputError("must not be negative", field="locality")


def tune(
    gan: StyleGAN,
    x: Tensor,
    latents: Latents,
    config: TuneConfig | None = None,
    likeness: Likeness | None = None,
    patients: Sequence[str] | None = None,
) -> StyleGAN:
    """Adjust a copy of the generator to given images, and leave it as it was elsewhere.

    The synthesis is tuned; the mapping, and with it the space of w, is not. A tuned copy shows its pivots almost as
    they are: it is as private as they are.

    Args:
        gan: the generator, which stays as it is.
        x: (N, 1, S, S) in [-1, 1].
        latents: of these images.
        config: see ``TuneConfig``.
        likeness: the distance.
        patients: (N,) whose images these are, so that the copy knows whom it learned from; without them nothing may be
            measured with it.

    Returns:
        The copy, with a checkpoint name of its own.

    Raises:
        InputError: images of another shape, or another number of latents or patients.
    """
    config, likeness = config or TuneConfig(), likeness or Likeness()
    check_images(gan, x)
    if len(latents.ws) != len(x) or (patients is not None and len(patients) != len(x)):
        raise InputError(f"expected latents, and patients if any, of {len(x)} images", field="latents")
    own = copy.deepcopy(gan.generator).eval()
    trained = [p.requires_grad_() for name, p in own.named_parameters() if not name.startswith(("mapping.", "embed."))]
    adam = torch.optim.Adam(trained, lr=config.rate, betas=(0.9, 0.999))
    dice = torch.Generator().manual_seed(config.seed)
    x, ws = x.to(gan.device), latents.ws.to(gan.device)
    with torch.enable_grad():
        for _ in range(config.steps):
            rows = torch.randperm(len(x), generator=dice)[: config.batch_size].to(gan.device)
            noises = {name: maps.to(gan.device)[rows] for name, maps in latents.noises.items()}
            loss = likeness(render(own, ws[rows], noises), x[rows]).mean()
            if config.locality > 0:
                near = _near(gan, ws[rows], config.reach, dice)
                with torch.no_grad():
                    before = gan.synthesize(near)
                loss = loss + config.locality * likeness(own.synthesize(near), before).mean()
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            if config.enough is not None and _reached(own, x, latents) >= config.enough:
                break
    known = TrainingPatients("")
    if patients is not None and gan.patients.hashes:
        more = TrainingPatients.of(patients, gan.patients.salt)
        known = replace(gan.patients, hashes=tuple(sorted({*gan.patients.hashes, *more.hashes})))
    return replace(
        gan, generator=own, checkpoint=weights_digest(own)[:16], patients=known, figures={}, learned={}, diagnoses=()
    )


@torch.no_grad()
def _near(gan: StyleGAN, ws: Tensor, reach: float, dice: torch.Generator) -> Tensor:
    """Ws a given way from the pivots towards random ones."""
    z = torch.randn(len(ws), gan.generator.config.z_dim, generator=dice).to(gan.device)
    seed = int(torch.randint(2**31, (), generator=dice))
    c = gan.draw_labels(len(ws), seed).to(gan.device) if gan.findings else None
    way = gan.map(z, c) - ws
    length = way.flatten(1).norm(dim=1).clamp_min(1e-8)[:, None, None]
    usual = gan.generator.w_sd.norm() * math.sqrt(gan.generator.num_ws)
    return ws + reach * usual * way / length


@torch.no_grad()
def _reached(generator: Generator, x: Tensor, latents: Latents) -> float:
    noises = {name: maps.to(x.device) for name, maps in latents.noises.items()}
    again = render(generator, latents.ws.to(x.device), noises).clamp(-1, 1)
    return float(psnr(x, again).mean())
