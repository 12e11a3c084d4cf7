"""The placebo: a move as long as another editor's, somewhere else."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch

from counterscan.tbsmgan.edits.base import Editor, Move, Origin
from counterscan.tbsmgan.edits.prompt import Prompt
from counterscan.tbsmgan.edits.style_directions import feature_layers


class RandomDirection(Editor):
    """A direction drawn once for each prompt, with as many standard deviations as ``like`` takes and in the same space.

    Args:
        like: the editor whose moves are matched.
        seed: of the directions.
    """

    name = "random"
    needs_text = False

    def __init__(self, like: Editor, seed: int = 0) -> None:
        super().__init__(like.gan, like.texts)
        self.like, self.seed = like, seed
        self.space, self.strengths = like.space, like.strengths

    def usual(self, prompt: Prompt) -> float:
        """That of ``like``."""
        return self.like.usual(prompt)

    @torch.no_grad()
    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """See the class."""
        model = self.like.move(latents, prompt, strength)
        name = hashlib.sha256(f"{self.seed}\n{prompt.text}".encode()).digest()
        dice = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        if model.w is not None:
            drawn = torch.randn(1, 1, model.w.shape[2], generator=dice).to(model.w) @ self.space.root.T
            drawn = drawn.expand(1, model.w.shape[1], -1)
            scale = self.space.size(model.w) / self.space.size(drawn)
            return Move(w=drawn * scale[:, None, None], usual=model.usual, touched=model.touched)
        steps = list(model.styles or ())
        sds = self._deviations
        chosen = feature_layers(self.gan)
        flat = torch.cat([steps[at] / sds[at] for at in chosen], dim=1)  # (1, C) in standard deviations
        shuffled = flat[:, torch.randperm(flat.shape[1], generator=dice).to(flat.device)]
        signs = torch.randint(0, 2, (flat.shape[1],), generator=dice).to(flat) * 2 - 1
        parts = (shuffled * signs).split([steps[at].shape[1] for at in chosen], dim=1)
        for at, part in zip(chosen, parts, strict=True):
            steps[at] = part * sds[at]
        return Move(styles=steps, usual=model.usual, touched=model.touched)

    @cached_property
    def _deviations(self) -> list[torch.Tensor]:
        """One (C_l,) per layer."""
        drawn = self.gan.styles(Origin.sample(self.gan, self.gan.draw_labels(1024), psi=1.0).w)
        return [s.std(0).clamp_min(1e-8) for s in drawn]
