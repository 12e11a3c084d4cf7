"""What a trial found: one line per system, seed and image, and everything that is said of them."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterscan.bench.tables import tables_of
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json, write_text
from counterscan.metrics.classification import roc_auc
from counterscan.metrics.intervals import (
    RESAMPLES,
    Interval,
    mean_interval,
    paired_interval,
    patient_draws,
    percentile_interval,
)
from counterscan.report.files import safe_name
from counterscan.report.tables import Table

if TYPE_CHECKING:
    from rich.console import Group

FIGURES = (
    *("ap", "auroc", "ncc", "iou_area", "energy", "pointing"),
    *("recall", "precision", "area", "iou", "dice", "area_healthy", "dice_oracle", "lesion_area"),
    *("ap_native", "ncc_native", "dice_native"),
    *("outside", "healed", "twin_inside", "twin_outside", "twin_remaining"),
)
MAGNITUDES = ("magnitude_diseased", "magnitude_healthy", "magnitude_ratio")
_KEYS = ["system", "seed", "fold", "image", "patient", "diseased"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of several systems on the same images.

    Attributes:
        finding: what was asked.
        per_image: a row per system, seed and image, with ``fold``, pseudonyms ``image`` and ``patient``, ``diseased``
            and one column per figure (``figures``, ``score``, ``magnitude``); NaN where there is nothing to judge.
        own: the system that differences are taken from.
        resamples: of the patient bootstrap.
        figures: names of the columns that intervals are formed of.

    ``dice_oracle`` is Dice at the best single threshold for each system, seed and fold. It has seen the masks and is
    for orientation only.
    """

    finding: str
    per_image: pd.DataFrame
    own: str
    resamples: int = RESAMPLES
    figures: tuple[str, ...] = FIGURES

    @classmethod
    def concat(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """Pool folds: their images become one set. Folds are numbered anew, in the order given.

        Raises:
            InputError: nothing to pool, other findings, figures or systems, or an image that was tested twice.
        """
        if not parts:
            raise InputError("there is nothing to pool", field="evaluations")
        first, frames, count = parts[0], [], 0
        for part in parts:
            if (part.finding, part.own, set(part.systems)) != (first.finding, first.own, set(first.systems)):
                raise InputError(
                    f"evaluations differ: {first.finding} by {first.systems}, {part.finding} by {part.systems}",
                    field="evaluations",
                )
            if part.figures != first.figures:
                raise InputError("evaluations have different figures", field="evaluations")
            frames.append(part.per_image.assign(fold=part.per_image["fold"] + count))
            count += int(part.per_image["fold"].max()) + 1
        frame = pd.concat(frames, ignore_index=True)
        twice = frame.duplicated(["system", "seed", "image"])
        if twice.any():
            raise InputError(f"{int(twice.sum())} images are in two of the evaluations", field="evaluations")
        return cls(first.finding, frame, first.own, first.resamples, first.figures)

    @cached_property
    def systems(self) -> list[str]:
        """Names, ours first, the others in the order they were given."""
        names = list(dict.fromkeys(self.per_image["system"]))
        return [self.own, *(name for name in names if name != self.own)]

    @cached_property
    def images(self) -> pd.DataFrame:
        """One row per image: ``image``, ``patient``, ``diseased``, ``fold``, in the order in which all figures are."""
        return self.per_image.drop_duplicates("image")[["image", "patient", "diseased", "fold"]].reset_index(drop=True)

    def values(self, system: str, figure: str) -> Tensor:
        """(seeds, N) one figure of one system, images as in ``images``."""
        if system not in self._places:
            self._of(system)  # says which there are
        rows, seeds, images = self._places[system]
        values = np.full((int(seeds.max()) + 1, len(self.images)), math.nan)
        values[seeds, images] = self.per_image[figure].to_numpy(dtype=np.float64)[rows]
        return torch.from_numpy(values)

    def interval(self, system: str, figure: str) -> Interval:
        """Mean over images of the mean over seeds, with its patient-bootstrap interval.

        Args:
            system: a name.
            figure: one of ``figures``, "detection", or one of ``MAGNITUDES``.
        """
        if figure == "detection":
            return self.detection(system)
        if figure in MAGNITUDES:
            return self.magnitudes(system)[MAGNITUDES.index(figure)]
        return mean_interval(self.values(system, figure), self._patients, resamples=self.resamples)

    def difference(self, peer: str, figure: str) -> Interval:
        """Ours minus the peer's on the same images."""
        ours, theirs = self.values(self.own, figure), self.values(peer, figure)
        return paired_interval(ours, theirs, self._patients, resamples=self.resamples)

    def detection(self, system: str) -> Interval:
        """AUC of the score of images with the finding against images without it.

        Scores of different models have different scales: AUC is taken within each fold and seed, and averaged with
        the number of pairs as weight.
        """
        parts = [part for _, part in self._of(system).groupby(["fold", "seed"]) if np.isfinite(part["score"]).all()]
        parts = [part for part in parts if part["diseased"].nunique() == 2]
        if not parts:
            return Interval(math.nan, math.nan, math.nan)
        names = sorted(set(self._patients))
        place = {name: i for i, name in enumerate(names)}
        draws = patient_draws(names, self.resamples) if len(names) > 1 else torch.zeros(0, len(names))
        total, drawn, pairs = 0.0, torch.zeros(len(draws), dtype=torch.float64), 0.0
        for part in parts:
            scores = torch.tensor(part["score"].to_numpy(dtype=np.float64, copy=True))
            ill = torch.tensor(part["diseased"].to_numpy(dtype=np.float64, copy=True))
            weights = draws[:, [place[name] for name in part["patient"]]]
            blocks = weights.split(max(1, 2**21 // len(part)))
            many = torch.cat([roc_auc(scores, ill, block) for block in blocks]) if len(draws) else drawn
            weight = float(ill.sum() * (1 - ill).sum())
            total, drawn, pairs = total + weight * float(roc_auc(scores, ill)), drawn + weight * many, pairs + weight
        return percentile_interval(total / pairs, drawn / pairs)

    def magnitudes(self, system: str) -> tuple[Interval, Interval, Interval]:
        """Mean |M| on images with the finding, on images without it, and the ratio of the two."""
        values = self.values(system, "magnitude").mean(0)
        ill = torch.tensor(self.images["diseased"].to_numpy(dtype=bool, copy=True))
        here = torch.isfinite(values)
        groups = [torch.where(here & group, values, torch.nan) for group in (ill, ~ill)]
        sick, well = (mean_interval(group, self._patients, resamples=self.resamples) for group in groups)
        if not (math.isfinite(sick.value) and math.isfinite(well.value)):
            return sick, well, Interval(math.nan, math.nan, math.nan)
        draws = patient_draws(self._patients, self.resamples)
        means = [(draws[:, g] * values[g]).sum(1) / draws[:, g].sum(1) for g in (here & ill, here & ~ill)]
        ratio = sick.value / well.value if well.value > 0 else math.inf
        return sick, well, percentile_interval(ratio, means[0] / means[1])

    def counts(self) -> dict[str, int]:
        """Images, lesion images, healthy images, patients, folds, and seeds of our system."""
        own = self._of(self.own)
        return {
            "images": len(self.images),
            "lesion_images": int(own.loc[own["lesion_area"] > 0, "image"].nunique()),
            "healthy_images": int((~self.images["diseased"]).sum()),
            "patients": int(self.images["patient"].nunique()),
            "folds": int(self.images["fold"].nunique()),
            "seeds": int(own["seed"].nunique()),
        }

    def tables(self) -> list[Table]:
        """For ``report.write_report(tables=...)``: maps, native grid, masks, counterparts, detection, differences."""
        return tables_of(self)

    def table(self) -> Group:
        """All tables for ``rich.console.Console().print``."""
        from rich.console import Group

        return Group(*(table.to_rich() for table in self.tables()))

    def to_json(self) -> dict[str, Any]:
        """Counts, every figure of every system as [value, low, high], and ours minus each peer. NaN is None."""
        systems = {
            name: {figure: _triple(self.interval(name, figure)) for figure in (*self.figures, "detection", *MAGNITUDES)}
            for name in self.systems
        }
        differences = {
            peer: {figure: _triple(self.difference(peer, figure)) for figure in self.figures}
            for peer in self.systems[1:]
        }
        kept: dict[str, Any] = {"finding": self.finding, "own": self.own, "resamples": self.resamples}
        if self.figures != FIGURES:
            kept["figures"] = list(self.figures)
        return kept | {"counts": self.counts(), "systems": systems, "differences": differences}

    def save(self, folder: str | Path) -> Path:
        """Write ``evaluation.json`` and ``per_image.csv``."""
        folder = Path(folder)
        write_text(folder / "per_image.csv", self.per_image.to_csv(index=False))
        write_json(folder / "evaluation.json", self.to_json())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what ``save`` wrote.

        Raises:
            InputError: nothing there, or not a table of figures.
        """
        folder = Path(folder)
        about = read_json(folder / "evaluation.json")
        try:
            frame = _read_frame(folder / "per_image.csv")
            figures = tuple(about.get("figures", FIGURES))
            frame[[*_KEYS, *figures, "score", "magnitude"]]
            return cls(about["finding"], frame, about["own"], about["resamples"], figures)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"is not an evaluation ({error})", path=folder, remedy="Evaluate again") from None

    @cached_property
    def _places(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each system: its rows in the table, and which seed, in order, and which of ``images`` each row is."""
        place = {name: i for i, name in enumerate(self.images["image"])}
        image = np.array([place[name] for name in self.per_image["image"]])
        found = {}
        for system in self.systems:
            rows = np.flatnonzero(self.per_image["system"] == system)
            _, seeds = np.unique(self.per_image["seed"].to_numpy()[rows], return_inverse=True)
            if len(rows):
                found[system] = rows, seeds, image[rows]
        return found

    @property
    def _patients(self) -> list[str]:
        return self.images["patient"].tolist()

    def _of(self, system: str) -> pd.DataFrame:
        part = self.per_image[self.per_image["system"] == system]
        if not len(part):
            raise InputError(f"there is no system {system!r}", field="system", remedy=json.dumps(self.systems))
        return part


@dataclass(frozen=True)
class Part:
    """What was measured of one system.

    Attributes:
        frame: a row per image.
        numbers: of the whole set, in plain values.
        images: pictures that other systems' figures need; None for most.
    """

    frame: pd.DataFrame
    numbers: list[Any] = field(default_factory=list)
    images: np.ndarray | None = None


class Kept:
    """Parts of an evaluation on disk, so that an interrupted one goes on where it stopped.

    Args:
        folder: gets ``parts/``; None keeps nothing.
        about: plain values of all that parts depend on; a part that was made with others is made anew.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.folder, self.about = None if folder is None else Path(folder) / "parts", dict(about)

    def part(self, name: str, about: Mapping[str, Any], make: Callable[[], Part]) -> Part:
        """The part as it is on disk, or made now and written.

        Args:
            name: of the part; no two share one.
            about: what this part depends on besides.
            make: gives it.
        """
        if self.folder is None:
            return make()
        told = json.dumps([name, self.about, dict(about)], sort_keys=True, default=str)
        digest = hashlib.sha256(told.encode()).hexdigest()
        facts, frame, images = (self.folder / f"{safe_name(name)}{ending}" for ending in (".json", ".csv", ".npy"))
        if facts.is_file() and (known := read_json(facts)).get("about") == digest:
            return Part(_read_frame(frame), known["numbers"], np.load(images) if known["images"] else None)
        part = make()
        facts.unlink(missing_ok=True)
        write_text(frame, part.frame.to_csv(index=False))
        if part.images is not None:
            buffer = io.BytesIO()
            np.save(buffer, part.images)
            with atomic_write(images) as handle:
                handle.write(buffer.getvalue())
        write_json(facts, {"about": digest, "images": part.images is not None, "numbers": part.numbers})
        return part


def _read_frame(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"image": str, "patient": str, "system": str}, float_precision="round_trip")


def _triple(interval: Interval) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in (interval.value, interval.low, interval.high)]
