"""An evaluation as tables for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from counterscan.report.tables import Cell, Table

if TYPE_CHECKING:
    from counterscan.bench.evaluation import Evaluation

Better = Literal["high", "low", ""]
Column = tuple[str, str, Better]  # heading, figure, which way is better

MAPS: tuple[Column, ...] = (
    ("AP", "ap", "high"),
    ("NCC", "ncc", "high"),
    ("IoU at true area", "iou_area", "high"),
    ("Pointing", "pointing", "high"),
    ("Energy inside", "energy", "high"),
    ("AUROC", "auroc", "high"),
)
NATIVE: tuple[Column, ...] = (
    ("AP", "ap_native", "high"),
    ("NCC", "ncc_native", "high"),
    ("Dice", "dice_native", "high"),
)
MASKS: tuple[Column, ...] = (
    ("Dice", "dice", "high"),
    ("IoU", "iou", "high"),
    ("Recall (PoI)", "recall", ""),
    ("Precision", "precision", ""),
    ("Area", "area", ""),
    ("Area, healthy", "area_healthy", "low"),
    ("Dice, oracle threshold", "dice_oracle", ""),
)
COUNTERPARTS: tuple[Column, ...] = (
    ("Healed", "healed", "high"),
    ("Mean |M|, ill", "magnitude_diseased", ""),
    ("Mean |M|, healthy", "magnitude_healthy", "low"),
    ("Ratio", "magnitude_ratio", "high"),
    ("|M| outside lesion", "outside", "low"),
    ("To twin, inside", "twin_inside", "low"),
    ("To twin, outside", "twin_outside", "low"),
    ("Disease left", "twin_remaining", "low"),
)
DETECTION: tuple[Column, ...] = (("AUC", "detection", "high"),)
DIFFERENCES: tuple[Column, ...] = (
    ("AP", "ap", ""),
    ("NCC", "ncc", ""),
    ("IoU at true area", "iou_area", ""),
    ("Dice", "dice", ""),
    ("AP, native", "ap_native", ""),
)


def tables_of(evaluation: Evaluation) -> list[Table]:
    """Tables with something in them."""
    about = _protocol(evaluation)
    masks = (
        "Thresholds are set on healthy validation images without pixel labels, by one rule for all systems. Recall is "
        "the paper's PoI and can be had by painting everything: read it with precision and area. The oracle threshold "
        "has seen the test masks and is for orientation only."
    )
    healing = (
        "Intensities span 2. Healed: called ill before and healthy after by a classifier the systems never saw. "
        "Twins are true; Disease left is the remaining distance to the twin as a share of the image's own."
    )
    detection = "Score of images with the finding against images without it, within each fold and seed."
    made = [
        _table(evaluation, "Maps", MAPS, about, chart="AP"),
        _table(evaluation, "At native resolution", NATIVE, ""),
        _table(evaluation, "Masks", MASKS, masks),
        _table(evaluation, "Healthy counterparts", COUNTERPARTS, healing, digits=3),
        _table(evaluation, "Detection", DETECTION, detection, digits=3),
        _differences(evaluation),
    ]
    return [table for table in made if table is not None]


def _protocol(evaluation: Evaluation) -> str:
    counts = evaluation.counts()
    area = evaluation.interval(evaluation.own, "lesion_area").value
    text = f"{counts['lesion_images']} images with a lesion mask of {counts['patients']} patients"
    if math.isfinite(area):
        text += f" (lesions cover {area:.1%})"
    if counts["healthy_images"]:
        text += f", {counts['healthy_images']} healthy images"
    for name, one in (("folds", "fold"), ("seeds", "seed")):
        if counts[name] > 1:
            text += f", {counts[name]} {name if counts[name] > 1 else one}"
    return f"{text}. Means over images with 95 % intervals over patients."


def _table(
    evaluation: Evaluation,
    title: str,
    columns: Sequence[Column],
    note: str,
    *,
    digits: int = 2,
    chart: str | None = None,
) -> Table | None:
    cells: dict[str, list[Cell]] = {}
    for heading, figure, _ in columns:
        found = [evaluation.interval(system, figure) for system in evaluation.systems]
        if any(math.isfinite(interval.value) for interval in found):
            cells[heading] = [interval if math.isfinite(interval.value) else None for interval in found]
    rows = [[system, *(column[i] for column in cells.values())] for i, system in enumerate(evaluation.systems)]
    rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    if not rows:
        return None
    better: dict[str, Literal["high", "low"]] = {h: b for h, _, b in columns if b != "" and h in cells}
    chart = chart if chart in cells else None
    headings = ("System", *cells)
    return Table(title, headings, rows, note=note, better=better, own=evaluation.own, chart=chart, digits=digits)


def _differences(evaluation: Evaluation) -> Table | None:
    cells: dict[str, list[Cell]] = {}
    peers = evaluation.systems[1:]
    for heading, figure, _ in DIFFERENCES:
        found = [evaluation.difference(peer, figure) for peer in peers]
        if any(math.isfinite(interval.value) for interval in found):
            cells[heading] = [interval if math.isfinite(interval.value) else None for interval in found]
    if not cells:
        return None
    rows = [[peer, *(column[i] for column in cells.values())] for i, peer in enumerate(peers)]
    note = "Paired over the same images; an interval that leaves out 0 is a difference."
    return Table(f"{evaluation.own} minus each peer", ("Peer", *cells), rows, note=note)
