"""Made-up answers."""

from __future__ import annotations

import torch

from counterscan.counterpart import Counterpart, Provenance, Query, StudyRef
from counterscan.data.geometry import Geometry


def answer(size: int = 16, *, geometry: Geometry | None = None, seed: int = 0, **changes) -> Counterpart:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, size, size, generator=generator) * 1.2 - 0.6
    delta = torch.zeros_like(image)
    delta[:, 4:8, 4:8] = 0.25
    delta[:, 10:12, 4:6] = -0.125
    facts = dict(
        image=image,
        evidence=delta.abs(),
        counterpart=image - delta,
        mask=delta.abs() > 0.2,
        query=Query("Lung Lesion"),
        score_before=0.9,
        score_after=0.2,
        made_by=Provenance("TagGAN", "0.1.0", checkpoint="abc"),
        source=StudyRef("s1", geometry=geometry),
    )
    return Counterpart(**(facts | changes))


def attribution(size: int = 16) -> Counterpart:
    return answer(size, counterpart=None, mask=None, score_after=None, made_by=Provenance("Grad-CAM", "0.1.0"))
