"""DeLong against the closed form for exponential scores, a bootstrap, hand counts and clusters."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.classification import roc_auc
from counterscan.metrics.delong import delong
from counterscan.metrics.intervals import patient_draws


def scores(n: int = 120, seed: int = 0, apart: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < 0.4).float()
    shared = torch.randn(n, generator=generator)
    first, second = (apart * labels + shared + 0.6 * torch.randn(n, generator=generator) for _ in range(2))
    return first, second, labels


def test_by_hand() -> None:
    labels = torch.tensor([1.0, 1, 0, 0])
    ours, theirs = torch.tensor([4.0, 2, 3, 1]), torch.tensor([1.0, 2, 3, 4])
    found = delong(ours, theirs, labels)
    # Ours: positives outrank 2 and 1 of two negatives, negatives are outranked by 1 and 2 of two positives.
    assert found.ours.value == 0.75
    assert found.theirs.value == 0.0
    variance = 2 * (0.25**2) / 1 / 2 + 2 * (0.25**2) / 1 / 2
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    assert found.p == pytest.approx(math.erfc(0.75 / math.sqrt(variance) / math.sqrt(2)))
    assert found.difference.high == pytest.approx(0.75 + 1.959964 * math.sqrt(variance), rel=1e-6)


def test_exponential_scores_have_hanley_and_mcneils_error() -> None:
    # Hanley and McNeil 1982: exact for exponentials; AUC theta = r / (1 + r) for rates 1 and r.
    generator = torch.Generator().manual_seed(0)
    m, n, r = 4000, 6000, 3.0
    draws = -torch.rand(m + n, generator=generator, dtype=torch.float64).log()
    labels = torch.cat([torch.ones(m), torch.zeros(n)])
    found = delong(torch.where(labels == 1, draws, draws / r), torch.rand(m + n), labels)
    theta = r / (1 + r)
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    variance = (theta * (1 - theta) + (m - 1) * (q1 - theta**2) + (n - 1) * (q2 - theta**2)) / (m * n)
    error = (found.ours.high - found.ours.low) / 2 / 1.959964
    assert found.ours.value == pytest.approx(theta, abs=4 * math.sqrt(variance))
    assert error == pytest.approx(math.sqrt(variance), rel=0.03)


@pytest.mark.parametrize("per_patient", [1, 3])
def test_error_is_the_bootstraps(per_patient: int) -> None:
    ours, theirs, labels = scores(n=150)
    rows = torch.arange(150).repeat_interleave(per_patient)
    noise = 0.3 * torch.randn(len(rows), generator=torch.Generator().manual_seed(1))
    ours, theirs, labels = ours[rows] + noise, theirs[rows], labels[rows]
    names = [f"p{i}" for i in rows.tolist()]
    found = delong(ours, theirs, labels, names)
    draws = patient_draws(names, 3000)
    spread = (roc_auc(ours, labels, draws) - roc_auc(theirs, labels, draws)).std().item()
    assert found.standard_error == pytest.approx(spread, rel=0.06)
    assert found.ours.value == pytest.approx(roc_auc(ours, labels).item())
    if per_patient > 1:
        assert found.standard_error > 1.3 * delong(ours, theirs, labels).standard_error


def test_patients_with_one_image_each_change_nothing() -> None:
    ours, theirs, labels = scores()
    alone, named = delong(ours, theirs, labels), delong(ours, theirs, labels, [f"q{i}" for i in range(120)])
    assert alone == named


def test_patients_with_positive_and_negative_images_are_paired() -> None:
    # Each patient shifts the scores of its positive and its negative alike: that hardly matters to the AUC of pairs.
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([1.0, 0.0] * 100)
    names = [f"p{i // 2}" for i in range(200)]
    ours = labels + torch.randn(100, generator=generator).repeat_interleave(2)
    theirs = labels + torch.randn(200, generator=generator)
    found, blind = delong(ours, theirs, labels, names), delong(ours, theirs, labels)
    draws = patient_draws(names, 3000)
    spread = roc_auc(ours, labels, draws).std().item()
    assert (found.ours.high - found.ours.low) / 3.92 == pytest.approx(spread, rel=0.06)
    assert found.ours.high - found.ours.low < 0.7 * (blind.ours.high - blind.ours.low)


def test_the_same_scores_and_their_monotone_images_do_not_differ() -> None:
    ours, _, labels = scores()
    found = delong(ours, ours.exp(), labels)
    assert found.difference.value == 0
    assert found.p == 1.0


def test_levels_are_held_and_differences_found() -> None:
    false = sum(delong(*scores(seed=seed)).p < 0.05 for seed in range(300))
    assert false / 300 < 0.09
    found = 0
    for seed in range(100):
        ours, theirs, labels = scores(n=300, seed=seed)
        found += delong(ours + 0.8 * labels, theirs, labels).p < 0.05
    assert found > 90


def test_unknown_labels_are_skipped_and_ties_count_half() -> None:
    ours, theirs, labels = scores()
    ours = (ours * 2).round()
    hidden = labels.clone()
    hidden[::4], hidden[1::4] = math.nan, -1
    rest = torch.arange(120) % 4 > 1
    found, known = delong(ours, theirs, hidden), delong(ours[rest], theirs[rest], labels[rest])
    assert np.hstack(astuple(found)) == pytest.approx(np.hstack(astuple(known)))
    assert found.ours.value == pytest.approx(roc_auc(ours, hidden).item())


def test_bad_input_is_refused() -> None:
    ours, theirs, labels = scores()
    with pytest.raises(InputError, match="belong together"):
        delong(ours[:3], theirs, labels)
    with pytest.raises(InputError, match="two patients"):
        delong(ours[:5], theirs[:5], torch.tensor([1.0, 0, 0, 0, 0]))
    with pytest.raises(InputError, match="NaN"):
        delong(ours * math.nan, theirs, labels)
