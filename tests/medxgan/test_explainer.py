from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from counterscan.counterpart import Query, StudyBatch
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity
from counterscan.medxgan import ExplainConfig, Limits, MedXGAN, PersuadeConfig, RefineConfig
from counterscan.metrics.mahalanobis import Mahalanobis
from counterscan.nets.cnn import Classifier, ClassifierConfig
from tests.medxgan.grids import (
    EXACT,
    FINDING,
    QUICK,
    SIZE,
    Half,
    Peak,
    Split,
    exact,
    explainer,
    images,
    networks,
    spotted,
)
from tests.medxgan.ladders import Blobs
from tests.taggan.blobs import FINDINGS


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


@pytest.mark.parametrize("far", [0.0, 1.5])
def test_far_is_a_probability(far: float) -> None:
    with pytest.raises(InputError, match="far"):
        ExplainConfig(far=far)


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


def test_many_images_are_explained_some_at_a_time() -> None:
    x, system = images(5), explainer()
    together = system.explain(x, FINDING)
    system.config = replace(system.config, internal_batch_size=2)
    for some, all_ in zip(system.explain(x, FINDING), together, strict=True):
        torch.testing.assert_close(some.counterpart, all_.counterpart)
        torch.testing.assert_close(some.extras["lig"], all_.extras["lig"])
        assert some.verdict == all_.verdict
    with pytest.raises(InputError, match="internal_batch_size"):
        ExplainConfig(internal_batch_size=0)


def test_no_image_gives_no_answer() -> None:
    system = explainer()
    assert system.explain(images(2)[:0], FINDING) == []
    assert system.attribute(images(2)[:0], 0).shape == (0, 1, SIZE, SIZE)


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
