from __future__ import annotations

from typing import Any

import pytest
import torch

from counterscan.counterpart import Query, StudyBatch, StudyRef
from counterscan.errors import InputError


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"direction": "removed"}, "direction: 'removed' is none. Use remove or add"),
        ({"strength": -1.0}, "strength: -1.0 must be"),
        ({"strength": float("nan")}, "strength: nan must be"),
        ({"strength": float("inf")}, "strength: inf must be"),
    ],
)
def test_questions_without_an_answer_are_refused(asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Query("Edema", **asked)


def test_rows_of_a_batch_keep_what_is_known_of_them() -> None:
    images, valid = torch.arange(3.0).view(3, 1, 1, 1), torch.tensor([True, False, True]).view(3, 1, 1, 1)
    batch = StudyBatch(images, ("Edema",), images.view(3, 1), valid, [StudyRef(str(i)) for i in range(3)])
    rows = batch.rows(slice(1, 3))
    assert rows.images.flatten().tolist() == [1, 2]
    assert rows.labels is not None
    assert rows.labels.flatten().tolist() == [1, 2]
    assert rows.valid is not None
    assert rows.valid.flatten().tolist() == [False, True]
    assert rows.sources == [StudyRef("1"), StudyRef("2")]
    bare = StudyBatch(images).rows(slice(0, 2))
    assert len(bare) == 2
    assert (bare.labels, bare.valid, bare.sources) == (None, None, None)
