"""What a trial of explainers found: one line per image, realism of whole sets, and both as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from counterscan.bench.evaluation import FIGURES, Evaluation
from counterscan.bench.tables import Column, tables_of
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.metrics import realism
from counterscan.metrics.intervals import Interval
from counterscan.report.tables import Cell, Table

VALIDITY: tuple[Column, ...] = (
    ("Flip rate", "flip", "high"),
    ("Oracle flips", "oracle_flip", "high"),
    ("CV@0.8", "cv80", "high"),
    ("Fall of p", "drop", "high"),
    ("Trusted", "trusted", ""),
)
CHANGE: tuple[Column, ...] = (
    ("L1", "l1", "low"),
    ("L0", "l0", "low"),
    ("SSIM", "ssim", "high"),
    ("L1 outside lesion", "outside", "low"),
    ("To twin, inside", "twin_inside", "low"),
    ("To twin, outside", "twin_outside", "low"),
    ("Disease left", "twin_remaining", "low"),
)
WAY: tuple[Column, ...] = (
    ("Steps that fall", "monotonicity", "high"),
    ("PSNR of reconstruction, dB", "psnr", "high"),
    ("Logit gap", "logit_gap", "low"),
    ("Completeness gap", "completeness_gap", "low"),
)
FAITHFULNESS: tuple[Column, ...] = (
    ("Deletion, mean", "deletion_mean", "low"),
    ("Deletion, blur", "deletion_blur", "low"),
    ("Deletion, counterpart", "deletion_negative", "low"),
    ("Insertion, mean", "insertion_mean", "high"),
    ("Insertion, blur", "insertion_blur", "high"),
    ("Insertion, counterpart", "insertion_negative", "high"),
    ("Infidelity", "infidelity", "low"),
    ("Gini", "gini", ""),
    ("Stray pixels", "stray", "low"),
)
SECONDS: tuple[Column, ...] = (("Seconds per image", "seconds", "low"),)
RANDOMISED: tuple[Column, ...] = (
    ("Spearman, last layer", "mprt_top", ""),
    ("Spearman, half", "mprt_half", ""),
    ("Spearman, all", "mprt_all", "low"),
    ("Spearman of |A|, all", "mprt_abs_all", "low"),
    ("SSIM, all", "mprt_ssim_all", "low"),
)
DIFFERENCES: tuple[Column, ...] = (
    ("Flip rate", "flip", ""),
    ("Oracle flips", "oracle_flip", ""),
    ("L1", "l1", ""),
    ("L1 outside lesion", "outside", ""),
    ("AP", "ap", ""),
    ("Pointing", "pointing", ""),
    ("Deletion, blur", "deletion_blur", ""),
    ("Insertion, blur", "insertion_blur", ""),
    ("Stray pixels", "stray", ""),
    ("Seconds", "seconds", ""),
)
# The columns that explaining adds to those of an Evaluation.
EXPLAINED = tuple(
    name for _, name, _ in (*VALIDITY, *CHANGE, *WAY, *FAITHFULNESS, *SECONDS) if name not in FIGURES
)  # fmt: skip
THEMSELVES = "The images themselves"  # realism where nothing was changed


@dataclass(frozen=True)
class Realism:
    """How far counterparts are from real images without the finding, in one space of features.

    Attributes:
        space: name of the features.
        images, negatives: how many of either.
        kid: kernel distance with the spread over its subsets, which is no interval over patients.
        fid: Fréchet distance; biased, compare it at equal numbers only.
    """

    space: str
    images: int
    negatives: int
    kid: Interval
    fid: float

    @classmethod
    def of(cls, space: str, negatives: Tensor, made: Tensor) -> Realism | None:
        """From features (N, D) and (M, D); None with fewer than two of either."""
        if min(len(negatives), len(made)) < 2:
            return None
        kernel = realism.kid(negatives, made).interval
        return cls(space, len(made), len(negatives), kernel, realism.fid(negatives, made))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Realism:
        """What ``dataclasses.asdict`` gave."""
        return cls(**{**values, "kid": Interval(**values["kid"])})


@dataclass(frozen=True)
class ExplainerEvaluation:
    """What ``bench.explaining.evaluate_explainers`` found.

    Attributes:
        evaluation: figures of every image, with intervals over patients and paired differences.
        realism: system to one entry per seed and space.
        notes: what a reader of every table must know.
        agreement: on how many of the real images that the classifier calls negative the oracle agrees, and how many
            these are.
    """

    evaluation: Evaluation
    realism: dict[str, list[Realism]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    agreement: tuple[int, int] | None = None

    def joined(self, more: pd.DataFrame) -> ExplainerEvaluation:
        """With further figures for some of the images.

        Args:
            more: columns ``system``, ``seed``, ``image`` and the figures'.
        """
        keys = ["system", "seed", "image"]
        added = tuple(name for name in more.columns if name not in keys)
        frame = self.evaluation.per_image.merge(more, on=keys, how="left", validate="one_to_one")
        return replace(
            self, evaluation=replace(self.evaluation, per_image=frame, figures=(*self.evaluation.figures, *added))
        )

    def tables(self) -> list[Table]:
        """Every table that has something in it."""
        return tables_of_explainers(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``evaluation.json``, ``per_image.csv`` and ``realism.json``."""
        folder = self.evaluation.save(folder)
        found = {name: [asdict(entry) for entry in entries] for name, entries in self.realism.items()}
        about = {"notes": list(self.notes), "systems": found, "agreement": self.agreement}
        write_json(folder / "realism.json", about)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> ExplainerEvaluation:
        """Read what ``save`` wrote.

        Raises:
            InputError: nothing there, or something else.
        """
        folder = Path(folder)
        evaluation, about = Evaluation.load(folder), read_json(folder / "realism.json")
        try:
            found = {name: [Realism.from_dict(x) for x in entries] for name, entries in about["systems"].items()}
            agreement = about.get("agreement")
            return cls(evaluation, found, tuple(about["notes"]), None if agreement is None else tuple(agreement))
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"is no realism of explainers ({error})", path=folder / "realism.json", remedy="Evaluate again"
            ) from None


