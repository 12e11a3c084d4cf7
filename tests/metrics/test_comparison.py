"""The study protocol's statistics: hand counts, sizes of the errors, false claims and power."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from benchmarks.null_protocol import World, draw_study, simulate
from counterscan.errors import InputError
from counterscan.metrics.comparison import compare_arms, evaluate_arm, holm

FINDINGS = ["0", "1", "2"]


def study(seed: int = 0, **world: float) -> tuple[tuple[Tensor, Tensor], Tensor, list[str]]:
    return draw_study(World("", **world), torch.Generator().manual_seed(seed))


def arms(seed: int = 0, resamples: int = 200, figure: str = "ap", **world: float):
    pair, labels, patients = study(seed, **world)
    return {
        name: evaluate_arm(scores, labels, patients, figure=figure, resamples=resamples)
        for name, scores in zip("ab", pair, strict=True)
    }


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.03)
    assert adjusted[2] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert holm([]) == []


@pytest.mark.parametrize(("figure", "reference"), [("ap", average_precision_score), ("roc_auc", roc_auc_score)])
def test_figures_are_scikit_learns_on_the_set_and_on_resamples(figure: str, reference) -> None:
    (scores, _), labels, patients = study(patients=40, seeds=2)
    labels[::7, 1] = math.nan
    arm = evaluate_arm(scores, labels, patients, figure=figure, resamples=5)
    from counterscan.metrics.intervals import patient_draws

    draws = patient_draws(patients, 5).numpy()
    for s in range(2):
        for c in range(3):
            known = ~labels[:, c].isnan().numpy()
            y, z = labels[known, c].numpy(), scores[s, known, c].numpy()
            assert arm.values[s, c].item() == pytest.approx(reference(y, z))
            for b in range(5):
                assert arm.draws[b, s, c].item() == pytest.approx(reference(y, z, sample_weight=draws[b, known]))


def test_errors_combine_patients_and_seeds() -> None:
    # Seeds that differ in quality only: their spread adds, with few degrees of freedom.
    found = arms(seeds=4, seed_noise=1e-6, seed_quality=0.5, patients=300)
    (mean,) = compare_arms(found, [("a", "b")], FINDINGS, per_class=False)
    difference = (found["a"].values - found["b"].values).mean(1)
    assert mean.seed_sd == pytest.approx(difference.std().item())
    assert mean.difference.value == pytest.approx(difference.mean().item())
    assert mean.standard_error > difference.std().item() / 2 * 0.95
    assert 3 <= mean.freedom < 6
    reach = student.ppf(0.975, mean.freedom) * mean.standard_error
    assert mean.difference.high - mean.difference.value == pytest.approx(reach)
    assert mean.p == pytest.approx(2 * student.sf(abs(mean.difference.value) / mean.standard_error, mean.freedom))
    few = student.ppf(0.975, mean.freedom) + student.ppf(0.8, mean.freedom)
    assert mean.detectable == pytest.approx(few * mean.standard_error)


def test_standard_error_is_the_spread_over_studies() -> None:
    world = World("", seeds=3, patients=60, seed_noise=0.6, seed_quality=0.1)
    generator = torch.Generator().manual_seed(0)
    differences, errors = [], []
    for number in range(40):
        pair, labels, patients = draw_study(world, generator)
        found = {
            n: evaluate_arm(s, labels, patients, resamples=40, seed=number) for n, s in zip("ab", pair, strict=True)
        }
        (mean,) = compare_arms(found, [("a", "b")], FINDINGS, per_class=False)
        differences.append(mean.difference.value)
        errors.append(mean.standard_error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(differences), rel=0.35)


def test_one_seed_speaks_of_patients_only_and_says_so() -> None:
    (mean,) = compare_arms(arms(seeds=1), [("a", "b")], FINDINGS, per_class=False)
    assert math.isnan(mean.seed_sd)
    assert mean.standard_error == pytest.approx(mean.patient_sd)
    assert mean.detectable == pytest.approx(2.8 * mean.standard_error, rel=0.01)
    assert "one seed" in mean.sentence()


def test_runs_that_share_a_generator_count_once() -> None:
    pair, labels, patients = study(seeds=4)
    copies = [scores.repeat_interleave(3, dim=0) for scores in pair]  # three runs that are one
    groups = [s // 3 for s in range(12)]
    grouped = {
        n: evaluate_arm(s, labels, patients, groups=groups, resamples=80) for n, s in zip("ab", copies, strict=True)
    }
    single = {n: evaluate_arm(s, labels, patients, resamples=80) for n, s in zip("ab", pair, strict=True)}
    one, other = (compare_arms(x, [("a", "b")], FINDINGS, per_class=False)[0] for x in (grouped, single))
    assert one.standard_error == pytest.approx(other.standard_error)
    assert one.freedom == pytest.approx(other.freedom)


def test_a_real_difference_is_better_and_turned_round_is_worse() -> None:
    found = arms(effect=1.0, patients=200)
    rows = compare_arms(found, [("a", "b"), ("b", "a")], FINDINGS)
    assert [(x.scope, x.verdict) for x in rows[:2]] == [("mean", "better"), ("mean", "worse")]
    assert [x.scope for x in rows[2:]] == [*FINDINGS, *FINDINGS]
    assert rows[0].difference.low > 0
    assert rows[0].percentiles.low > 0
    assert rows[0].adjusted == pytest.approx(min(1.0, 2 * rows[0].p))
    assert rows[0].sentence().startswith("a is better than b, mean average precision: +0.")
    same = compare_arms({"a": found["a"], "c": found["a"]}, [("a", "c")], FINDINGS, per_class=False)[0]
    assert same.verdict == "not shown"
    assert same.p == 1.0


def test_what_could_have_been_shown_is_said() -> None:
    (mean,) = compare_arms(arms(patients=40), [("a", "b")], FINDINGS, per_class=False)
    assert mean.verdict == "not shown"
    assert "no difference shown" in mean.sentence()
    assert f"from about {mean.detectable:.3f}" in mean.sentence()


def test_unpaired_arms_may_have_other_numbers_of_runs() -> None:
    pair, labels, patients = study(seeds=5, seed_quality=0.3)
    found = {
        "a": evaluate_arm(pair[0], labels, patients, resamples=100),
        "b": evaluate_arm(pair[1][:3], labels, patients, resamples=100),
    }
    (mean,) = compare_arms(found, [("a", "b")], FINDINGS, paired_seeds=False, per_class=False)
    assert mean.difference.low < mean.difference.value < mean.difference.high
    assert mean.freedom >= 2
    with pytest.raises(InputError, match="cannot be paired"):
        compare_arms(found, [("a", "b")], FINDINGS)


def test_classes_that_cannot_be_judged_claim_nothing() -> None:
    pair, labels, patients = study(effect=1.0)
    labels[:, 2] = 0
    found = {n: evaluate_arm(s, labels, patients, resamples=60) for n, s in zip("ab", pair, strict=True)}
    mean, *classes = compare_arms(found, [("a", "b")], FINDINGS)
    assert math.isfinite(mean.p)
    assert math.isnan(classes[2].p)
    assert classes[2].verdict == "not shown"
    assert "too few patients" in classes[2].sentence()


def test_bad_input_is_refused() -> None:
    pair, labels, patients = study(patients=20, seeds=2)
    with pytest.raises(InputError, match="belong together"):
        evaluate_arm(pair[0], labels[:-1], patients)
    with pytest.raises(InputError, match="figure"):
        evaluate_arm(pair[0], labels, patients, figure="f1")
    with pytest.raises(InputError, match="resamples"):
        evaluate_arm(pair[0], labels, patients, resamples=1)
    with pytest.raises(InputError, match="groups"):
        evaluate_arm(pair[0], labels, patients, groups=[0])
    with pytest.raises(InputError, match="scores"):
        evaluate_arm(pair[0] * math.nan, labels, patients)
    a = evaluate_arm(pair[0], labels, patients, resamples=5)
    other = evaluate_arm(pair[1], 1 - labels, patients, resamples=5)
    with pytest.raises(InputError, match="same images"):
        compare_arms({"a": a, "b": other}, [("a", "b")], FINDINGS)
    with pytest.raises(InputError, match="no arm 'c'"):
        compare_arms({"a": a}, [("a", "c")], FINDINGS)
    with pytest.raises(InputError, match="findings"):
        compare_arms({"a": a}, [("a", "a")], ["0"])


def test_false_claims_are_rare_and_true_ones_are_not() -> None:
    null = simulate(World("null", seeds=3, patients=60, seed_quality=0.15), runs=45, resamples=50)
    assert null["better"] <= 3  # 7 % of 45
    assert null["worse"] <= 3
    assert null["covered"] >= 39
    effect = simulate(World("effect", seeds=3, patients=100, effect=0.8), runs=10, resamples=50, images=5000)
    assert effect["better"] >= 8
    assert effect["worse"] == 0
