from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.tbsmgan import GANConfig, StyleGAN, fit, from_run, preset, steps_in
from counterscan.training import read_metrics
from tests.taggan.blobs import FINDINGS
from tests.tbsmgan.small import config, store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(store(), folder, config(6))
    return folder


def test_a_run_leaves_a_whole_folder(finished: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "README.md", "classifier/config.yaml", "model/stylegan.json"):
        assert (finished / name).exists()
    assert list((finished / "samples").glob("step-00000006-samples.png"))
    names = {name for line in read_metrics(finished) for name in line}
    assert {"d", "g", "r1", "p", "r_t", "validation/fid", f"validation/consistency/{FINDINGS[1]}"} <= names
    card = (finished / "README.md").read_text()
    assert "not a medical device" in card.lower()
    assert f"| {FINDINGS[0]} |" in card
    assert "gamma" in card


def test_the_model_folder_gives_the_same_generator(finished: Path, tmp_path: Path) -> None:
    run = from_run(finished, store(), config(6))
    again = StyleGAN.from_pretrained(finished)
    assert again.findings == FINDINGS
    assert again.size == 16
    assert torch.equal(run.sample(5, seed=3), again.sample(5, seed=3))
    assert again.figures["fid"] > 0
    copied = StyleGAN.from_pretrained(again.save_pretrained(tmp_path / "elsewhere"))
    assert torch.equal(copied.sample(2), again.sample(2))
    assert copied.checkpoint == again.checkpoint == run.checkpoint
    assert copied.patients == again.patients
    assert dict(copied.learned) == dict(again.learned)


def test_training_patients_are_known_again_but_not_named(finished: Path) -> None:
    gan, rows = StyleGAN.from_pretrained(finished), store()
    learned_from = set(rows.patients[rows.split == "train"].tolist())
    held = sorted(set(rows.patients[rows.split == "val"].tolist()))
    gan.refuse_patients(held)
    with pytest.raises(InputError, match="learned from 1 of these patients"):
        gan.refuse_patients([*held, min(learned_from)])
    kept = (finished / "model" / "training_patients.json").read_text()
    assert len(json.loads(kept)["hashes"]) == len(learned_from)
    assert not any(f'"{patient}"' in kept for patient in learned_from)


def test_without_the_list_of_patients_nothing_may_be_measured(finished: Path, tmp_path: Path) -> None:
    StyleGAN.from_pretrained(finished).save_pretrained(tmp_path)
    (tmp_path / "training_patients.json").unlink()
    gan = StyleGAN.from_pretrained(tmp_path)
    assert gan.sample(1).shape == (1, 1, 16, 16)
    with pytest.raises(InputError, match="nothing is known"):
        gan.refuse_patients(["p1"])


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    lines = (finished / "metrics.jsonl").read_bytes()
    again = fit(store(), finished, config(6))
    assert (finished / "metrics.jsonl").read_bytes() == lines
    assert torch.equal(again.sample(2), StyleGAN.from_pretrained(finished).sample(2))


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    first = fit(store(), tmp_path, config(2))
    longer = fit(store(), tmp_path, config(3))  # which also validates and saves at other steps
    assert [line["step"] for line in read_metrics(tmp_path) if "validation/fid" in line] == [2, 3]
    assert "3 steps" in longer.facts[0]
    assert "2 steps" in first.facts[0]


def test_other_settings_in_the_same_folder_are_refused(finished: Path) -> None:
    with pytest.raises(InputError, match="gamma"):
        fit(store(), finished, config(6, gamma=3.0))


def test_the_same_seed_makes_the_same_generator(tmp_path: Path, finished: Path) -> None:
    again = fit(store(), tmp_path, config(6))
    assert torch.equal(again.sample(3), StyleGAN.from_pretrained(finished).sample(3))


