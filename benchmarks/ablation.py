"""What each term of TagGAN's objective buys, and whether the label-only criterion finds a good checkpoint.

    python benchmarks/ablation.py --data ../shared/data/lgg_mri --out runs/ablation

One fold of LGG, one classifier for all variants; judged on that fold's validation patients, so that no choice made here
has seen a test patient. A row's "chosen" is what the criterion chose without masks; "best" is the best of its
checkpoints by the masks, which nobody would have at hand.
"""

from __future__ import annotations

import multiprocessing
import platform
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import tyro
from real import Options, fold_store
from rich.console import Console

from counterscan.bench.workers import end_with_parent
from counterscan.classify import train_classifier
from counterscan.files import read_json, write_json, write_text
from counterscan.metrics.intervals import Interval, mean_interval
from counterscan.metrics.localisation import dice, map_scores
from counterscan.report.tables import Table
from counterscan.taggan import TagGAN, fit, from_run

VARIANTS: dict[str, dict[str, float]] = {
    "as shipped": {},
    "no bGAN (cycle, D_A)": {"cycle": 0.0, "back": 0.0},
    "bGAN from the start, cycle 10": {"cycle": 10.0, "cycle_from": 0.0},
    "no critic D_N": {"adversarial": 0.0},
    "critic weight 1": {"adversarial": 1.0},
    "no class term": {"classifier": 0.0, "adversarial": 1.0},
    "no penalty on normals": {"normal": 0.0},
    "idempotence 1": {"idempotence": 1.0},
    "lambda halved": {"lam": 0.5},
    "lambda doubled": {"lam": 2.0},
}


@dataclass
class Ablation(Options):
    """See the module's text."""

    fold: int = 0
    """Which of the five folds."""
    every: int = 50
    """Steps between checkpoints that are judged."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which rows."""

    def run(self) -> None:
        """Train, judge, print, write ``ablation.json`` and ``ablation.md``."""
        self.prepare()
        store = fold_store(self, self.fold, 5)
        train_classifier(store, self.out / "classifier", self.config(0).classifier)
        with multiprocessing.get_context("spawn").Pool(self.workers, initializer=end_with_parent) as pool:
            found = dict(zip(self.variants, pool.map(partial(judge, self), self.variants, chunksize=1), strict=True))
        write_json(self.out / "ablation.json", found)
        rows: list[list[Any]] = [
            [
                name,
                *(Interval(*row["chosen"][figure]) for figure in ("ap", "ncc", "dice")),
                row["chosen_step"],
                row["best_ap"],
                row["best_step"],
                row["last_ap"],
            ]
            for name, row in found.items()
        ]
        columns = ("Variant", "AP", "NCC", "Dice", "Chosen step", "Best AP", "Best step", "Last AP")
        note = (
            f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, torch "
            f"{torch.__version__}; fold {self.fold}, validation patients, seed 0, {self.steps} steps, {self.size} px."
        )
        table = Table("Ablation", columns, rows, note=note)
        write_text(self.out / "ablation.md", table.to_markdown() + "\n")
        Console().print(table.to_rich())


def judge(options: Ablation, name: str) -> dict[str, Any]:
    """One variant: figures of the chosen checkpoint, and the AP of every checkpoint."""
    torch.set_num_threads(1)
    folder = options.out / name.replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")
    if (folder / "row.json").exists():
        return read_json(folder / "row.json")
    store, base = fold_store(options, options.fold, 5), options.config(0)
    classifiers = [train_classifier(store, options.out / "classifier", base.classifier)]
    loop = replace(base.training, keep=100, checkpoint_every=options.every, validate_every=options.every)
    config = replace(base, training=loop, objective=replace(base.objective, **VARIANTS[name]))
    chosen = fit(store, folder, config, classifiers=classifiers)
    step = read_json(folder / "choice.json")["step"]
    rows = np.flatnonzero((store.split == "val") & store.has_mask)
    steps = range(options.every, options.steps + 1, options.every)
    curve = {
        k: float(figures(from_run(folder, store, config, classifiers, k), store, rows)["ap"].mean()) for k in steps
    }
    patients = store.patients[rows].tolist()
    best = max(curve, key=lambda k: curve[k])
    row = {
        "chosen": {key: _triple(mean_interval(v, patients)) for key, v in figures(chosen, store, rows).items()},
        "chosen_step": step,
        "best_ap": curve[best],
        "best_step": best,
        "last_ap": curve[options.steps],
        "curve": curve,
    }
    write_json(folder / "row.json", row)
    return row


def figures(tagger: TagGAN, store: Any, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """(N,) AP, NCC and Dice with the label-free threshold."""
    finding = store.findings[0]
    images, truth = store.images(rows), store.masks(rows)
    evidence = tagger.evidence(tagger.maps(images, finding)[0], images)
    scores = map_scores(evidence, truth)
    return {"ap": scores["ap"], "ncc": scores["ncc"], "dice": dice(tagger.rules[finding](evidence), truth)}


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


if __name__ == "__main__":
    tyro.cli(Ablation).run()
