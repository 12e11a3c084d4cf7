from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from counterscan.bench import ExplainerEvaluation, evaluate_explainer, explain_peers
from counterscan.bench.explain_classifier import agreement_on_negatives, without
from counterscan.bench.explain_peers import OtherMap
from counterscan.care import Care, tidy
from counterscan.classify import AdaptedClassifier
from counterscan.counterpart import Query
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.medxgan import ExplainConfig, MedXGAN, PersuadeConfig, RefineConfig
from counterscan.medxgan.published import PublishedMedXGAN
from counterscan.medxgan.published_training import LadderGenerator
from counterscan.metrics.stability import randomised
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.peers.base import AttributionPeer
from tests.medxgan import ladders
from tests.medxgan.grids import networks
from tests.taggan.blobs import FINDINGS, BlobClassifier, blob_store

FINDING = FINDINGS[0]
CONFIG = ExplainConfig(
    refine=RefineConfig(steps=1),
    persuade=PersuadeConfig(steps=0),
    insist=PersuadeConfig(steps=0),
    frames=4,
    fade=None,
    masks=(0.35, 0.2, 0.1),
    sure=0.3,
    smoothing=0.05,
    reach=0.1,
)
RIVALS = (
    *("Grad-CAM", "LayerCAM", "IG, black", "IG, blur", "IG, counterpart", "SmoothGrad", "GradientSHAP"),
    *("Occlusion", "RISE", "Wachter", "Grad-CAM, not spread", "IG, black, not spread", "Latent Shift"),
)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


def store() -> PreparedStore:
    """Half of it is the test set."""
    view = blob_store(40).subset(slice(None))
    view.split = np.array(["test" if i >= 20 else name for i, name in enumerate(view.split)])
    return view


def classifier(widths: tuple[int, ...] = (6, 8), seed: int = 0) -> Classifier:
    """Untrained, but turned and shifted so that it calls half of the images positive, rather those with the finding."""
    torch.manual_seed(seed)
    made, images = Classifier(ClassifierConfig(widths=widths), FINDINGS[:1]).eval(), store()
    ill = torch.from_numpy(images.labels[:, 0] == 1)
    with torch.no_grad():
        logits = made(images.images())[:, 0]
        made.head.weight.mul_(20 if logits[ill].mean() > logits[~ill].mean() else -20)
        made.head.bias.zero_()
        made.head.bias -= made(images.images()).median()
    return made.requires_grad_(False)


