from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterscan.counterpart import Counterpart, Query, StudyBatch
from counterscan.medxgan import Code, MedXGAN, PersuadeConfig
from counterscan.nets.cnn import Classifier, ClassifierConfig
from tests.medxgan.grids import (
    EXACT,
    FINDING,
    SIZE,
    Half,
    Peak,
    Split,
    exact,
    spotted,
)
from tests.taggan.blobs import FINDINGS


@pytest.mark.parametrize(("weaker", "stays"), [(0.21, True), (0.28, False)])
def test_weaker_differences_stay_when_the_strong_ones_convince(weaker: float, stays: bool) -> None:
    x = spotted()[:1]
    x[0, 0, 12:15, 12:15] = weaker  # p of the weaker spot alone: 0.29, then 0.43
    (answer,) = exact().explain(x, FINDING)
    assert answer.figures["flipped"] == 1
    assert float(answer.delta[0, 5, 5]) == pytest.approx(0.5)
    assert float(answer.delta[0, 13, 13]) == pytest.approx(0 if stays else weaker - 0.2)


@pytest.mark.parametrize(("sure", "stays"), [(0.2, False), (0.45, True), (0.5, True)])
def test_a_counterpart_goes_as_far_as_the_classifier_is_to_be_sure(sure: float, stays: bool) -> None:
    x = spotted()[:1]
    x[0, 0, 12:15, 12:15] = 0.28  # p of it alone: 0.43
    system = exact()
    (answer,) = system.variant(config=replace(system.config, sure=sure)).explain(x, FINDING)
    assert float(answer.delta[0, 13, 13]) == pytest.approx(0 if stays else 0.08)
    assert answer.score_after is not None
    assert answer.score_after < 0.5  # the call changes in any case


@pytest.mark.parametrize(("near", "stays"), [(0.0, False), (0.1, True)])
def test_where_nothing_suffices_a_wider_mask_must_be_worth_it(near: float, stays: bool) -> None:
    x = spotted()[:1]
    x[0, 0, 13, 13] = 0.28  # p is 0.29 with it and 0.27 without, and 0.2 is asked for
    system = exact(replace(EXACT, sure=0.2, boosts=(1.0,), near=near))
    (answer,) = system.explain(x, FINDING)
    assert float(answer.delta[0, 5, 5]) == pytest.approx(0.5)
    assert float(answer.delta[0, 13, 13]) == pytest.approx(0 if stays else 0.08)


@pytest.mark.parametrize(("felt", "stays"), [(0.01, True), (0.0, False)])
def test_what_the_classifier_does_not_feel_is_not_moved(felt: float, stays: bool) -> None:
    class LeftOnly(Peak):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., :8])

    x = spotted()[:1]
    x[0, 0, 12:15, 12:15] = 0.7
    config = replace(EXACT, boosts=(1.0,), persuade=PersuadeConfig(rate=0.03, felt=felt))
    (answer,) = MedXGAN(Half(), LeftOnly(), config=config, size=SIZE).explain(x, FINDING)
    assert answer.verdict == "ok"
    assert float(answer.delta[0, 5, 5]) > 0.25
    assert (float(answer.delta[0, 13, 13]) == 0) is stays


