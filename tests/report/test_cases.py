from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from counterscan.report.cases import pick_cases


def test_ranks():
    scores = torch.arange(21) / 20
    picks = pick_cases(scores, 3, "pixel AP")
    assert picks.best == [20, 19, 18]
    assert picks.median == [11, 10, 9]
    assert picks.worst == [2, 1, 0]
    assert picks.rule == (
        "Chosen by rank of pixel AP among 21 images that could be judged: the 3 highest, 3 around the median and the 3 "
        "lowest. None was picked by hand."
    )
    assert picks.grouped()[0] == ("Best", 20)
    assert picks.grouped()[-1] == ("Worst", 0)


def test_nan_is_left_out_and_ties_are_stable():
    picks = pick_cases([math.nan, 0.5, 0.5, 0.5, math.nan, 0.9], 1)
    assert (picks.best, picks.median, picks.worst) == ([5], [2], [3])
    empty = pick_cases([math.nan], 2)
    assert empty.best + empty.median + empty.worst == []


def test_failures_are_kept_when_images_are_few():
    picks = pick_cases([0.1, 0.9, 0.5, 0.7], 3)
    assert (picks.best, picks.median, picks.worst) == ([1], [], [3, 2, 0])


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=40), st.integers(1, 6))
def test_groups_never_overlap_and_are_ordered(scores, n):
    picks = pick_cases(scores, n)
    shown = picks.best + picks.median + picks.worst
    assert len(set(shown)) == len(shown) == min(3 * n, sum(not math.isnan(s) for s in scores))
    values = [scores[i] for i in shown]
    assert values == sorted(values, reverse=True)
