"""Phantom data sets: many studies as arrays in memory, or as a folder with a study table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from counterscan.data.columns import MASK_PREFIX
from counterscan.data.phantom.config import PhantomConfig
from counterscan.data.phantom.study import PhantomStudy, render
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import write_json


@dataclass(frozen=True)
class PhantomSet:
    """Studies in memory.

    Attributes:
        config, seed: what was rendered.
        images, twins: (N, H, W) uint8; 0 and 255 are -1 and 1.
        masks: finding -> (N, H, W) bool, all False where the finding is absent.
        labels: (N, C) float32 of 0, 1 (and -1), columns as in ``findings``.
        findings: names of the columns.
        patients: (N,) str.
        reports: N texts.
        tagged: (N,) bool, which films carry the planted shortcut.
        attributes: per study, a list with side, zone, severity and measures of each finding.
    """

    config: PhantomConfig
    seed: int
    images: NDArray[np.uint8]
    twins: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.float32]
    findings: tuple[str, ...]
    patients: NDArray[np.str_]
    reports: list[str]
    tagged: NDArray[np.bool_]
    attributes: list[list[dict[str, Any]]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(N, H, W) union over the findings."""
        return np.any(np.stack(list(self.masks.values())), 0)

    def __len__(self) -> int:
        return len(self.images)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[-1, 1] to 0..255; exact for rendered images, which lie on 256 levels."""
    return np.rint((image + 1) * 127.5).astype(np.uint8)


def phantom_study_set(
    n: int, config: PhantomConfig | None = None, seed: int = 0, *, first: int = 0, workers: int = 1
) -> PhantomSet:
    """Render n studies into memory (per image 2 + C bytes a pixel).

    Args:
        n: number of images.
        config: the data set, by default all findings at 128 px.
        seed: the data set's seed.
        first: index of the first study; sets with disjoint patients come from disjoint ranges.
        workers: processes; the result does not depend on it.
    """
    config = config or PhantomConfig()
    shape = (n, config.size, config.size)
    images, twins = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    masks = {name: np.zeros(shape, bool) for name in config.findings}
    labels = np.zeros((n, len(config.findings)), np.float32)
    patients, reports, attributes, tagged = [], [], [], np.zeros(n, bool)
    for i, study in enumerate(_studies(config, seed, first, n, workers)):
        images[i], twins[i] = to_uint8(study.image), to_uint8(study.twin)
        for name, mask in study.masks.items():
            masks[name][i] = mask
        labels[i] = [study.labels[name] for name in config.findings]
        patients.append(patient_name(study.patient))
        reports.append(study.report)
        tagged[i] = study.tagged
        attributes.append(_attributes(study))
    names = np.asarray(patients, dtype=str)
    return PhantomSet(config, seed, images, twins, masks, labels, config.findings, names, reports, tagged, attributes)


def write_phantom(
    out: str | Path,
    n: int,
    config: PhantomConfig | None = None,
    seed: int = 0,
    *,
    workers: int = 1,
    twins: bool = True,
) -> StudyTable:
    """Render n studies into a folder.

    Writes ``images/``, ``twins/`` and ``masks/`` (8-bit PNG; the union of all findings and one mask per finding, only
    where it is present), ``phantom.json`` (settings) and last ``table.csv``: a folder without it is incomplete and may
    be rendered again. Rows are split by patient into train, val and test (0.7, 0.1, 0.2). Extra columns: ``view``,
    ``shortcut`` (1 where the tag is) and ``attributes`` (JSON: side, zone, severity and measures of each finding).

    Args:
        out: the folder, made when missing.
        n: number of images.
        config: the data set.
        seed: its seed.
        workers: processes that render.
        twins: write the healthy twins.

    Returns:
        the table as written.

    Raises:
        InputError: the folder cannot be written.
    """
    config, out = config or PhantomConfig(), Path(out)
    try:
        for folder in ("images", "masks", *(["twins"] if twins else [])):
            (out / folder).mkdir(parents=True, exist_ok=True)
        (out / "table.csv").unlink(missing_ok=True)
        rows = [_write_study(out, i, s, config, twins) for i, s in enumerate(_studies(config, seed, 0, n, workers))]
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})", path=out, remedy="Free space or choose another folder"
        ) from error
    write_json(out / "phantom.json", {"synthetic": True, "seed": seed, "n": n, **asdict(config)})
    table = StudyTable.from_frame(pd.DataFrame(rows).fillna(""), out, findings=config.findings)
    table = split_by_patient(table, seed=seed)
    table.write(out / "table.csv")
    return table


def patient_name(number: int) -> str:
    """Pseudonym of a patient."""
    return f"phantom-{number:06d}"


def _studies(config: PhantomConfig, seed: int, first: int, n: int, workers: int) -> Iterator[PhantomStudy]:
    indices = range(first, first + n)
    if workers <= 1:
        yield from (render(config, seed, i) for i in indices)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(render, config, seed), indices, chunksize=16)


def _attributes(study: PhantomStudy) -> list[dict[str, Any]]:
    return [
        {"finding": c.finding, "side": c.side, "zone": c.zone, "severity": round(c.severity, 3), **c.measures}
        for c in study.cases
    ]


def _write_study(out: Path, index: int, study: PhantomStudy, config: PhantomConfig, twins: bool) -> dict[str, Any]:
    """Write one study's files; returns its row."""

    def save(folder: str, pixels: NDArray[np.uint8], suffix: str = "") -> str:
        name = f"{folder}/{index:06d}{suffix}.png"
        Image.fromarray(pixels).save(out / name)
        return name

    row: dict[str, Any] = {"image": save("images", to_uint8(study.image)), "patient": patient_name(study.patient)}
    row.update(split="", **study.labels)
    row["report"] = study.report
    row["mask"] = save("masks", study.mask.astype(np.uint8) * 255) if study.masks else ""
    for name in config.findings:
        mask = study.masks.get(name)
        suffix = "_" + name.lower().replace(" ", "_")
        row[MASK_PREFIX + name] = "" if mask is None else save("masks", mask.astype(np.uint8) * 255, suffix)
    row["mask_kind"] = "pixel" if study.masks else "none(empty)"
    if twins:
        row["twin"] = save("twins", to_uint8(study.twin))
    row.update(view=study.acquisition.projection, shortcut=int(study.tagged), attributes=json.dumps(_attributes(study)))
    return row
