from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import study as study_benchmark
from counterscan.bench.study_config import (
    PROFILES,
    StudyConfig,
    check_store,
    config_of,
    freeze,
    protocol,
    read_protocol,
    splits_digest,
)
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from tests.bench.study_toy import CONFIG, toy_store


def small(labels: list[list[float]], split: list[str], patients: list[str] | None = None) -> PreparedStore:
    images = np.zeros((len(labels), 8, 8), np.uint8)
    return PreparedStore.from_arrays(
        images, labels=np.array(labels), findings=("Edema",), split=split, patients=patients
    )


SPLIT = ["train", "train", "val", "val", "test", "test"]


def test_the_protocol_is_written_once_and_read_again(tmp_path: Path) -> None:
    data = toy_store()
    told = freeze(CONFIG, data, tmp_path)
    assert freeze(CONFIG, data, tmp_path) == told == read_protocol(tmp_path)
    assert config_of(told) == replace(CONFIG, pairs=CONFIG.compared)
    assert told["data"]["images"] == {"train": 120, "val": 60, "test": 60}


@pytest.mark.parametrize(
    ("change", "named"), [({"steps": 7}, "study.steps"), ({"seeds": 3, "shares": (0.5,)}, "study.")]
)
def test_other_settings_are_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    data = toy_store()
    freeze(CONFIG, data, tmp_path)
    with pytest.raises(InputError, match=named):
        freeze(replace(CONFIG, **change), data, tmp_path)


def test_other_splits_and_other_models_are_refused(tmp_path: Path) -> None:
    freeze(CONFIG, toy_store(), tmp_path)
    with pytest.raises(InputError, match=r"data\.splits"):
        freeze(CONFIG, toy_store(248), tmp_path)
    with pytest.raises(InputError, match=r"models\.generator"):
        freeze(CONFIG, toy_store(), tmp_path, {"generator": "abc"})


def test_an_edited_protocol_is_refused(tmp_path: Path) -> None:
    data = toy_store()
    freeze(CONFIG, data, tmp_path)
    told = yaml.safe_load((tmp_path / "study.yaml").read_text())
    told["study"]["seeds"] = 1
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(InputError, match="edited after it was frozen"):
        freeze(CONFIG, data, tmp_path)


def test_splits_digest_does_not_depend_on_the_order_of_rows() -> None:
    data = toy_store()
    assert splits_digest(data) == splits_digest(data.subset(np.arange(len(data))[::-1]))
    assert protocol(CONFIG, data)["data"]["splits"] == splits_digest(data)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_finding_without_positives_in_a_split_is_refused_with_the_remedy(at: int) -> None:
    labels = [[1.0], [0.0]] * 3
    labels[at] = [0.0]
    with pytest.raises(InputError, match=r"Edema.*leave the finding out: --findings"):
        check_store(small(labels, SPLIT), StudyConfig())


def test_a_patient_in_two_splits_is_refused() -> None:
    patients = ["a", "b", "c", "d", "e", "a"]
    with pytest.raises(InputError, match="'a'"):
        check_store(small([[1.0], [0.0]] * 3, SPLIT, patients), StudyConfig())


def test_an_unknown_finding_is_refused() -> None:
    with pytest.raises(InputError, match="Hernia"):
        check_store(small([[1.0], [0.0]] * 3, SPLIT), StudyConfig(findings=("Hernia",)))


@pytest.mark.parametrize(
    "change",
    [
        {"arms": ("real", "bothh")},
        {"arms": ("real:only",)},
        {"arms": ("both:later",)},
        {"arms": ("real", "real")},
        {"views": ("poem",)},
        {"shares": (1.0,)},
        {"weight": 0.0},
        {"seeds": 0},
        {"others": "none"},
        {"blank": "one"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(StudyConfig(), **change)


def test_pairs_of_arms_that_are_trained_are_compared() -> None:
    few = StudyConfig(arms=("real", "classic", "both"))
    assert few.compared == (("both", "classic"), ("classic", "real"))
    assert ("given", "classic") in replace(few, arms=("classic", "given")).compared


def test_profiles_hold_the_controls() -> None:
    for name in ("paper", "full"):
        arms = set(PROFILES[name]().arms)
        assert {"real", "classic", "duplicate", "plain", "swap", "text+", "text-", "both", "random"} <= arms
        assert {"both:only", "both:pretrain"} <= arms
    for name in ("quick", "full"):
        assert {"classic", "duplicate", "plain", "both", "graft", "joint"} <= set(PROFILES[name]().arms)
    assert all(make().seeds >= 5 for make in PROFILES.values())
    assert len(PROFILES["full"]().views) == 8
    assert PROFILES["quick"]().views == ("rules-v2",)


def test_no_set_of_the_benchmark_changes_what_a_word_of_the_protocol_means(tmp_path: Path) -> None:
    for options in (study_benchmark.Phantom, study_benchmark.NIH, study_benchmark.Covid):
        assert options(out=tmp_path).config() == PROFILES["quick"]()
        assert options(out=tmp_path, least=0.1).config().least == 0.1
