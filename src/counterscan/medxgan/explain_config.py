"""How medXGAN+ explains an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from torch import Tensor

from counterscan.counterpart import Direction
from counterscan.errors import InputError
from counterscan.medxgan.inversion import PersuadeConfig, RefineConfig
from counterscan.training.precision import Precision

EVIDENCE = ("difference", "lig", "ig_negative")
CALLED = 0.5  # the plain probability from which the classifier calls a finding present


@dataclass(frozen=True)
class ExplainConfig:
    """How an image is explained.

    Attributes:
        refine: descent after E's one pass.
        persuade: descent on counterparts of which the classifier is not ``sure``.
        insist: a further descent, by default anywhere in the image, where the classifier is still ``far`` from sure:
            what it goes by may be no lesion but the whole image.
        frames: of the way from image to counterpart, both included.
        transfer: take only the difference from the generator and keep the image's own texture elsewhere; else the
            answer is the generator's image.
        fade: mean |change| around a pixel from which the image's own texture, which the generator misses, gives way to
            the generator's: there it is the lesion's. None keeps all of it.
        masks: thresholds of ``transfer_mask`` that are tried in turn, tight ones first, until the classifier is sure.
        boosts: factors on the difference that are then tried with the last mask.
        near: where no attempt suffices, the first one is taken whose probability of what is not wanted is at most
            (1 + near) times the least that any reaches: a wider mask or a larger change must be worth it.
        sure: probability of the finding at which the classifier is sure that it is gone; 1 - sure that it is there.
            One half would take the first change that tips the call, which other classifiers follow less often.
        far: probability of the finding above which ``insist`` starts; ``sure`` where that is more.
        evidence: which map is the main one: "lig", which asks the classifier where the change mattered, "difference",
            the change itself, or "ig_negative".
        precision: of all descents; "auto" computes in bfloat16 where that is fast. All images, probabilities and maps
            of an answer are computed in float32.
        smoothing, reach: of the evidence; see ``counterscan.care.Care``, whose views are not used here.
        internal_batch_size: images searched together; bounds memory.

    Raises:
        InputError: a value is out of range; names the field.
    """

    refine: RefineConfig = field(default_factory=RefineConfig)
    persuade: PersuadeConfig = field(default_factory=PersuadeConfig)
    insist: PersuadeConfig = field(default_factory=lambda: PersuadeConfig(rate=0.03, stay=5.0, felt=0.0))
    frames: int = 11
    transfer: bool = True
    fade: float | None = 0.4
    masks: tuple[float, ...] = (0.5, 0.35, 0.2, 0.1)
    boosts: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    near: float = 0.01
    sure: float = 0.05
    far: float = 0.2
    evidence: str = "lig"
    precision: Precision = "auto"
    smoothing: float = 1 / 64
    reach: float = 0.055
    internal_batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("masks", "boosts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise InputError("must name at least one", field=name)
        if not 0 < self.sure <= CALLED:
            raise InputError(f"{self.sure} must be above 0 and at most {CALLED}", field="sure")
        if not self.near >= 0:
            raise InputError(f"{self.near} must not be negative", field="near")
        if not 0 < self.far <= 1:
            raise InputError(f"{self.far} must be above 0 and at most 1", field="far")
        if self.fade is not None and not self.fade > 0:
            raise InputError(f"{self.fade} must be above 0", field="fade")
        if self.frames < 2:
            raise InputError("must be at least 2: the image and its counterpart", field="frames")
        if self.internal_batch_size < 1:
            raise InputError("must be at least 1", field="internal_batch_size")
        if self.precision not in get_args(Precision):
            raise InputError(f"{self.precision!r} must be one of {', '.join(get_args(Precision))}", field="precision")
        if self.evidence not in EVIDENCE:
            raise InputError(f"{self.evidence!r} must be one of {', '.join(EVIDENCE)}", field="evidence")


def convinced(p: Tensor, direction: Direction) -> Tensor:
    """Whether a classifier of whose plain probabilities these are calls images as is asked for."""
    return p < CALLED if direction == "remove" else p >= CALLED
