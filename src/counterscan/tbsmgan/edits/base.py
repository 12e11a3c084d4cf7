"""What all ways of steering share: latents and a prompt in, a move through W or S, images before and after out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.prompt import Prompt, TextDirections, TextImage
from counterscan.tbsmgan.generator import PSI, StyleGAN
from counterscan.training.checkpoint import weights_digest
from counterscan.transfer import SIDES, kept_texture, side_mask

_BATCH = 64
_DRAWS = 4096
_REPLACED = 0.3  # change of intensity from which nothing of the image's own is left


@dataclass(frozen=True)
class Origin:
    """Where edits start.

    Attributes:
        w: (N, num_ws, w_dim).
        z: (N, z_dim) that w was mapped from; None for inverted images.
        c: (N, K) the condition it was mapped with.
        psi: truncation it was mapped with.
        residual: (N, 1, H, W) what the generator misses of real images, x - G(w): put back into what is made of them,
            so that an edit leaves their texture where it changes nothing; see ``restored``. None adds nothing.
        image: (N, 1, H, W) G(w), where it was made already.
    """

    w: Tensor
    z: Tensor | None = None
    c: Tensor | None = None
    psi: float = 1.0
    residual: Tensor | None = None
    image: Tensor | None = None

    @classmethod
    def of(cls, given: Tensor | Origin) -> Origin:
        """Origin as they are, or w alone.

        Raises:
            InputError: no (N, num_ws, w_dim) with N >= 1.
        """
        latents = given if isinstance(given, Origin) else cls(given)
        if latents.w.ndim != 3 or not len(latents.w):
            raise InputError(f"expected (N, num_ws, w_dim) with N >= 1, got {tuple(latents.w.shape)}", field="w")
        return latents

    @classmethod
    @torch.no_grad()
    def sample(cls, gan: StyleGAN, labels: Tensor, psi: float = PSI, seed: int = 0) -> Origin:
        """New bodies with conditions (N, K), the same for the same arguments.

        Args:
            gan: the generator.
            labels: (N, K) in [0, 1]; (N, 0) for a generator without condition.
            psi: truncation.
            seed: of z.
        """
        dice = torch.Generator().manual_seed(seed)
        z = torch.randn(len(labels), gan.generator.config.z_dim, generator=dice).to(gan.device)
        c = labels.float().to(gan.device) if len(gan.findings) else None
        return cls(gan.map(z, c, psi), z, c, psi)

    def __len__(self) -> int:
        return len(self.w)

    def take(self, rows: slice | Tensor) -> Origin:
        """Some of them."""
        names = ("w", "z", "c", "residual", "image")
        return replace(self, **{name: x[rows] for name in names if (x := getattr(self, name)) is not None})

    @torch.no_grad()
    def shown(self, gan: StyleGAN) -> Origin:
        """With their images, for who edits them more than once."""
        if self.image is not None:
            return self
        return replace(self, image=torch.cat([images_of(gan, part) for part in self.w.split(_BATCH)]))

    @classmethod
    @torch.no_grad()
    def of_images(cls, gan: StyleGAN, x: Tensor, w: Tensor) -> Origin:
        """Real images (N, 1, H, W) in [-1, 1] with latents that were found for them, and what those miss."""
        start = cls(w).shown(gan)
        assert start.image is not None
        return replace(start, residual=x.to(w.device) - start.image)


class WSpace:
    """How w is distributed over the generator's own samples: what a standard deviation is along any direction.

    Attributes:
        mean: (w_dim,).
        root: (w_dim, w_dim) with root root^T the covariance: whitened coordinates u mean w = root u.
        inverse: (w_dim, w_dim) back to u; directions that w never takes count as the rarest that it takes.
    """

    def __init__(self, gan: StyleGAN, draws: int = _DRAWS, seed: int = 0) -> None:
        w = Origin.sample(gan, gan.draw_labels(draws, seed), psi=1.0, seed=seed).w[:, -1].double()
        self.mean = w.mean(0).float()
        values, vectors = torch.linalg.eigh(torch.cov(w.T))
        spread = values.clamp_min(float(values.max()) * 1e-5).sqrt()
        self.root = (vectors * spread).float()
        self.inverse = (vectors / spread).T.float()

    def size(self, move: Tensor) -> Tensor:
        """Standard deviations that a move (N, num_ws, w_dim) is long: (N,) root of the mean square over the ws."""
        return (move @ self.inverse.T).square().sum(-1).mean(-1).sqrt()


@dataclass(frozen=True)
class Move:
    """One standard deviation towards the prompt.

    Attributes:
        w: (N or 1, num_ws, w_dim), or None.
        styles: one (N or 1, C_l) per layer, where the move is through S instead.
        usual: strength that the method takes for a whole change.
        touched: how many numbers of w or s it changes.
    """

    w: Tensor | None = None
    styles: Sequence[Tensor] | None = None
    usual: float = 1.0
    touched: int = 0


@dataclass(frozen=True)
class Edited:
    """Images and their edits.

    Attributes:
        before, after: (N, 1, H, W) in [-1, 1].
        latents: where the edit started.
        w: (N, num_ws, w_dim) of the edits; None where they lie in S.
        styles: one (N, C_l) per layer of the edits; None where they lie in W.
        prompt: what was asked.
        strength: in standard deviations, positive towards the prompt.
        method: name of the editor.
        touched: how many numbers of w or s the edit changes.
        text_before, text_after: (N,) cosine of the images' embeddings with the prompt's direction; None without a
            text-image model.
        others: finding -> (N,) change of that cosine for findings that were not asked for.
    """

    before: Tensor
    after: Tensor
    latents: Origin
    w: Tensor | None
    styles: list[Tensor] | None
    prompt: Prompt
    strength: float
    method: str
    touched: int
    text_before: Tensor | None = None
    text_after: Tensor | None = None
    others: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.before)

    def take(self, rows: Tensor) -> Edited:
        """Some of them, by number or by a bool for each."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        return replace(
            self,
            before=self.before[rows],
            after=self.after[rows],
            latents=self.latents.take(rows),
            w=some(self.w),
            styles=None if self.styles is None else [layer[rows] for layer in self.styles],
            text_before=some(self.text_before),
            text_after=some(self.text_after),
            others={name: change[rows] for name, change in self.others.items()},
        )


