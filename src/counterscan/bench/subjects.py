"""The images of a trial under names that name nobody."""

from __future__ import annotations

from typing import Any

import numpy as np

from counterscan.counterpart import StudyBatch, StudyRef
from counterscan.data.store import PreparedStore
from counterscan.report.pseudonym import pseudonym, secret_key


def rows_of(store: PreparedStore, rows: Any) -> np.ndarray:
    """Row numbers from indices, a slice or an (N,) bool mask."""
    everything = np.arange(len(store))
    if isinstance(rows, slice):
        return everything[rows]
    chosen = np.atleast_1d(np.asarray(rows))
    return everything[chosen if chosen.size else chosen.astype(np.int64)]


def patient_names(store: PreparedStore, rows: np.ndarray, key: bytes | None = None) -> np.ndarray:
    """(n,) pseudonyms of the rows' patients."""
    secret = secret_key() if key is None else key
    named = {patient: pseudonym(patient, secret) for patient in set(store.patients[rows].tolist())}
    return np.array([named[patient] for patient in store.patients[rows].tolist()], dtype=object)


def image_names(store: PreparedStore, rows: np.ndarray, key: bytes | None = None) -> list[str]:
    """Pseudonyms of the rows' image files, the same that ``counterscan tag run`` gives them."""
    secret = secret_key() if key is None else key
    table = store.table
    return [pseudonym(f"{table.image_path(row).resolve()}#{table.frame_number(row)}", secret) for row in rows.tolist()]


def study_batch(store: PreparedStore, rows: np.ndarray, patients: np.ndarray) -> StudyBatch:
    """Images as systems take them; each source carries its patient's pseudonym."""
    batch = store.batch(rows)
    sources = [
        StudyRef(patient, store.geometry(row)) for patient, row in zip(patients.tolist(), rows.tolist(), strict=True)
    ]
    return StudyBatch(batch.images, batch.findings, batch.labels, batch.valid, sources)
