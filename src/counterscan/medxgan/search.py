"""From an image and its code to the way that leads to a counterpart which convinces its judges, changing little.

y = G(z1, 0), or with the z2 of another image       where the way leads
x' = x + m (y - x^)                                 residual transfer, m as tight as convinces
y moved on where the classifier feels it, then
larger differences                                  where no m convinces
y moved on everywhere                               where the judges are far from sure even so
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterscan.care import smooth
from counterscan.counterpart import Query
from counterscan.errors import InputError
from counterscan.medxgan.attribution import path_integrated_gradients, straight_path
from counterscan.medxgan.explain_config import CALLED, ExplainConfig, convinced
from counterscan.medxgan.inversion import PersuadeConfig, persuade
from counterscan.medxgan.model import Code, MedXGANNetworks
from counterscan.training.precision import autocast
from counterscan.transfer import kept_texture, transfer_mask

_AT_ONCE = 16  # images that are judged or generated together, which is faster than one by one
_ANYWHERE = 0.0  # as threshold of a mask: all that visibly changes
_FELT_AT = 4  # places between image and counterpart


class CounterpartSearch:
    """One question about a batch of images.

    Args:
        networks: trained E and G.
        judges: who must be convinced, the classifier and its witnesses; each (N, 1, H, W) to logits (N, C).
        config: how images are explained.
        query: what is asked; its strength scales the change that is found, and has no part in finding it.
        column: of the finding.
        x: (N, 1, H, W) in [-1, 1].
        again: their reconstructions.
        before: (N,) logit of the finding that the classifier gives x.
        valid: (N, 1, H, W), False on padding; None means that every pixel is image.
    """

    def __init__(
        self,
        networks: MedXGANNetworks,
        judges: Sequence[Callable[[Tensor], Tensor]],
        config: ExplainConfig,
        query: Query,
        column: int,
        x: Tensor,
        again: Tensor,
        before: Tensor,
        valid: Tensor | None = None,
    ) -> None:
        self.networks, self.config, self.query, self.column = networks, config, query, column
        self.x, self.again = x, again
        self.inside = torch.ones_like(x) if valid is None else valid.to(x.dtype)
        self.judges, self.sign = judges, 1.0 if query.direction == "remove" else -1.0
        self.settled = convinced(before.sigmoid(), query.direction)  # (N,): nothing need change
        self.sure = torch.where(self.settled, CALLED, config.sure)  # (N,) probability of what is not wanted

    @torch.no_grad()
    def path(self, code: Code, donors: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The way from image (or reconstruction) to counterpart.

        Args:
            code: of the images.
            donors: (B, pathology, h, w), see ``MedXGAN``.

        Returns:
            Frames (K, N, 1, H, W), and figures (N,): "boost", the factor on the generator's difference, and
            "insisted", 1 where the change was allowed anywhere.

        Raises:
            InputError: a finding is to be brought in, and there are no donors.
        """
        goal = self._healed(code) if self.query.direction == "remove" else self._lent(code, donors)
        config, everyone = self.config, torch.arange(len(self.x), device=self.x.device)
        found = self._smallest(goal, everyone, config.masks, config.boosts[:1])
        insisted = torch.zeros_like(found.boost)
        unsure = torch.nonzero((found.objection > config.sure) & ~self.settled)[:, 0]
        if len(unsure):
            goal = self._persuaded(goal, unsure, config.persuade, config.masks[-1])
            found = found.replaced(unsure, self._smallest(goal, unsure, config.masks, config.boosts))
        far = torch.nonzero((found.objection > max(config.far, config.sure)) & ~self.settled)[:, 0]
        if len(far) and config.insist.steps > 0:
            other = self._persuaded(goal, far, config.insist, _ANYWHERE)
            there = self._smallest(other, far, (_ANYWHERE,), config.boosts)
            better = there.objection < found.objection[far]
            goal, found = goal.taking(far[better], other), found.replaced(far[better], there.select(better))
            insisted[far[better]] = 1
        lost = self.settled & (found.objection > CALLED)  # the call was right, and is in doubt: then nothing changes
        mask = torch.where(lost.view(-1, 1, 1, 1), 0.0, found.mask)
        factor = (found.boost * self.query.strength).view(-1, 1, 1, 1)
        frames = [self._start]
        between = self._on_the_way(goal, torch.linspace(0, 1, self.config.frames).tolist()[1:-1])
        frames += [self._carried(factor * self._change(goal, image), mask) for image in (*between, goal.image)]
        return torch.stack(frames), {"boost": found.boost, "insisted": insisted}

    @property
    def _start(self) -> Tensor:
        """What is changed: the image itself, without transfer its reconstruction."""
        return self.x if self.config.transfer else self.again

    @property
    def _margins(self) -> list[Callable[[Tensor], Tensor]]:
        """Of every judge: images to the logit (N,) of what is not wanted."""

        def of(judge: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda images: self.sign * judge(images)[:, self.column]

        return [of(judge) for judge in self.judges]

    def _objection(self, images: Tensor) -> Tensor:
        """(N,) probability of what is not wanted, of the judge who is convinced least."""
        return torch.stack([margin(images) for margin in self._margins]).amax(dim=0).sigmoid()

    def _healed(self, code: Code) -> _Goal:
        """z2 = 0."""
        end = code.scaled(0.0, self.column)
        return _Goal(code, end, self.networks.generate(end).float(), torch.ones_like(self.x))

    def _lent(self, code: Code, donors: Tensor | None) -> _Goal:
        """The donor that changes the call with the smallest change of the image."""
        if donors is None or not len(donors):
            raise InputError(
                f"no donors of {self.query.finding!r} were kept", field="direction", remedy="Train the explainer anew"
            )
        count, columns = len(self.x), torch.tensor(self.column)
        best, least, chosen = self.again, torch.full((count,), float("inf"), device=self.x.device), code
        for donor in donors.to(self.x.device):
            end = code.with_block(donor.expand(count, *donor.shape), columns)
            image = self.networks.generate(end).float()
            change = image - self.again
            mask = transfer_mask(change) if self.config.transfer else torch.ones_like(change)
            moved = self._carried(change, self.inside * mask)
            objection = self._objection(moved)
            # A donor that does not change the call costs more than any that does, less so the nearer it comes.
            cost = (moved - self.x).abs().mean(dim=(1, 2, 3))
            cost = cost + torch.where(objection <= CALLED, 0.0, 10 + objection - CALLED)
            better = cost < least
            least = torch.where(better, cost, least)
            best = torch.where(better.view(-1, 1, 1, 1), image, best)
            chosen = Code(code.z1, torch.where(better.view(-1, 1, 1, 1, 1), end.z2, chosen.z2))
        return _Goal(code, chosen, best, torch.ones_like(self.x))

    def _persuaded(self, goal: _Goal, rows: Tensor, config: PersuadeConfig, threshold: float) -> _Goal:
        """The goal, some rows of it moved on where the classifier feels it; judged with the mask of that threshold."""
        if config.steps <= 0:
            return goal
        again, within = self.again[rows], self.inside[rows]
        if config.felt > 0:
            within = within * transfer_mask(self._felt(goal, rows, threshold), threshold=config.felt, floor=0)

        def shown(image: Tensor, some: Tensor) -> Tensor:
            change = within[some] * (image - again[some])
            return self._carried(change, transfer_mask(change.detach(), threshold=threshold), rows[some])

        wanted = math.log(self.config.sure / (1 - self.config.sure))
        with autocast(self.x.device, self.config.precision):
            moved = persuade(goal.end.select(rows), self.networks.generate, shown, self._margins, config, wanted)
        return goal.replaced(rows, moved, self.networks.generate(moved).float(), within)

    def _felt(self, goal: _Goal, rows: Tensor, threshold: float) -> Tensor:
        """Where the classifier feels the change so far, (M, 1, H, W): Integrated Gradients in both signs, blurred. Of a
        change that it does not feel at all, the change itself."""
        change = goal.image[rows] - self.again[rows]
        moved = self._carried(change, self.inside[rows] * transfer_mask(change, threshold=threshold), rows)
        way = straight_path(moved, self._start[rows], _FELT_AT)
        with autocast(self.x.device, self.config.precision):
            felt = path_integrated_gradients(way, self._margins[0])
        felt = smooth(felt, self.config.smoothing).abs()
        return torch.where(felt.flatten(1).any(dim=1).view(-1, 1, 1, 1), felt, change.abs())

    def _smallest(self, goal: _Goal, rows: Tensor, thresholds: Sequence[float], boosts: Sequence[float]) -> _Found:
        """Of some rows the tightest mask, then the smallest factor, with which all judges are sure; where none
        suffices, the first that comes as near as any or nearly so."""
        difference, inside, sure = self._change(goal, goal.image)[rows], self.inside[rows], self.sure[rows]
        masks = [inside]
        if self.config.transfer:
            masks = [inside * transfer_mask(difference, threshold=threshold) for threshold in thresholds]
        attempts = [(mask, boosts[0]) for mask in masks] + [(masks[-1], boost) for boost in boosts[1:]]
        count, left = len(difference), torch.empty(0, len(difference), device=difference.device)
        together = max(1, _AT_ONCE // count)
        for some in (attempts[k : k + together] for k in range(0, len(attempts), together)):
            images = [self._carried(factor * difference, mask, rows) for mask, factor in some]
            left = torch.cat([left, self._objection(torch.cat(images)).view(len(some), count)])
            if bool((left.amin(dim=0) <= sure).all()):
                break
        enough = torch.maximum((1 + self.config.near) * left.amin(dim=0), sure)
        first = (left <= enough).int().argmax(dim=0)  # argmax takes the first of equals
        tried = [attempts[k] for k in first.tolist()]
        chosen = torch.cat([mask.expand_as(difference)[i : i + 1] for i, (mask, _) in enumerate(tried)])
        factors = torch.tensor([factor for _, factor in tried], device=difference.device)
        return _Found(chosen, factors, left.gather(0, first[None])[0])

    def _on_the_way(self, goal: _Goal, strengths: Sequence[float]) -> list[Tensor]:
        """The generator's images (N, 1, H, W) at shares of the way, some of them at once."""
        images, together = list[Tensor](), max(1, _AT_ONCE // len(self.x))
        for some in (strengths[k : k + together] for k in range(0, len(strengths), together)):
            codes = [goal.between(strength) for strength in some]
            code = Code(torch.cat([each.z1 for each in codes]), torch.cat([each.z2 for each in codes]))
            images += self.networks.generate(code).float().chunk(len(some))
        return images

    def _change(self, goal: _Goal, image: Tensor) -> Tensor:
        """What an image of the generator changes, where the goal may."""
        return goal.within * (image - self.again)

    def _carried(self, change: Tensor, mask: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The generator's change, within the mask, made to the image itself; without transfer to its reconstruction."""
        x, again, fade = self.x[rows], self.again[rows], self.config.fade
        if not self.config.transfer:
            return (again + mask * change).clamp(-1, 1)
        if fade is not None:
            change = change - (1 - kept_texture(change, fade)) * (x - again)
        return (x + mask * change).clamp(-1, 1)


@dataclass(frozen=True)
class _Found:
    """Masks (N, 1, H, W), factors (N,) on the differences, and what is left (N,) of what is not wanted."""

    mask: Tensor
    boost: Tensor
    objection: Tensor

    def select(self, rows: Tensor) -> _Found:
        """Some of them."""
        return _Found(self.mask[rows], self.boost[rows], self.objection[rows])

    def replaced(self, rows: Tensor, other: _Found) -> _Found:
        """With what another search found for these rows."""
        pairs = ((self.mask, other.mask), (self.boost, other.boost), (self.objection, other.objection))
        return _Found(*(a.index_copy(0, rows, b) for a, b in pairs))


@dataclass(frozen=True)
class _Goal:
    """Two codes, the generator's image of the second, and where (N, 1, H, W) it may differ."""

    start: Code
    end: Code
    image: Tensor
    within: Tensor

    def between(self, strength: float) -> Code:
        """The code at a share of the way."""
        z1, z2 = (a + strength * (b - a) for a, b in ((self.start.z1, self.end.z1), (self.start.z2, self.end.z2)))
        return Code(z1, z2)

    def taking(self, rows: Tensor, other: _Goal) -> _Goal:
        """With some rows of another goal."""
        return self.replaced(rows, other.end.select(rows), other.image[rows], other.within[rows])

    def replaced(self, rows: Tensor, end: Code, image: Tensor, within: Tensor) -> _Goal:
        """With other ends of some rows."""

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new.to(old.dtype))

        ends = Code(put(self.end.z1, end.z1), put(self.end.z2, end.z2))
        return _Goal(self.start, ends, put(self.image, image), put(self.within, within))
