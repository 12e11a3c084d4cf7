from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from counterscan.classify import ClassifyConfig, evaluate_classifier, load_classifier, predict_logits, train_classifier
from counterscan.classify.deepauc import AUCConfig, DeepAUCConfig, DeepAUCTask, fit, started
from counterscan.classify.train import learning_rows
from counterscan.cli.main import main
from counterscan.errors import InputError
from counterscan.files import read_json
from counterscan.metrics.classification import mean_over_classes, roc_auc
from counterscan.nets.cnn import Classifier
from counterscan.training import BalancedSampler, finding_groups
from counterscan.training.distributed import World
from tests.classify.planted import QUICK, TINY, planted, relabelled

TWO = ("Lung Lesion", "Edema")
SHORT = replace(QUICK, steps=40)
CONFIG = DeepAUCConfig(SHORT, AUCConfig(auc_steps=24, auc_rate=0.1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    folder = tmp_path_factory.mktemp("deepauc")
    return folder, fit(planted(320, findings=TWO), folder, CONFIG)


def test_two_stages_that_rank_better_than_the_first_alone(trained: tuple[Path, Classifier]) -> None:
    folder, classifier = trained
    fresh = planted(240, findings=TWO, seed=5)
    labels = torch.from_numpy(fresh.labels)
    before, after = (
        mean_over_classes(roc_auc(predict_logits(c, fresh), labels))
        for c in (load_classifier(folder / "pretraining"), classifier)
    )
    assert after > 0.9
    assert after > before - 0.01
    log = (folder / "metrics.jsonl").read_text()
    assert "pesg/loss" in log
    assert "alpha" in log


def test_run_folder_is_like_any_classifiers(trained: tuple[Path, Classifier]) -> None:
    folder, classifier = trained
    system = yaml.safe_load((folder / "config.yaml").read_text())["system"]
    assert system["auc"]["auc_version"] == "v2"
    assert system["start"] == load_classifier(folder / "pretraining").digest
    assert (folder / "checkpoints" / "best.safetensors").is_file()
    card = (folder / "README.md").read_text()
    assert "AUC-margin stage" in card
    assert "Mean validation AUC" in card
    again = load_classifier(folder)
    assert again.digest == classifier.digest
    assert torch.equal(
        predict_logits(again, planted(8, findings=TWO)), predict_logits(classifier, planted(8, findings=TWO))
    )
    assert again.trained_on["size"] == 24


def test_calibration_makes_probabilities_of_ranking_scores(trained: tuple[Path, Classifier]) -> None:
    folder, classifier = trained
    assert read_json(folder / "calibration.json")["checkpoint"] == classifier.digest
    fresh = planted(240, findings=TWO, seed=6)
    # Squeezed scores rank as well and say nothing as probabilities; calibration brings them back.
    found = evaluate_classifier(classifier, fresh, resamples=20)
    for name in TWO:
        assert found["findings"][name]["brier"] < 0.12
        assert found["findings"][name]["ece"] < 0.12


def test_a_finished_run_stays_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    store, config = planted(160), DeepAUCConfig(replace(SHORT, steps=4), AUCConfig(auc_steps=21, stages=2))
    whole = fit(store, tmp_path / "a", config)
    assert fit(store, tmp_path / "a", config).digest == whole.digest
    assert len(list((tmp_path / "a" / "checkpoints").glob("step-*"))) == 1

    class Stop(Exception):
        pass

    original, calls = DeepAUCTask.step, []

    def step(self, ctx, batch):
        calls.append(ctx.step)
        if len(calls) == 18:  # in the second stage, after the checkpoint at 10
            raise Stop
        return original(self, ctx, batch)

    DeepAUCTask.step = step
    try:
        with pytest.raises(Stop):
            fit(store, tmp_path / "b", config)
    finally:
        DeepAUCTask.step = original
    again = fit(store, tmp_path / "b", config)
    assert again.digest == whole.digest
    with pytest.raises(InputError, match=r"auc\.auc_rate"):
        fit(store, tmp_path / "b", replace(config, auc=replace(config.auc, auc_rate=0.2)))


def test_starts_from_a_given_classifier_and_leaves_it_alone(tmp_path: Path) -> None:
    store = planted(160)
    start = train_classifier(store, tmp_path / "first", replace(SHORT, steps=3))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    config = DeepAUCConfig(replace(SHORT, steps=3), AUCConfig(auc_steps=2))
    found = fit(store, tmp_path / "second", config, start=start)
    assert not (tmp_path / "second" / "pretraining").exists()
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert found.digest != start.digest
    with pytest.raises(InputError, match="start"):
        fit(store, tmp_path / "third", config, start=Classifier(TINY, ("Edema",)))


def test_a_new_head_is_drawn_only_when_asked() -> None:
    start = Classifier(TINY, TWO)
    kept, drawn = (started(start, DeepAUCConfig(SHORT, AUCConfig(new_head=new))) for new in (False, True))
    assert torch.equal(kept.head.weight, start.head.weight)
    assert not torch.equal(drawn.head.weight, start.head.weight)
    assert torch.equal(drawn.stem.weight, start.stem.weight)


def test_every_batch_holds_every_finding_present_and_absent(tmp_path: Path) -> None:
    store = planted(200, findings=TWO)
    labels = store.labels.copy()
    labels[:, 1] = 0
    labels[np.flatnonzero(store.split == "train")[:2], 1] = 1  # two positives in a hundred
    rare = relabelled(store, labels)
    _, rows, _ = learning_rows(rare, SHORT)
    groups, _ = finding_groups(rows.targets)
    sampler = BalancedSampler(groups, 4)
    for step in range(50):
        batch = rows.targets[sampler.batch_indices(step)]
        assert ((batch == 1).any(0) & (batch == 0).any(0)).all()
    with pytest.raises(InputError, match=r"batch_size.*at least 4"):
        fit(rare, tmp_path, DeepAUCConfig(replace(SHORT, batch_size=3)))


def test_without_validation_the_last_weights_are_taken(tmp_path: Path) -> None:
    store = planted(120)
    config = DeepAUCConfig(replace(SHORT, steps=2), AUCConfig(auc_steps=2))
    classifier = fit(store.subset(store.split == "train"), tmp_path, config)
    assert not (tmp_path / "checkpoints" / "best.safetensors").exists()
    assert torch.equal(classifier.temperature, torch.ones(1))
    assert "Mean validation AUC" not in (tmp_path / "README.md").read_text()


def test_doubtful_labels_follow_chexperts_policy_or_become_soft() -> None:
    store = planted(200, findings=TWO)
    labels = store.labels.copy()
    labels[::4] = -1
    doubtful = relabelled(store, labels)
    train = labels[store.split == "train"]
    _, rows, held = learning_rows(doubtful, replace(SHORT, policy="chexpert"))
    assert (rows.targets[train[:, 0] == -1, 0] == 0).all()  # Lung Lesion
    assert (rows.targets[train[:, 1] == -1, 1] == 1).all()  # Edema
    assert np.array_equal(rows.targets[train[:, 0] != -1], train[train[:, 0] != -1])
    assert held is not None
    assert np.isnan(held.targets).any()  # never validated on
    _, soft, _ = learning_rows(doubtful, replace(SHORT, policy="soft"))
    drawn = soft.targets[train == -1]
    assert ((drawn >= 0.3) & (drawn <= 0.7)).all()
    assert drawn.std() > 0.05
    assert soft.targets.dtype == np.float32
    again, other = (learning_rows(doubtful, replace(SHORT, policy="soft", seed=s))[1].targets for s in (0, 1))
    assert np.array_equal(again, soft.targets)
    assert not np.array_equal(other, soft.targets)


def test_soft_and_missing_labels_train(tmp_path: Path) -> None:
    store = planted(160, findings=TWO)
    labels = store.labels.copy()
    labels[::4], labels[1::5] = -1, np.nan
    base = ClassifyConfig(**{**vars(SHORT), "steps": 2, "policy": "soft", "blank": "ignore"})
    classifier = fit(relabelled(store, labels), tmp_path, DeepAUCConfig(base, AUCConfig(auc_steps=2, auc_version="v1")))
    assert all(p.isfinite().all() for p in classifier.parameters())


def test_first_step_settles_and_stages_shrink_the_rate() -> None:
    store = planted(60)
    config = DeepAUCConfig(replace(SHORT, precision="fp32"), AUCConfig(auc_steps=5, stages=2, auc_rate=0.04))
    task = DeepAUCTask(Classifier(TINY, ("Lung Lesion",)).train(), config)

    class Ctx:
        step, world = 0, World()

        def autocast(self):
            return torch.autocast("cpu", enabled=False)

        def compile(self, module):
            return module

        def update(self, name, loss) -> None:
            task.optimizers[name].zero_grad()
            loss.backward()
            task.optimizers[name].step()

    rates = []
    for step in range(5):
        Ctx.step = step
        batch = {"image": store.images(slice(0, 32)), "target": torch.from_numpy(store.labels[:32]).float()}
        logged = task.step(Ctx(), batch)
        if step == 0:
            assert logged["alpha"] > 0.5  # a pre-trained network this poor has its means close together
        rates.append(task.pesg.param_groups[0]["lr"])
    assert rates == pytest.approx([0.04, 0.04, 0.04, 0.004, 0.004])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"auc_steps": 0}, "auc_steps"),
        ({"auc_rate": 0.0}, "auc_rate"),
        ({"auc_version": "v3"}, "auc_version"),
        ({"momentum": 0.0}, "momentum"),
        ({"stages": 300}, "stages"),
        ({"stage_factor": 0.5}, "stage_factor"),
    ],
)
def test_bad_settings_are_named(options: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        AUCConfig(**options)
    assert caught.value.field == field


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.cli.test_classify import TRAIN, make_table

    arguments = ["classify", "train", str(make_table(tmp_path)), "--size", "16", *TRAIN]
    run = tmp_path / "run"
    options = ["--objective", "auc", "--auc-steps", "2", "--auc-rate", "0.01", "--no-best"]
    assert main([*arguments, "--out", str(run), *options]) == 0
    assert "checkpoint" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["system"]["auc"]["auc_rate"] == 0.01
    assert (run / "pretraining" / "calibration.json").is_file()
    assert main(["classify", "evaluate", str(run), str(run / "store"), "--resamples", "20"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "b"), "--auc-steps", "2"]) == 2
    assert "--auc-steps: is of no use with --objective bce" in capsys.readouterr().err
