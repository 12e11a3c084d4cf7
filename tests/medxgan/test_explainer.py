from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from counterscan.counterpart import Counterpart, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity
from counterscan.medxgan import Code, ExplainConfig, Limits, MedXGAN, PersuadeConfig, RefineConfig
from counterscan.metrics.mahalanobis import Mahalanobis
from counterscan.nets.cnn import Classifier, ClassifierConfig
from tests.medxgan.grids import QUICK, SIZE, Split, explainer, images, networks
from tests.medxgan.ladders import Blobs
from tests.taggan.blobs import FINDINGS

FINDING = FINDINGS[0]
EXACT = replace(QUICK, refine=RefineConfig(steps=0))


class Peak(nn.Module):
    """Logit: how much of the image is above 0.2."""

    findings = FINDINGS[:1]

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.offset + (x - 0.2).clamp_min(0).sum(dim=(1, 2, 3)))[:, None]


class Half(Split):
    """Shows half of the spot, so that taking it away leaves the other half in the image."""

    def generate(self, code):  # type: ignore[no-untyped-def]
        return code.z1 + 0.5 * code.z2[:, 0]


def spotted() -> Tensor:
    """Two images: a spot of nine pixels 0.5 above the rest, and none."""
    x = torch.zeros(2, 1, SIZE, SIZE)
    x[0, 0, 4:7, 4:7] = 0.7
    return x


def exact(config: ExplainConfig = EXACT) -> MedXGAN:
    return MedXGAN(Split(), Peak(), config=config, size=SIZE)


def test_an_exact_generator_takes_the_spot_away_and_nothing_else() -> None:
    spot, flat = exact().explain(spotted(), FINDING)
    truth = torch.zeros(1, SIZE, SIZE)
    truth[0, 4:7, 4:7] = 0.5
    torch.testing.assert_close(spot.delta, truth)
    assert torch.equal(spot.evidence > 0.1, truth > 0)
    assert spot.score_before == pytest.approx(torch.sigmoid(torch.tensor(3.5)).item())  # 9 * 0.5 - 1
    assert spot.score_after == pytest.approx(torch.sigmoid(torch.tensor(-1.0)).item())
    assert spot.figures["flipped"] == 1
    assert spot.verdict == "ok"
    assert torch.equal(flat.delta, torch.zeros(1, SIZE, SIZE))
    assert flat.verdict.startswith("ok: the classifier's call was already negative")


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
    assert answer.figures["completeness_gap"] == 0


def test_a_stranger_gets_a_verdict_that_says_so() -> None:
    witness = Classifier(ClassifierConfig(widths=(4,)), FINDINGS[:1])
    x = spotted()
    away = Mahalanobis(torch.ones(4), torch.eye(4))
    near, far = (
        MedXGAN(Half(), Peak(), config=EXACT, size=SIZE, witnesses=[witness], familiarity=Familiarity(away, limit))
        for limit in (1e9, 1e-9)
    )
    assert all("not explainable: the image is unlike" in answer.verdict for answer in far.explain(x, FINDING))
    answers = near.explain(x, FINDING)
    assert not any("unlike" in answer.verdict for answer in answers)
    assert all(0 <= answer.figures["strangeness"] < 1 for answer in answers)
    assert far.variant(classifier=Peak()).familiarity is None  # its witnesses know another classifier


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


@pytest.mark.parametrize("far", [0.0, 1.5])
def test_far_is_a_probability(far: float) -> None:
    with pytest.raises(InputError, match="far"):
        ExplainConfig(far=far)


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


def test_descents_in_bfloat16_leave_answers_in_float32() -> None:
    config = replace(QUICK, refine=RefineConfig(steps=5), persuade=PersuadeConfig(steps=3), sure=0.01)
    full, half = (
        explainer(offset=-2.0, config=replace(config, precision=name)).explain(images(), FINDING)  # type: ignore[arg-type]
        for name in ("fp32", "bf16")
    )
    classifier = Blobs(1, -2.0)
    for ours, theirs in zip(half, full, strict=True):
        assert ours.counterpart is not None
        assert ours.path is not None
        assert ours.counterpart.dtype == ours.evidence.dtype == torch.float32
        assert ours.score_after == pytest.approx(float(classifier(ours.counterpart[None]).detach().sigmoid()), abs=1e-6)
        assert torch.equal(ours.path.frames[0], ours.image)
        assert theirs.counterpart is not None
        assert float((ours.counterpart - theirs.counterpart).abs().mean()) < 0.005  # changes are about 0.02


def test_a_share_below_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="near"):
        ExplainConfig(near=-0.1)


