from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterscan.errors import InputError
from counterscan.training import BalancedSampler, finding_groups, seed_everything, strata_groups, uniform_sampler


def test_each_image_once_per_pass() -> None:
    sampler = uniform_sampler(10, batch_size=4, seed=1)
    drawn = np.concatenate([sampler.batch_indices(step) for step in range(5)])
    assert sorted(drawn[:10]) == list(range(10))
    assert sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])


@given(step=st.integers(0, 10**6), world=st.sampled_from([1, 2, 3, 6]), stream=st.integers(0, 3))
def test_processes_share_one_batch(step: int, world: int, stream: int) -> None:
    groups = [np.arange(5), np.arange(5, 25)]
    whole = BalancedSampler(groups, 12, seed=3).batch_indices(step, stream=stream)
    parts = [BalancedSampler(groups, 12, seed=3).batch_indices(step, rank, world, stream) for rank in range(world)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_streams_and_seeds_differ() -> None:
    draws = [uniform_sampler(100, 50, seed).batch_indices(0, stream=stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_groups_get_their_shares_in_every_batch() -> None:
    sampler = BalancedSampler([np.arange(3), np.arange(3, 100)], batch_size=6, shares=(2, 1))
    for step in range(20):
        groups, rows = sampler.batch_groups(step), sampler.batch_indices(step)
        assert np.bincount(groups).tolist() == [4, 2]
        assert np.array_equal(rows < 3, groups == 0)
    first_pass = np.concatenate([sampler.batch_indices(step)[sampler.batch_groups(step) == 0] for step in range(3)])
    assert np.bincount(first_pass).tolist() == [4, 4, 4]


def test_batch_larger_than_the_group() -> None:
    assert np.bincount(uniform_sampler(3, 9).batch_indices(0)).tolist() == [3, 3, 3]


def test_bad_groups_are_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        BalancedSampler([np.arange(3), np.array([], dtype=int)], 4)
    with pytest.raises(InputError, match="shares"):
        BalancedSampler([np.arange(3)], 4, shares=(1, 2))
    with pytest.raises(InputError, match="shared equally by 3"):
        uniform_sampler(10, 4).batch_indices(0, world=3)


def test_groups_from_labels() -> None:
    assert [list(g) for g in strata_groups(["b", "a", "b"])] == [[1], [0, 2]]
    labels = np.array([[1, 0], [0, -1], [1, np.nan], [np.nan, 0]])
    groups, names = finding_groups(labels)
    assert [list(g) for g in groups] == [[0, 2], [1], [0, 3]]
    assert names == [(0, 1), (0, 0), (1, 0)]


def test_seeding_depends_on_every_number() -> None:
    drawn = set()
    for place in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        seed_everything(*place)
        first = np.random.random()
        seed_everything(*place)
        assert np.random.random() == first
        drawn.add(first)
    assert len(drawn) == 5
