"""Which cases a report shows: by rank, never by taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from counterscan.counterpart import Counterpart


@dataclass(frozen=True)
class Case:
    """One row of pictures.

    Attributes:
        label: pseudonymous name of the case.
        counterpart: the answer that is reported on.
        truth: (1, H, W) bool on the same grid; None when unknown.
        caption: what a reader should know, such as the case's own figures.
        group: heading it stands under.
        others: answers of peers to the same image, shown as further overlays.
        strip: picture of the way to the counterpart (``report.strips.strip``), uint8 (H', W', 3); None for none.
    """

    label: str
    counterpart: Counterpart
    truth: Tensor | None = None
    caption: str = ""
    group: str = "Cases"
    others: Sequence[Counterpart] = ()
    strip: np.ndarray | None = None


@dataclass(frozen=True)
class Picks:
    """Image numbers by rank, best first within each list, and the rule in words.

    Attributes:
        best, median, worst: image numbers; no image occurs twice.
        rule: one sentence for the reader.
    """

    best: list[int]
    median: list[int]
    worst: list[int]
    rule: str

    def grouped(self) -> list[tuple[str, int]]:
        """(group, image number) in the order a report shows them."""
        groups = (("Best", self.best), ("Median", self.median), ("Worst", self.worst))
        return [(name, number) for name, numbers in groups for number in numbers]


def pick_cases(scores: Tensor | Sequence[float], n: int = 5, metric: str = "the metric") -> Picks:
    """The n best, the n around the median and the n worst images.

    Deterministic: ties go to the lower image number. NaN (nothing to judge) is left out. With fewer than 3n images the
    worst are kept first, then the best, then the median, so that failures are never what is dropped.

    Args:
        scores: (N,), higher is better.
        n: images per group.
        metric: its name, for the rule.
    """
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = [int(i) for i in known[np.argsort(-values[known], kind="stable")]]
    worst = order[max(0, len(order) - n) :]
    left = order[: len(order) - len(worst)]
    best, middle = left[:n], left[n:]
    # Centre of the whole ranking, as a place among those that are neither best nor worst.
    start = min(max(0, round((len(order) - n) / 2) - len(best)), max(0, len(middle) - n))
    rule = (
        f"Chosen by rank of {metric} among {len(order)} images that could be judged: the {len(best)} highest, "
        f"{len(middle[start : start + n])} around the median and the {len(worst)} lowest. None was picked by hand."
    )
    return Picks(best, middle[start : start + n], worst, rule)