def test_a_fade_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="fade"):
        ExplainConfig(fade=0.0)


@pytest.mark.parametrize("field", ["masks", "boosts"])
def test_an_empty_list_of_attempts_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=field):
        ExplainConfig(**{field: ()})


@pytest.mark.parametrize("sure", [0.0, 0.6])
def test_a_threshold_beyond_the_call_is_refused(sure: float) -> None:
    with pytest.raises(InputError, match="sure"):
        ExplainConfig(sure=sure)


def test_the_path_leads_from_the_image_to_the_counterpart() -> None:
    spot, _ = exact().explain(spotted(), 0)
    assert spot.path is not None
    assert torch.equal(spot.path.frames[0], spotted()[0])
    assert torch.equal(spot.path.frames[-1], spot.counterpart)
    assert spot.path.strengths.tolist() == [0, 0.25, 0.5, 0.75, 1]
    falls = spot.path.outputs[:, 0].diff()
    assert (falls < 0).all()
    assert spot.path.outputs[0, 0].item() == pytest.approx(spot.score_before)


def test_lig_is_complete_and_lies_on_the_spot() -> None:
    spot, _ = exact().explain(spotted(), FINDING)
    for name in ("lig", "ig_negative"):
        assert spot.extras[name].sum().item() == pytest.approx(4.5, rel=1e-3)  # F falls from 3.5 to -1
        assert torch.equal(spot.extras[name] > 1e-6, spot.extras["difference"] > 0)
    assert spot.figures["completeness_gap"] < 1e-3


def test_outside_of_the_transfer_the_image_stays_bit_for_bit() -> None:
    x = images(4)
    for answer in explainer().explain(x, FINDING):
        changed = answer.delta != 0
        assert answer.counterpart is not None
        assert torch.equal(answer.counterpart[~changed], answer.image[~changed])
    whole = explainer(config=replace(QUICK, transfer=False)).explain(x, FINDING)[0]
    assert torch.equal(whole.path.frames[0], whole.extras["reconstruction"])  # type: ignore[union-attr]


def test_the_change_is_raised_until_the_call_changes() -> None:
    system = MedXGAN(Half(), Peak(), config=EXACT, size=SIZE)
    spot, _ = system.explain(spotted(), FINDING)
    assert spot.figures["boost"] == 2.0  # half the spot at strength 1: logit 1.25; at 1.5: 0.125; at 2: -1
    assert spot.figures["flipped"] == 1
    stuck = MedXGAN(Half(), Peak(), config=replace(EXACT, boosts=(1.0, 1.5)), size=SIZE).explain(spotted(), FINDING)[0]
    assert stuck.figures["boost"] == 1.5  # the nearest
    assert stuck.verdict.startswith("not flipped")


def test_a_finding_can_be_brought_in_by_the_donor_that_changes_least() -> None:
    system = exact()
    small, large = torch.zeros(2, 1, SIZE, SIZE)
    small[0, 8:10, 8:10] = 0.6  # logit 4 * (0.6 - 0.2) - 1 > 0
    large[0, 2:12, 2:12] = 0.9
    system.donors = {FINDING: torch.stack([large, small])}
    answer = system.explain(spotted()[1:], FINDING, "add")[0]
    assert answer.score_after is not None
    assert answer.score_after >= 0.5
    assert int((answer.delta.abs() > 1e-6).sum()) == 4
    assert answer.delta.min() < 0  # image - counterpart: something was added
    assert answer.verdict == "ok"
    with pytest.raises(InputError, match="no donors"):
        exact().explain(spotted(), FINDING, "add")


def test_an_image_the_generator_does_not_reach_is_not_explained() -> None:
    system = explainer()
    system.limits = {FINDING: Limits(psnr=90.0)}
    assert system.explain(images(1), FINDING)[0].verdict.startswith("not explainable: the generator does not reach")
    system.limits = {FINDING: Limits(gap=0.0)}
    assert "sees image and reconstruction differently" in system.explain(images(1), FINDING)[0].verdict


def test_attribute_has_captums_shape_and_the_main_map() -> None:
    system, x = exact(), spotted()
    assert torch.equal(system.attribute(x, 0), torch.stack([a.extras["difference"] for a in system.explain(x, 0)]))
    lig = exact(replace(EXACT, evidence="lig")).attribute(x, FINDING)
    assert lig.shape == x.shape
    assert lig[0].sum().item() == pytest.approx(4.5, rel=1e-3)


