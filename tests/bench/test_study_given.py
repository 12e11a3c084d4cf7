"""Synthetic images made elsewhere as an arm of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterscan.bench import study_content
from counterscan.bench.study_arms import arms_of
from counterscan.bench.study_models import Study
from counterscan.bench.study_run import _stages
from counterscan.cli.study import StudyOptions
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from tests.bench.study_toy import CONFIG, run, toy_store, use_toys
from tests.tbsmgan.linear import store

ARMS = replace(CONFIG, arms=("real", "classic", "duplicate", "given"), steps=4)


def made_elsewhere(count: int = 40, **columns: object) -> PreparedStore:
    """Images of nobody in the study, with further columns in their table."""
    found = store(count, seed=5)
    frame = found.table.frame.assign(patient=[f"made-{k}" for k in range(count)], **columns)
    view = found.subset(slice(None))
    view.table, view.patients = StudyTable(frame, found.table.root, found.findings), frame["patient"].to_numpy(str)
    return view


def test_images_made_elsewhere_are_an_arm_that_needs_no_models(tmp_path: Path) -> None:
    data, soft = toy_store(), [0.7, *[np.nan] * 39]
    given = made_elsewhere(**{"soft:Edema": soft})
    parts = {job.part for stage in _stages(Study(data, ARMS, tmp_path), arms_of(ARMS)) for job in stage}
    assert parts == {"arms", "synthesis"}
    report = run(data, tmp_path, ARMS, given=given)
    assert not report.left_out
    compared = {(c.ours, c.theirs) for c in report.comparisons["ap"]}
    assert compared == {("given", "classic"), ("given", "duplicate"), ("classic", "real")}
    made = study_content.load(Study(data, ARMS, tmp_path), "given", "rules-v2", 0)
    assert len(made) == 40
    assert made.targets[0, data.findings.index("Edema")] == pytest.approx(0.7)
    assert (made.targets[1:] == given.labels[1:]).all()
    assert made.images / 127.5 - 1 == pytest.approx(given.images(np.arange(40)).numpy()[:, 0], abs=0.01)
    assert made.counts(1, 2).tolist() == made.counts(-1, 2).tolist() == [0, 0]


def test_hard_labels_stay_where_soft_ones_are_not_asked_for(tmp_path: Path) -> None:
    study = Study(toy_store(), replace(ARMS, soft=False), tmp_path, given=made_elsewhere(**{"soft:Edema": 0.7}))
    study_content.make(study, "given", "", 0)
    assert set(np.unique(study_content.load(study, "given", "", 0).targets)) <= {0.0, 1.0}


def test_a_study_goes_on_with_the_same_given_images_only(tmp_path: Path) -> None:
    data = toy_store()
    first, second = made_elsewhere(), made_elsewhere()
    first.content, second.content = "a", "b"
    run(data, tmp_path, ARMS, given=first)
    with pytest.raises(InputError, match="another protocol"):
        run(data, tmp_path, ARMS, given=second)


@pytest.mark.parametrize("case", ["none", "size", "finding", "leak", "lesion"])
def test_images_that_do_not_fit_are_refused_before_anything_is_spent(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    data, given = toy_store(), made_elsewhere()
    if case == "size":
        given.size = 16
    elif case == "finding":
        given = PreparedStore.from_arrays(np.zeros((9, 8, 8), np.uint8), labels=np.zeros((9, 1)), findings=("Edema",))
    elif case == "leak":
        given.patients = np.where(np.arange(40) == 3, data.patients[data.split == "test"][0], given.patients)
    elif case == "lesion":
        given = made_elsewhere(lesion_patient=data.patients[data.split == "val"][:40])
    wanted = {
        "none": "no images",
        "size": "16 px",
        "finding": "no such label",
        "leak": "1 of their patients",
        "lesion": "40 of their",
    }[case]
    with pytest.raises(InputError, match=wanted):
        run(data, tmp_path, ARMS, given=None if case == "none" else given)
    assert not (tmp_path / "runs").exists()


def test_the_command_brings_given_images_to_the_grid_of_the_study(tmp_path: Path) -> None:
    real = toy_store()
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(tmp_path / "made.png")
    table = tmp_path / "made.csv"
    table.write_text("image,Edema,Pleural Effusion\nmade.png,1,0\nlost.png,0,0\n")
    options = StudyOptions(out=tmp_path / "study", images=table, workers=1)
    given = options.synthetic_images(real)
    assert given is not None
    assert len(given) == 1  # the other one is reported
    assert given.size == real.size
    assert given.images([0]).min() == 1
    assert StudyOptions(out=tmp_path).synthetic_images(real) is None
