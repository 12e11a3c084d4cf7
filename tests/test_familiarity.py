from __future__ import annotations

import numpy as np
import pytest
import torch

from counterscan.errors import InputError
from counterscan.familiarity import MARGIN, Familiarity, unlike
from counterscan.medxgan import MedXGANConfig
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.taggan import TagGANConfig
from tests.taggan.blobs import FINDINGS, blob_store


def classifiers(count: int = 1) -> list[Classifier]:
    """Untrained: even random features tell noise from blobs."""
    torch.manual_seed(0)
    return [Classifier(ClassifierConfig(widths=(4, 8)), FINDINGS).eval() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_learned_from_is_familiar_and_the_rest_is_not(count: int) -> None:
    known, store = classifiers(count), blob_store()
    learn, val = store.parts("train", "val")
    familiar = Familiarity.fit(known, learn, val, 1.0)
    images = val.images(np.arange(len(val)))
    assert float(familiar.strangeness(known, images).max()) == pytest.approx(1 / MARGIN)
    noise = torch.rand(8, *images.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(familiar.strangeness(known, noise).min()) > 1
    assert float(familiar.strangeness(known, images * 0.2 + 0.8).min()) > 1  # another range of intensities


def test_fewer_validation_images_in_the_limit_make_more_strangers() -> None:
    known, store = classifiers(), blob_store()
    learn, val = store.parts("train", "val")
    limits = [Familiarity.fit(known, learn, val, share).limit for share in (0.5, 0.9, 1.0)]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]


def test_it_is_the_same_from_its_tensors_and_one_image_is_judged_as_in_a_batch() -> None:
    known, store = classifiers(), blob_store()
    familiar = Familiarity.fit(known, *store.parts("train", "val"), 0.98)
    saved = {"other": torch.zeros(1), **familiar.tensors()}
    again = Familiarity.out_of(saved, familiar.limit)
    assert again is not None
    assert list(saved) == ["other"]
    assert Familiarity.out_of(saved, None) is None
    images = store.images(np.arange(6))
    found = familiar.strangeness(known, images)
    assert torch.equal(again.strangeness(known, images), found)
    torch.testing.assert_close(again.strangeness(known, images[2:3]), found[2:3])


def test_the_verdict_says_what_to_check() -> None:
    assert "2.31 times" in unlike(2.31)
    assert "modality" in unlike(2.31)


@pytest.mark.parametrize("config", [TagGANConfig, MedXGANConfig])
@pytest.mark.parametrize("trust", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused_before_anything_is_trained(config: type, trust: float) -> None:
    with pytest.raises(InputError, match="trust"):
        config(trust=trust)
