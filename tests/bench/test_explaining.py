from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from counterscan.bench import (
    ExplainerEvaluation,
    Probe,
    Realism,
    evaluate_explainers,
    randomisation_test,
    stability_of,
)
from counterscan.bench.explain_classifier import called_positive
from counterscan.bench.explain_tables import THEMSELVES
from counterscan.counterpart import CounterfactualPath, Counterpart, Provenance, Query, StudyBatch
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics import stability
from counterscan.peers.trivial import RawIntensity
from tests.bench.toys import FINDINGS, KEY, SIDE, Brightness, Constant, Finder, square_store

FINDING = FINDINGS[0]
QUICK = Probe(steps=4, patches=3, patch=SIDE, draws=2, sigmas=(0.05,))
# A lit square's logit under Brightness is 10 * (0.2 + 0.5), that of a black image 10 * (-1 + 0.5).
LIT, BLACK = 1 / (1 + math.exp(-7)), 1 / (1 + math.exp(5))


class Stricter(Brightness):
    """Another opinion: calls from 0.1 on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 6


class Silent:
    """A map that says nothing."""

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        return [Counterpart(x, torch.zeros_like(x), query, Provenance("Silent", "0")) for x in batch.images]


class Walker(Finder):
    """Finder with a way of three frames, a reconstruction that is 0.01 too bright, and no answer for some images."""

    def __init__(self, halfway: float = 0.5, answers: int = 99, share: float = 1.0) -> None:
        super().__init__(share)
        self.halfway, self.answers = halfway, answers

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        made = []
        for i, answer in enumerate(super().counterparts(batch, query)):
            assert answer.counterpart is not None
            shares = torch.tensor([0.0, self.halfway, 1.0])
            frames = torch.stack([torch.lerp(answer.image, answer.counterpart, share) for share in shares.tolist()])
            made.append(
                replace(
                    answer,
                    counterpart=answer.counterpart if i < self.answers else None,
                    path=CounterfactualPath(frames, shares, torch.zeros(3, 1)),
                    extras={"reconstruction": answer.image + 0.01},
                    figures={"completeness_gap": 0.02, "boost": 3.0},
                    verdict="ok" if i % 2 else "not explainable: far away",
                )
            )
        return made


def trial(systems: dict[str, Any], store: PreparedStore | None = None, **settings: Any) -> ExplainerEvaluation:
    store = store or square_store()
    given: dict[str, Any] = {"classifier": Brightness(), "key": KEY, "resamples": 100, "batch_size": 4, "probe": QUICK}
    return evaluate_explainers(systems, store, settings.pop("rows", slice(None)), FINDING, **(given | settings))


def figures(found: ExplainerEvaluation, system: str) -> dict[str, float]:
    return {name: found.evaluation.interval(system, name).value for name in found.evaluation.figures}


def test_a_perfect_explainer_has_the_figures_worked_out_by_hand() -> None:
    ours = Finder()
    got = figures(trial({"ours": ours}, oracle=Stricter()), "ours")
    assert ours.asked == [4, 2]  # the six images with the finding, once
    mean = [1 / (1 + math.exp(-10 * (1.2 * lit / 64 - 0.5))) for lit in (4, 8)]  # of the images' own mean grey
    expected = {
        **{"flip": 1, "oracle_flip": 1, "cv80": 1, "drop": LIT - BLACK, "trusted": 1},
        **{"l1": 1.2 * 4 / 64, "l0": 4 / 64, "outside": 0, "ap": 1, "pointing": 1, "twin_remaining": 0},
        # A quarter of the pixels goes at each step, and the lesion's four are the first.
        "deletion_negative": (LIT + 7 * BLACK) / 8,
        "insertion_negative": (BLACK + 7 * LIT) / 8,
        "deletion_mean": np.mean([(LIT + 7 * p) / 8 for p in mean]),
        "insertion_mean": np.mean([(p + 7 * LIT) / 8 for p in mean]),
        **{"gini": 1 - 4 / 64, "stray": 4 / 64},
        "infidelity": 0,  # the one patch is the whole image
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < got["seconds"] < 1
    assert 0 < got["ssim"] < 1
    assert all(math.isnan(got[name]) for name in ("monotonicity", "psnr", "logit_gap", "completeness_gap"))


def test_a_weak_change_flips_nobody_and_a_plain_map_is_not_asked_to() -> None:
    found = trial({"ours": Finder(), "weak": Finder(share=0.2), "silent": Silent()}, oracle=Stricter())
    weak, silent = figures(found, "weak"), figures(found, "silent")
    assert (weak["flip"], weak["cv80"], weak["oracle_flip"]) == (0, 0, 1)  # from 0.2 to -0.04
    assert weak["l1"] == pytest.approx(0.2 * 1.2 * 4 / 64)
    for name in ("flip", "oracle_flip", "cv80", "drop", "trusted", "l1", "l0", "ssim", "outside"):
        assert math.isnan(silent[name]), name
    worth = [7 - 10 * (1.2 * lit / 64 - 0.5) for lit in (4, 8)]
    assert silent["infidelity"] == pytest.approx(np.mean(np.square(worth)), rel=1e-5)
    assert math.isnan(silent["gini"])
    assert silent["stray"] == 0
    assert found.evaluation.difference("weak", "flip").value == 1


def test_the_oracle_counts_where_both_call_positive() -> None:
    class Never(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 99

    found = trial({"ours": Finder()}, oracle=Never())
    assert math.isnan(found.evaluation.interval("ours", "oracle_flip").value)
    assert math.isnan(trial({"ours": Finder()}).evaluation.interval("ours", "oracle_flip").value)


def test_silence_cannot_raise_a_rate() -> None:
    # Of each batch of four, and then two, the first has a counterpart.
    found = trial({"ours": Walker(answers=1)}).evaluation
    assert found.interval("ours", "flip").value == pytest.approx(2 / 6)
    assert found.interval("ours", "cv80").value == pytest.approx(2 / 6)
    assert int(torch.isfinite(found.values("ours", "l1")).sum()) == 2
    assert found.interval("ours", "l1").value == pytest.approx(1.2 * 4 / 64)
    assert found.interval("ours", "trusted").value == 0  # of the two that are there


def test_ways_and_reconstructions() -> None:
    found = trial({"ours": Walker(), "stays": Walker(halfway=0.0)})
    got = figures(found, "ours")
    assert got["monotonicity"] == 1
    assert figures(found, "stays")["monotonicity"] == 0.5
    assert got["psnr"] == pytest.approx(10 * math.log10(4 / 0.01**2), abs=1e-3)
    assert got["logit_gap"] == pytest.approx(0.1, abs=1e-4)
    assert got["completeness_gap"] == pytest.approx(0.02)
    assert got["trusted"] == 0.5
    still = Walker(share=0.0)  # there is nothing to be complete about
    assert math.isnan(figures(trial({"ours": still}), "ours")["completeness_gap"])


def test_false_positives_are_explained_but_not_located() -> None:
    store = square_store()
    store.labels[0, 0] = 0
    ill, others = called_positive(Brightness(), store, slice(None), FINDING)
    assert (ill.tolist(), others.tolist()) == ([2, 4, 6, 8, 10], [0])
    found = trial({"ours": Finder()}, store)
    assert int(torch.isfinite(found.evaluation.values("ours", "flip")).sum()) == 6
    assert int(torch.isfinite(found.evaluation.values("ours", "ap")).sum()) == 5
    assert "6 images of 6 patients that the explained classifier calls positive, 5 of them" in found.tables()[0].note


def test_slow_systems_are_asked_about_a_sample() -> None:
    slow = Finder()
    found = trial({"ours": Finder(), "slow": slow}, slow=["slow"], sample=3)
    assert slow.asked == [3]
    assert int(torch.isfinite(found.evaluation.values("slow", "flip")).sum()) == 3
    assert found.evaluation.difference("slow", "ap").value == 0
    assert "Asked about fewer images: slow: 3." in found.tables()[0].note


def test_seeds_of_one_method_are_averaged_and_the_first_one_lends() -> None:
    found = trial({"ours": [Finder(), Finder(share=0.2)], "silent": Silent()})
    assert found.evaluation.interval("ours", "flip").value == 0.5
    # Equal pixels go in random order, so that the lesion's last pixel goes with the last quarter at the latest.
    assert BLACK < found.evaluation.interval("silent", "deletion_negative").value < LIT


def test_another_system_can_lend_its_counterparts() -> None:
    class Nothing(Finder):
        """Leaves the image as it is."""

        def __init__(self) -> None:
            super().__init__(share=0.0)

    found = trial({"ours": Finder(), "nothing": Nothing()}, substrate="nothing")
    assert found.evaluation.interval("ours", "deletion_negative").value == pytest.approx(LIT, abs=1e-6)
    assert found.evaluation.own == "ours"
    assert math.isnan(figures(trial({"ours": Silent()}), "ours")["deletion_negative"])


def test_counterparts_that_are_the_negatives_are_real() -> None:
    store = square_store()
    rows = np.arange(2, 12, 4)  # these have the one finding only; without it they are black, as all negatives are
    found = trial(
        {"ours": Finder(), "silent": Silent()},
        store,
        rows=rows,
        negatives_rows=store.labels[:, 0] == 0,
        features={"pixels": lambda x: x.flatten(1), "mean": lambda x: x.flatten(1).mean(1, keepdim=True)},
    )
    (pixels, mean) = found.realism["ours"]
    assert (pixels.space, pixels.images, pixels.negatives) == ("pixels", 3, 6)
    assert pixels.fid == pytest.approx(0, abs=1e-9)
    assert (pixels.kid.value, pixels.kid.low, pixels.kid.high) == pytest.approx((0, 0, 0), abs=1e-6)
    assert mean.fid == pytest.approx(0, abs=1e-9)
    assert found.realism["silent"] == []
    assert found.realism[THEMSELVES][0].fid == pytest.approx(4 * 1.2**2, rel=1e-5)
    assert found.realism[THEMSELVES][1].fid == pytest.approx((4 * 1.2 / 64) ** 2, rel=1e-4)
    table = next(t for t in found.tables() if t.title == "Realism of counterparts")
    assert table.columns == ("System", "Images", "KID, pixels", "FID, pixels", "KID, mean", "FID, mean")
    assert [row[0] for row in table.rows] == ["ours", THEMSELVES]
    assert "against 6 real images" in table.note
    assert Realism.of("pixels", torch.zeros(1, 2), torch.zeros(5, 2)) is None


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    store, systems = square_store(), {"ours": Finder(), "weak": Finder(share=0.2)}
    features = {"pixels": lambda x: x.flatten(1)}
    settings: dict[str, Any] = {"features": features, "negatives_rows": store.labels[:, 0] == 0, "folder": tmp_path}
    first = trial({"ours": systems["ours"]}, store, **settings)
    assert sum(systems["ours"].asked) == 6
    both = trial(systems, store, **settings)
    assert sum(systems["ours"].asked) == 6  # not again
    assert sum(systems["weak"].asked) == 6
    alone = trial({"ours": Finder(), "weak": Finder(share=0.2)}, store, **(settings | {"folder": None}))
    left_out = {"seconds"}
    for name in set(both.evaluation.figures) - left_out:
        for system in systems:
            torch.testing.assert_close(
                both.evaluation.values(system, name), alone.evaluation.values(system, name), equal_nan=True
            )
    assert both.realism == alone.realism
    assert figures(first, "ours")["deletion_negative"] == figures(both, "weak")["deletion_negative"]
    trial(systems, store, **settings, probe=replace(QUICK, steps=5))
    assert sum(systems["ours"].asked) == 12  # other settings, other figures


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    store = square_store()
    negatives = {"features": {"pixels": lambda x: x.flatten(1)}, "negatives_rows": store.labels[:, 0] == 0}
    found = replace(trial({"ours": Finder(), "silent": Silent()}, store, **negatives), notes=("Quick.",))
    found.save(tmp_path)
    again = ExplainerEvaluation.load(tmp_path)
    assert again.evaluation.to_json() == found.evaluation.to_json()
    assert again.evaluation.figures == found.evaluation.figures
    assert (again.realism, again.notes) == (found.realism, found.notes)
    assert json.loads((tmp_path / "evaluation.json").read_text())["systems"]["ours"]["flip"] == [1, 1, 1]
    (tmp_path / "realism.json").write_text("[]")
    with pytest.raises(InputError, match="no realism of explainers"):
        ExplainerEvaluation.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rows": [1, 3]}, "calls 0 of 2 images positive"),
        ({"rows": []}, "calls 0 of 0 images positive"),
        ({"slow": ["theirs"]}, "no system 'theirs'"),
        ({"substrate": "theirs"}, "no system 'theirs'"),
        ({"classifier": nn.Linear(1, 1)}, "does not know 'Consolidation'"),
        ({"oracle": nn.Linear(1, 1)}, "oracle: it does not know"),
    ],
)
def test_unusable_trials_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        trial({"ours": Finder()}, **settings)
    with pytest.raises(InputError, match="no system"):
        trial({})


def test_an_oracle_that_is_the_classifier_is_refused() -> None:
    class Weighted(Brightness):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(weight))

    same = Brightness()
    for classifier, oracle in ((same, same), (Weighted(1.0), Weighted(1.0))):
        with pytest.raises(InputError, match="the oracle is the explained classifier"):
            trial({"ours": Finder()}, classifier=classifier, oracle=oracle)
    trial({"ours": Finder()}, classifier=Weighted(1.0), oracle=Weighted(2.0))


def test_a_system_must_answer_for_every_image() -> None:
    with pytest.raises(InputError, match="short gave 3 answers to 4 images"):
        trial({"ours": Finder(), "short": Constant(3)})


# --- on a sample ---


def test_stability_is_that_of_evidence() -> None:
    store, rows = square_store(), np.array([0, 2, 4])
    found = stability_of(
        {"ours": Constant(), "grey": [RawIntensity(), RawIntensity()]}, store, rows, FINDING, probe=QUICK, key=KEY
    )
    assert list(found["system"]) == ["ours"] * 3 + ["grey"] * 6
    ours, grey = found[found["system"] == "ours"], found[found["system"] == "grey"]
    assert (ours["max_sensitivity"] == 0).all()
    assert ours["noise_rank_0.05"].isna().all()  # an even map has no ranks
    x = store.images(rows)
    expected = stability.max_sensitivity(lambda images: (1 + images) / 2, x, draws=QUICK.draws)
    curve = stability.noise_curve(lambda images: (1 + images) / 2, x, QUICK.sigmas)
    for seed in (0, 1):
        part = grey[grey["seed"] == seed]
        np.testing.assert_allclose(part["max_sensitivity"], expected)
        np.testing.assert_allclose(part["noise_rank_0.05"], curve.spearman[0])
        np.testing.assert_allclose(part["noise_iou_0.05"], curve.iou[0])
    stray = grey["noise_stray_0.05"]
    assert stray.between(4 / 64, 0.5).all()


class Gradient:
    """The signed gradient of a classifier with weights; its evidence is even."""

    def __init__(self, classifier: nn.Module) -> None:
        self.classifier = classifier

    def attribute(self, inputs: Tensor, target: str) -> Tensor:
        x = inputs.clone().requires_grad_()
        return torch.autograd.grad(self.classifier(x).sum(), x)[0]

    counterparts = Constant().counterparts


class Layers(nn.Module):
    findings = FINDINGS[:1]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_maps_of_a_classifier_that_forgets() -> None:
    store, classifier = square_store(), Layers()
    factories = {"ours": Gradient, "deaf": lambda _: RawIntensity(), "even": lambda _: Constant()}
    found = randomisation_test(factories, classifier, store, [0, 2], FINDING, key=KEY)
    by = {name: part for name, part in found.groupby("system")}
    for depth in ("top", "half", "all"):
        np.testing.assert_allclose(by["deaf"][f"mprt_{depth}"], 1)
        np.testing.assert_allclose(by["deaf"][f"mprt_ssim_{depth}"], 1)
    assert by["even"]["mprt_all"].isna().all()
    x = store.images([0, 2])
    after = Gradient(stability.randomised(classifier, depth=1)).attribute(x, FINDING)
    expected = stability.spearman(Gradient(classifier).attribute(x, FINDING), after)
    np.testing.assert_allclose(by["ours"]["mprt_top"], expected)
    assert (by["ours"]["mprt_all"].abs() < 0.5).all()
    assert (by["ours"]["mprt_abs_all"] < 0.9).all()
    with pytest.raises(InputError, match="no parameters to randomise"):
        randomisation_test(factories, Brightness(), store, [0], FINDING, key=KEY)


def test_a_samples_figures_join_the_others() -> None:
    store, systems = square_store(), {"ours": Finder(), "grey": RawIntensity()}
    found = trial(systems, store)
    joined = found.joined(stability_of(systems, store, [0, 2], FINDING, probe=QUICK, key=KEY))
    joined = joined.joined(randomisation_test({"ours": lambda _: Finder()}, Layers(), store, [2, 4], FINDING, key=KEY))
    assert len(joined.evaluation.per_image) == len(found.evaluation.per_image)
    assert int(torch.isfinite(joined.evaluation.values("grey", "max_sensitivity")).sum()) == 2
    assert joined.evaluation.interval("ours", "mprt_all").value == pytest.approx(1)
    assert joined.evaluation.interval("ours", "flip") == found.evaluation.interval("ours", "flip")
    tables = {table.title: table for table in joined.tables()}
    assert "On 2 images" in tables["Stability"].note
    assert "Spearman, sigma 0.05" in tables["Stability"].columns
    assert [row[0] for row in tables["Randomised classifier"].rows] == ["ours"]
    assert not {"Stability", "Randomised classifier"} & {table.title for table in found.tables()}
    with pytest.raises(pd.errors.MergeError):
        joined.joined(pd.concat([found.evaluation.per_image[["system", "seed", "image"]].assign(more=1.0)] * 2))


def test_tables_leave_out_what_nobody_has() -> None:
    found = replace(trial({"ours": Finder(), "silent": Silent()}), notes=("Quick.",))
    tables = {table.title: table for table in found.tables()}
    assert "Way and reconstruction" not in tables
    assert [row[0] for row in tables["Counterfactuals: does the call change?"].rows] == ["ours"]
    assert [row[0] for row in tables["Faithfulness of maps"].rows] == ["ours", "silent"]
    assert tables["Maps"].note.startswith(
        "6 of these images are labelled so and have a lesion mask; lesions cover 6.2%"
    )
    assert all(table.note.endswith("Quick.") for table in tables.values())
    assert tables["ours minus each peer"].columns[:2] == ("Peer", "AP")
