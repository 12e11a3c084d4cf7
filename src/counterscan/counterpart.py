"""The one noun: what every system, ours or a rival's, answers with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from torch import Tensor

from counterscan.errors import InputError

if TYPE_CHECKING:
    import torch

    from counterscan.data.geometry import Geometry

Direction = Literal["remove", "add"]


@dataclass(frozen=True)
class Query:
    """What is asked of a system.

    Attributes:
        finding: canonical name of the finding.
        direction: take the finding away, or put it in.
        strength: 0 leaves the image alone, 1 is the whole change.
        text: free text for text-steered systems.

    Raises:
        InputError: another direction, or a strength that is negative or not finite.
    """

    finding: str
    direction: Direction = "remove"
    strength: float = 1.0
    text: str | None = None

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            ways = " or ".join(get_args(Direction))
            raise InputError(f"{self.direction!r} is none", field="direction", remedy=f"Use {ways}")
        if not 0 <= self.strength < math.inf:
            raise InputError(f"{self.strength} must be a number of at least 0", field="strength")


@dataclass(frozen=True)
class Provenance:
    """Who made an answer: enough to make it again."""

    system: str
    version: str
    checkpoint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRef:
    """Where an image came from, without naming the patient.

    Attributes:
        pseudonym: keyed hash of the patient or file; never a name, number or date.
        geometry: maps between the native grid and the model's.
        references: DICOM UIDs that derived objects must point to; empty for other files.
    """

    pseudonym: str
    geometry: Geometry | None = None
    references: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CounterfactualPath:
    """The way from an image to its counterpart.

    Attributes:
        frames: (K, 1, H, W) in [-1, 1].
        strengths: (K,).
        outputs: (K, C) classifier outputs along the way.
    """

    frames: Tensor
    strengths: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Counterpart:
    """One image, one finding, one answer.

    Attributes:
        image: (1, H, W) float32 in [-1, 1], the input on the model's grid.
        evidence: (1, H, W) >= 0, where the finding is; what metrics, masks and overlays use.
        counterpart: (1, H, W) the same body without (or with) the finding; None for plain attribution maps.
        mask: (1, H, W) bool, from a threshold that used no pixel labels; None when none was calibrated.
        query: what was asked.
        score_before: evidence for the finding in the image.
        score_after: evidence for the finding in its counterpart.
        path: the way between the two, when the system makes one.
        extras: named maps beside the main one ("lig", "difference", "reconstruction", "uncertainty").
        figures: named numbers on the quality of the answer ("psnr", "completeness_gap", "flipped").
        verdict: "ok", or why this answer should not be trusted.
        source: where the image came from; None for pure synthesis.
        made_by: system, checkpoint, version, settings.
    """

    image: Tensor
    evidence: Tensor
    query: Query
    made_by: Provenance
    counterpart: Tensor | None = None
    mask: Tensor | None = None
    score_before: float | None = None
    score_after: float | None = None
    path: CounterfactualPath | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    verdict: str = "ok"
    source: StudyRef | None = None

    @property
    def trusted(self) -> bool:
        """Whether the verdict is no warning: "ok", or "ok" and something to know."""
        return self.verdict.startswith("ok")

    @property
    def delta(self) -> Tensor:
        """The paper's M = image - counterpart, signed; positive where the finding brightened the body.

        Raises:
            ValueError: this answer is a plain attribution map and has no counterpart.
        """
        if self.counterpart is None:
            raise ValueError(
                f"{self.made_by.system} gives an attribution map without a counterpart, so there is no delta"
            )
        return self.image - self.counterpart


@dataclass(frozen=True)
class StudyBatch:
    """Images on the model's grid with what is known of them.

    Attributes:
        images: (N, 1, H, W) float32 in [-1, 1].
        findings: names of the label columns.
        labels: (N, C) 1, 0, -1 uncertain, NaN unmentioned; None when unknown.
        valid: (N, 1, H, W) bool, False on padding; None means that every pixel is image.
        sources: one per image; None when unknown.
    """

    images: Tensor
    findings: tuple[str, ...] = ()
    labels: Tensor | None = None
    valid: Tensor | None = None
    sources: Sequence[StudyRef] | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> StudyBatch:
        """With images and valid pixels where a system computes."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, images=self.images.to(device), valid=valid)

    def rows(self, rows: slice) -> StudyBatch:
        """Some of the images, with what is known of them."""
        return replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            valid=None if self.valid is None else self.valid[rows],
            sources=None if self.sources is None else list(self.sources)[rows],
        )


class System(Protocol):
    """Anything that answers with counterparts; metrics, reports and writers ask for nothing more."""

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """One answer per image of the batch, in order."""
        ...
