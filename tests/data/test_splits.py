from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterscan.data.splits import DEFAULT_FRACTIONS, assert_disjoint, assert_no_leak, folds, spaced, split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError


def make_table(patients: int, seed: int = 0, images: int = 3) -> StudyTable:
    rng = np.random.default_rng(seed)
    sick = rng.random(patients)
    rows = [
        {"image": f"{p}_{i}", "patient": f"p{p}", "Edema": int(sick[p] < 0.3), "Hernia": int(sick[p] > 0.95)}
        for p in range(patients)
        for i in range(1 + (p + 1) % images)
    ]
    return StudyTable.from_frame(pd.DataFrame(rows), Path())


def test_shares_and_rare_findings_are_balanced() -> None:
    table = split_by_patient(make_table(400))
    by_patient = table.frame.groupby("patient").first()
    for split, share in DEFAULT_FRACTIONS.items():
        part = by_patient[by_patient["split"] == split]
        assert len(part) == pytest.approx(400 * share, abs=1)
        for finding in ("Edema", "Hernia"):
            assert part[finding].sum() == pytest.approx(by_patient[finding].sum() * share, abs=1.5)


def test_row_order_does_not_matter_and_the_seed_does() -> None:
    table = make_table(60)
    shuffled = table.subset(rows=np.random.default_rng(1).permutation(len(table)))
    one = dict(zip(table.frame["patient"], split_by_patient(table, seed=3).frame["split"], strict=True))
    two = dict(zip(shuffled.frame["patient"], split_by_patient(shuffled, seed=3).frame["split"], strict=True))
    assert one == two
    other = split_by_patient(table, seed=4).frame["split"].tolist()
    assert other != split_by_patient(table, seed=3).frame["split"].tolist()


def test_fixed_patients_stay() -> None:
    table = split_by_patient(make_table(20), fixed={"p1": "test", "p2": "test"})
    where = table.frame.groupby("patient")["split"].first()
    assert where["p1"] == where["p2"] == "test"
    assert set(where) == {"train", "val", "test"}


@pytest.mark.parametrize("fractions", [{"train": 0.5, "val": 0.1}, {"train": 1.5, "test": -0.5}])
def test_fractions_must_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(InputError, match="sum to 1"):
        split_by_patient(make_table(10), fractions)


def test_too_few_patients() -> None:
    with pytest.raises(InputError, match="2 patients cannot fill 3 splits"):
        split_by_patient(make_table(2))
    with pytest.raises(InputError, match="4 patients cannot make 5 folds"):
        folds(make_table(4), 5)


@settings(max_examples=30, deadline=None)
@given(patients=st.integers(6, 60), k=st.integers(2, 6), seed=st.integers(0, 5))
def test_folds_test_everybody_once_and_leak_nobody(patients: int, k: int, seed: int) -> None:
    table = make_table(patients, seed)
    made = folds(table, k, seed)
    tested = [name for _, _, test in made for name in test]
    assert sorted(tested) == sorted(set(table.frame["patient"]))
    assert max(len(t) for _, _, t in made) - min(len(t) for _, _, t in made) <= 1
    for train, val, test in made:
        assert set(train) | set(val) | set(test) == set(tested)
        assert len(train) + len(val) + len(test) == patients
        assert train
        assert val
    assert made == folds(table, k, seed)


def test_leaks_are_found() -> None:
    table = make_table(10)
    assert_no_leak(split_by_patient(table))
    with pytest.raises(InputError, match="is in splits 'train' and 'test'"):
        assert_no_leak(table.with_split(["train", *["test"] * (len(table) - 1)]).subset(rows=[0, 1, 2, 3]))
    twice = pd.DataFrame({"image": ["0_0", "0_0"], "patient": ["a", "b"], "split": ["train", "test"]})
    with pytest.raises(InputError, match="image '0_0' is in two splits"):
        assert_no_leak(StudyTable.from_frame(twice, "."))
    with pytest.raises(InputError, match="lists 0 and 2"):
        assert_disjoint(["a"], ["b"], ["a"])


def test_samples_are_evenly_spaced_and_name_no_row_twice() -> None:
    assert spaced(np.arange(10), 3).tolist() == [0, 4, 9]
    assert spaced(np.array([3, 8]), 5).tolist() == [3, 8]
    assert not len(spaced(np.arange(0), 4))
    for count in range(1, 40):
        for most in range(1, count + 1):
            assert len(np.unique(spaced(np.arange(count), most))) == most
