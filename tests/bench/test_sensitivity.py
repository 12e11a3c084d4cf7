from __future__ import annotations

import pytest

from counterscan.bench import class_sensitivity
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from tests.bench.toys import FINDINGS, KEY, Finder, square_store

LEFT, RIGHT = FINDINGS


def alone() -> PreparedStore:
    """Square images of which those with both findings are relabelled as having one each."""
    store = square_store()
    store.labels[::4, 0] = 0
    return store


def test_a_selective_system_lights_its_own_lesions_only() -> None:
    found = class_sensitivity(Finder(), alone(), slice(None), FINDINGS, resamples=100, key=KEY)
    assert found.interval(LEFT, LEFT, "ap").value == 1
    assert found.interval(LEFT, RIGHT, "ap").value == pytest.approx(4 / 64, abs=0.01)
    assert found.interval(LEFT, RIGHT, "light").value == 0
    assert found.interval(RIGHT, RIGHT, "light").value == 1


def test_a_system_that_lights_everything_is_seen() -> None:
    found = class_sensitivity(Finder(everywhere=True), alone(), slice(None), FINDINGS, resamples=100, key=KEY)
    assert found.interval(LEFT, RIGHT, "light").value == pytest.approx(1)
    assert found.interval(LEFT, RIGHT, "energy").value == pytest.approx(0.5)


def test_images_with_both_findings_count_on_the_diagonal_only() -> None:
    found = class_sensitivity(Finder(), square_store(), slice(None), FINDINGS, resamples=100, key=KEY)
    assert len(found.per_image.query("asked == lesion")) == 6 + 3
    # Every image with Pneumothorax has Consolidation too, and none of those may judge the map for Consolidation.
    assert found.to_json()["ap"][LEFT][RIGHT] == [None, None, None]
    assert [table.columns for table in found.tables()] == [("Asked for", *FINDINGS)] * 3


def test_masks_must_be_kept_apart() -> None:
    with pytest.raises(InputError, match="no masks of its own"):
        class_sensitivity(Finder(), square_store(), slice(None), ("Consolidation", "Edema"), key=KEY)
    with pytest.raises(InputError, match="no image has a lesion mask"):
        class_sensitivity(Finder(), square_store(), [1, 3], FINDINGS, key=KEY)