class Editor(abc.ABC):
    """One way of steering. Positive strengths lead towards the prompt, negative ones away from it.

    Where the text names one side, only that half of the image changes: the patient's left is at the display's right.

    Args:
        gan: the generator.
        texts: directions of prompts in a text-image model; None for methods that do without.

    Attributes:
        name: of the method.
        needs_text: whether it asks a text-image model.
        strengths: in standard deviations, that are tried in turn where none is given.
    """

    name: str
    needs_text = True
    strengths: Sequence[float] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)

    def __init__(self, gan: StyleGAN, texts: TextDirections | None = None) -> None:
        if self.needs_text and texts is None:
            raise InputError("needs a text-image model", field=f"method {self.name!r}")
        self.gan, self.texts = gan, texts

    @cached_property
    def space(self) -> WSpace:
        return WSpace(self.gan)

    @abc.abstractmethod
    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """Where an edit leads.

        Args:
            latents: N starts.
            prompt: what is asked.
            strength: what it will be multiplied with, for methods to which that makes a difference; None for the usual.
        """

    def usual(self, prompt: Prompt) -> float:
        """Strength that the method takes for a whole change."""
        labels = torch.zeros(1, len(self.gan.findings))
        return self.move(Origin.sample(self.gan, labels, psi=1.0), prompt).usual

    def edit(
        self, latents: Tensor | Origin, prompt: Prompt, strength: float | None = None, *, told: bool = True
    ) -> Edited:
        """Images of latents and of their edits, without gradients and in parts of bounded memory.

        Args:
            latents: w (N, num_ws, w_dim), or more of what is known of the images.
            prompt: what is asked; see ``Steering.prompt``.
            strength: in standard deviations, positive towards the prompt, negative away; None for the usual one.
            told: also ask the text-image model, if there is one, what it sees in the images.

        Raises:
            InputError: w of another shape, or a strength that is not finite.
        """
        latents = Origin.of(latents)
        if strength is not None and not abs(strength) < float("inf"):
            raise InputError(f"{strength} is not finite", field="strength")
        parts = [
            self._edit(latents.take(slice(start, start + _BATCH)), prompt, strength, told)
            for start in range(0, len(latents), _BATCH)
        ]
        return parts[0] if len(parts) == 1 else joined(parts, latents)

    def _edit(self, latents: Origin, prompt: Prompt, strength: float | None, told: bool) -> Edited:
        move = self.move(latents, prompt, strength)
        strength = move.usual if strength is None else float(strength)
        with torch.no_grad():
            before = images_of(self.gan, latents.w) if latents.image is None else latents.image
            w, styles = None, None
            if move.w is not None:
                w = latents.w + strength * move.w
                after = images_of(self.gan, w)
            else:
                steps = move.styles or ()
                styles = [s + strength * d for s, d in zip(self.gan.styles(latents.w), steps, strict=True)]
                after = images_of(self.gan, styles=styles)
            if latents.residual is not None:
                before, after = restored(before, after, latents.residual)
            if prompt.side in SIDES:
                after = before + side_mask(prompt.side, after.shape[-1]).to(after) * (after - before)
            edited = Edited(before, after, latents, w, styles, prompt, strength, self.name, move.touched)
            return self._told(edited, self.texts) if told and self.texts is not None else edited

    def _told(self, edited: Edited, texts: TextDirections) -> Edited:
        """With what the text-image model says of it."""
        first, second = (texts.model.embed_images(x) for x in (edited.before, edited.after))
        asked = texts.of(edited.prompt)
        change = second - first
        return replace(
            edited,
            text_before=first @ asked,
            text_after=second @ asked,
            others={name: change @ vector for name, vector in texts.others(edited.prompt).items()},
        )


