"""The quality card on sets whose faults are known: each is found, and named by its own section."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from counterscan.bench.quality import QualityConfig, audit_images
from counterscan.bench.quality_card import QualityCard, QualityLimits, Section, at_least, at_most, worse
from counterscan.bench.quality_usefulness import (
    BOTH,
    REAL,
    SYNTHETIC,
    MixedRows,
    Usefulness,
    usefulness,
    usefulness_section,
)
from counterscan.classify.task import LabelledRows
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.metrics.intervals import Interval
from counterscan.report.tables import Table
from tests.classify.planted import QUICK, UNTRAINED, planted, relabelled

FINDING = "Lung Lesion"
CONFIG = QualityConfig(resamples=100, limits=QualityLimits(fewest=10), pairs=3, shown=8)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


class Known(nn.Module):
    """Knows the answer of ``planted``: a bright spot. Its features are coarse views of the image."""

    findings = (FINDING,)

    def features(self, x):
        return F.adaptive_avg_pool2d(x, 3).flatten(1)[:, :, None, None]

    def forward(self, x):
        return 20 * (F.avg_pool2d(x, 5, 1).flatten(1).amax(1, keepdim=True) - 0.35)

    def probabilities(self, logits):
        return logits.sigmoid()


def real(count: int = 400) -> PreparedStore:
    return planted(count, size=16)


def synthetic(images: np.ndarray, labels: np.ndarray | None) -> PreparedStore:
    """Images of no patient in particular."""
    findings = [FINDING] if labels is not None else []
    frame = {
        "image": [f"made/{i}.png" for i in range(len(images))],
        "patient": [f"subject-{i}" for i in range(len(images))],
    }
    columns = {} if labels is None else {FINDING: labels[:, 0]}
    return PreparedStore.from_arrays(
        images, StudyTable.from_frame(pd.DataFrame(frame | columns), Path(), findings=findings)
    )


def pixels(store: PreparedStore) -> np.ndarray:
    return (store.images()[:, 0] * 127.5 + 127.5).round().to(torch.uint8).numpy()


def fresh(count: int = 120, seed: int = 9) -> PreparedStore:
    store = planted(count, size=16, seed=seed)
    return synthetic(pixels(store), store.labels)


def judged(made: PreparedStore, folder: Path, **given) -> QualityCard:
    return audit_images(made, real(), folder, given.pop("config", CONFIG), **({"classifier": Known()} | given))


def verdicts(card: QualityCard) -> dict[str, str]:
    return {section.name: section.verdict for section in card.sections}


def test_another_draw_of_real_images_is_good(tmp_path):
    card = judged(fresh(), tmp_path)
    wanted = dict.fromkeys(("Fidelity", "Diversity", "Label truth", "Memorisation"), "good")
    assert verdicts(card) == {**wanted, "Usefulness": "not judged"}
    assert card.counts == {"training images": 200, "held-out images": 200, "synthetic images": 120}
    saved = json.loads((tmp_path / "card.json").read_text())
    assert saved == json.loads(json.dumps(card.to_json()))
    figures = saved["sections"]["Fidelity"]["figures"]["Fidelity, in-domain features"]
    for row in ("synthetic", "held-out real"):
        value, low, high = figures[row]["FID"]
        assert low < value < high
    assert saved["sections"]["Diversity"]["figures"]["Repeats, pixels"]["synthetic"]["Share"][0] == 0


def test_copies_are_poor_and_shown_beside_their_originals(tmp_path):
    store, made = real(), fresh()
    images, training = pixels(made), pixels(store.subset(store.split == "train"))
    rng = np.random.default_rng(0)
    images[:4] = (training[:4] * 0.9 + rng.normal(0, 3, (4, 16, 16)) + 8).clip(0, 255).astype(np.uint8)
    images[4] = training[4][:, ::-1]  # mirrored
    card = judged(
        synthetic(images, made.labels), tmp_path, config=replace(CONFIG, pairs=5), links=tmp_path / "links.csv"
    )
    assert verdicts(card)["Memorisation"] == "poor"
    assert "5 are copies in pixels" in card["Memorisation"].said
    assert {pair["space"] for pair in card.pairs} == {"pixels"}
    assert min(pair["correlation"] for pair in card.pairs) > 0.97
    links = pd.read_csv(tmp_path / "links.csv").set_index("image")["path"]
    rows = {Path(links[pair["synthetic"]]).name for pair in card.pairs}
    assert rows == {f"{i}.png" for i in range(5)}
    originals = {links[pair["training"]] for pair in card.pairs}
    table = store.table.subset(rows=np.flatnonzero(store.split == "train")[:5])
    assert originals == {str(table.image_path(i)) for i in range(5)}


def test_many_near_copies_are_found_by_the_test_alone(tmp_path):
    made, training = fresh(), pixels(real().subset(real().split == "train"))
    images = (0.5 * pixels(made) + 0.5 * training[:120]).astype(np.uint8)
    limits = replace(CONFIG.limits, copy=0.0)
    card = judged(synthetic(images, made.labels), tmp_path, config=replace(CONFIG, limits=limits))
    assert verdicts(card)["Memorisation"] == "poor"
    assert "copies in pixels" not in card["Memorisation"].said


def test_shuffled_labels_are_not_true(tmp_path):
    made = fresh()
    card = judged(relabelled_as_made(made, np.random.default_rng(0).permutation(made.labels)), tmp_path)
    assert verdicts(card)["Label truth"] == "poor"
    assert f"labels do not hold for {FINDING}" in card["Label truth"].said
    assert [verdicts(card)[name] for name in ("Fidelity", "Memorisation")] == ["good", "good"]
    figures = card.to_json()["sections"]["Label truth"]["figures"]
    row = figures["Labels as an independent classifier sees them"][FINDING]
    assert row["AUC, real"][0] > 0.95
    assert abs(row["AUC, synthetic"][0] - 0.5) < 0.15
    assert row["ECE, synthetic"] > row["ECE, real"]


def relabelled_as_made(made: PreparedStore, labels: np.ndarray) -> PreparedStore:
    return synthetic(pixels(made), labels)


def test_one_image_over_and_over_lacks_variety(tmp_path):
    made = fresh()
    card = judged(synthetic(np.repeat(pixels(made)[:1], 80, 0), np.repeat(made.labels[:1], 80, 0)), tmp_path)
    assert verdicts(card)["Diversity"] == "poor"
    assert "repeats: 100%" in card["Diversity"].said
    assert verdicts(card)["Label truth"] == "not judged"
    assert any("of each are needed" in text for text in card["Label truth"].left_out)


def test_a_class_that_collapsed_is_named(tmp_path):
    made = fresh(200)
    images, ill = pixels(made), made.labels[:, 0] == 1
    images[ill] = images[np.flatnonzero(ill)[0]]
    section = judged(synthetic(images, made.labels), tmp_path)["Diversity"]
    assert section.verdict == "poor"
    assert f"least varied, {FINDING}: 0.00" in section.said


def test_foreign_images_are_not_faithful(tmp_path):
    flat = np.full((60, 16, 16), 20, np.uint8) + np.random.default_rng(0).integers(0, 9, (60, 16, 16)).astype(np.uint8)
    card = judged(synthetic(flat, None), tmp_path)
    assert verdicts(card)["Fidelity"] == "poor"
    assert card["Label truth"].said == "The synthetic images have no labels."
    assert any("Mean grey" in note for note in card.notes)


def test_more_spaces_and_unreadable_images(tmp_path):
    card = judged(
        fresh(), tmp_path, extractors={"rows": lambda x: x.mean((1, 3))}, bad={"synthetic": 1, "real": 0}, title="<T>"
    )
    assert {"Fidelity, in-domain features", "Fidelity, rows features"} <= {t.title for t in card["Fidelity"].tables}
    assert card.counts["unreadable, synthetic"] == 1
    assert "1 synthetic images cannot be read and are left out." in card.notes
    assert any(str(row[0]).startswith("rows: ") for row in card["Memorisation"].tables[0].rows)
    with pytest.raises(InputError, match="extractor 'bad'"):
        judged(fresh(), tmp_path, extractors={"bad": lambda x: x.mean((1, 3)) * torch.nan})


def test_sets_that_are_too_small_or_lack_something_say_so(tmp_path):
    few = judged(fresh(5), tmp_path / "few")
    assert verdicts(few)["Fidelity"] == verdicts(few)["Diversity"] == "not judged"
    assert "5 synthetic images, but 10 are needed" in few["Fidelity"].said
    assert few["Memorisation"].verdict == "good"
    one = judged(fresh(1), tmp_path / "one")
    assert one["Label truth"].verdict == "not judged"
    alone = real().subset(real().split == "train")
    card = audit_images(fresh(), alone, tmp_path / "alone", CONFIG, classifier=Known())
    assert set(verdicts(card).values()) == {"not judged"}
    assert "No real image is held out" in card.notes[0]
    assert len(card.pairs) == 3
    assert (tmp_path / "alone" / "report.html").is_file()
    with pytest.raises(InputError, match="split train"):
        audit_images(fresh(), real().subset(real().split == "val"), tmp_path, CONFIG, classifier=Known())
    with pytest.raises(InputError, match="16"):
        audit_images(planted(20, size=24), real(), tmp_path, CONFIG, classifier=Known())


def test_without_labels_of_real_images_pixels_are_still_compared(tmp_path):
    store = real()
    bare = PreparedStore.from_arrays(pixels(store), patients=store.patients.tolist(), split=store.split.tolist())
    card = audit_images(fresh(), bare, tmp_path, CONFIG)
    assert verdicts(card)["Memorisation"] == "good"
    assert card["Fidelity"].left_out == ("No feature extractor is at hand.",)
    assert "no classifier could be trained" in card.notes[0]


def test_splits_that_leak_are_told(tmp_path):
    store = real()
    images = pixels(store)
    images[np.flatnonzero(store.split == "test")[0]] = images[np.flatnonzero(store.split == "train")[0]]
    leaky = PreparedStore.from_arrays(
        images,
        labels=store.labels,
        findings=store.findings,
        patients=store.patients.tolist(),
        split=store.split.tolist(),
    )
    card = audit_images(fresh(), leaky, tmp_path, CONFIG, classifier=Known())
    assert "1 held-out real images equal a training image" in card["Memorisation"].left_out[0]


def test_a_set_of_one_patient_is_judged_without_its_variety(tmp_path):
    store = fresh()
    alone = PreparedStore.from_arrays(
        pixels(store), labels=store.labels, findings=store.findings, patients=["only"] * len(store)
    )
    card = judged(alone, tmp_path)
    assert any("all images are of one patient" in text for text in card["Diversity"].left_out)


def test_a_classifier_is_trained_where_none_is_given_and_its_runs_are_taken_up(tmp_path):
    config = replace(CONFIG, classifier=UNTRAINED, usefulness=1)
    card = audit_images(fresh(60), real(), tmp_path, config)
    assert (tmp_path / "classifier" / "config.yaml").is_file()
    assert card["Usefulness"].verdict in ("good", "doubtful", "poor")
    again = audit_images(fresh(60), real(), tmp_path, config)
    assert again.to_json() == card.to_json()
    none = audit_images(synthetic(pixels(fresh(60)), None), real(), tmp_path / "none", config, classifier=Known())
    assert none["Usefulness"].said == "no finding can be learned and tested."


def test_the_page_names_nobody_and_marks_what_is_synthetic(tmp_path):
    store, made = real(), fresh()
    judged(made, tmp_path, title="<b>Card</b>")
    page = (tmp_path / "report.html").read_text()
    assert "<b>Card</b>" not in page
    for anchor in ("results", "rules", "copies", "images", "limits", "settings"):
        assert page.count(f'id="{anchor}"') == 1
        assert page.count(f'href="#{anchor}"') == 1
    text = re.sub(r'src="[^"]+"', "", page) + (tmp_path / "card.json").read_text()
    for name in (*store.table.frame["image"], *set(store.patients), *made.table.frame["image"], *made.patients):
        assert not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text)
    found = re.findall(r'<img alt="([^"]*)"[^>]*src="data:image/png;base64,([^"]+)">(<b class="badge">)?', page)
    assert len(found) == 2 * 3 + 4  # three pairs, and grids of all images and of the finding
    for alt, data, badge in found:
        facts = Image.open(io.BytesIO(base64.b64decode(data))).text
        assert (facts.get("Synthetic") == "true") == bool(badge) == ("synthetic" in alt.lower())


def test_usefulness_by_arm(tmp_path):
    store, config = planted(400, size=16), replace(QUICK, steps=50)
    training, test = (store.subset(store.split == name) for name in ("train", "test"))
    turned = planted(200, size=16, seed=5)
    turned = relabelled(turned, 1 - turned.labels)
    told = []
    found = usefulness(
        turned, training, test, tmp_path / "a", config, resamples=200, progress=lambda *done: told.append(done)
    )
    assert found.findings == (FINDING,)
    assert found.images == {REAL: 200, BOTH: 400, SYNTHETIC: 200}
    assert told == [(REAL, 0, 1), (BOTH, 0, 1), (SYNTHETIC, 0, 1)]
    assert found.auc[REAL].value > 0.8
    assert found.auc[SYNTHETIC].value < 0.3
    assert found.auc_gain[BOTH].value == pytest.approx(found.auc[BOTH].value - found.auc[REAL].value)
    assert found.ap_gain[SYNTHETIC].high < 0
    quick = replace(config, steps=1)
    one_class = relabelled(turned, np.ones_like(turned.labels))
    few = usefulness(one_class, training.subset(slice(0, 60)), test, tmp_path / "b", quick, seeds=2, resamples=20)
    assert few.images == {REAL: 60, BOTH: 120}
    assert "all of them or none have Lung Lesion" in few.left_out[0]
    assert (tmp_path / "b" / "real_and_synthetic" / "1").is_dir()
    with pytest.raises(InputError, match="px"):
        usefulness(planted(20, size=24), training, test, tmp_path / "c", quick)
    with pytest.raises(InputError, match="no finding"):
        usefulness(turned, training, test.subset(test.labels[:, 0] == 1), tmp_path / "c", quick)


@pytest.mark.parametrize(
    ("gain", "seeds", "verdict", "word"),
    [
        ((0.1, 0.02, 0.2), 2, "good", "better"),
        ((-0.1, -0.2, -0.02), 2, "poor", "worse"),
        ((0.1, -0.1, 0.3), 2, "doubtful", "not"),
        ((0.1, 0.02, 0.2), 1, "doubtful", "not"),  # another seed may say otherwise
    ],
)
def test_usefulness_in_words(gain, seeds, verdict, word):
    arms = {arm: Interval(0.8, 0.7, 0.9) for arm in (REAL, BOTH)}
    gains = {BOTH: Interval(*gain)}
    section = usefulness_section(Usefulness((FINDING,), arms, arms, gains, gains, {REAL: 5, BOTH: 9}), 50, seeds)
    assert section.verdict == verdict
    assert f"is {word}" in section.said
    assert [row[0] for row in section.tables[0].rows] == [REAL, BOTH]


def test_mixed_rows_are_in_the_order_asked_for():
    first, second = planted(8), planted(6, seed=3)
    rows = MixedRows([LabelledRows(s, s.table.targets()) for s in (first, second)])
    batch = rows.batch(np.array([13, 0, 8, 7]))
    assert len(rows) == 14
    wanted = torch.cat([second.images(5), first.images(0), second.images(0), first.images(7)])
    assert torch.equal(batch["image"], wanted)
    assert batch["target"].ravel().tolist() == [
        float(x) for x in (second.labels[5, 0], first.labels[0, 0], second.labels[0, 0], first.labels[7, 0])
    ]


def test_verdicts():
    assert [at_most(x, (2, 4)) for x in (2, 3, 4, 4.1, float("nan"))] == [
        *("good", "doubtful", "doubtful", "poor", "not judged")
    ]
    assert [at_least(x, (0.8, 0.5)) for x in (0.8, 0.6, 0.5, 0.4)] == ["good", "doubtful", "doubtful", "poor"]
    assert worse("good", "doubtful", "not judged") == "doubtful"
    assert worse("good", "poor") == "poor"
    assert worse() == "not judged"


def test_card_as_plain_values():
    table = Table("T", ("Row", "A", "B"), [["x", Interval(1.0, float("nan"), 2.0), float("nan")]])
    card = QualityCard((Section("Fidelity", "good", "fine", tables=(table,)),), {"n": 1}, QualityLimits())
    assert card.to_json()["sections"]["Fidelity"]["figures"] == {"T": {"x": {"A": [1.0, None, 2.0], "B": None}}}
    assert card["Fidelity"].said == "fine"
    assert card.headline().rows == [["Fidelity", "good", "fine"]]
    with pytest.raises(KeyError):
        card["Diversity"]


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("usefulness", -1), ("batch_size", 0), ("pairs", -1)])
def test_settings_out_of_range(field, value):
    with pytest.raises(InputError, match=field):
        QualityConfig(**{field: value})
