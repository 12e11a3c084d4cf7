"""What all peers share that change the image until the classifier changes its mind."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from counterscan.care import Care, average_over_views, evaluating
from counterscan.counterpart import CounterfactualPath, Counterpart, Direction, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker, as_counterparts


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found for N images.

    Attributes:
        change: (N, 1, H, W), what was changed; its magnitude is the evidence.
        frames: (N, K, 1, H, W) in [-1, 1], from where the way starts to the counterpart.
        frame: share of the way to (N, 1, H, W); 1 is the counterpart.
        ended: why each search went no further.
        extras: named maps (N, 1, H, W).
        figures: named numbers (N,).
    """

    change: Tensor
    frames: Tensor
    frame: Callable[[float], Tensor]
    ended: list[str]
    extras: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    figures: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class CounterfactualPeer(AttributionPeer):
    """A peer that changes the image until the classifier changes its mind.

    ``counterparts`` takes a finding away or puts it in and answers with everything a Counterpart holds; scores and the
    path's outputs are sigmoids of the logits, its strengths run from 0 to the query's, ``figures`` say whether the
    answer "flipped". Pixels outside the valid ones stay as they are. The change is averaged over the views of ``care``;
    the counterpart is that of the image as it is. ``attribute`` gives the change of taking the finding away.

    Args:
        classifier: see ``counterscan.peers.base``.
        frames: K, of the path.
        internal_batch_size: images searched together; bounds memory.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        frames: int = 11,
        internal_batch_size: int = 64,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        if frames < 2:
            raise InputError(f"{frames} must be at least 2", field="frames")
        if internal_batch_size < 1:
            raise InputError(f"{internal_batch_size} must be at least 1", field="internal_batch_size")
        self.frames, self.internal_batch_size = frames, internal_batch_size

    @abstractmethod
    def _search(self, images: Tensor, columns: Tensor, direction: Direction, valid: Tensor) -> Search:
        """Counterparts of (N, 1, H, W) for logits ``columns`` (N,); classifier in eval mode, gradients on.

        ``valid`` (N, 1, H, W) is 1 where pixels may change, 0 elsewhere.
        """

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"frames": self.frames}

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Counterparts with evidence, scores and path.

        The verdict is "ok" where the classifier no longer sees what was to be removed (p < 0.5), or sees what was to be
        added; else it says why not.

        Raises:
            InputError: the classifier does not know the finding, or images are not (N, 1, H, W).
        """
        if batch.images.ndim != 4 or batch.images.shape[1] != 1:
            raise InputError(f"expected images (N, 1, H, W), got {tuple(batch.images.shape)}")
        columns = self._columns(query.finding, batch.images)
        answers: list[Counterpart] = []
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.classifier), self._held():
            for start in range(0, len(batch), self.internal_batch_size):
                part = batch.rows(slice(start, start + self.internal_batch_size))
                answers += self._answers(part, query, columns[: len(part)].clone())
        return answers

    def _answers(self, batch: StudyBatch, query: Query, columns: Tensor) -> list[Counterpart]:
        images = batch.images.detach().clone()  # autograd takes no inference tensors
        valid = torch.ones_like(images) if batch.valid is None else batch.valid.clone().to(images)
        searches: list[Search] = []

        def change(views: Tensor) -> Tensor:
            found = self._search(views[:, :1], columns, query.direction, views[:, 1:])
            if not searches:  # the first view is the image itself
                searches.append(found)
            return found.change

        # Valid pixels ride along as a second channel, so that they are mirrored and shifted like the image.
        changes = average_over_views(change, torch.cat([images, valid], dim=1), self.care)[:, :1]
        found = searches[0]
        strengths = torch.linspace(0, 1, self.frames) * query.strength
        frames = found.frames
        if query.strength != 1:
            frames = torch.stack([found.frame(share) for share in strengths.tolist()], dim=1)
        before = self._probabilities(images).gather(1, columns[:, None])[:, 0].tolist()
        outputs = self._probabilities(frames.flatten(0, 1)).view(*frames.shape[:2], -1)
        scores = outputs.gather(2, columns[:, None, None].expand(-1, self.frames, 1))[..., 0]
        flipped = scores[:, -1] < 0.5 if query.direction == "remove" else scores[:, -1] >= 0.5
        answers = as_counterparts(
            batch, query, self.evidence(changes, images), self.name, self.settings(), self.masker, scores=before
        )
        return [
            dataclasses.replace(
                answer,
                counterpart=frames[i, -1],
                score_after=float(scores[i, -1]),
                path=CounterfactualPath(frames[i], strengths, outputs[i]),
                extras={name: maps[i] for name, maps in found.extras.items()},
                figures={name: float(n[i]) for name, n in (found.figures | {"flipped": flipped}).items()},
                verdict=_verdict(query, before[i], float(scores[i, 0]), float(scores[i, -1]), found.ended[i]),
            )
            for i, answer in enumerate(answers)
        ]

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        part = self.internal_batch_size
        with self._held():
            changes = [
                self._search(images, columns, "remove", torch.ones_like(images)).change
                for images, columns in zip(inputs.split(part), target.split(part), strict=True)
            ]
        return torch.cat(changes)

    def _speaks_for(self, attributions: Tensor) -> Tensor:
        return attributions.abs()

    def _held(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps further networks in evaluation mode during a search."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def _probabilities(self, images: Tensor) -> Tensor:
        """(N, C) of any number of images."""
        parts = [self.classifier(part) for part in images.split(self.internal_batch_size)]
        return torch.cat(parts).float().sigmoid()


def margin(logits: Tensor, columns: Tensor, direction: Direction) -> Tensor:
    """(N,) logit that the search lowers: the finding's, or its negative where the finding is to be added."""
    chosen = logits.float().gather(1, columns[:, None])[:, 0]
    return chosen if direction == "remove" else -chosen


def _verdict(query: Query, before: float, start: float, after: float, ended: str) -> str:
    """Why not to trust an answer: probabilities of the image, of the path's start and of its end."""
    if (before >= 0.5) != (start >= 0.5):
        return (
            f"not faithful: the classifier gives the image p = {before:.2f}, but its reconstruction, where the path "
            f"starts, p = {start:.2f}"
        )
    if (after < 0.5) == (query.direction == "remove"):
        return "ok"
    sees = "still sees the finding" if query.direction == "remove" else "does not see the finding"
    reason = f"; {ended}" if ended else ""
    return f"not flipped: the classifier {sees} in the counterpart (p = {after:.2f}){reason}"
