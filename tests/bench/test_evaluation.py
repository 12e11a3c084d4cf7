from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from counterscan.bench import Evaluation, evaluate_systems
from counterscan.bench.evaluation import FIGURES
from counterscan.errors import InputError
from counterscan.metrics.classification import roc_auc
from tests.bench.toys import FINDINGS, KEY, Brightness, Constant, Finder, square_store


def halves() -> list[Evaluation]:
    """Two folds of three patients each."""
    store, systems = square_store(), {"ours": [Finder(), Finder(0.5)], "peer": Constant(), "leak": Finder(leak=0.3)}
    parts = []
    for rows in (np.arange(6), np.arange(6, 12)):
        ill = rows[store.labels[rows, 0] == 1]
        parts.append(
            evaluate_systems(
                systems,
                store,
                ill,
                FINDINGS[0],
                healthy_rows=np.setdiff1d(rows, ill),
                classifier=Brightness(),
                resamples=200,
                key=KEY,
            )
        )
    return parts


def scored(scores: list[float], folds: list[int], patients: list[str]) -> Evaluation:
    """An evaluation of one system with given scores; every other image is ill."""
    count = len(scores)
    frame = pd.DataFrame(
        {
            **{"system": "s", "seed": 0, "fold": folds, "image": [f"i{k}" for k in range(count)], "patient": patients},
            "diseased": [k % 2 == 0 for k in range(count)],
            **dict.fromkeys(FIGURES, math.nan),
            **{"score": scores, "magnitude": math.nan},
        }
    )
    return Evaluation("Edema", frame, "s", resamples=200)


def test_folds_pool_to_the_whole() -> None:
    pooled = Evaluation.concat(halves())
    assert pooled.counts() | {"seeds": 2} == {
        "images": 12,
        "lesion_images": 6,
        "healthy_images": 6,
        "patients": 6,
        "folds": 2,
        "seeds": 2,
    }
    assert pooled.systems == ["ours", "peer", "leak"]
    assert pooled.interval("ours", "dice").value == pytest.approx(1)


def test_an_image_is_tested_once() -> None:
    first, _ = halves()
    with pytest.raises(InputError, match="images are in two"):
        Evaluation.concat([first, first])
    with pytest.raises(InputError, match="nothing to pool"):
        Evaluation.concat([])
    with pytest.raises(InputError, match="evaluations differ"):
        Evaluation.concat([first, Evaluation("Edema", first.per_image, "ours")])


def test_differences_are_paired() -> None:
    pooled = Evaluation.concat(halves())
    difference = pooled.difference("peer", "ap")
    assert difference.value == pytest.approx(1 - 4 / 64)
    assert difference.low == pytest.approx(difference.value)  # the same on every image
    assert math.isnan(pooled.difference("peer", "dice").value)


def test_detection_is_judged_within_folds() -> None:
    # The second fold's model scores everything 10 higher; pooling the scores would give 0.75.
    scores = [1.0, 0.0, 11.0, 10.0]
    found = scored(scores, [0, 0, 1, 1], ["a", "b", "c", "d"])
    assert float(roc_auc(torch.tensor(scores), torch.tensor([1.0, 0, 1, 0]))) == 0.75
    assert found.detection("s").value == 1


def test_detection_has_the_interval_of_the_pooled_auc_with_one_fold() -> None:
    from counterscan.metrics.intervals import roc_auc_intervals

    rng = np.random.default_rng(0)
    scores, patients = rng.random(40).tolist(), [f"p{k // 2}" for k in range(40)]
    found = scored(scores, [0] * 40, patients)
    labels = torch.tensor([float(k % 2 == 0) for k in range(40)])
    (expected,) = roc_auc_intervals(torch.tensor(scores, dtype=torch.float64), labels, patients, resamples=200)
    got = found.detection("s")
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_ratio_of_magnitudes_is_of_means() -> None:
    found = scored([0.0] * 8, [0] * 8, [f"p{k}" for k in range(8)])
    found.per_image["magnitude"] = [4.0, 1.0, 2.0, 1.0, 4.0, 3.0, 2.0, 1.0]
    sick, well, ratio = found.magnitudes("s")
    assert (sick.value, well.value, ratio.value) == (3, 1.5, 2)
    assert ratio.low < 2 < ratio.high


def test_tables_leave_out_what_nobody_has() -> None:
    tables = {table.title: table for table in Evaluation.concat(halves()).tables()}
    assert "At native resolution" not in tables
    masks = tables["Masks"]
    assert "Recall (PoI)" in masks.columns
    assert [row[0] for row in tables["Healthy counterparts"].rows] == ["ours", "leak"]
    assert [row[0] for row in tables["ours minus each peer"].rows] == ["peer", "leak"]
    assert "2 folds, 2 seeds" in tables["Maps"].note


def test_the_tables_print() -> None:
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(Evaluation.concat(halves()).table())
    assert "Recall (PoI)" in capture.get()


def test_json_is_strict_and_complete() -> None:
    found = json.loads(json.dumps(Evaluation.concat(halves()).to_json(), allow_nan=False))
    assert found["systems"]["ours"]["ap"][0] == pytest.approx(1)
    assert found["systems"]["peer"]["dice"] == [None, None, None]
    assert set(found["differences"]) == {"peer", "leak"}


def test_saved_and_loaded_is_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pooled = Evaluation.concat(halves())
    pooled.save(tmp_path)
    again = Evaluation.load(tmp_path)
    assert again.to_json() == pooled.to_json()
    (tmp_path / "per_image.csv").write_text("nonsense\n1\n")
    with pytest.raises(InputError, match="is not an evaluation"):
        Evaluation.load(tmp_path)
