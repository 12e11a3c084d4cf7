from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer
from counterscan.peers.captum import captum_method, check_sampling, seeded
from counterscan.peers.gradient_shap import GradientSHAP
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.peers.occlusion import Occlusion
from counterscan.peers.smoothgrad import SmoothGrad
from tests.peers.tiny import ByHand

CPU = torch.device("cpu")


def test_a_method_is_captums_own() -> None:
    attr = pytest.importorskip("captum.attr")
    assert captum_method("Saliency") is attr.Saliency


@pytest.mark.parametrize("peer", [GradientSHAP, IntegratedGradients, Occlusion, SmoothGrad])
def test_missing_captum_is_explained(peer: Callable[..., AttributionPeer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"needs Captum\. pip install counterscan\[bench\]"):
        peer(ByHand())


def test_a_seeded_block_repeats_and_gives_both_generators_back() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    drawn = []
    for seed in (9, 9, 8):
        with seeded(seed, CPU):
            drawn.append((float(torch.rand(())), np.random.rand()))
    after = torch.rand(2), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(after[0], torch.rand(2))
    assert after[1] == np.random.rand()
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]


def test_generators_come_back_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), seeded(9, CPU):
        raise ZeroDivisionError
    assert np.random.rand() != np.random.RandomState(9).rand()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((-0.1, 1, 1), "sigma"),
        ((float("inf"), 1, 1), "sigma"),
        ((float("nan"), 1, 1), "sigma"),
        ((0.0, 0, 1), "n_samples"),
        ((0.0, 1, 0), "internal_batch_size"),
    ],
)
def test_sampling_that_cannot_be_done_is_refused(values: tuple[float, int, int], field: str) -> None:
    with pytest.raises(InputError, match=field):
        check_sampling(*values)
    check_sampling(0.0, 1, 1)
