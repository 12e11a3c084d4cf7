"""The memorisation section of a quality card: near copies of training images, tested against held-out real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from counterscan.bench.quality_card import Section, Verdict, worse
from counterscan.bench.quality_sections import PIXELS, Sets
from counterscan.metrics.memorisation import FEWEST, NearCopies, Nearest, correlation, near_copies, nearest_training
from counterscan.report.tables import Cell, Table

_SAME = 1e-6  # thumbnails of images that are equal


@dataclass(frozen=True)
class Pair:
    """A synthetic image beside the training image that it may be a copy of.

    Attributes:
        synthetic, training: rows of the two sets.
        space: in which it was found.
        distance, relative: see ``metrics.memorisation.Nearest``.
        limit, relative_limit: what the nearest held-out real images do not exceed.
        correlation: of the two images' thumbnails.
    """

    synthetic: int
    training: int
    space: str
    distance: float
    relative: float
    limit: float
    relative_limit: float
    correlation: float


def neighbours(sets: Sets) -> dict[str, tuple[Nearest, Nearest]]:
    """By space, the nearest training images of all synthetic and of all held-out images; pixels also as mirrored."""
    found = {}
    for space in (PIXELS, *sets.training.features):
        pair = []
        for x in (sets.synthetic, sets.held_out):
            if space == PIXELS:
                plain, mirrored = (nearest_training(rows, sets.training.small) for rows in (x.small, x.mirrored))
                pair.append(plain.nearer_of(mirrored))
            else:
                pair.append(nearest_training(x.features[space], sets.training.features[space]))
        found[space] = (pair[0], pair[1])
    return found


def memorisation(sets: Sets, near: Mapping[str, tuple[Nearest, Nearest]], most: int = 8) -> tuple[Section, list[Pair]]:
    """Are they copies of training images? And the most suspicious pairs, at most so many.

    Without enough held-out images nothing is tested, and the pairs are those of the least relative distance.
    """
    limits = sets.limits
    patients = len(set(sets.held_out.patients))
    if patients < FEWEST:
        why = f"{patients} held-out real patients, but {FEWEST} are needed to say which distance is usual."
        return Section("Memorisation", "not judged", why, left_out=(why,)), _pairs(sets, near, {}, most)
    tests: dict[str, tuple[NearCopies, NearCopies]] = {}
    for space, (made, held) in near.items():
        absolute, relative = (
            near_copies(
                own,
                other,
                sets.held_out.patients,
                sets.synthetic.patients,
                share=limits.share,
                resamples=sets.resamples,
            )
            for own, other in ((made.distance, held.distance), (made.relative, held.relative))
        )
        tests[space] = absolute, relative
    level = limits.p_value / (2 * len(tests))
    verdicts, rows, count = list[Verdict](), list[list[Cell]](), len(sets.synthetic)
    for space, pair in tests.items():
        shown = [x.p_value < level and x.rate.value >= limits.excess * x.expected for x in pair]
        verdicts.append("poor" if all(shown) else "doubtful" if any(shown) else "good")
        for name, x in zip(("distance", "distance relative to neighbours"), pair, strict=True):
            figures: list[Cell] = [x.count, x.rate, x.expected, x.p_value, x.nearer, x.ratio]
            rows.append([f"{space}: {name}", *figures])
    # The tests look at numbers of near images, and a handful of copies among many others is too few for them. In pixels
    # chance brings hardly any image that near; in features, which vary in few directions, it might.
    copies = int((_suspicion(near[PIXELS][0], tests[PIXELS]) <= limits.copy).sum())
    verdict = worse(*verdicts, "poor" if copies else "good")
    space = min(tests, key=lambda name: max(x.p_value for x in tests[name]))
    absolute, relative = tests[space]
    said = (
        f"near copies: {absolute.count} of {count} are closer to a training image than {1 - limits.share:.0%} of "
        f"held-out real images are ({absolute.expected * count:.1f} expected), and {relative.count} much closer to one "
        f"than to the next ({relative.expected * count:.1f} expected), by {space}"
    )
    if copies:
        said += f"; {copies} are copies in pixels"
    if verdict == "doubtful":
        said += "; smooth or typical images are close to many training images, copies to one"
    rule = (
        f"Poor: in some space both distances find at least {limits.excess:g} times as many near copies as expected, "
        f"with p < {level:.2g} ({limits.p_value:g} over {2 * len(tests)} tests), or both of an image in pixels are at "
        f"most {limits.copy:g} times what counts as near: a copy. Doubtful: one distance finds as many. p is exact if "
        "images are independent; one counts per held-out patient."
    )
    note = (
        f"Distances to the nearest of {len(sets.training)} training images; pixels are averaged to small pictures and "
        "compared without their brightness and contrast, mirror images too. The second is that distance over the mean "
        f"of the nearest 50. Near: not beyond the nearest {limits.share:.0%} of held-out real images. Nearer: chance "
        "that a synthetic image is nearer than a held-out one, 0.5 if alike. Ratio: of median distances."
    )
    columns = ("Distance", "Near", "Rate", "Expected", "p", "Nearer", "Ratio")
    table = Table("Near copies of training images", columns, rows, note, digits=4)
    left_out = []
    same = int((near[PIXELS][1].distance < _SAME).sum())
    if same:
        left_out.append(
            f"{same} held-out real images equal a training image, which makes copies look usual: mend the splits."
        )
    section = Section("Memorisation", verdict, said, rule, (table,), tuple(left_out))
    return section, _pairs(sets, near, tests, most)


def _pairs(
    sets: Sets,
    near: Mapping[str, tuple[Nearest, Nearest]],
    tests: Mapping[str, tuple[NearCopies, NearCopies]],
    most: int,
) -> list[Pair]:
    """By how far both distances lie below what is usual, in the space where they do so most."""
    suspicion = {space: _suspicion(made, tests.get(space)) for space, (made, _) in near.items()}
    spaces = list(suspicion)
    least, which = torch.stack([suspicion[space] for space in spaces]).min(0)
    pairs = []
    for row in least.argsort(stable=True)[:most].tolist():
        space = spaces[int(which[row])]
        made = near[space][0]
        limit, relative_limit = (x.threshold for x in tests[space]) if space in tests else (math.nan, math.nan)
        training = int(made.index[row])
        small = sets.training.small[training]
        views = torch.stack([sets.synthetic.small[row], sets.synthetic.mirrored[row]])
        pairs.append(
            Pair(
                row,
                training,
                space,
                float(made.distance[row]),
                float(made.relative[row]),
                limit,
                relative_limit,
                float(correlation((views - small).norm(dim=1)).max()),
            )
        )
    return pairs


def _suspicion(made: Nearest, tests: tuple[NearCopies, NearCopies] | None) -> Tensor:
    """(M,) the larger of both distances, as parts of what counts as near; without tests the relative distance."""
    if tests is None:
        return made.relative
    over = [_over(x, test.threshold) for x, test in zip((made.distance, made.relative), tests, strict=True)]
    return torch.maximum(over[0], over[1])


def _over(distance: Tensor, limit: float) -> Tensor:
    """Distance over its limit; 0 for what is equal, even where the limit is 0."""
    return torch.where(distance > 0, distance / limit if limit > 0 else torch.inf, 0.0)
