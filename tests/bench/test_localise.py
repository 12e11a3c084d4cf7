from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from counterscan.bench import Evaluation, evaluate_systems, native_truth
from counterscan.data.prepare import prepare
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from tests.bench.toys import FINDINGS, KEY, Brightness, Constant, Finder, square_store

FINDING = FINDINGS[0]


def trial(systems: dict[str, object], **settings: object) -> Evaluation:
    store = square_store()
    ill = store.labels[:, 0] == 1
    given = {"healthy_rows": ~ill, "key": KEY, "resamples": 200, "batch_size": 5} | settings
    return evaluate_systems(systems, store, ill, FINDING, **given)  # type: ignore[arg-type]


def test_a_perfect_system_has_perfect_figures() -> None:
    found = trial({"ours": Finder()}, classifier=Brightness())
    for figure in ("ap", "auroc", "ncc", "iou_area", "energy", "pointing", "recall", "precision", "iou", "dice"):
        assert found.interval("ours", figure).value == pytest.approx(1), figure
    assert found.interval("ours", "dice_oracle").value == 1
    assert found.interval("ours", "area").value == pytest.approx(4 / 64)
    assert found.interval("ours", "lesion_area").value == pytest.approx(4 / 64)
    assert found.interval("ours", "area_healthy").value == 0
    assert found.interval("ours", "outside").value == 0
    assert found.interval("ours", "healed").value == 1
    assert found.interval("ours", "detection").value == 1
    sick, well, ratio = found.magnitudes("ours")
    assert sick.value == pytest.approx(1.2 * 4 / 64)
    assert well.value == 0
    assert ratio.value == math.inf


def test_twins_count_only_where_the_finding_is_alone() -> None:
    found = trial({"ours": Finder(share=0.5)})
    judged = found.per_image[found.per_image["twin_inside"].notna()]
    assert len(judged) == 3  # of six, three have Pneumothorax too
    assert found.interval("ours", "twin_inside").value == pytest.approx(0.6)
    assert found.interval("ours", "twin_remaining").value == pytest.approx(0.5)


def test_leaks_and_weak_maps_show() -> None:
    found = trial({"ours": Finder(), "weak": Finder(share=0.2), "leaking": Finder(leak=0.3)}, classifier=Brightness())
    assert found.interval("weak", "healed").value == 0
    # 60 pixels outside; where Pneumothorax is, four of them are lit and not leaked into.
    assert found.interval("leaking", "outside").value == pytest.approx(0.3 * (60 + 56) / 2 / 60)
    assert found.interval("leaking", "recall").value == 1
    assert found.interval("leaking", "precision").value < 0.1
    assert found.difference("leaking", "dice").value > 0.5


def test_what_an_answer_lacks_is_not_judged() -> None:
    found = trial({"ours": Finder(), "plain": Constant()}, classifier=Brightness())
    for figure in ("dice", "recall", "healed", "outside", "detection", "magnitude_healthy"):
        assert math.isnan(found.interval("plain", figure).value)
    assert found.interval("plain", "ap").value == pytest.approx(4 / 64)
    assert found.interval("plain", "ncc").value == 0
    assert found.interval("plain", "dice_oracle").value == pytest.approx(2 * 4 / 68)


def test_seeds_are_averaged_per_image() -> None:
    found = trial({"ours": [Finder(), Finder(share=0.0)]})
    assert found.values("ours", "ap").shape == (2, 12)
    assert found.interval("ours", "ap").value == pytest.approx((1 + 4 / 64) / 2)
    assert found.counts()["seeds"] == 2


def test_nobody_is_named_and_patients_stay_together() -> None:
    found = trial({"ours": Finder()})
    assert found.counts() == {
        "images": 12,
        "lesion_images": 6,
        "healthy_images": 6,
        "patients": 6,
        "folds": 1,
        "seeds": 1,
    }
    assert not found.per_image["patient"].isin(square_store().patients).any()


def test_every_system_sees_the_same_batches() -> None:
    first, second = Finder(), Finder()
    trial({"ours": first, "other": second})
    assert first.asked == second.asked == [5, 5, 2]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"healthy_rows": slice(None)}, "both as ill and as healthy"),
        ({"classifier": torch.nn.Linear(1, 1)}, "does not know 'Consolidation'"),
    ],
)
def test_unusable_trials_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        trial({"ours": Finder()}, **settings)


def test_a_system_must_answer_for_every_image() -> None:
    with pytest.raises(InputError, match="short gave 3 answers to 5 images"):
        trial({"short": Constant(3)})
    with pytest.raises(InputError, match="no image with the finding"):
        evaluate_systems({"ours": Finder()}, square_store(), [], FINDING, key=KEY)
    with pytest.raises(InputError, match="no system"):
        trial({})


def native_store(folder, size: int = 8) -> PreparedStore:  # type: ignore[no-untyped-def]
    """Two 16 x 32 films, a 4 x 4 lesion on the first, prepared with padding."""
    rows = []
    for i in range(2):
        image, mask = np.zeros((16, 32), np.uint8), np.zeros((16, 32), np.uint8)
        if i == 0:
            image[4:8, 4:8], mask[4:8, 4:8] = 153, 255
            Image.fromarray(mask).save(folder / "mask.png")
        Image.fromarray(image).save(folder / f"{i}.png")
        name = "mask.png" if i == 0 else ""
        kind = "pixel" if i == 0 else "none(empty)"
        rows.append(
            {"image": f"{i}.png", "patient": f"p{i}", "split": "", FINDING: 1 - i, "mask": name, "mask_kind": kind}
        )
    table = StudyTable.from_frame(pd.DataFrame(rows), folder, findings=(FINDING,))
    prepare(table, folder / "store", size=size, workers=1)
    return PreparedStore.open(folder / "store")


def test_maps_are_judged_on_the_films_own_grid(tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = native_store(tmp_path)
    truth = native_truth(store, FINDING)
    assert truth(0).shape == (16, 32)
    assert truth(0).sum() == 16
    assert not truth(1).any()
    ours = Finder(masker=lambda evidence, _: evidence > 0.5)
    found = evaluate_systems({"ours": ours}, store, [0], FINDING, healthy_rows=[1], native_masks=truth, key=KEY)
    assert found.interval("ours", "ap_native").value > 0.9
    # One cell, interpolated and cut at one half, loses the four corners of its 4 x 4 pixels.
    assert found.interval("ours", "dice_native").value == pytest.approx(2 * 12 / (12 + 16))
    with pytest.raises(InputError, match="the native mask is"):
        evaluate_systems({"ours": Finder()}, store, [0], FINDING, native_masks=lambda _: np.ones((8, 8)), key=KEY)
