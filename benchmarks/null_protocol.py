"""Does the study protocol claim more than it may? Simulated studies, with no difference to find and with one.

    python benchmarks/null_protocol.py --out runs/null_protocol            # eight minutes of one core
    python benchmarks/null_protocol.py --out runs/null_protocol --quick    # does it run

A study has two arms, each trained with a few seeds and tested on the same patients. A score is

    separation x label + patient's difficulty + arm's own noise + seed's own noise + seed's quality x label,

so that arms and seeds agree on most images, as classifiers do, and differ in two ways: image by image, and in how good
a seed turned out. Without a difference both arms have the same separation; with one, the first arm's is larger. Counted
is how often the verdict on the mean average precision is "better" and "worse", and how often the interval holds the
true difference (measured on 100,000 images). Beside the protocol stands what the plain two-level bootstrap, which draws
patients and seeds and takes percentiles, would have claimed.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor

from counterscan.files import write_json, write_text
from counterscan.metrics.classification import pr_auc
from counterscan.metrics.comparison import compare_arms, evaluate_arm
from counterscan.report.tables import Cell, Table

PREVALENCE = (0.29, 0.19, 0.14)
SEPARATION = 1.6
DIFFICULTY, ARM_NOISE = 0.8, 0.2


@dataclass(frozen=True)
class World:
    """How studies vary.

    Attributes:
        name: shown in the table.
        seed_noise: standard deviation of a seed's own noise per image.
        seed_quality: standard deviation of a seed's separation.
        seeds: per arm.
        patients: tested, with one to three images each.
        effect: added to the first arm's separation.
    """

    name: str
    seed_noise: float = 0.45
    seed_quality: float = 0.0
    seeds: int = 5
    patients: int = 150
    effect: float = 0.0


WORLDS = (
    World("null, seeds differ by image"),
    World("null, seeds differ in quality", seed_noise=0.1, seed_quality=0.3),
    World("null, both", seed_quality=0.15),
    World("null, both, 3 seeds", seed_quality=0.15, seeds=3),
    World("null, both, 2 seeds", seed_quality=0.15, seeds=2),
    World("effect, seeds differ by image", effect=0.2),
    World("effect, both", seed_quality=0.15, effect=0.2),
)


@dataclass
class NullProtocol:
    """See the module's text."""

    out: Path
    """Folder for ``null_protocol.json`` and ``.md``."""
    runs: int = 400
    """Simulated studies per row."""
    resamples: int = 300
    """Bootstrap draws in each; studies themselves take 2000."""
    seed: int = 0
    """Of the simulation."""
    quick: bool = False
    """20 studies of 100 draws."""
    worlds: tuple[World, ...] = field(default=WORLDS)

    def run(self) -> None:
        """Simulate, print, write."""
        torch.set_num_threads(1)
        runs, resamples = (20, 100) if self.quick else (self.runs, self.resamples)
        found = [simulate(world, runs, resamples, self.seed) for world in self.worlds]
        rows: list[list[Cell]] = [
            [
                row["world"],
                row["true"],
                share(row["better"], runs),
                share(row["worse"], runs),
                share(row["covered"], runs),
                row["detectable"],
                share(row["plain_better"], runs),
                share(row["plain_covered"], runs),
            ]
            for row in found
        ]
        columns = (
            "Studies",
            "True difference",
            "Better",
            "Worse",
            "Interval holds it",
            "Detectable",
            "Plain bootstrap: better",
            "Plain: holds it",
        )
        note = (
            f"`{' '.join(['python', *sys.argv])}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, torch "
            f"{torch.__version__}; {runs} studies per row (95 % intervals of the shares in brackets), {resamples} "
            "resamples, 5 % level, mean average precision over three findings."
        )
        table = Table("False and true claims of the study protocol", columns, rows, note=note, digits=3)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "null_protocol.json", {"runs": runs, "resamples": resamples, "rows": found})
        write_text(self.out / "null_protocol.md", table.to_markdown() + "\n")
        Console(width=200).print(table.to_rich())


