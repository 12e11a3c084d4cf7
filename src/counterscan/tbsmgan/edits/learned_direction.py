"""One direction in W per prompt, learned by descent on a directional loss.

    u* = argmin over |u| = 1 of  mean over w and a of
         1 - cos(e(G(w + a root u)) - e(G(w)), dt)        the directional loss of StyleGAN-NADA (Gal et al. 2021)
         - push (e(G(w + a root u)) - e(G(w))) . dt       far along dt, not only in its direction
         + off  mean over other findings k of |(e(G(w + a root u)) - e(G(w))) . dt'_k|
         + pixels mean |G(w + a root u) - G(w)|           outside of the region, if one is given

with a drawn from (0, reach] standard deviations, so that every strength makes sense, and dt'_k the direction of
another finding without its share in dt: directions of findings that occur together overlap. An absolute loss would be
content with any image that the model takes for the text. Without the push the direction of the least change wins, which
says the right thing too softly. u lives in whitened coordinates of W: a length of 1 is one standard deviation, and
directions in which w hardly varies are dear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Editor, Move, Origin, images_of
from counterscan.tbsmgan.edits.prompt import Prompt, TextDirections
from counterscan.tbsmgan.generator import StyleGAN


@dataclass(frozen=True)
class LearnedConfig:
    """How a direction is learned.

    Attributes:
        steps: of Adam.
        batch: bodies per step.
        rate: Adam's learning rate on u, falling to a tenth along a cosine.
        reach: largest strength that is tried, in standard deviations.
        push, off, pixels: weights; see the module.
        usual: strength of an edit that is asked for without one.
        seed: of bodies and strengths.

    Raises:
        InputError: a value is out of range; names the field.
    """

    steps: int = 100
    batch: int = 24
    rate: float = 0.1
    reach: float = 6.0
    push: float = 3.0
    off: float = 4.0
    pixels: float = 0.5
    usual: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        for name in ("rate", "reach", "usual"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("must be positive", field=name)
        for name in ("push", "off", "pixels"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError("must not be negative", field=name)


class LearnedDirection(Editor):
    """See the module; learned when a prompt is first asked for, then kept.

    Args:
        gan, texts: see ``Editor``.
        config: see ``LearnedConfig``.
        region: (1, 1, H, W) bool where the finding may be; change elsewhere is dear. None makes all change dear.
    """

    name = "learned"

    def __init__(
        self,
        gan: StyleGAN,
        texts: TextDirections,
        config: LearnedConfig | None = None,
        region: Tensor | None = None,
    ) -> None:
        super().__init__(gan, texts)
        self.asked, self.config, self.region = texts, config or LearnedConfig(), region
        self._found: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """The same for all starts."""
        step = (self.space.root @ self.direction(prompt)).expand(1, self.gan.generator.num_ws, -1)
        return Move(w=step, usual=self.config.usual, touched=step.shape[-1])

    def direction(self, prompt: Prompt) -> Tensor:
        """(w_dim,) u of length 1, in whitened coordinates."""
        key = (prompt.phrases.positives, prompt.also)
        if key not in self._found:
            with torch.inference_mode(False), torch.enable_grad():
                self._found[key] = self._learn(prompt)
        return self._found[key]

    def _learn(self, prompt: Prompt) -> Tensor:
        config, root = self.config, self.space.root
        dice = torch.Generator().manual_seed(config.seed)
        asked = self.asked.of(prompt).clone()
        others = [vector.clone() for vector in self.asked.beside(prompt)]
        free = torch.zeros(root.shape[0], device=root.device, requires_grad=True)
        start = self._loss(free, torch.ones(1, device=root.device), 0, asked, [], slope=True)
        (gradient,) = torch.autograd.grad(start, free)
        if float(gradient.norm()) < 1e-12:
            raise InputError(
                f"no direction of W moves towards {prompt.text!r}", field="text", remedy="Ask for something else"
            )
        free = F.normalize(-gradient, dim=0).detach().requires_grad_()
        adam = torch.optim.Adam([free], lr=config.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, config.steps, eta_min=config.rate / 10)
        for step in range(config.steps):
            strengths = (1 - torch.rand(config.batch, generator=dice)).to(root.device) * config.reach
            loss = self._loss(F.normalize(free, dim=0), strengths, step + 1, asked, others)
            adam.zero_grad(set_to_none=True)
            loss.backward(inputs=[free])
            adam.step()
            schedule.step()
            with torch.no_grad():
                free /= free.norm()
        return free.detach()

    def _loss(
        self, u: Tensor, strengths: Tensor, seed: int, asked: Tensor, others: list[Tensor], slope: bool = False
    ) -> Tensor:
        """The loss of one batch of bodies; with ``slope`` only how far the embeddings go, for the start at u = 0."""
        config, gan = self.config, self.gan
        with torch.no_grad():
            labels = gan.draw_labels(config.batch, config.seed * 7919 + seed)
            w = Origin.sample(gan, labels, psi=1.0, seed=config.seed * 7919 + seed).w
            before = images_of(gan, w)
            first = self.asked.model.embed_images(before)
        after = images_of(gan, w + strengths.view(-1, 1, 1) * (self.space.root @ u))
        change = self.asked.model.embed_images(after) - first
        far = (change @ asked).mean()
        if slope:
            return -far
        loss = (1 - F.cosine_similarity(change, asked[None], dim=1, eps=1e-6)).mean() - config.push * far
        if others:
            loss = loss + config.off * torch.stack([(change @ vector).abs().mean() for vector in others]).mean()
        outside = (after - before).abs()
        if self.region is not None:
            outside = outside * ~self.region.to(outside.device)
        return loss + config.pixels * outside.mean()
