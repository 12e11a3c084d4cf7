"""Descent on codes, several images at a time: to an image's own code, and on to one that convinces the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.data.augment import shift_together
from counterscan.errors import InputError
from counterscan.medxgan.model import Code

Generate = Callable[[Code], Tensor]
_PROGRESS = 0.05  # fall of a margin that counts as progress, however many steps it takes


@dataclass(frozen=True)
class RefineConfig:
    """Descent on a code.

    Attributes:
        steps: of Adam; 0 leaves E's answer.
        rate: its learning rate, falling to a tenth along a cosine.
        match: weight of the classifier's logits agreeing on image and reconstruction.
        match_every: steps between those that have this term, which costs as much as all the rest. With every third the
            logits end .02 apart instead of .01, and the image is reached as well.
        prior: weight of staying near E's answer, so that the code keeps its meaning.
    """

    steps: int = 50
    rate: float = 0.01
    match: float = 0.05
    match_every: int = 3
    prior: float = 0.02

    def __post_init__(self) -> None:
        if self.match_every < 1:
            raise InputError(f"{self.match_every} must be at least 1", field="refine.match_every")


def refine(
    x: Tensor, start: Code, generate: Generate, classifier: Callable[[Tensor], Tensor], config: RefineConfig
) -> Code:
    """Move codes so that G(z1, z2) comes nearer to the images; each image by itself, all in one batch.

    Minimises ``mean |G - x| + (G - x)^2 + match * huber(f(G) - f(x)) + prior * mean |z - E(x)|^2`` for every image, the
    term of the classifier f in every few steps. The gradients of different images do not mix, so a batch gives what its
    images give one by one.

    Args:
        x: (N, 1, H, W) in [-1, 1].
        start: E(x).
        generate: code to images.
        classifier: images to logits (N, C).
        config: see ``RefineConfig``.

    Returns:
        The code, detached.
    """
    if config.steps <= 0 or not len(x):
        return start.detach()
    z1, z2 = (part.detach().float().clone().requires_grad_() for part in (start.z1, start.z2))
    adam = torch.optim.Adam([z1, z2], lr=config.rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, config.steps, eta_min=config.rate / 10)
    with torch.no_grad():
        wanted = classifier(x)
    with torch.enable_grad():
        for step in range(1, config.steps + 1):
            again = generate(Code(z1, z2))
            apart = (again - x).flatten(1)
            loss = apart.abs().mean(dim=1) + apart.square().mean(dim=1)
            if config.match > 0 and step % config.match_every == 0:
                loss = loss + config.match * F.huber_loss(classifier(again), wanted, reduction="none").mean(dim=1)
            moved = [(z - s).flatten(1).square().mean(dim=1) for z, s in ((z1, start.z1), (z2, start.z2))]
            loss = loss + config.prior * (moved[0] + moved[1])
            adam.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=[z1, z2])
            adam.step()
            schedule.step()
    return Code(z1, z2).detach()


@dataclass(frozen=True)
class PersuadeConfig:
    """Descent on the anatomy of a counterpart that the classifier does not believe yet.

    Attributes:
        steps: of Adam at most; 0 leaves the code.
        rate: its learning rate.
        stay: weight of the image staying where it was.
        noise, move: of what the classifier is shown, as in training; see ``medxgan.objective``.
        felt: where the image may change: threshold of ``transfer_mask`` on how strongly the classifier feels the
            change so far, so that nothing is changed to which it pays no heed; 0 allows all of the image.
        ask_all_every: steps between those that ask every judge; the others ask the one who objected most then.
        patience: steps without progress after which an image's descent ends: the smoothed labels of a classifier's
            training can leave it less sure than is wanted, whatever it is shown.

    Raises:
        InputError: ``ask_all_every`` or ``patience`` below 1.
    """

    steps: int = 20
    rate: float = 0.01
    stay: float = 10.0
    noise: float = 0.05
    move: float = 0.03
    felt: float = 0.003
    ask_all_every: int = 3
    patience: int = 6

    def __post_init__(self) -> None:
        for name in ("ask_all_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} must be at least 1", field=name)


def persuade(
    end: Code,
    generate: Generate,
    shown: Callable[[Tensor, Tensor], Tensor],
    margins: Sequence[Callable[[Tensor], Tensor]],
    config: PersuadeConfig,
    wanted: float,
) -> Code:
    """Move z1 until its judges see less of what is not wanted; z2 stays.

    The generator's counterpart is the best that one code of z2 can do; where the classifier still objects, what it
    objects to is looked for in the anatomy. Minimises ``softplus(margin) + stay * mean |G - G at the start|`` for every
    image, the largest margin of its judges on a noisy, slightly moved image, so that no texture only one network reacts
    to will do. Noise and moves are the same for all images of a batch and in every call, so that each goes as it would
    go alone.

    Args:
        end: codes of counterparts.
        generate: code to images.
        shown: images (M, 1, H, W) of some rows (M,) of ``end`` to what the classifier is to judge, differentiably.
        margins: of every judge, images to (M,), positive where it objects.
        config: see ``PersuadeConfig``.
        wanted: largest margin at which an image's descent ends.

    Returns:
        The codes, detached.
    """
    if config.steps <= 0 or not len(end):
        return end.detach()
    z1, z2 = end.z1.detach().float().clone().requires_grad_(), end.z2.detach().float()
    adam = torch.optim.Adam([z1], lr=config.rate, betas=(0.9, 0.99))
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        start = generate(Code(z1, z2)).float()
    moved, left = z1.detach().clone(), torch.arange(len(z1), device=z1.device)
    strictest = torch.zeros_like(left)  # judge of each image
    least, waited = torch.full_like(left, torch.inf, dtype=z1.dtype), torch.zeros_like(left)
    with torch.enable_grad():
        for step in range(config.steps):
            image = generate(Code(z1[left], z2[left])).float()
            judged = shift_together(shown(image, left), config.move, dice)
            judged = judged + config.noise * torch.randn(start.shape[1:], generator=dice).to(start)
            all_asked = len(margins) == 1 or step % config.ask_all_every == 0
            if all_asked and len(margins) > 1:
                with torch.no_grad():
                    strictest[left] = torch.stack([judge(judged) for judge in margins]).argmax(dim=0)
            margin = _of_the_strictest(margins, judged, strictest[left])
            loss = F.softplus(margin) + config.stay * (image - start[left]).abs().flatten(1).mean(dim=1)
            adam.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=[z1])
            adam.step()
            moved[left] = z1.detach()[left]
            margin = margin.detach()
            fell = margin < least[left] - _PROGRESS
            waited[left] = torch.where(fell, 0, waited[left] + 1)
            least[left] = torch.where(fell, margin, least[left])
            if all_asked:
                left = left[(margin > wanted) & (waited[left] < config.patience)]
            if not len(left):
                break
    return Code(moved, z2)


def _of_the_strictest(margins: Sequence[Callable[[Tensor], Tensor]], images: Tensor, strictest: Tensor) -> Tensor:
    """(M,) margin of each image's own judge."""
    found = images.new_zeros(len(images))
    for k, judge in enumerate(margins):
        own = strictest == k
        if bool(own.any()):
            found = found.masked_scatter(own, judge(images[own]))
    return found


