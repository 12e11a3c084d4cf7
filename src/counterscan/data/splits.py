"""Splits by patient, balanced over findings.

Patients are dealt out finding by finding, the rarest first, each to the split that still wants most of it (iterative
stratification, Sechidis et al. 2011, on patients instead of images). Splits depend on the set of patients and the seed,
never on the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from counterscan.data.table import StudyTable, check_patients
from counterscan.errors import InputError

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}
Fold = tuple[list[str], list[str], list[str]]


def patient_labels(table: StudyTable) -> tuple[np.ndarray, np.ndarray]:
    """Patients and what they have.

    Returns:
        patients (P,) sorted; (P, 2 C) bool: columns 0..C-1 "some image shows the finding", the rest "some image is
        without it". A patient with both kinds of images counts for both.
    """
    patients, inverse = np.unique(table.frame["patient"].to_numpy(dtype=str), return_inverse=True)
    labels = table.labels()
    with_and_without = np.concatenate([labels == 1, (labels == 0) | np.isnan(labels)], axis=1)
    has = np.zeros((len(patients), with_and_without.shape[1]), dtype=bool)
    np.logical_or.at(has, inverse, with_and_without)
    return patients, has


def deal(has: np.ndarray, fractions: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Deal patients to parts.

    Args:
        has: (P, K) bool, what each patient has.
        fractions: wanted share of each part, summing to 1.

    Returns:
        (P,) part numbers; part sizes are within one patient of the wanted share.
    """
    count, share = len(has), np.asarray(fractions, dtype=float)
    part = np.full(count, -1)
    room = _apportion(count, share)
    wants = has.sum(axis=0)[:, None] * share[None, :]
    order = rng.permutation(count)
    left = has.sum(axis=0)
    while True:
        open_findings = np.flatnonzero(left > 0)
        if not len(open_findings):
            break
        rarest = open_findings[np.argmin(left[open_findings])]
        for patient in order[has[order, rarest] & (part[order] < 0)]:
            # The split that lacks most of this finding; then the emptiest one.
            chosen = max(np.flatnonzero(room > 0), key=lambda s: (round(wants[rarest, s], 9), room[s] / share[s], -s))
            part[patient] = chosen
            room[chosen] -= 1
            wants[has[patient], chosen] -= 1
            left -= has[patient]
    for patient in order[part[order] < 0]:
        chosen = np.argmax(room)
        part[patient] = chosen
        room[chosen] -= 1
    return part


def _apportion(count: int, share: np.ndarray) -> np.ndarray:
    """Whole patients per part by largest remainder; a part that is wanted at all gets at least one."""
    exact = count * share
    room = np.floor(exact).astype(int)
    for index in np.argsort(room - exact, kind="stable")[: count - room.sum()]:
        room[index] += 1
    for empty in np.flatnonzero((room == 0) & (share > 0)):
        room[np.argmax(room)] -= 1
        room[empty] += 1
    return room


def split_by_patient(
    table: StudyTable,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    *,
    fixed: Mapping[str, str] | None = None,
) -> StudyTable:
    """The same table with a new split column.

    Args:
        fractions: share of the patients per split; the values must sum to 1.
        seed: another seed deals another hand.
        fixed: patient -> split for patients that may not be dealt (those with boxes, say); they come on top.

    Raises:
        InputError: fractions that do not sum to 1, or fewer patients than splits.
    """
    shares = {name: value for name, value in fractions.items() if value > 0}
    if abs(sum(fractions.values()) - 1) > 1e-6 or any(value < 0 for value in fractions.values()):
        raise InputError(f"the fractions {dict(fractions)} do not sum to 1", field="fractions")
    patients, has = patient_labels(table)
    fixed = fixed or {}
    free = np.array([name not in fixed for name in patients], dtype=bool)
    if free.sum() < len(shares):
        raise InputError(
            f"{int(free.sum())} patients cannot fill {len(shares)} splits",
            field="column 'patient'",
            remedy="Check that the patient column tells patients apart, or ask for fewer splits",
        )
    part = deal(has[free], list(shares.values()), np.random.default_rng(seed))
    names = list(shares)
    of = dict(fixed) | {name: names[p] for name, p in zip(patients[free], part, strict=True)}
    done = table.with_split([of[name] for name in table.frame["patient"]])
    assert_no_leak(done)
    return done


def folds(table: StudyTable, k: int = 5, seed: int = 0, val_fraction: float = 0.15) -> list[Fold]:
    """k folds by patient: every patient is tested exactly once.

    Args:
        k: number of folds, at least 2.
        val_fraction: share of the patients outside the test part that validates; 0 for none.

    Returns:
        k times (train, val, test), sorted patient lists that share nobody.

    Raises:
        InputError: fewer patients than folds (plus one each for train and val).
    """
    patients, has = patient_labels(table)
    if k < 2 or len(patients) < max(k, 3):
        raise InputError(f"{len(patients)} patients cannot make {k} folds", field="folds", remedy="Ask for fewer folds")
    rng = np.random.default_rng(seed)
    part = deal(has, [1 / k] * k, rng)
    made: list[Fold] = []
    for index in range(k):
        test, rest = part == index, np.flatnonzero(part != index)
        held = np.zeros(len(rest), dtype=int)
        if val_fraction > 0:
            held = deal(has[rest], [1 - val_fraction, val_fraction], np.random.default_rng([seed, index]))
        fold = (patients[rest[held == 0]].tolist(), patients[rest[held == 1]].tolist(), patients[test].tolist())
        assert_disjoint(*fold)
        made.append(fold)
    return made


def assert_disjoint(*groups: Iterable[str]) -> None:
    """Raise InputError when two patient lists share somebody."""
    seen: dict[str, int] = {}
    for number, group in enumerate(groups):
        for patient in set(group):
            if patient in seen:
                raise InputError(f"patient {str(patient)!r} is in lists {seen[patient]} and {number}", field="splits")
            seen[patient] = number


def assert_no_leak(table: StudyTable) -> None:
    """Raise InputError when a patient, or the same image file, is in two splits."""
    check_patients(table.frame["patient"], table.frame["split"])
    pairs = table.frame.loc[table.frame["split"] != "", ["image", "split"]].drop_duplicates()
    twice = pairs["image"][pairs["image"].duplicated()]
    if len(twice):
        raise InputError(
            f"image {twice.iloc[0]!r} is in two splits", field="column 'image'", remedy="Keep an image in one split"
        )


def spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of the rows, evenly spaced among them: a sample that is the same every time."""
    places = np.linspace(0, max(0, len(rows) - 1), min(count, len(rows))).round().astype(np.int64)
    return rows[places]
