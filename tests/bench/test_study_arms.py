from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from counterscan.bench.study_arms import (
    BothSampler,
    HardRows,
    StudyRows,
    after_first,
    arms_of,
    rows_of,
    weighted_bce,
)
from counterscan.bench.study_config import StudyConfig
from counterscan.bench.study_models import Study
from counterscan.classify.task import LabelledRows
from counterscan.data.store import PreparedStore
from counterscan.text.stated import SentenceReader
from counterscan.training import BalancedSampler
from tests.bench.study_toy import CONFIG, toy_store

NAN = float("nan")


def arms(**changes: object) -> list[str]:
    return [arm.name for arm in arms_of(replace(StudyConfig(), **changes))]  # type: ignore[arg-type]


def test_views_repeat_textual_arms_and_shares_mixed_ones() -> None:
    found = arms(arms=("classic", "plain", "text+", "both:only"), views=("rules-v2", "summary"), shares=(0.25, 0.5))
    assert found == [
        "classic",
        "plain",
        "plain, share 0.5",
        "text+",
        "text+, share 0.5",
        "text+ @ summary",
        "both:only",
        "both:only @ summary",
    ]


def test_every_arm_has_a_folder_of_its_own() -> None:
    config = replace(
        StudyConfig(), arms=("text+", "text-", "text+:only", "both"), views=("rules-v2", "none"), shares=(0.25, 0.5)
    )
    keys = [arm.key for arm in arms_of(config)]
    assert len(set(keys)) == len(keys)


def test_weighted_bce_is_the_mean_by_weight_over_what_is_known() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    targets = torch.tensor([[1.0, NAN], [0.25, 0.0]])
    weights = torch.tensor([1.0, 0.5])
    one = [F.binary_cross_entropy_with_logits(logits[i, j], targets[i, j]) for i, j in ((0, 0), (1, 0), (1, 1))]
    wanted = (one[0] + 0.5 * one[1] + 0.5 * one[2]) / 2.0
    assert torch.isclose(weighted_bce(logits, targets, weights), wanted)


def test_unknown_targets_send_no_gradient_and_nothing_known_is_zero() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = weighted_bce(logits, torch.tensor([[NAN, 1.0], [NAN, 0.0]]), torch.ones(2))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, 0].any()
    assert logits.grad[:, 1].abs().min() > 0
    assert weighted_bce(logits, torch.full((2, 2), NAN), torch.ones(2)).item() == 0


def test_batches_have_a_fixed_part_of_added_rows() -> None:
    sampler = BothSampler(BalancedSampler([np.arange(10)], 6), BalancedSampler([np.arange(5)], 2), 10)
    for step in range(20):
        rows = sampler.batch_indices(step)
        assert len(rows) == 8
        assert (rows >= 10).sum() == 2
        assert sampler.batch_groups(step).tolist() == [0] * 6 + [1] * 2


def test_pretraining_comes_first_and_is_over_for_the_second_stage() -> None:
    sampler = BothSampler(BalancedSampler([np.arange(10)], 4), None, 10, BalancedSampler([np.arange(5)], 4), until=3)
    assert all((sampler.batch_indices(step) >= 10).all() for step in range(3))
    assert all((sampler.batch_indices(step) < 10).all() for step in range(3, 9))
    assert (after_first(sampler).batch_indices(0) < 10).all()


def test_rows_give_weights_and_hard_rows_round_soft_targets() -> None:
    images = np.zeros((2, 8, 8), np.uint8)
    parts = [
        LabelledRows(PreparedStore.from_arrays(images), np.array([[1.0], [0.0]], np.float32)),
        LabelledRows(PreparedStore.from_arrays(images), np.array([[0.7], [NAN]], np.float32)),
    ]
    batch = StudyRows(parts, [1.0, 0.5]).batch(np.array([0, 2, 3]))
    assert batch["weight"].tolist() == [1.0, 0.5, 0.5]
    assert batch["target"][1, 0] == np.float32(0.7)
    hard = HardRows(parts, [1.0, 1.0]).batch(np.array([2, 3]))["target"][:, 0]
    assert hard[0] == 1.0
    assert np.isnan(hard[1])


@pytest.mark.parametrize(("arm", "size"), [("real", 120), ("classic", 120)])
def test_arms_without_anything_added_see_training_rows_only(tmp_path: Path, arm: str, size: int) -> None:
    study = Study(toy_store(), CONFIG, tmp_path)
    found = rows_of(study, next(a for a in arms_of(CONFIG) if a.name == arm), 0)
    assert not isinstance(found, str)
    assert len(found[0]) == size


def test_sentences_are_read_by_the_rules() -> None:
    reader = SentenceReader(("Edema", "Pneumothorax", "COVID-19"), by_name=True)

    def read(sentence: str) -> list[float]:
        return list(reader(sentence))

    assert read("mild pulmonary edema") == pytest.approx([1.0, NAN, NAN], nan_ok=True)
    assert read("no pneumothorax") == pytest.approx([NAN, 0.0, NAN], nan_ok=True)
    assert read("no finding") == [0.0, 0.0, 0.0]
    assert read("COVID-19 pneumonia")[2] == 1.0
