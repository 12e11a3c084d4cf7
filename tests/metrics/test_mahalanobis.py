from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.mahalanobis import Mahalanobis


def cloud(n: int = 4000, seed: int = 0) -> Tensor:
    """Features whose covariance is diag(4, 1, 0.25), around (3, -1, 0)."""
    draws = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (draws * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([3.0, -1.0, 0.0])).float()


def test_distances_are_standard_deviations() -> None:
    near = Mahalanobis.fit(cloud())
    there = torch.tensor([[3.0, -1.0, 0.0], [7.0, -1.0, 0.0], [3.0, 1.0, 0.0], [3.0, -1.0, 1.0], [7.0, 1.0, 0.0]])
    torch.testing.assert_close(near(there), torch.tensor([0.0, 2.0, 2.0, 2.0, 8.0**0.5]), rtol=0.05, atol=0.05)


def test_squares_of_a_cloud_of_its_own_kind_average_to_the_dimension() -> None:
    assert float(Mahalanobis.fit(cloud())(cloud(seed=1)).square().mean()) == pytest.approx(3, rel=0.05)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_turning_and_scaling_all_features_changes_nothing(seed: int, scale: float) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0] * scale
    here, there = Mahalanobis.fit(cloud(400)), Mahalanobis.fit(cloud(400) @ turn)
    torch.testing.assert_close(here(cloud(50, 2)), there(cloud(50, 2) @ turn), rtol=1e-3, atol=1e-3)


def test_fewer_features_than_dimensions_and_equal_ones() -> None:
    few = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert bool(Mahalanobis.fit(few)(few).isfinite().all())
    same = Mahalanobis.fit(torch.ones(4, 2))
    assert same(torch.ones(1, 2)).item() == 0
    assert same(torch.tensor([[1.0, 2.0]])).item() > 1


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3), torch.zeros(4), torch.tensor([[0.0], [float("nan")]])])
def test_what_is_no_cloud_is_refused(wrong: Tensor) -> None:
    with pytest.raises(InputError, match="features"):
        Mahalanobis.fit(wrong)
