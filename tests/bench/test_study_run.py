"""A study from end to end on toys, resumed, and refused where it must be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from counterscan.bench import study_content, study_models
from counterscan.bench.study_arms import arms_of, scores_path
from counterscan.bench.study_models import Study, load_generator, load_text_model
from counterscan.bench.study_run import _stages
from counterscan.bench.study_tables import read_scores
from counterscan.errors import InputError
from counterscan.text.clip import TinyTextImage
from counterscan.text.clip_training import patients_digest
from counterscan.text.tokenizer import ReportTokenizer
from tests.bench.study_toy import CONFIG, gan_of, quiet, run, toy_store, use_toys

FEW = replace(CONFIG, arms=("real", "classic", "duplicate", "both", "random"), steps=4)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_toys(monkeypatch)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSCAN_KEY", "for tests")


def test_a_study_from_end_to_end(toys: None, key: None, tmp_path: Path) -> None:
    data = toy_store()
    report = run(data, tmp_path)
    assert not report.left_out
    titles = [table.title for table in report.tables]
    for wanted in (
        "Trained on synthetic images only, PR-AUC",
        "Real and synthetic images, PR-AUC",
        "Gains in mean PR-AUC",
        "Gains by finding",
        "Normalised PR-AUC",
        "Calibration",
        "What the gate let through",
        "CPU minutes",
    ):
        assert wanted in titles
    mixed = next(t for t in report.tables if t.title == "Real and synthetic images, PR-AUC")
    assert [row[0] for row in mixed.rows] == [a for a in CONFIG.arms if a != "both:only"]
    assert len(report.sentences) == len(CONFIG.compared)
    kept = json.loads((tmp_path / "study.json").read_text())
    assert set(kept["arms"]["ap"]) == set(CONFIG.arms)
    page = report.page.read_text()
    assert "both against classic" in page
    assert "<svg" in page
    assert not re.search(r"\bp\d+\b", re.sub(r"<[^>]*>", "", page).split("Settings")[0])  # no patient is named
    # Content by content.
    study = Study(data, CONFIG, tmp_path)
    made = {c: study_content.load(study, c, "rules-v2", 0) for c in ("text+", "text-", "both", "plain", "random")}
    plus, minus = made["text+"], made["text-"]
    rows = np.arange(len(plus))
    assert (plus.targets[rows, plus.edited] >= 0.05).all()
    assert (plus.targets[rows, plus.edited] <= 0.95).all()
    assert plus.targets[rows, plus.edited].mean() > 0.6
    assert minus.targets[np.arange(len(minus)), minus.edited].mean() < 0.4
    assert len(made["both"]) == len(plus) + len(minus)
    copied = study_content.load(study, "duplicate", "rules-v2", 0)
    for sign in (1, -1):
        for other in (made["plain"], copied):
            assert other.counts(sign, 2).tolist() == made["both"].counts(sign, 2).tolist()
    assert set(np.unique(copied.targets[np.arange(len(copied)), copied.edited] - (copied.sign > 0))) == {0}
    placebo = made["random"]
    assert (placebo.targets[np.arange(len(placebo)), placebo.edited] == 0).sum() > 0  # the source's label
    assert not (placebo.targets[np.arange(len(placebo)), placebo.edited] == 1).any()
    naive = study_content.load(study, "naive", "rules-v2", 0)
    assert (naive.targets[np.arange(len(naive)), naive.edited] == 1).all()


def test_a_resumed_study_equals_one_that_was_not_interrupted(
    toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_store()
    run(data, tmp_path / "whole", FEW)
    made = study_content.make
    calls = []

    def stops(study: Study, content: str, view: str, number: int) -> None:
        calls.append(content)
        if len(calls) == 3:
            raise KeyboardInterrupt
        made(study, content, view, number)  # type: ignore[arg-type]

    monkeypatch.setattr(study_content, "make", stops)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "broken", FEW)
    monkeypatch.setattr(study_content, "make", made)
    run(data, tmp_path / "broken", FEW)
    for arm in arms_of(FEW):
        whole, broken = (read_scores(Study(data, FEW, tmp_path / name), arm) for name in ("whole", "broken"))
        assert whole is not None
        assert broken is not None
        assert (whole.test == broken.test).all()
        assert (whole.val == broken.val).all()


def test_arms_have_the_same_start_and_differ_in_what_they_see(toys: None, tmp_path: Path) -> None:
    data = toy_store()
    run(data, tmp_path, FEW)
    study = Study(data, FEW, tmp_path)
    scores = {arm.name: read_scores(study, arm) for arm in arms_of(FEW)}
    assert all(one is not None for one in scores.values())
    assert not np.allclose(scores["both"].test, scores["duplicate"].test)  # type: ignore[union-attr]


def test_labels_of_chance_give_no_difference(toys: None, tmp_path: Path) -> None:
    data = toy_store()
    config = replace(FEW, seeds=3, steps=2)
    study = Study(data, config, tmp_path)
    run(data, tmp_path, config)
    dice = np.random.default_rng(0)
    for arm in arms_of(config):
        for number in range(config.seeds):
            path = scores_path(study, arm, number)
            old = dict(np.load(path))
            old["test"] = dice.normal(size=old["test"].shape).astype(np.float32)
            np.savez(path, **old)
    report = run(data, tmp_path, config)
    verdicts = [c.verdict for c in report.comparisons["ap"]]
    assert set(verdicts) == {"not shown"}
    assert all("no difference shown" in sentence for sentence in report.sentences)


def test_an_arm_that_is_better_is_called_better(toys: None, tmp_path: Path) -> None:
    data = toy_store()
    config = replace(FEW, seeds=3, steps=2)
    study = Study(data, config, tmp_path)
    run(data, tmp_path, config)
    truth, dice = study.targets("test"), np.random.default_rng(0)
    for arm in arms_of(config):
        for number in range(config.seeds):
            path = scores_path(study, arm, number)
            old = dict(np.load(path))
            signal = 4.0 if arm.name == "both" else 0.5
            old["test"] = (signal * truth + dice.normal(size=truth.shape)).astype(np.float32)
            np.savez(path, **old)
    report = run(data, tmp_path, config)
    found = {(c.ours, c.theirs): c.verdict for c in report.comparisons["ap"] if c.scope == "mean"}
    assert found["both", "classic"] == found["both", "duplicate"] == "better"


def test_an_arm_with_nothing_made_is_left_out_with_the_reason(
    toys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steering(study: Study, view: str, number: int) -> object:
        from counterscan.tbsmgan.steering import Steering
        from tests.tbsmgan.linear import BANK, LinearText, zero_shot

        unlearnt = gan_of(study.store, "train")
        unlearnt.learned = {"Edema": False, "Pleural Effusion": False}
        return Steering(unlearnt, LinearText(), zero_shot=zero_shot(), bank=BANK)

    monkeypatch.setattr(study_content, "load_steering", steering)
    report = run(toy_store(), tmp_path, FEW)
    assert "0 images" in report.left_out["both"]
    refused = next(t for t in report.tables if t.title.startswith("Refused"))
    assert "has not learnt it" in str(refused.rows[0][1])


def test_a_generator_that_saw_test_patients_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy_store()
    study = Study(data, CONFIG, tmp_path, generator=tmp_path)
    for splits in (("train", "test"), ("val",)):
        leaky = gan_of(data, *splits)
        monkeypatch.setattr(study_models.StyleGAN, "from_pretrained", classmethod(lambda cls, path, g=leaky: g))
        with pytest.raises(InputError, match="learned from"):
            load_generator(study, 0)
    fine = gan_of(data, "train")
    monkeypatch.setattr(study_models.StyleGAN, "from_pretrained", classmethod(lambda cls, path: fine))
    assert load_generator(study, 0) is fine


@pytest.mark.parametrize("patients", ["all", "none"])
def test_a_text_model_that_may_have_seen_test_patients_is_refused(tmp_path: Path, patients: str) -> None:
    data = toy_store()
    model = TinyTextImage(ReportTokenizer.fit(["no edema"] * 9))
    if patients == "all":
        model.trained_on = {"patients_digest": patients_digest(data.patients.tolist())}
    model.save(tmp_path / "clip")
    study = Study(data, CONFIG, tmp_path, clip=tmp_path / "clip")
    with pytest.raises(InputError, match="patients"):
        study_models.fit_text_model(study, "rules-v2")
    model.trained_on = {"patients_digest": patients_digest(data.subset(data.split == "train").patients.tolist())}
    model.save(tmp_path / "clip")
    study_models._refuse_leak(study, load_text(tmp_path), "rules-v2")


def load_text(folder: Path):
    from counterscan.text.clip import load_clip

    return load_clip(folder / "clip")


def test_a_study_without_reports_needs_arms_without_text(toys: None, tmp_path: Path) -> None:
    data = toy_store()
    del data.table.frame["report"]
    with pytest.raises(InputError, match="no reports"):
        run(data, tmp_path / "a", FEW)
    report = run(data, tmp_path / "b", replace(FEW, arms=("real", "classic", "swap", "plain")))
    assert not report.left_out


def test_too_few_validation_patients_show_before_anything_is_trained(tmp_path: Path) -> None:
    few = toy_store()
    few.split[np.flatnonzero(few.split == "val")[15:]] = ""
    with pytest.raises(InputError, match="15 validation patients, but 20 are needed"):
        run(few, tmp_path, replace(CONFIG, arms=("classic", "graft")))
    assert not (tmp_path / "verifiers").exists()


def test_wanted_images_are_more_for_the_rarer_finding(tmp_path: Path) -> None:
    data = toy_store()
    labels = data.labels
    labels[:, 0] = (np.arange(len(data)) % 7 < 1).astype(np.float32)
    data.table.frame["Edema"] = labels[:, 0]
    study = Study(data, replace(CONFIG, synthetic=100), tmp_path)
    want = study_content.wanted(study.targets("train"), study.findings, study.config)
    rates = np.nanmean(study.targets("train"), 0)
    assert want["Edema"] / want["Pleural Effusion"] == pytest.approx((rates[1] / rates[0]) ** 0.5, rel=0.05)
    assert abs(sum(want.values()) - 100) <= 1


def test_two_workers_give_what_one_gives(tmp_path: Path) -> None:
    data = toy_store()
    config = replace(FEW, arms=("real", "classic"), seeds=1, steps=2)
    from counterscan.bench.study_run import run_study

    for workers in (1, 2):
        run_study(data, tmp_path / str(workers), config, workers=workers, say=quiet)
    for arm in arms_of(config):
        one, two = (read_scores(Study(data, config, tmp_path / str(n)), arm) for n in (1, 2))
        assert one is not None
        assert two is not None
        assert (one.test == two.test).all()


def test_load_text_model_checks_again(tmp_path: Path) -> None:
    data = toy_store()
    model = TinyTextImage(ReportTokenizer.fit(["no edema"] * 9))
    model.trained_on = {"patients_digest": "x"}
    model.save(tmp_path / "clip" / "rules-v2" / "model")
    with pytest.raises(InputError, match="other patients"):
        load_text_model(Study(data, CONFIG, tmp_path), "rules-v2")


def test_the_command_says_what_it_takes_and_refuses_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from counterscan.cli.main import run_commands
    from counterscan.cli.study import COMMANDS

    with pytest.raises(SystemExit):
        run_commands("counterscan augment", COMMANDS, ["study", "--help"])
    assert "--profile" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such table or store"):
        run_commands("counterscan augment", COMMANDS, ["study", str(tmp_path / "x.csv"), "--out", str(tmp_path)])


def test_lesions_put_into_other_images_are_an_arm_that_needs_no_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    data, config = toy_store(), replace(CONFIG, arms=("classic", "duplicate", "graft"), steps=4)
    jobs = [job for stage in _stages(Study(data, config, tmp_path), arms_of(config)) for job in stage]
    assert {job.part for job in jobs} == {"verifiers", "gate", "lesions", "synthesis", "arms"}
    report = run(data, tmp_path, config)
    assert not report.left_out
    assert {(c.ours, c.theirs) for c in report.comparisons["ap"]} == {("graft", "classic"), ("graft", "duplicate")}
    study = Study(data, config, tmp_path)
    made, labels = study_content.load(study, "graft", "rules-v2", 0), study.targets("train")
    assert (made.counts(1, 2) == study_content.load(study, "duplicate", "rules-v2", 0).counts(1, 2)).all()
    assert (made.counts(-1, 2) == made.counts(1, 2)).all()
    assert (made.targets[np.arange(len(made)), made.edited] == np.where(made.sign > 0, np.float32(0.95), 0)).all()
    assert any(row["finding"] == "Edema (+)" for row in made.about["rates"])
    assert labels.shape[1] == made.targets.shape[1]


def test_text_and_grafts_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_toys(monkeypatch)
    data, config = toy_store(), replace(CONFIG, arms=("classic", "duplicate", "joint"), steps=4)
    report = run(data, tmp_path, config)
    assert not report.left_out
    assert {(c.ours, c.theirs) for c in report.comparisons["ap"]} == {("joint", "classic"), ("joint", "duplicate")}
    study = Study(data, config, tmp_path)
    joint, both, graft = (study_content.load(study, c, "rules-v2", 0) for c in ("joint", "both", "graft"))
    assert len(joint) == len(both) + len(graft) > len(both) > 0
    duplicate = study_content.load(study, "duplicate", "rules-v2", 0)
    for sign in (1, -1):
        assert (duplicate.counts(sign, 2) == joint.counts(sign, 2)).all()
    assert "graft: Edema (+)" in (tmp_path / "tables.md").read_text()


def test_findings_whose_grafts_mostly_fail_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_toys(monkeypatch, blind=True)
    study = Study(toy_store(), replace(CONFIG, arms=("classic", "graft")), tmp_path)
    study_content.make(study, "graft", "rules-v2", 0)
    made = study_content.load(study, "graft", "rules-v2", 0)
    assert len(made) == 0
    assert made.about["refused"] == dict.fromkeys(study.findings, "the verifiers see it in 0% of its grafts")


def test_workers_end_when_their_study_is_killed(tmp_path: Path) -> None:
    script, beats = tmp_path / "study.py", tmp_path / "beats"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from pathlib import Path\n"
        "from counterscan.bench.study_run import _start\n"
        "def work(path):\n"
        "    for beat in range(600):\n"
        "        Path(path).write_text(str(beat))\n"
        "        time.sleep(0.1)\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), _start, (None,)) as pool:\n"
        "        pool.submit(work, sys.argv[1]).result()\n"
    )
    with subprocess.Popen([sys.executable, str(script), str(beats)]) as study:
        until(beats.exists)
        study.kill()
    before = [""]

    def still() -> bool:
        time.sleep(1)
        before.append(beats.read_text())
        return before[-1] == before[-2]

    until(still)


def until(done: Callable[[], bool]) -> None:
    """Wait for half a minute at most."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