def test_unconditional_training_asks_for_nothing(tmp_path: Path) -> None:
    gan = fit(store(), tmp_path, replace(config(2), conditional=False))
    assert gan.findings == ()
    assert gan.sample(3).shape == (3, 1, 16, 16)
    assert not any(name.startswith("consistency") for name in gan.figures)
    assert torch.equal(StyleGAN.from_pretrained(tmp_path).sample(3), gan.sample(3))


def test_images_without_any_label_can_be_learned(tmp_path: Path) -> None:
    rows = store()
    bare = PreparedStore.from_arrays(
        ((rows.images()[:, 0].numpy() + 1) * 127.5).astype(np.uint8),
        patients=rows.patients.tolist(),
        split=rows.split.tolist(),
    )
    gan = fit(bare, tmp_path, config(2))
    assert not (tmp_path / "classifier").exists()
    assert {"fid", "copies"} <= gan.figures.keys()


def test_a_chosen_finding_is_the_only_one(tmp_path: Path) -> None:
    gan = fit(store(), tmp_path, replace(config(2), findings=(FINDINGS[1],)))
    assert gan.findings == (FINDINGS[1],)
    assert gan.mix is not None
    assert gan.mix.labels.tolist() == [[0.0], [1.0]]


def test_two_images_are_enough_to_run(tmp_path: Path) -> None:
    rows = store()
    pair = [int(np.flatnonzero((rows.labels[:, 0] == v) & (rows.split == "train"))[0]) for v in (0, 1)]
    few = rows.subset(pair)
    gan = fit(few, tmp_path, replace(config(2), findings=(FINDINGS[0],)))
    assert gan.sample(1).isfinite().all()


def without(value: int) -> Callable[[PreparedStore], PreparedStore]:
    return lambda rows: rows.subset(rows.labels[:, 1] != value)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda rows: rows.subset(rows.split == "val"), "fewer than 2"),
        (lambda rows: rows.subset(np.flatnonzero(rows.split == "train")[:1]), "1 images are in the split 'train'"),
        (without(1), "Pneumothorax: no training image is known to be with it.*train unconditionally"),
        (without(0), "Pneumothorax: no training image is known to be without it"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    tmp_path: Path, spoil: Callable[[PreparedStore], PreparedStore], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        fit(spoil(store()), tmp_path, config())


def test_a_missing_class_can_be_left_out(tmp_path: Path) -> None:
    rows = without(1)(store())
    assert fit(rows, tmp_path / "a", replace(config(1), findings=(FINDINGS[0],))).findings == (FINDINGS[0],)
    assert fit(rows, tmp_path / "b", replace(config(1), conditional=False)).findings == ()


def test_size_and_patients_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prepared at 16 px, the network makes 64.*--size 64"):
        fit(store(), tmp_path, GANConfig())
    rows = store()
    rows.split = np.array(["train", "val"] * (len(rows) // 2))
    with pytest.raises(InputError, match="patient"):
        fit(rows, tmp_path, config())
    with pytest.raises(InputError, match="no label 'Edema'"):
        fit(store(), tmp_path, replace(config(), findings=("Edema",)))


def test_presets_go_with_their_networks() -> None:
    assert preset("cxr64-cpu").network.size == 64
    large = preset("cxr256")
    assert (large.network.size, large.objective.path, large.training.batch_size) == (256, 2.0, 64)
    with pytest.raises(InputError, match="preset"):
        preset("cxr1024")


def test_minutes_become_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterscan.tbsmgan.training._TRIED", 8)
    clock = itertools.count()  # a second between any two looks at it: a busy machine's own clock proves nothing
    monkeypatch.setattr("counterscan.tbsmgan.training.time", SimpleNamespace(monotonic=lambda: next(clock)))
    few, many = (steps_in(minutes, store(), config()) for minutes in (0.05, 0.5))
    assert few >= 1
    assert 4 < many / few < 25
    assert few == 12  # 4 of the 8 tried steps took the second
    with pytest.raises(InputError, match="minutes"):
        steps_in(0, store(), config())