def tables_of_explainers(found: ExplainerEvaluation) -> list[Table]:
    """Counterfactuals, ways, faithfulness, localisation, stability, randomisation, realism, seconds, differences."""
    evaluation = found.evaluation
    change = (
        "Mean |M| and share of pixels changed by more than 0.1; intensities span 2. Twins are true; Disease left is "
        "the remaining distance to the twin as a share of the image's own."
    )
    way = (
        "Steps that fall: share of the steps from the image to its counterpart at which the logit falls. Logit gap: "
        "between image and reconstruction. Completeness gap: share of the logit's change that the attribution misses."
    )
    faithful = (
        "Mean probability while the map's highest pixels give way to the image's mean, to its blur or to the "
        f"counterpart of {evaluation.own}, or come back. Infidelity is in squared logits, over patches set to the "
        "mean. Gini: 0 even, 1 one pixel. Stray pixels: share that reaches a tenth of the map's maximum."
    )
    sample = _sampled(evaluation, "max_sensitivity")
    stable = (
        f"On {sample} images: largest change of the map under small noise, relative to the map; then agreement of maps "
        "under Gaussian noise of the given sigma with the undisturbed ones, and stray pixels there."
    )
    randomised = (
        f"On {_sampled(evaluation, 'mprt_all')} images: what is left of the signed, unsmoothed map when the "
        "classifier's upper layers lose what they learned, from 1 (a map that does not depend on them) to 0. A "
        "generator is not trained anew for the randomised classifier, so that differences of its images hardly change. "
        "SSIM says little of maps that are nearly even, as RISE's are."
    )
    made = [
        _table(evaluation, "Counterfactuals: does the call change?", VALIDITY, _protocol(found), chart="Flip rate"),
        _table(evaluation, "Counterfactuals: what changes?", CHANGE, change, digits=3),
        _table(evaluation, "Way and reconstruction", WAY, way, digits=3),
        _table(evaluation, "Faithfulness of maps", FAITHFULNESS, faithful, digits=3),
        *_localisation(evaluation),
        _table(evaluation, "Stability", _stability(evaluation), stable),
        _table(evaluation, "Randomised classifier", RANDOMISED, randomised),
        _realism(found),
        _table(evaluation, "Time", SECONDS, "Asked in batches on one machine; see the settings.", digits=3),
        _differences(evaluation),
    ]
    return [replace(t, note=" ".join((t.note, *found.notes)).strip()) for t in made if t is not None]


def headline(found: ExplainerEvaluation) -> Table:
    """What fits a terminal."""
    columns: list[Column] = [VALIDITY[0], VALIDITY[1], CHANGE[3], ("AP", "ap", "high"), WAY[3]]
    note = f"{_protocol(found)} Everything else is in the report."
    table = _table(found.evaluation, found.evaluation.finding, [*columns, *SECONDS], note)
    assert table is not None  # everybody takes time
    return table


def _localisation(evaluation: Evaluation) -> list[Table]:
    counts, area = evaluation.counts(), evaluation.interval(evaluation.own, "lesion_area")
    note = (
        f"{counts['lesion_images']} of these images are labelled so and have a lesion mask; lesions cover {area:.1%}. "
        "A mask shows where the disease is, not what the classifier went by."
    )
    found = {table.title: table for table in tables_of(evaluation)}
    return [replace(found[title], note=note) for title in ("Maps", "At native resolution") if title in found]