@pytest.mark.parametrize("witnessed", [False, True])
def test_where_the_call_is_already_what_is_asked_for_nobody_is_persuaded(witnessed: bool) -> None:
    class Doubtful(Classifier):
        """A witness that calls everything positive."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 1)

    x = spotted()
    x[0, 0, 4:7, 4:7] = 0.28  # p is 0.43 and 0.35 without half of the spot
    push = {name: PersuadeConfig(rate=0.03) for name in ("persuade", "insist")}
    config = replace(EXACT, boosts=(1.0, 3.0), far=0.3, **push)
    witnesses = [Doubtful(ClassifierConfig(widths=(4,)), FINDINGS[:1])] if witnessed else []
    (answer, _) = MedXGAN(Half(), Peak(), config=config, size=SIZE, witnesses=witnesses).explain(x, FINDING)
    assert answer.verdict == "ok: the classifier's call was already negative"
    assert float(answer.delta[0, 5, 5]) == pytest.approx(0 if witnessed else 0.04, abs=1e-6)
    assert answer.figures["boost"] == 1
    assert answer.figures["insisted"] == 0


def test_a_call_that_is_already_what_is_asked_for_is_not_lost() -> None:
    class Upwards(Split):
        """Its images without pathology are brighter."""

        def generate(self, code: Code) -> Tensor:
            return super().generate(code) + 0.3 * (code.z2.amax(dim=(1, 2, 3, 4)) == 0).float().view(-1, 1, 1, 1)

    x = spotted()
    x[0, 0, 4:7, 4:7] = 0.28
    (answer, _) = MedXGAN(Upwards(), Peak(), config=EXACT, size=SIZE).explain(x, FINDING)
    assert answer.verdict == "ok: the classifier's call was already negative"
    assert torch.equal(answer.counterpart, x[0])  # type: ignore[arg-type]
    assert math.isnan(answer.figures["completeness_gap"])  # nothing changed


def test_without_transfer_what_the_generator_missed_is_no_change_that_is_felt() -> None:
    class Misses(Half):
        def encode(self, x: Tensor) -> Code:
            code = super().encode(x)
            keep = torch.ones(SIZE, SIZE)
            keep[12:15, 12:15] = 0
            return Code(code.z1 * keep + 0.25 * (1 - keep), code.z2 * keep)

    x = spotted()[:1]
    x[0, 0, 12:15, 12:15] = 1  # felt more than the other spot, if it counted
    config = replace(EXACT, boosts=(1.0,), transfer=False, persuade=PersuadeConfig(rate=0.03, felt=0.9))
    (answer,) = MedXGAN(Misses(), Peak(), config=config, size=SIZE).explain(x, FINDING)
    assert answer.path is not None
    moved = answer.path.frames[-1] - answer.path.frames[0]
    assert float(moved[0, 5, 5]) < -0.3  # half of it the descent's
    assert float(moved[0, 13, 13]) == 0


def test_what_the_generator_missed_of_the_lesion_goes_with_it() -> None:
    x = spotted()[:1]
    x[0, 0, 12, 12] = 0.21  # no lesion, and no generator shows it
    config = replace(EXACT, boosts=(1.0,))
    keeps, fades = (
        MedXGAN(Half(), Peak(), config=replace(config, fade=fade), size=SIZE).explain(x, FINDING)[0]
        for fade in (None, 0.05)
    )
    assert float(keeps.delta[0, 5, 5]) == pytest.approx(0.25)
    assert float(fades.delta[0, 4:7, 4:7].min()) == pytest.approx(0.5, abs=1e-6)
    assert fades.path is not None
    assert torch.equal(fades.path.frames[0], x[0])
    assert fades.figures["completeness_gap"] < 1e-2
    for answer in (keeps, fades):
        assert float(answer.delta[0, 12, 12]) == 0


def test_what_does_not_convince_is_moved_on_where_it_is_felt() -> None:
    # The spot's other half stays and is called positive: logit 1.25.
    config = replace(EXACT, boosts=(1.0,))
    x = spotted()
    left = MedXGAN(Half(), Peak(), config=config, size=SIZE).explain(x, FINDING)
    assert left[0].verdict.startswith("not flipped")
    moved = MedXGAN(Half(), Peak(), config=replace(config, persuade=PersuadeConfig(rate=0.03)), size=SIZE).explain(
        x, FINDING
    )
    assert moved[0].verdict == "ok"
    assert moved[0].score_after <= config.sure
    assert moved[0].figures["boost"] == 1
    beside = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    beside[:, 2:9, 2:9] = False  # the spot, the mask's reach and its soft border
    assert not moved[0].delta[beside].any()
    assert moved[0].path is not None
    assert torch.equal(moved[0].path.frames[0], x[0])
    assert torch.equal(moved[0].path.frames[-1], moved[0].counterpart)
    # Who is convinced already is left alone.
    assert torch.equal(moved[1].counterpart, left[1].counterpart)  # type: ignore[arg-type]


def test_who_is_far_from_sure_is_persuaded_anywhere() -> None:
    # The generator hardly changes what is at the border: the first descent moves only what is felt most.
    x = spotted()
    x[0, 0, 12:15, 12:15] = 0.6  # logit of it alone: 2.6
    config = replace(EXACT, boosts=(1.0,), persuade=PersuadeConfig(rate=0.03, felt=0.5))
    insist = PersuadeConfig(steps=40, rate=0.03, stay=0.1, felt=0.0)

    class Blind(Half):
        """Sees no pathology outside the upper left."""

        def encode(self, x: Tensor) -> Code:
            code = super().encode(x)
            corner = torch.zeros(SIZE, SIZE)
            corner[:10, :10] = 1
            return Code(code.z1 + (1 - corner) * code.z2[:, 0], code.z2 * corner)

        def generate(self, code: Code) -> Tensor:
            return super().generate(code) + 0.1 * code.z2.amax(dim=(1, 2, 3, 4)).view(-1, 1, 1, 1)

    def explained(**changes) -> list[Counterpart]:  # type: ignore[no-untyped-def]
        return MedXGAN(Blind(), Peak(), config=replace(config, **changes), size=SIZE).explain(x, FINDING)

    held, freed, never = explained(), explained(insist=insist), explained(insist=insist, far=1.0)
    assert held[0].verdict.startswith("not flipped")
    assert freed[0].verdict.startswith("ok, but only a change anywhere")
    assert [answer.figures["insisted"] for answer in (*held, *freed, *never)] == [0, 0, 1, 0, 0, 0]
    assert float(held[0].delta[0, 13, 13]) < 0.1 < float(freed[0].delta[0, 13, 13])
    assert torch.equal(never[0].counterpart, held[0].counterpart)  # type: ignore[arg-type]
    assert torch.equal(freed[1].counterpart, held[1].counterpart)  # type: ignore[arg-type]  # convinced already


def test_bringing_in_is_persuaded_the_other_way() -> None:
    faint = torch.zeros(4, 1, 1, SIZE, SIZE)
    faint[:, :, :, 4:7, 4:7] = 0.4  # as the generator shows it: 0.2, a logit of -1
    system = MedXGAN(Half(), Peak(), config=replace(EXACT, boosts=(1.0,)), donors={FINDING: faint[:, 0]}, size=SIZE)
    healthy = spotted()[1:]
    (stays,) = system.explain(healthy, FINDING, "add")
    assert stays.figures["flipped"] == 0
    system.config = replace(system.config, persuade=PersuadeConfig(rate=0.03))
    (added,) = system.explain(healthy, FINDING, "add")
    assert added.score_after > stays.score_after
    assert added.counterpart is not None
    assert float(added.counterpart[0, 5, 5]) > 0.2


def test_the_change_is_raised_until_the_call_changes() -> None:
    system = MedXGAN(Half(), Peak(), config=EXACT, size=SIZE)
    spot, _ = system.explain(spotted(), FINDING)
    assert spot.figures["boost"] == 2.0  # half the spot at strength 1: logit 1.25; at 1.5: 0.125; at 2: -1
    assert spot.figures["flipped"] == 1
    stuck = MedXGAN(Half(), Peak(), config=replace(EXACT, boosts=(1.0, 1.5)), size=SIZE).explain(spotted(), FINDING)[0]
    assert stuck.figures["boost"] == 1.5  # the nearest
    assert stuck.verdict.startswith("not flipped")


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_strength_scales_the_change_that_is_found_without_it(strength: float) -> None:
    system = MedXGAN(Half(), Peak(), config=EXACT, size=SIZE)
    whole, _ = system.explain(spotted(), FINDING)
    scaled, _ = system.counterparts(StudyBatch(spotted()), Query(FINDING, strength=strength))
    assert scaled.figures["boost"] == whole.figures["boost"]
    torch.testing.assert_close(scaled.delta, strength * whole.delta)
    assert scaled.path is not None
    assert scaled.path.strengths[-1] == strength
