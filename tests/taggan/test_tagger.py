from __future__ import annotations

import pytest
import torch

from counterscan.care import Care
from counterscan.counterpart import Query, StudyBatch
from counterscan.errors import InputError
from counterscan.taggan.masks import MaskRule
from counterscan.taggan.model import MapGenerator, NetworkConfig
from counterscan.taggan.tagger import TagGAN, strongest
from tests.taggan.blobs import BlobClassifier

SMALL = NetworkConfig(base=4, levels=2)
FINDING = "Consolidation"


def tagger(**settings: object) -> TagGAN:
    torch.manual_seed(0)
    generators = [MapGenerator(SMALL, 1) for _ in range(2)]
    for generator in generators:
        torch.nn.init.normal_(generator.net.head.weight, std=0.1)
    return TagGAN(generators, (FINDING,), care=Care(flips=True), size=16, **settings)  # type: ignore[arg-type]


def batch(n: int = 3) -> StudyBatch:
    return StudyBatch(torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def test_a_counterpart_is_image_minus_map() -> None:
    system = tagger(classifier=BlobClassifier(), rules={FINDING: MaskRule(0.05, 0.0)})
    answers = system.counterparts(batch(), Query(FINDING))
    m = system.attribute(batch().images, 0)
    for i, answer in enumerate(answers):
        assert answer.counterpart is not None
        assert answer.mask is not None
        assert torch.allclose(answer.counterpart, (answer.image - m[i]).clamp(-1, 1))
        assert torch.equal(answer.mask, answer.evidence > 0.05)
        assert answer.score_before is not None
        assert answer.extras["uncertainty"].shape == (1, 16, 16)  # two generators differ


def test_strength_scales_the_change() -> None:
    system = tagger()
    none = system.counterparts(batch(), Query(FINDING, strength=0.0))[0]
    assert torch.equal(none.delta, torch.zeros(1, 16, 16))


def test_mirroring_the_image_mirrors_the_map() -> None:
    system, x = tagger(), batch().images
    assert torch.allclose(system.attribute(x.flip(-1), 0), system.attribute(x, 0).flip(-1), atol=1e-5)


def test_padding_stays_untouched() -> None:
    x = batch()
    valid = torch.ones_like(x.images, dtype=torch.bool)
    valid[..., :4] = False
    answer = tagger(rules={FINDING: MaskRule(0.0, 0.0)}).counterparts(
        StudyBatch(x.images, valid=valid), Query(FINDING), uncertainty=True
    )[0]
    assert torch.equal(answer.delta[..., :4], torch.zeros(1, 16, 4))
    assert answer.mask is not None
    assert not answer.mask[..., :4].any()
    assert not answer.evidence[..., :4].any()


@pytest.mark.parametrize(
    ("images", "query", "problem"),
    [
        (torch.full((1, 1, 16, 16), float("nan")), Query(FINDING), "256 pixels are NaN"),
        (torch.full((1, 1, 16, 16), 3.0), Query(FINDING), "pixels range from 3 to 3"),
        (torch.zeros(1, 3, 16, 16), Query(FINDING), "expected images"),
        (torch.zeros(1, 1, 16, 16), Query("Edema"), "does not know 'Edema'"),
        (torch.zeros(1, 1, 16, 16), Query(FINDING, "add"), "cannot add"),
    ],
)
def test_unusable_input_is_refused(images: torch.Tensor, query: Query, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        tagger().counterparts(StudyBatch(images), query)


def test_an_empty_batch_is_answered_with_nothing() -> None:
    assert tagger().counterparts(StudyBatch(torch.zeros(0, 1, 16, 16)), Query(FINDING)) == []


def test_strongest_is_the_mean_of_the_top_share() -> None:
    evidence = torch.arange(200.0).view(1, 1, 10, 20)
    assert strongest(evidence, 0.01).item() == pytest.approx(198.5)