def test_batches_do_not_matter_and_the_caller_may_be_in_inference_mode() -> None:
    system, x = explainer(), images(3)
    with torch.inference_mode():
        together = system.explain(x, FINDING)
    alone = system.explain(x[1:2], FINDING)[0]
    torch.testing.assert_close(together[1].extras["lig"], alone.extras["lig"], atol=1e-4, rtol=1e-3)


def test_findings_have_their_own_blocks() -> None:
    system, x = explainer(findings=2), images(2)
    first, second = (system.explain(x, name)[0] for name in FINDINGS)
    assert not torch.equal(first.delta, second.delta)
    assert first.path is not None
    assert first.path.outputs.shape == (5, 2)


def test_padding_stays_and_strength_zero_changes_nothing() -> None:
    valid = torch.ones(2, 1, SIZE, SIZE, dtype=torch.bool)
    valid[..., :8] = False
    system = exact()
    padded = system.counterparts(StudyBatch(spotted(), valid=valid), Query(FINDING))[0]
    assert torch.equal(padded.delta, torch.zeros(1, SIZE, SIZE))
    assert not padded.evidence.any()
    still = system.counterparts(StudyBatch(spotted()), Query(FINDING, strength=0.0))[0]
    assert torch.equal(still.delta, torch.zeros(1, SIZE, SIZE))


@pytest.mark.parametrize(
    ("x", "target", "problem"),
    [
        (torch.zeros(1, 1, SIZE, SIZE), "Edema", "does not know 'Edema'"),
        (torch.zeros(1, 1, SIZE, SIZE), 3, "column 3 is out of range"),
        (torch.zeros(1, 1, 8, 8), 0, "the model works at 16"),
        (torch.full((1, 1, SIZE, SIZE), float("nan")), 0, "NaN"),
        (torch.full((1, 1, SIZE, SIZE), 200.0), 0, "pixels range from 200"),
    ],
)
def test_unusable_input_is_refused(x: Tensor, target: int | str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        explainer().explain(x, target)


def test_settings_and_classifiers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="frames"):
        ExplainConfig(frames=1)
    with pytest.raises(InputError, match="evidence"):
        ExplainConfig(evidence="heat")
    with pytest.raises(InputError, match="precision"):
        ExplainConfig(precision="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 blocks of z2"):
        MedXGAN(networks(2), Blobs(1))
    with pytest.raises(InputError, match="no attribute findings"):
        MedXGAN(networks(), nn.Identity())


def test_nothing_in_nothing_out() -> None:
    assert explainer().explain(torch.zeros(0, 1, SIZE, SIZE), FINDING) == []


class Blind(Peak):
    """Sees the upper half only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., : SIZE // 2, :])


def two_spots() -> Tensor:
    """A bright spot above, a fainter one below."""
    x = torch.zeros(1, 1, SIZE, SIZE)
    x[0, 0, 3:6, 3:6], x[0, 0, 10:13, 10:13] = 0.8, 0.5
    return x


def test_a_counterpart_must_convince_the_witnesses_as_well() -> None:
    config = replace(EXACT, masks=(0.9, 0.1))  # the first takes the brighter spot away, the second both
    alone = MedXGAN(Split(), Blind(), config=config, size=SIZE).explain(two_spots(), FINDING)[0]
    assert alone.counterpart is not None
    assert alone.counterpart[0, 11, 11] == 0.5  # the classifier does not look there
    assert "witnessed" not in alone.figures
    seen = MedXGAN(Split(), Blind(), witnesses=[Peak()], config=config, size=SIZE).explain(two_spots(), FINDING)[0]
    assert seen.counterpart is not None
    assert seen.counterpart[0, 11, 11] == pytest.approx(0.2)
    assert (seen.figures["witnessed"], seen.verdict) == (1.0, "ok")
    assert seen.score_after == pytest.approx(alone.score_after)  # told of the classifier alone


def test_a_counterpart_that_some_witness_doubts_says_so() -> None:
    stubborn = Peak()
    stubborn.offset.data.fill_(9.0)
    system = MedXGAN(Split(), Peak(), witnesses=[Peak(), stubborn], config=EXACT, size=SIZE)
    answer = system.explain(spotted(), FINDING)[0]
    assert answer.figures["flipped"] == 1
    assert answer.figures["witnessed"] == 0.5
    assert answer.verdict.startswith("not witnessed")
    assert len(set(system.settings()["witnesses"])) == 2


def test_witnesses_of_other_findings_are_refused() -> None:
    other = Peak()
    other.findings = ("Edema",)  # type: ignore[assignment]
    with pytest.raises(InputError, match="one knows Edema"):
        MedXGAN(Split(), Peak(), witnesses=[other], size=SIZE)