def explainer(explained: nn.Module | None = None, evidence: str = "difference") -> MedXGAN:
    return MedXGAN(networks(), explained or classifier(), config=replace(CONFIG, evidence=evidence), size=16)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick evaluation with everything that can be given."""
    folder, own = tmp_path_factory.mktemp("evaluation"), explainer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNTERSCAN_KEY", "for tests")
        evaluate(own, folder)
    return folder


def evaluate(own: MedXGAN, folder: Path, **given):  # type: ignore[no-untyped-def]
    published = PublishedMedXGAN(LadderGenerator(ladders.SMALL), own.classifier, FINDING, config=ladders.QUICK)
    settings = {
        "oracle": classifier((6,), seed=1),
        "published": published,
        "inception": lambda x: x.flatten(1)[:, ::16],
        **{"sample": 2, "quick": True, "cases": 1, "resamples": 50},
    }
    return evaluate_explainer(own, store(), folder, **(settings | given))


def test_everybody_is_judged_and_shown(evaluated: Path) -> None:
    found = ExplainerEvaluation.load(evaluated / "consolidation")
    assert found.evaluation.systems == ["medXGAN+", "medXGAN+, LIG", *RIVALS, "medXGAN"]
    frame = found.evaluation.per_image
    for figure in ("flip", "oracle_flip", "l1", "outside", "psnr", "insertion_negative", "ap"):
        assert frame.loc[frame["system"] == "medXGAN+", figure].notna().any(), figure
    judged = frame.groupby("system")[["infidelity", "max_sensitivity", "mprt_all", "flip"]].count()
    assert (judged["infidelity"] > 0).all()
    assert judged.loc["medXGAN", ["max_sensitivity", "mprt_all"]].sum() == 0  # too slow
    assert (judged.loc[["medXGAN+, LIG", "Grad-CAM", "RISE"], "max_sensitivity"] == 2).all()
    assert set(judged.index[judged["flip"] > 0]) == {"medXGAN+", "Wachter", "Latent Shift", "medXGAN"}
    assert {entry.space for entry in found.realism["medXGAN+"]} == {"in-domain", "Inception"}
    assert found.agreement is not None
    assert f"the oracle calls {found.agreement[0]} negative" in found.tables()[0].note
    # The difference comes from the generator alone: a classifier that forgot everything changes nothing in it.
    assert found.evaluation.interval("medXGAN+", "mprt_all").value == pytest.approx(1, abs=0.05)
    assert found.evaluation.interval("medXGAN+, LIG", "mprt_all").value < 0.9


def test_an_oracle_is_read_against_its_agreement_on_real_negatives() -> None:
    given, own = store(), classifier()
    rows = np.flatnonzero(given.split == "test")
    with torch.no_grad():
        negative = rows[(own(given.images(rows))[:, 0] < 0).numpy()]
    assert agreement_on_negatives(own, own, given, rows, FINDING) == (len(negative), len(negative))
    oracle = classifier((6,), seed=1)
    with torch.no_grad():
        calls = oracle.probabilities(oracle(given.images(negative)))[:, 0] < oracle.threshold[0]
    assert agreement_on_negatives(own, oracle, given, rows, FINDING) == (int(calls.sum()), len(negative))
    assert agreement_on_negatives(own, oracle, given, negative[:0], FINDING) == (0, 0)


def test_the_page_shows_ways_tables_and_limits(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert "Not a medical device" in page
    for words in (
        *RIVALS,
        "Quick: rivals with few samples",
        "Realism of counterparts",
        "Randomised classifier",
        "best",
    ):
        assert words in page
    strips = re.findall(r'class="strip"><img alt="[^"]+" width="(\d+)" height="(\d+)" src="[^,]+,([^"]+)"', page)
    assert len(strips) == 3
    for width, height, data in strips:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (int(width), int(height))
        assert picture.size[0] > 4 * 128  # four frames
        assert picture.text["Synthetic"] == "true"  # type: ignore[attr-defined]
    assert "Chosen by rank of pixel AP" in page
    assert ".strip{" in page


def test_what_is_done_is_not_done_again(evaluated: Path) -> None:
    parts = {path: path.stat().st_mtime_ns for path in (evaluated / "consolidation" / "parts").iterdir()}
    before = json.loads((evaluated / "consolidation" / "evaluation.json").read_text())
    report = evaluate(explainer(), evaluated)
    assert {path: path.stat().st_mtime_ns for path in (evaluated / "consolidation" / "parts").iterdir()} == parts
    assert json.loads((evaluated / "consolidation" / "evaluation.json").read_text()) == before
    (headline,) = report.headlines()
    assert headline.columns[:3] == ("System", "Flip rate", "Oracle flips")
    assert {table.title.partition(":")[0] for table in report.tables()} == {FINDING}


def test_rivals_get_our_smoothing_and_are_quick_only_when_told() -> None:
    own, images = explainer(), store()
    peers = explain_peers(own, images, FINDING)
    assert list(peers.systems) == ["medXGAN+", "medXGAN+, LIG", *RIVALS[:-1]]
    assert peers.systems["medXGAN+"] is own
    (note,) = peers.notes
    assert note.startswith("Latent Shift is left out: folder: there is no folder")
    for name in RIVALS[:-1]:
        rival = peers.systems[name]
        assert isinstance(rival, AttributionPeer)
        assert rival.care == Care(smoothing=0.05, reach=0.0 if name.endswith("not spread") else 0.1)
    assert peers.systems["RISE"].settings()["n_masks"] == 2000  # type: ignore[attr-defined]
    quick = explain_peers(own, images, FINDING, Care(flips=True), quick=True)
    assert quick.systems["RISE"].settings()["n_masks"] == 50  # type: ignore[attr-defined]
    assert quick.systems["Occlusion"].care == Care(flips=True)  # type: ignore[attr-defined]
    healthy = int(((images.split == "train") & (images.labels[:, 0] == 0)).sum())
    assert quick.systems["GradientSHAP"].settings()["baseline"] == f"{healthy} images"  # type: ignore[attr-defined]


def test_only_the_rivals_that_are_named_enter() -> None:
    peers = explain_peers(explainer(), store(), FINDING, rivals=("RISE", "medXGAN+, LIG"))
    assert list(peers.systems) == ["medXGAN+", "medXGAN+, LIG", "RISE"] == list(peers.factories)
    assert peers.notes == ()  # what was not asked for is not missed
    with pytest.raises(InputError, match=r"rivals: there is no 'Rise'.*'RISE'"):
        explain_peers(explainer(), store(), FINDING, rivals=("Rise",))


def test_a_factory_builds_the_same_around_another_classifier() -> None:
    own, images = explainer(), store()
    peers, other = explain_peers(own, images, FINDING, quick=True), randomised(own.classifier)
    x = images.images([0, 1])
    lig = peers.factories["medXGAN+, LIG"](other)
    assert isinstance(lig, OtherMap)
    assert lig.explainer.networks is own.networks
    assert lig.explainer.classifier is other
    assert not torch.allclose(lig.attribute(x, FINDING), peers.systems["medXGAN+, LIG"].attribute(x, FINDING))  # type: ignore[attr-defined]


def test_the_further_map_is_a_plain_one() -> None:
    own = explainer()
    lig, batch = OtherMap(own, "lig", "medXGAN+, LIG"), store().batch([0, 1])
    ours, theirs = own.counterparts(batch, Query(FINDING)), lig.counterparts(batch, Query(FINDING))
    for a, b in zip(ours, theirs, strict=True):
        assert (b.counterpart, b.path, b.score_after, b.extras, b.made_by.system) == (None, None, None, {}, lig.name)
        speaks = tidy(a.extras["lig"].clamp_min(0)[None], a.image[None], Care(smoothing=0.05, reach=0.1))
        torch.testing.assert_close(b.evidence, speaks[0], atol=1e-5, rtol=1e-4)
    assert own.config.evidence == "difference"
    main = explainer(evidence="lig")
    assert list(explain_peers(main, store(), FINDING).systems)[:2] == ["medXGAN+", "medXGAN+, difference"]


def test_a_classifier_without_layers_costs_the_methods_that_need_them(tmp_path: Path) -> None:
    inner = BlobClassifier()
    function = AdaptedClassifier(lambda x: inner(x), FINDINGS[:1])
    peers = explain_peers(explainer(function), store(), FINDING, quick=True)
    left = [note.partition(" is left out")[0] for note in peers.notes]
    assert left == ["Grad-CAM", "LayerCAM", "Grad-CAM, not spread", "Latent Shift"]
    assert "Grad-CAM" not in peers.systems
    assert "Grad-CAM" not in peers.factories
    bare = explain_peers(explainer(inner), store(), FINDING, quick=True)  # no attribute cam_layers at all
    assert isinstance(bare.classifier, AdaptedClassifier)
    assert "IG, black" in bare.systems


def test_without_labels_the_classifier_says_what_is_healthy() -> None:
    images, inner = store(), BlobClassifier()
    labelled = without(images, "test", FINDING, inner)
    assert labelled.tolist() == [i for i in range(20, 40) if images.labels[i, 0] == 0]
    inner.findings = ("Edema",)
    assert without(images, "test", "Edema", inner).tolist() == labelled.tolist()  # it knows the answer


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"oracle": classifier()}, "the oracle is the explained classifier"),
        ({"oracle": nn.Linear(1, 1)}, "oracle: it does not know"),
        ({"split": "holdout"}, "no image is in the split 'holdout'"),
        ({"sample": 0}, "sample: 0 must be at least 1"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(tmp_path: Path, given: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        evaluate(explainer(), tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


def test_no_positives_and_other_sizes_are_refused(tmp_path: Path) -> None:
    never = classifier()
    never.head.bias -= 1e6
    with pytest.raises(InputError, match="calls 0 of 20 images positive"):
        evaluate_explainer(explainer(never), store(), tmp_path)
    small = explainer()
    small.size = 32
    with pytest.raises(InputError, match="prepared at 16 px, the explainer works at 32"):
        evaluate_explainer(small, store(), tmp_path)