def simulate(world: World, runs: int, resamples: int, seed: int = 0, images: int = 100_000) -> dict[str, Any]:
    """Counts over studies: "better", "worse", "covered", and the plain bootstrap's; with the true difference.

    Args:
        world: how studies vary.
        runs: studies.
        resamples: bootstrap draws in each.
        seed: of the simulation.
        images: that the true difference is measured on.
    """
    generator = torch.Generator().manual_seed(seed)
    true = _truth(world, images, generator)
    counts = dict.fromkeys(("better", "worse", "covered", "plain_better", "plain_covered"), 0)
    detectable, differences = 0.0, []
    for study in range(runs):
        arms, labels, patients = draw_study(world, generator)
        figures = {
            name: evaluate_arm(scores, labels, patients, resamples=resamples, seed=study)
            for name, scores in zip(("ours", "theirs"), arms, strict=True)
        }
        findings = [str(c) for c in range(labels.shape[1])]
        (mean,) = compare_arms(figures, [("ours", "theirs")], findings, per_class=False)
        counts["better"] += mean.verdict == "better"
        counts["worse"] += mean.verdict == "worse"
        counts["covered"] += mean.difference.low <= true <= mean.difference.high
        counts["plain_better"] += mean.percentiles.low > 0
        counts["plain_covered"] += mean.percentiles.low <= true <= mean.percentiles.high
        detectable += mean.detectable / runs
        differences.append(mean.difference.value)
    spread = float(torch.tensor(differences).std())
    return {"world": world.name, "true": true, **counts, "detectable": detectable, "spread": spread}


def draw_study(world: World, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor, Sequence[str]]:
    """Scores of two arms (S, N, C) each, labels (N, C), and patients (N,) with one to three images."""
    images = torch.randint(1, 4, (world.patients,), generator=generator)
    place = torch.arange(world.patients).repeat_interleave(images)
    labels, difficulty = _bodies(world.patients, generator, place)
    arms = [_scores(world, labels, difficulty, world.seeds, effect, generator) for effect in (world.effect, 0.0)]
    return (arms[0], arms[1]), labels, [f"p{i}" for i in place.tolist()]


def _bodies(patients: int, generator: torch.Generator, place: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, which are the patient's, and difficulties, which are half the patient's and half the image's."""
    prevalence = torch.tensor(PREVALENCE)
    labels = (torch.rand(patients, len(prevalence), generator=generator) < prevalence).double()[place]
    shared = torch.randn(patients, len(prevalence), generator=generator).double()[place]
    own = torch.randn(labels.shape, generator=generator).double()
    return labels, DIFFICULTY * (shared + own) / math.sqrt(2)


def _scores(
    world: World, labels: Tensor, difficulty: Tensor, seeds: int, effect: float, generator: torch.Generator
) -> Tensor:
    arm = ARM_NOISE * torch.randn(labels.shape, generator=generator).double()
    noise = world.seed_noise * torch.randn(seeds, *labels.shape, generator=generator).double()
    quality = world.seed_quality * torch.randn(seeds, 1, 1, generator=generator).double()
    return (SEPARATION + effect + quality) * labels + difficulty + arm + noise


def _truth(world: World, images: int, generator: torch.Generator) -> float:
    """Difference of mean average precision over all patients and seeds."""
    if not world.effect:
        return 0.0
    labels, difficulty = _bodies(images, generator, torch.arange(images))
    means = []
    for effect in (world.effect, 0.0):
        same = torch.Generator().manual_seed(1)  # the same seeds and noise with and without the effect
        scores = _scores(world, labels, difficulty, 8, effect, same).transpose(0, 1).reshape(len(labels), -1)
        means.append(float(pr_auc(scores, labels.repeat(1, 8)).mean()))
    return means[0] - means[1]


def share(hits: int, runs: int) -> str:
    """A share with Wilson's 95 % interval."""
    z, p = 1.96, hits / runs
    centre, reach = p + z**2 / (2 * runs), z * math.sqrt(p * (1 - p) / runs + z**2 / (4 * runs**2))
    low, high = ((centre + sign * reach) / (1 + z**2 / runs) for sign in (-1, 1))
    return f"{p:.3f} [{max(0.0, low):.3f}, {high:.3f}]"


if __name__ == "__main__":
    tyro.cli(NullProtocol).run()
