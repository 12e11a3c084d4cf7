"""Maps that know nothing of the disease. A method that does not beat them has localised nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from counterscan.care import Care, smooth, tidy
from counterscan.counterpart import Counterpart, Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.peers.base import Masker, as_counterparts


class RawIntensity:
    """The image itself as evidence: ``(x + 1) / 2``, or ``(1 - x) / 2`` when inverted for dark findings.

    Args:
        invert: dark pixels are evidence.
        care: smoothing and spreading; there is nothing to average.
        masker: see ``AttributionPeer``.
    """

    def __init__(self, *, invert: bool = False, care: Care | None = None, masker: Masker | None = None) -> None:
        self.invert, self.care, self.masker = invert, care or Care(), masker
        self.name = "Inverted intensity" if invert else "Raw intensity"

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Evidence in [0, 1]; the query's finding makes no difference."""
        sign = -1 if self.invert else 1
        evidence = tidy(((1 + sign * batch.images) / 2).clamp(0, 1), batch.images, self.care)
        settings = {"invert": self.invert, **asdict(self.care)}
        return as_counterparts(batch, query, evidence, self.name, settings, self.masker)


class WholeOrgan:
    """All ones: the strongest recall there is, and the reason why recall is never shown alone.

    Args:
        above: only pixels brighter than this, in [-1, 1], count as organ; None takes every valid pixel.
        masker: see ``AttributionPeer``; by default the mask is the organ.
    """

    name = "Whole organ"

    def __init__(self, *, above: float | None = None, masker: Masker | None = None) -> None:
        self.above = above
        self.masker = masker or (lambda evidence, _: evidence > 0)

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Evidence 1 in the organ, 0 outside and on padding."""
        organ = torch.ones_like(batch.images) if self.above is None else (batch.images > self.above).float()
        return as_counterparts(batch, query, organ, self.name, {"above": self.above}, self.masker)


class MeanLesionLocation:
    """How often each pixel is lesion in a set of masks: a supervised prior that never looks at the image.

    Each image is answered from the masks of *other* patients: masks of its own patient are left out, so the map may be
    fitted on the very set it is tried on.

    Args:
        masks: (M, 1, H, W) bool on the model's grid, of one finding; images without lesion may be among them and
            change only scale.
        patients: (M,) the patient of each mask, named as ``patient_of`` names them.
        smoothing: sigma of a Gaussian as a share of the width, worth having when masks are few.
        patient_of: reads the patient off an image's ``StudyRef``; its pseudonym by default.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: no mask, or lengths disagree.
    """

    name = "Mean lesion location"

    def __init__(
        self,
        masks: Tensor,
        patients: Sequence[str],
        *,
        smoothing: float = 0.0,
        patient_of: Callable[[StudyRef], str] = lambda source: source.pseudonym,
        masker: Masker | None = None,
    ) -> None:
        if masks.ndim != 4 or len(masks) != len(patients) or not len(masks):
            raise InputError(f"expected masks (M, 1, H, W) and M patients, got {tuple(masks.shape)}, {len(patients)}")
        self.smoothing, self.patient_of, self.masker = smoothing, patient_of, masker
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        for mask, patient in zip(masks.double(), patients, strict=True):
            self._sums[patient] = self._sums.get(patient, 0) + mask
            self._counts[patient] = self._counts.get(patient, 0) + 1
        self._sum = torch.stack(list(self._sums.values())).sum(0)

    def map_for(self, patient: str | None) -> Tensor:
        """(1, H, W) in [0, 1]: share of the masks of all patients but this one that cover a pixel.

        Raises:
            InputError: there are masks of this patient only.
        """
        rest = sum(self._counts.values()) - self._counts.get(patient or "", 0)
        if not rest:
            raise InputError("there is no mask of any other patient", remedy="Fit the map on more patients")
        total = self._sum - self._sums.get(patient or "", torch.zeros_like(self._sum))
        return smooth((total / rest).float()[None], self.smoothing)[0].clamp_min(0)

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """The map for each image's patient; an image without source is taken to be of a patient unseen.

        Raises:
            InputError: images and masks differ in size.
        """
        if batch.images.shape[-2:] != self._sum.shape[-2:]:
            raise InputError(f"masks are {tuple(self._sum.shape[-2:])}, images {tuple(batch.images.shape[-2:])}")
        sources: Sequence[StudyRef | None] = batch.sources or [None] * len(batch)
        maps = [self.map_for(None if source is None else self.patient_of(source)) for source in sources]
        evidence = torch.stack(maps).to(batch.images.device) if maps else torch.zeros_like(batch.images)
        return as_counterparts(batch, query, evidence, self.name, {"smoothing": self.smoothing}, self.masker)