def latent_optimisation(
    x: Tensor,
    sample: Callable[[], list[Tensor]],
    generate: Callable[[list[Tensor]], Tensor],
    classifier: Callable[[Tensor], Tensor],
    *,
    column: int,
    steps: int = 5000,
    rate: float = 0.01,
    pixel: float = 4.0,
) -> list[Tensor]:
    """The paper's inversion: descend from a random code, no encoder.

    Minimises ``BCE(p(G), p(x)) + pixel * MSE(G, x)`` for every image with Adam(0.5, 0.999), as in the authors' chest
    recipe (z1 from 0, z2 from N(0, I), 5,000 steps, weight 4).

    Args:
        x: (N, 1, H, W).
        sample: gives the starting codes, a list of (N, ...) tensors.
        generate: those codes to images, with all normalisation layers in evaluation mode.
        classifier: images to logits.
        column: the explained finding's.
        steps, rate, pixel: see above.

    Returns:
        The codes, detached.
    """
    codes = [z.detach().clone().requires_grad_() for z in sample()]
    adam = torch.optim.Adam(codes, lr=rate, betas=(0.5, 0.999))
    with torch.no_grad():
        wanted = classifier(x)[:, column].sigmoid()
    with torch.enable_grad():
        for _ in range(steps):
            again = generate(codes)
            asked = F.binary_cross_entropy_with_logits(classifier(again)[:, column], wanted, reduction="none")
            loss = asked + pixel * (again - x).flatten(1).square().mean(dim=1)
            adam.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=codes)
            adam.step()
    return [z.detach() for z in codes]
