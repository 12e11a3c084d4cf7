from __future__ import annotations

import pytest
import torch

from counterscan.counterpart import Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.peers.trivial import MeanLesionLocation, RawIntensity, WholeOrgan

QUERY = Query("Lung Lesion")


@pytest.fixture
def batch():
    images = torch.tensor([[[[-1.0, 0.0], [1.0, 0.5]]], [[[-1.0, -1.0], [1.0, 1.0]]]])
    valid = torch.tensor([[1, 1], [1, 0]]).bool().expand(2, 1, 2, 2)
    return StudyBatch(images, valid=valid, sources=[StudyRef("a"), StudyRef("z")])


def test_intensity(batch):
    first, _ = RawIntensity().counterparts(batch, QUERY)
    assert first.evidence.flatten().tolist() == [0, 0.5, 1, 0]
    first, _ = RawIntensity(invert=True).counterparts(batch, QUERY)
    assert first.evidence.flatten().tolist() == [1, 0.5, 0, 0]
    assert first.made_by.system == "Inverted intensity"


def test_whole_organ(batch):
    first, _ = WholeOrgan().counterparts(batch, QUERY)
    assert first.evidence.flatten().tolist() == [1, 1, 1, 0]
    assert first.mask.flatten().tolist() == [True, True, True, False]
    first, _ = WholeOrgan(above=-0.5).counterparts(batch, QUERY)
    assert first.evidence.flatten().tolist() == [0, 1, 1, 0]


def test_mean_location_leaves_the_patient_out(batch):
    masks = torch.tensor([[[[1, 0], [0, 0]]], [[[1, 0], [0, 0]]], [[[0, 1], [0, 0]]], [[[1, 1], [1, 1]]]]).bool()
    system = MeanLesionLocation(masks, ["a", "a", "b", "c"])
    own, unseen = system.counterparts(batch, QUERY)
    assert own.evidence.flatten().tolist() == pytest.approx([0.5, 1, 0.5, 0])  # b and c only; the last pixel is padding
    assert unseen.evidence.flatten().tolist() == pytest.approx([0.75, 0.5, 0.25, 0])
    assert torch.equal(system.map_for(None), system.map_for("z"))
    without = StudyBatch(batch.images)
    assert torch.equal(system.counterparts(without, QUERY)[0].evidence, system.map_for(None))


def test_mean_location_refuses_to_answer_from_nothing(batch):
    with pytest.raises(InputError, match="other patient"):
        MeanLesionLocation(torch.ones(2, 1, 2, 2).bool(), ["a", "a"]).counterparts(batch, QUERY)
    with pytest.raises(InputError, match="M patients"):
        MeanLesionLocation(torch.ones(2, 1, 2, 2).bool(), ["a"])
    with pytest.raises(InputError, match="masks are"):
        MeanLesionLocation(torch.ones(1, 1, 3, 3).bool(), ["b"]).counterparts(batch, QUERY)
