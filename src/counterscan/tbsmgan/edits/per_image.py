"""Optimisation of one image's w (StyleCLIP, Patashnik et al. 2021, section 4): for single images, not for sets.

    min over u_1 .. u_L of  1 - sign e(view(G(w + root u))) . dt
                            + off mean over other findings k of |(e(G(w + root u)) - e(G(w))) . dt'_k|
                            + prior |u|^2 + outside mean |G(w + root u) - G(w)| outside of the region

with dt'_k the direction of another finding without its share in dt. u stays within the ball of radius |strength|
standard deviations. Random views of the image, and no noise of the generator's, keep it from patterns that only the
text-image model sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.nets.ada import ViewConfig, random_views
from counterscan.tbsmgan.edits.base import Editor, Move, Origin
from counterscan.tbsmgan.edits.prompt import Prompt, TextDirections
from counterscan.tbsmgan.generator import StyleGAN

_VIEWS = ViewConfig(shift=0.06, scale=0.05, degrees=5.0, stretch=0.0, fraction=0.0, brightness=0.05, contrast=0.1)


@dataclass(frozen=True)
class PerImageConfig:
    """How an image is optimised.

    Attributes:
        steps: of Adam, with 5 % of rise and 25 % of fall.
        rate: its learning rate.
        views: random views of each image per step.
        off, prior, outside: weights; see the module.
        usual: strength of an edit that is asked for without one.
        seed: of the views.

    Raises:
        InputError: a value is out of range; names the field.
    """

    steps: int = 60
    rate: float = 0.1
    views: int = 4
    off: float = 0.5
    prior: float = 0.008
    outside: float = 1.0
    usual: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "views"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        for name in ("rate", "usual"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("must be positive", field=name)
        for name in ("off", "prior", "outside"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError("must not be negative", field=name)


class PerImage(Editor):
    """See the module.

    Args:
        gan, texts: see ``Editor``.
        config: see ``PerImageConfig``.
        region: (1, 1, H, W) bool where the finding may be; None for no term on what is outside.
    """

    name = "per image"
    strengths = (2.0, 4.0)  # each is an optimisation of its own

    def __init__(
        self,
        gan: StyleGAN,
        texts: TextDirections,
        config: PerImageConfig | None = None,
        region: Tensor | None = None,
    ) -> None:
        super().__init__(gan, texts)
        self.asked, self.config, self.region = texts, config or PerImageConfig(), region

    def usual(self, prompt: Prompt) -> float:
        """Strength that the method takes for a whole change."""
        return self.config.usual

    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """(N, num_ws, w_dim), such that ``strength`` times it is the optimum."""
        strength = self.config.usual if strength is None else strength
        width = latents.w.shape[-1]
        if strength == 0:
            return Move(w=torch.zeros_like(latents.w), usual=self.config.usual, touched=0)
        with torch.inference_mode(False), torch.enable_grad():
            u = self._descend(latents.w.detach().clone(), prompt, strength)
        return Move(w=u @ self.space.root.T / strength, usual=self.config.usual, touched=width * latents.w.shape[1])

    def _descend(self, w: Tensor, prompt: Prompt, strength: float) -> Tensor:
        config, sign, radius = self.config, math.copysign(1.0, strength), abs(strength)
        root, embed = self.space.root.clone(), self.asked.model.embed_images
        asked = self.asked.of(prompt).clone()
        others = [vector.clone() for vector in self.asked.beside(prompt)]
        dice = torch.Generator(device=w.device).manual_seed(config.seed)
        with torch.no_grad():
            before = self._image(w)
            first = embed(before)
        u = torch.zeros_like(w, requires_grad=True)
        adam = torch.optim.Adam([u], lr=config.rate)
        for step in range(config.steps):
            done = (step + 1) / config.steps
            adam.param_groups[0]["lr"] = config.rate * min(1.0, done / 0.05, (1 - done) / 0.25 + 0.05)
            after = self._image(w + u @ root.T)
            # Not a convolution of gradients between images: each term is its own image's, so a sum parts into them.
            seen = random_views(after.repeat(config.views, 1, 1, 1), 0.5, _VIEWS, dice)
            toward = (embed(seen) @ asked).view(config.views, -1).mean(0)
            loss = (1 - sign * toward) + config.prior * u.square().sum(-1).mean(-1)
            if others:
                change = embed(after) - first
                loss = loss + config.off * torch.stack([(change @ vector).abs() for vector in others]).mean(0)
            if self.region is not None:
                elsewhere = (after - before).abs() * ~self.region.to(after.device)
                loss = loss + config.outside * elsewhere.flatten(1).mean(1)
            adam.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=[u])
            adam.step()
            with torch.no_grad():
                size = u.square().sum(-1).mean(-1).sqrt()[:, None, None]
                u *= (radius / size.clamp_min(1e-12)).clamp_max(1.0)
        return u.detach()

    def _image(self, w: Tensor) -> Tensor:
        return self.gan.synthesize(w, noise="none").float().clamp(-1, 1)
