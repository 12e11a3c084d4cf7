from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterscan.care import Care, smooth
from counterscan.counterpart import Counterpart, Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.medxgan.attribution import gradients_of
from counterscan.medxgan.published import PublishedExplain, PublishedMedXGAN
from counterscan.metrics.validity import psnr
from counterscan.nets.cnn import Classifier, ClassifierConfig
from tests.medxgan.ladders import ADD, FINDING, QUICK, REMOVE, SMALL, Curved, Mean, explainer, pictures
from tests.taggan.blobs import FINDINGS


def test_inversion_finds_the_generators_own_samples() -> None:
    system = explainer(config=replace(QUICK, steps=300, rate=0.05))
    generator = torch.Generator().manual_seed(3)
    z1, z2 = (torch.randn(3, n, generator=generator) for n in (SMALL.anatomy, SMALL.pathology))
    with torch.no_grad():
        x = system.generator(z1, z2)
    start, found = explainer(config=replace(QUICK, steps=0)).invert(x), system.invert(x)
    with torch.no_grad():
        assert psnr(x, system.generator(*start)).max() < 18
        assert psnr(x, system.generator(*found)).min() > 30
    assert not start[0].any()
    assert torch.equal(start[1][0], start[1][2])
    assert start[1].std() > 0.1


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_answers_are_what_the_generator_makes(strength: float) -> None:
    x, classifier = pictures(), Mean()
    system = explainer(classifier)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., :4] = False
    batch = StudyBatch(x, valid=valid, sources=[StudyRef(f"s{i}") for i in range(3)])
    answers = system.counterparts(batch, replace(REMOVE, strength=strength))
    z1, z2 = system.invert(x)
    with torch.no_grad():
        frames = [system.generator(z1, (1 - strength * s) * z2) for s in (0, 0.5, 1)]
    for i, answer in enumerate(answers):
        assert answer.counterpart is not None
        assert answer.path is not None
        for frame, seen in zip(frames, answer.path.frames, strict=True):
            torch.testing.assert_close(seen, frame[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answer.counterpart, frames[-1][i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answer.extras["reconstruction"], frames[0][i], atol=1e-5, rtol=1e-4)
        difference = frames[0][i] - frames[-1][i]
        torch.testing.assert_close(answer.extras["difference"], difference, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(answer.evidence, difference.abs() * valid[i], atol=1e-5, rtol=1e-3)
        assert answer.path.strengths.tolist() == [0, strength / 2, strength]
        torch.testing.assert_close(answer.path.outputs, classifier(answer.path.frames).detach().sigmoid())
        logits = classifier(torch.stack([x[i], answer.extras["reconstruction"], answer.counterpart]))[:, 0].tolist()
        assert answer.score_before == pytest.approx(1 / (1 + math.exp(-logits[0])))
        assert answer.score_after == pytest.approx(1 / (1 + math.exp(-logits[2])))
        assert answer.figures["logit_gap"] == pytest.approx(abs(logits[0] - logits[1]), abs=1e-5)
        assert answer.figures["flipped"] == float(logits[2] < 0)
        error = float((x[i] - answer.extras["reconstruction"])[valid[i]].square().mean())
        assert answer.figures["psnr"] == pytest.approx(10 * math.log10(4 / error), rel=1e-3)
        rise = pytest.approx(logits[1] - logits[2], abs=1e-5)
        assert float(answer.extras["lig"].sum()) == rise  # the logit is linear
        assert math.isnan(answer.figures["completeness_gap"])  # and hardly changes
        assert answer.source == StudyRef(f"s{i}")
        assert answer.made_by.system == "medXGAN"
        assert not answer.evidence.requires_grad
    assert torch.equal(
        system.attribute(x, 0), torch.stack([a.extras["difference"] for a in system.explain(x, FINDING)])
    )
    assert system.explain(x[:0], 0) == []


def test_images_do_not_meet_and_care_tidies_the_evidence() -> None:
    x = pictures(5)
    care = Care(smoothing=0.1)
    together = explainer(Curved(), replace(QUICK, care=care)).explain(x, 0)
    apart = explainer(Curved(), replace(QUICK, internal_batch_size=2)).explain(x, 0)
    system = explainer(Curved())
    with torch.inference_mode():
        inside = system.explain(x[3:4].clone(), 0)
    for one, two in zip([*together, together[3]], [*apart, *inside], strict=True):
        torch.testing.assert_close(one.counterpart, two.counterpart, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.extras["lig"], two.extras["lig"], atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(one.evidence, smooth(two.evidence[None], 0.1)[0], atol=1e-5, rtol=1e-3)
    assert float((together[0].evidence - together[1].evidence).abs().max()) > 0.01


def test_training_mode_outside_does_not_reach_the_batch_norms() -> None:
    x, system = pictures(), explainer()
    first = system.attribute(x, 0)
    before = {name: t.clone() for name, t in system.generator.state_dict().items()}
    system.generator.train()
    assert torch.equal(system.attribute(x, 0), first)
    assert system.generator.training
    assert all(torch.equal(t, before[name]) for name, t in system.generator.state_dict().items())


def test_latent_integrated_gradients() -> None:
    system = explainer(Mean(gain=4.0))
    z1, z2 = system.invert(pictures())
    still = system.maps(system.path(z1, 0 * z2, 0 * z2))
    assert all(not m.any() for m in still.values())  # z2 = 0: nothing to explain
    path = system.path(z1, z2, 0 * z2)
    maps = system.maps(path)
    # A linear logit has one gradient, gain / pixels: both forms are the difference times it.
    for name in ("lig", "lig_published"):
        torch.testing.assert_close(maps[name], maps["difference"] * 4 / 256, atol=1e-6, rtol=1e-4)


def test_the_path_form_is_complete_and_the_published_form_is_the_mean_gradient() -> None:
    net = Curved()
    system = explainer(net, replace(QUICK, steps=50, frames=6, fineness=5))
    z1, z2 = system.invert(pictures())
    path = system.path(z1, z2, 0 * z2)
    maps = system.maps(path)
    with torch.no_grad():
        rise = net(path[0])[:, 0] - net(path[-1])[:, 0]
    torch.testing.assert_close(maps["lig"].sum(dim=(1, 2, 3)), rise, atol=1e-3, rtol=0.01)
    gradients = torch.stack([gradients_of(frame, lambda x: net(x)[:, 0]) for frame in path])
    torch.testing.assert_close(maps["lig_published"], maps["difference"] * gradients.mean(dim=0))


@pytest.mark.parametrize("offset", [-2.0, 0.0, 2.0])
def test_the_target_stays_the_same_on_both_sides_of_the_boundary(offset: float) -> None:
    # From -0.5 to 0.5 grey f rises from offset - 2 to offset + 2: the likelier class may change half-way, the sign not.
    system = explainer(Mean(gain=4.0, offset=offset))
    path = torch.linspace(0.5, -0.5, 5).view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 16, 16)
    for name in ("lig", "lig_published"):
        m = system.maps(path)[name]
        assert (m > 0).all()
        assert float(m[0].sum()) == pytest.approx(4.0, rel=1e-4)


def answer_of(offset: float, query: Query = REMOVE, **settings: Any) -> Counterpart:
    system = explainer(Mean(gain=0.1, offset=offset), replace(QUICK, **settings))
    (answer,) = system.counterparts(StudyBatch(pictures(1)), query)
    return answer


def test_verdicts() -> None:
    assert answer_of(-1.0).verdict == "ok: the classifier's call was already negative"
    assert answer_of(1.0, ADD).verdict == "ok: the classifier's call was already positive"
    stays = answer_of(1.0)
    assert stays.verdict == f"not flipped: the classifier's call stays (p = {stays.score_after:.2f})"
    assert stays.figures["flipped"] == 0
    assert answer_of(-1.0, ADD).verdict.startswith("not flipped")
    # A boundary between image and reconstruction, both of which are known before.
    x, system = pictures(1), explainer()
    with torch.no_grad():
        again = float(system.generator(*system.invert(x)).mean())
    steep = Mean(gain=1e4, offset=-1e4 * (again + float(x.mean())) / 2)
    (answer,) = explainer(steep, replace(QUICK, steps=0)).counterparts(StudyBatch(x), REMOVE)
    assert answer.verdict.startswith("not explainable: the classifier gives the image p = ")


def test_adding_takes_the_first_draw_that_changes_the_call() -> None:
    x, quick = pictures(1), replace(QUICK, steps=0, draws=40)
    probe = explainer(config=quick)
    z1, _ = probe.invert(x)
    draws = torch.randn(40, SMALL.pathology, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        means = torch.cat([probe.generator(z1, draw[None]).mean()[None] for draw in draws])
    ranked = means.sort().values
    for offset, chosen in (
        (-100 * float((ranked[-4] + ranked[-3]) / 2), int((means >= ranked[-3]).nonzero()[0])),
        (-100 * (float(ranked[-1]) + 1e-3), int(means.argmax())),  # none gets there, one comes nearest
    ):
        (answer,) = explainer(Mean(100.0, offset), quick).counterparts(StudyBatch(x), ADD)
        assert answer.counterpart is not None
        with torch.no_grad():
            expected = probe.generator(z1, draws[[chosen]])[0]
        torch.testing.assert_close(answer.counterpart, expected)
    assert answer.figures["flipped"] == 0


@pytest.mark.parametrize(
    ("images", "query", "problem"),
    [
        (torch.zeros(1, 1, 16, 20), REMOVE, "images are 16 x 20, the model works at 16"),
        (torch.zeros(1, 3, 16, 16), REMOVE, "expected images"),
        (torch.full((1, 1, 16, 16), float("nan")), REMOVE, "256 pixels are NaN"),
        (torch.full((1, 1, 16, 16), 2.0), REMOVE, "pixels range from 2 to 2"),
        (torch.zeros(1, 1, 16, 16), Query("Edema"), "does not know 'Edema'. It knows Consolidation, Pneumothorax"),
        (torch.zeros(1, 1, 16, 16), Query(FINDINGS[1]), "the model explains Consolidation"),
    ],
)
def test_unusable_input_is_refused(images: Tensor, query: Query, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        explainer().counterparts(StudyBatch(images), query)


def test_unusable_settings_are_refused() -> None:
    for wrong in ({"steps": -1}, {"frames": 1}, {"fineness": 0}, {"draws": 0}, {"internal_batch_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            PublishedExplain(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not know 5"):
        explainer(finding=5)


def test_saved_models_answer_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(widths=(4, 8)), FINDINGS)
    care = Care(shifts=((1, 1),), smoothing=0.05)
    system = explainer(classifier, replace(QUICK, care=care), finding=1)
    system.save_pretrained(tmp_path / "model")
    again = PublishedMedXGAN.from_pretrained(tmp_path)
    assert again.config == system.config
    assert (again.finding, again.size) == (FINDINGS[1], 16)
    assert len(again.checkpoint or "") == 16
    for one, two in zip(system.explain(pictures(), 1), again.explain(pictures(), FINDINGS[1]), strict=True):
        assert one.counterpart is not None
        assert two.counterpart is not None
        assert torch.equal(one.counterpart, two.counterpart)
        assert torch.equal(one.evidence, two.evidence)
        assert one.score_before == two.score_before
    assert "Not a medical device" in (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "model" / "generator.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="damaged"):
        PublishedMedXGAN.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        PublishedMedXGAN.from_pretrained(tmp_path / "elsewhere")


def test_a_foreign_classifier_is_given_again(tmp_path: Path) -> None:
    explainer(Mean()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not kept with the model"):
        PublishedMedXGAN.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="the model was trained for another one"):
        PublishedMedXGAN.from_pretrained(tmp_path, Mean(offset=0.01))
    again = PublishedMedXGAN.from_pretrained(tmp_path, Mean())
    assert torch.equal(again.attribute(pictures(), 0), explainer().attribute(pictures(), 0))
