"""Several findings in one model: does the map for c light the lesion of c, and not those of the others?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterscan.bench.subjects import image_names, patient_names, rows_of, study_batch
from counterscan.counterpart import Query, System
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.intervals import RESAMPLES, Interval, mean_interval, statistic_interval
from counterscan.metrics.localisation import energy_in_region, pixel_average_precision
from counterscan.report.tables import Cell, Table


@dataclass(frozen=True)
class ClassSensitivity:
    """How maps asked for one finding answer to lesions of another.

    Attributes:
        findings: in the order of the tables.
        per_image: a row per image, finding ``asked`` and ``lesion``: pseudonyms ``image`` and ``patient``, ``ap`` and
            ``energy`` of the map asked against the lesion's mask, and ``light``: the map's mean inside the lesion.
        resamples: of the patient bootstrap.

    Off the diagonal only images count that have the lesion but are labelled without the finding asked: there nothing
    should light up.
    """

    findings: tuple[str, ...]
    per_image: pd.DataFrame
    resamples: int = RESAMPLES

    def interval(self, asked: str, lesion: str, figure: str) -> Interval:
        """Mean over images of "ap" or "energy", or "light" relative to that of the right map in the same kind of
        lesion (1 on the diagonal; 0 is perfect off it)."""
        part = self._of(asked, lesion)
        if figure != "light":
            values = torch.tensor(part[figure].to_numpy(dtype=np.float64, copy=True))
            return mean_interval(values, part["patient"].tolist(), resamples=self.resamples)
        if not len(part):
            return Interval(math.nan, math.nan, math.nan)
        if asked == lesion:
            return Interval(1.0, math.nan, math.nan)
        right = self._of(lesion, lesion).set_index("image")["light"].reindex(part["image"])
        ours, theirs = part["light"].to_numpy(dtype=np.float64), right.to_numpy(dtype=np.float64)

        def ratio(rows: Tensor) -> float:
            return float(ours[rows].sum() / max(theirs[rows].sum(), 1e-12))

        return statistic_interval(ratio, part["patient"].tolist(), resamples=min(self.resamples, 500))

    def tables(self) -> list[Table]:
        """AP, energy and light, a row per finding asked, a column per kind of lesion."""
        notes = {
            "ap": "Pixel average precision of the map asked for (row) against the lesions of a finding (column).",
            "energy": "Share of the map's evidence that falls inside the lesions.",
            "light": "Evidence inside the lesions, relative to the map that was meant for them.",
        }
        made = []
        for figure, note in notes.items():
            rows: list[list[Cell]] = [
                [asked, *(self._cell(asked, lesion, figure) for lesion in self.findings)] for asked in self.findings
            ]
            title = f"Class sensitivity: {'AP' if figure == 'ap' else figure}"
            made.append(Table(title, ("Asked for", *self.findings), rows, note=note))
        return made

    def to_json(self) -> dict[str, Any]:
        """figure -> asked -> lesion -> [value, low, high]; None where there is no such image."""
        return {
            figure: {
                asked: {lesion: self._triple(asked, lesion, figure) for lesion in self.findings}
                for asked in self.findings
            }
            for figure in ("ap", "energy", "light")
        }

    def _of(self, asked: str, lesion: str) -> pd.DataFrame:
        return self.per_image[(self.per_image["asked"] == asked) & (self.per_image["lesion"] == lesion)]

    def _cell(self, asked: str, lesion: str, figure: str) -> Cell:
        interval = self.interval(asked, lesion, figure)
        return interval if math.isfinite(interval.value) else None

    def _triple(self, asked: str, lesion: str, figure: str) -> list[float | None]:
        interval = self.interval(asked, lesion, figure)
        return [x if math.isfinite(x) else None for x in (interval.value, interval.low, interval.high)]


def class_sensitivity(
    system: System,
    store: PreparedStore,
    rows: Any,
    findings: Sequence[str],
    *,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    key: bytes | None = None,
) -> ClassSensitivity:
    """Ask for every finding on every image that has a lesion of any of them.

    Args:
        system: knows all ``findings``.
        store: with masks kept apart by finding (``mask_findings``).
        rows: indices, slice or bool mask; images without lesions are passed over.
        findings: at least two.
        batch_size: images per question.
        resamples: of the patient bootstrap.
        key: of the pseudonyms.

    Raises:
        InputError: the store does not tell the findings' masks apart, or no row has a lesion.
    """
    unknown = [name for name in findings if name not in store.mask_findings or name not in store.findings]
    if unknown:
        raise InputError("there are no masks of its own", path=store.folder, field=unknown[0])
    chosen = rows_of(store, rows)
    drawn = torch.stack([store.masks(chosen, name).flatten(1).any(1) for name in findings]).any(0).numpy()
    chosen = chosen[drawn]
    if not len(chosen):
        raise InputError("no image has a lesion mask", path=store.folder, field="rows")
    patients, names = patient_names(store, chosen, key), image_names(store, chosen, key)
    records: list[dict[str, Any]] = []
    for start in range(0, len(chosen), batch_size):
        part = slice(start, start + batch_size)
        batch = study_batch(store, chosen[part], patients[part])
        valid = store.valid(chosen[part])
        for asked in findings:
            maps = torch.stack([a.evidence.cpu() for a in system.counterparts(batch, Query(asked))])
            free = store.labels[chosen[part], store.findings.index(asked)] == 0
            for lesion in findings:
                truth = store.masks(chosen[part], lesion) & valid
                ap = pixel_average_precision(maps, truth, valid)
                energy = energy_in_region(maps, truth, valid)
                light = (maps * truth).sum((1, 2, 3)) / truth.sum((1, 2, 3))
                for i in torch.nonzero(truth.flatten(1).any(1))[:, 0].tolist():
                    if asked == lesion or free[i]:
                        about = {"image": names[start + i], "patient": patients[start + i]}
                        figures = {"ap": float(ap[i]), "energy": float(energy[i]), "light": float(light[i])}
                        records.append({"asked": asked, "lesion": lesion, **about, **figures})
    return ClassSensitivity(tuple(findings), pd.DataFrame(records), resamples)
