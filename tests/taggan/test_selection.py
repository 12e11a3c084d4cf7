from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterscan.taggan.selection import LabelOnlySelection
from tests.taggan.blobs import BlobClassifier, blob_store


class Oracle(nn.Module):
    """Takes away what is brighter than the background; `leak` changes everything as well."""

    def __init__(self, share: float, leak: float = 0.0) -> None:
        super().__init__()
        self.share, self.leak = nn.Parameter(torch.tensor(share)), leak

    def forward(self, x: Tensor, columns: Tensor) -> Tensor:
        return self.share * x * (x > 0.3) + self.leak


def figures(generator: nn.Module) -> dict[str, float]:
    store = blob_store()
    select = LabelOnlySelection(store.images(), torch.from_numpy(store.labels), store.findings)
    return select(generator, [BlobClassifier()])


def test_a_true_map_scores_one() -> None:
    assert figures(Oracle(1.0))["criterion"] == pytest.approx(1.0, abs=0.02)


def test_weak_maps_and_leaking_maps_score_less() -> None:
    good = figures(Oracle(1.0))
    weak = figures(Oracle(0.1))
    leaking = figures(Oracle(1.0, leak=0.1))
    assert weak["healed"] == 0
    assert leaking["parsimony"] < 0.5 < good["parsimony"]
    assert max(weak["criterion"], leaking["criterion"]) < good["criterion"]


def test_one_class_only_gives_no_figures() -> None:
    store = blob_store()
    ill = store.labels[:, 0] == 1
    select = LabelOnlySelection(store.images(ill), torch.from_numpy(store.labels[ill]), store.findings)
    assert select(Oracle(1.0), []) == {}