def joined(parts: Sequence[Edited], latents: Origin) -> Edited:
    """Parts of one edit as one."""

    def both(values: Sequence[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.cat(there) if there else None

    layers = [part.styles for part in parts if part.styles is not None]
    return replace(
        parts[0],
        before=torch.cat([part.before for part in parts]),
        after=torch.cat([part.after for part in parts]),
        latents=latents,
        w=both([part.w for part in parts]),
        styles=[torch.cat(layer) for layer in zip(*layers, strict=True)] if layers else None,
        text_before=both([part.text_before for part in parts]),
        text_after=both([part.text_after for part in parts]),
        others={name: torch.cat([part.others[name] for part in parts]) for name in parts[0].others},
    )


def restored(before: Tensor, after: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """What the generator misses of real images, put back into its images of them and into their edits.

    It fades where an edit changes much: there it belongs to what is no longer shown. The rim of a heart that has grown,
    say, would stay as a seam within the larger one.

    Args:
        before, after: (N, 1, H, W) in [-1, 1], the generator's.
        residual: see ``Origin``.

    Returns:
        The real images, and their edits, in [-1, 1].
    """
    kept = kept_texture(after - before, _REPLACED)
    return (before + residual).clamp(-1, 1), (after + kept * residual).clamp(-1, 1)


def images_of(gan: StyleGAN, w: Tensor | None = None, styles: Sequence[Tensor] | None = None) -> Tensor:
    """(N, 1, H, W) in [-1, 1], with the generator's own noise, so that only the edit changes."""
    return gan.synthesize(w, styles=styles, noise="const").float().clamp(-1, 1)


@torch.no_grad()
def embedded(model: TextImage, images: Tensor) -> Tensor:
    """(N, d) of images, in batches."""
    return torch.cat([model.embed_images(part) for part in images.split(_BATCH)])


def digest_of(model: object) -> str:
    """16 hex digits that name a text-image model's weights.

    Raises:
        InputError: it is no module and has no ``digest``.
    """
    named = getattr(model, "digest", "")
    if isinstance(named, str) and named:
        return named[:16]
    if isinstance(model, nn.Module):
        return weights_digest(model)[:16]
    raise InputError("nothing tells the model's weights apart", field="text model", remedy="Give it a digest")


def unit(x: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay."""
    return F.normalize(x, dim=-1, eps=1e-8)
