from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from counterscan.bench.generator_report import GeneratorConfig, GeneratorReport, evaluate_generator, quick
from counterscan.bench.quality import QualityConfig
from counterscan.errors import InputError
from counterscan.metrics.intervals import Interval
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.tbsmgan import StyleGAN, TrainingPatients
from tests.tbsmgan.lively import FINDINGS, lively_gan, sampled_store

CONFIG = GeneratorConfig(
    samples=60, psis=(0.0, 1.0), columns=3, draws=6, card=QualityConfig(pairs=2, shown=4, resamples=50)
)


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(widths=(8, 8)), FINDINGS).eval()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[GeneratorReport, Path]:
    folder = tmp_path_factory.mktemp("judged")
    gan = lively_gan()
    (folder / "run").mkdir()
    lines = [{"step": n, "validation/fid": 9.0 / n, "train/r_t": 0.5} for n in (1, 2, 3)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = sampled_store(gan, 140, train=80, seed=11)
    report = evaluate_generator(
        gan, store, folder, CONFIG, classifier=classifier(), run=folder / "run", key=b"for tests"
    )
    return report, folder


def test_a_perfect_generator_is_as_near_to_unseen_images_as_training_images_are(
    judged: tuple[GeneratorReport, Path],
) -> None:
    report, _ = judged
    assert report.held_out is not None
    assert tuple(report.held_out.columns) == ("Figure", "synthetic", "training images")
    (name, made, real), *others = report.held_out.rows
    assert name == "FID"
    assert isinstance(made, Interval)
    assert isinstance(real, Interval)
    assert made.low < real.high
    assert made.value < 3 * real.value
    assert [row[0] for row in others] == ["KID x 1000", "Precision", "Recall", "Density", "Coverage"]


def test_findings_are_flagged_by_the_whole_interval(judged: tuple[GeneratorReport, Path]) -> None:
    report, _ = judged
    assert report.findings is not None
    assert [row[0] for row in report.findings.rows] == list(FINDINGS)
    for _, count, auc, learned in report.findings.rows:
        assert isinstance(auc, Interval)
        assert 0 < int(str(count)) < 60
        assert learned == ("yes" if auc.low > 0.85 else "no" if auc.high < 0.85 else "unsure")


def test_the_page_and_the_json_hold_it_all(judged: tuple[GeneratorReport, Path]) -> None:
    report, folder = judged
    page = report.page.read_text(encoding="utf-8")
    for anchor in ("generator", "truncation", "training", "pictures", "limits"):
        assert f'<section id="{anchor}">' in page
        assert f'href="#{anchor}"' in page
    assert page.count('class="sheet"') == 4
    assert page.index('id="pictures"') < page.index('id="limits"')
    assert "Not a medical device" in page
    for name in (*(f"p{n:06d}" for n in (0, 90)), "array/"):
        assert name not in page  # pseudonyms only
    told = json.loads((folder / "generator.json").read_text())
    assert told["held_out"]["FID"]["synthetic"][0] > 0
    assert [point["psi"] for point in told["truncation"]] == [0.0, 1.0]
    assert told["verdicts"].keys() == {"Fidelity", "Diversity", "Label truth", "Memorisation", "Usefulness"}
    assert (folder / "card.json").is_file()
    assert [table.title for table in report.tables()][1:] == ["Findings", "Truncation"]
    assert report.curve[0].fid > report.curve[1].fid


def test_patients_that_the_generator_learned_from_are_refused(tmp_path: Path) -> None:
    gan = lively_gan()
    store = sampled_store(gan, 40, 20)
    gan.patients = TrainingPatients.of(["p000025"], "salt")
    with pytest.raises(InputError, match="learned from 1"):
        evaluate_generator(gan, store, tmp_path, CONFIG, classifier=classifier())
    gan.patients = TrainingPatients("")
    with pytest.raises(InputError, match="nothing is known"):
        evaluate_generator(gan, store, tmp_path, CONFIG, classifier=classifier())


def test_without_labels_and_with_few_images_what_can_be_said_is_said(tmp_path: Path) -> None:
    gan: StyleGAN = lively_gan(labels=0)
    report = evaluate_generator(gan, sampled_store(gan, 30, 24), tmp_path, CONFIG, key=b"for tests")
    assert report.findings is None
    assert report.held_out is None  # six images of unseen patients
    assert np.isfinite([point.fid for point in report.curve]).all()
    assert all(np.isnan(point.consistency) for point in report.curve)


def test_other_sizes_and_settings_are_refused(tmp_path: Path) -> None:
    gan = lively_gan()
    store = sampled_store(gan)
    gan.generator.config = replace(gan.generator.config, size=32, channels=(8, 8, 8, 8))
    with pytest.raises(InputError, match="--size 32"):
        evaluate_generator(gan, store, tmp_path, CONFIG)
    for settings in ({"samples": 3}, {"columns": 1}, {"learned": 2.0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            GeneratorConfig(**settings)
    assert quick(GeneratorConfig()).samples == 200
