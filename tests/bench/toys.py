"""A set and systems whose figures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.counterpart import Counterpart, Provenance, Query, StudyBatch
from counterscan.data.store import PreparedStore

KEY = b"test"
FINDINGS = ("Consolidation", "Pneumothorax")
SIDE = 8


def square_store(count: int = 12) -> PreparedStore:
    """Black images; even ones have a 2 x 2 square of 0.2 per finding: Consolidation left, Pneumothorax right.

    Every fourth image has Pneumothorax too; patients have two images; twins are black.
    """
    images = np.zeros((count, SIDE, SIDE), np.uint8)
    masks = {name: np.zeros((count, SIDE, SIDE), bool) for name in FINDINGS}
    labels = np.zeros((count, 2), np.float32)
    for i in range(count):
        for column, left in enumerate((1, 5)):
            if i % (2 + 2 * column) == 0:
                labels[i, column] = 1
                masks[FINDINGS[column]][i, 3:5, left : left + 2] = True
                images[i, 3:5, left : left + 2] = 153
    return PreparedStore.from_arrays(
        images,
        labels=labels,
        findings=FINDINGS,
        patients=[f"p{i // 2}" for i in range(count)],
        masks=masks,
        twins=np.zeros_like(images),
    )


class Finder:
    """Takes away what lies on the finding's side: times ``share``; ``leak`` is added on black pixels."""

    def __init__(self, share: float = 1.0, leak: float = 0.0, masker: object = None, everywhere: bool = False) -> None:
        self.share, self.leak, self.masker, self.everywhere = share, leak, masker, everywhere
        self.asked: list[int] = []

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        self.asked.append(len(batch))
        lit = batch.images + 1
        half = torch.zeros_like(lit)
        left = query.finding == FINDINGS[0]
        half[..., : SIDE // 2] = float(left or self.everywhere)
        half[..., SIDE // 2 :] = float(not left or self.everywhere)
        maps = self.share * lit * half + self.leak * (lit == 0)
        return [
            Counterpart(
                image=batch.images[i],
                evidence=maps[i].abs(),
                counterpart=batch.images[i] - maps[i],
                mask=maps[i] > 0.1 if self.masker is None else self.masker(maps[i : i + 1], None)[0],  # type: ignore[operator]
                query=query,
                made_by=Provenance("Finder", "0"),
                score_before=float(maps[i].max()),
                source=batch.sources[i] if batch.sources is not None else None,
            )
            for i in range(len(batch))
        ]


class Constant:
    """A plain map without counterpart, mask or score."""

    def __init__(self, answers: int | None = None) -> None:
        self.answers = answers

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        made = [
            Counterpart(image, torch.ones_like(image), query, Provenance("Constant", "0")) for image in batch.images
        ]
        return made[: self.answers]


class Brightness(nn.Module):
    """Calls Consolidation when anything on the left is brighter than -0.5."""

    findings: Sequence[str] = FINDINGS[:1]

    def forward(self, x: Tensor) -> Tensor:
        return 10 * (x[..., : SIDE // 2].flatten(1).amax(1, keepdim=True) + 0.5)
