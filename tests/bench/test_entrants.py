from __future__ import annotations

import numpy as np
import pytest
import torch

from counterscan.bench import calibrated, evaluate_systems, first_peers, mean_location
from counterscan.bench.subjects import patient_names, study_batch
from counterscan.counterpart import Query
from counterscan.errors import InputError
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.trivial import RawIntensity
from tests.bench.toys import FINDINGS, KEY, Finder, square_store
from tests.peers.tiny import TwoStages


def test_a_peers_threshold_is_the_percentile_of_its_own_healthy_maps() -> None:
    store = square_store()
    healthy = store.labels[:, 0] == 0
    peer = calibrated(
        lambda masker: RawIntensity(masker=masker), store, healthy, FINDINGS[0], percentile=50, min_area=0, key=KEY
    )
    assert isinstance(peer, RawIntensity)
    assert peer.masker is not None
    assert peer.masker.threshold == 0  # type: ignore[attr-defined]
    answer = peer.counterparts(store.batch([0]), Query(FINDINGS[0]))[0]
    assert answer.mask is not None
    assert torch.equal(answer.mask, answer.evidence > 0)


def test_no_healthy_image_is_an_error() -> None:
    with pytest.raises(InputError, match="no validation image without the finding"):
        calibrated(lambda masker: RawIntensity(masker=masker), square_store(), [], FINDINGS[0], key=KEY)


def test_each_patient_is_left_out_of_the_location_prior() -> None:
    store = square_store(4)  # image 0 of p0 and image 2 of p1 have Consolidation
    prior = mean_location(store, slice(None), FINDINGS[0], key=KEY)
    rows = np.arange(4)
    batch = study_batch(store, rows, patient_names(store, rows, KEY))
    evidence = prior.counterparts(batch, Query(FINDINGS[0]))[0].evidence
    assert torch.equal(evidence, store.masks([2], FINDINGS[0])[0].float())
    with pytest.raises(InputError, match="no image has a lesion mask"):
        mean_location(store, [1, 3], FINDINGS[0], key=KEY)


def test_the_first_peers_all_enter() -> None:
    store, classifier = square_store(), TwoStages()
    classifier.findings = FINDINGS  # type: ignore[misc]
    ill = store.labels[:, 0] == 1
    peers = first_peers(classifier, store, ~ill, FINDINGS[0], ig_steps=4, location_rows=ill, key=KEY)
    names = ["Grad-CAM", "LayerCAM", "Integrated Gradients", "Raw intensity", "Mean lesion location", "Whole organ"]
    assert list(peers) == names
    assert isinstance(peers["Grad-CAM"], GradCAM)
    found = evaluate_systems({"ours": Finder(), **peers}, store, ill, FINDINGS[0], key=KEY, resamples=50)
    assert found.interval("Whole organ", "recall").value == 1
    assert found.interval("Raw intensity", "pointing").value < 1  # the other finding is as bright
    assert {peer: found.difference(peer, "ap").value >= 0 for peer in peers} == dict.fromkeys(names, True)