def _protocol(found: ExplainerEvaluation) -> str:
    evaluation = found.evaluation
    frame = evaluation.per_image
    asked = frame.groupby("system")["image"].nunique()
    counts, own = evaluation.counts(), int(asked[evaluation.own])
    fewer = [f"{name}: {count}" for name, count in asked.items() if count < own]
    text = (
        f"{own} images of {counts['patients']} patients that the explained classifier calls positive, "
        f"{own - counts['healthy_images']} of them labelled so. Oracle: an independently trained classifier, on images "
        "both call positive. CV@0.8: the probability moved by more than 0.8. Trusted: share of answers without a "
        "warning. Means over images with 95 % intervals over patients."
    )
    if found.agreement is not None:
        agree, negative = found.agreement
        text += f" Of {negative} real images that the classifier calls negative, the oracle calls {agree} negative."
    return f"{text} Asked about fewer images: {', '.join(fewer)}." if fewer else text


def _sampled(evaluation: Evaluation, figure: str) -> int:
    frame = evaluation.per_image
    return int(frame.loc[frame[figure].notna(), "image"].nunique()) if figure in frame else 0


def _stability(evaluation: Evaluation) -> tuple[Column, ...]:
    kinds: tuple[tuple[str, str, Literal["high", "low"]], ...] = (
        ("noise_rank_", "Spearman", "high"),
        ("noise_iou_", "IoU", "high"),
        ("noise_stray_", "Stray pixels", "low"),
    )
    noisy: list[Column] = [
        (f"{heading}, sigma {figure.removeprefix(start)}", figure, better)
        for start, heading, better in kinds
        for figure in evaluation.figures
        if figure.startswith(start)
    ]
    return (("Max-sensitivity", "max_sensitivity", "low"), *noisy)


def _table(
    evaluation: Evaluation,
    title: str,
    columns: Sequence[Column],
    note: str,
    *,
    digits: int = 2,
    chart: str | None = None,
) -> Table | None:
    """Systems by figures; None when there is nothing to show."""
    columns = [column for column in columns if column[1] in evaluation.figures]
    cells = {heading: [_cell(evaluation.interval(s, name)) for s in evaluation.systems] for heading, name, _ in columns}
    cells = {heading: column for heading, column in cells.items() if any(cell is not None for cell in column)}
    rows = [[name, *(column[i] for column in cells.values())] for i, name in enumerate(evaluation.systems)]
    rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    if not rows:
        return None
    better: dict[str, Literal["high", "low"]] = {h: b for h, _, b in columns if b != "" and h in cells}
    shown = chart if chart in cells else None
    return Table(
        title, ("System", *cells), rows, note=note, better=better, own=evaluation.own, chart=shown, digits=digits
    )


def _differences(evaluation: Evaluation) -> Table | None:
    peers = evaluation.systems[1:]
    cells = {
        heading: [_cell(evaluation.difference(peer, figure)) for peer in peers] for heading, figure, _ in DIFFERENCES
    }
    cells = {heading: column for heading, column in cells.items() if any(cell is not None for cell in column)}
    if not cells:
        return None
    rows = [[peer, *(column[i] for column in cells.values())] for i, peer in enumerate(peers)]
    note = "Paired over the same images; an interval that leaves out 0 is a difference."
    return Table(f"{evaluation.own} minus each peer", ("Peer", *cells), rows, note=note, digits=3)


def _realism(found: ExplainerEvaluation) -> Table | None:
    spaces = list(dict.fromkeys(entry.space for entries in found.realism.values() for entry in entries))
    rows: list[list[Cell]] = []
    for name, entries in found.realism.items():
        if entries:
            row: list[Cell] = [name, entries[0].images]
            for space in spaces:
                here = [entry for entry in entries if entry.space == space]
                row += [_mean([e.kid for e in here]), sum(e.fid for e in here) / len(here)] if here else [None, None]
            rows.append(row)
    if not rows:
        return None
    negatives = max(entry.negatives for entries in found.realism.values() for entry in entries)
    columns = [f"{kind}, {space}" for space in spaces for kind in ("KID", "FID")]
    note = (
        f"Counterparts against {negatives} real images without the finding. KID with the spread over random halves, "
        "which is no interval over patients; it scatters around 0 for equal sets. FID is biased where images are few "
        "and comparable at equal numbers only."
    )
    better: dict[str, Literal["high", "low"]] = {column: "low" for column in columns}
    own = found.evaluation.own
    return Table(
        "Realism of counterparts", ("System", "Images", *columns), rows, note=note, better=better, own=own, digits=4
    )


def _mean(intervals: Sequence[Interval]) -> Interval:
    """Of several seeds, end by end."""
    ends = zip(*((i.value, i.low, i.high) for i in intervals), strict=True)
    return Interval(*(sum(values) / len(values) for values in ends))


def _cell(interval: Interval) -> Cell:
    return interval if math.isfinite(interval.value) else None
