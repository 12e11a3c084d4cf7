from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterscan.data.columns import merge_labels, parse_boxes, parse_labels
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

GOOD = """image,patient,split,Edema,Effusion,age
a.png,p1,train,1,0,60
b.png,p1,train,-1,,61
c.png,p2,valid,0,1,70
"""


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_images_that_are_only_looked_at_need_no_patient(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("image\na.png\nb.png\n")
    table = StudyTable.read(path, labelled=False)
    assert [table.image_path(row) for row in range(2)] == [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(InputError, match="column 'patient': is missing"):
        StudyTable.read(path)
    path.write_text("image,Edema\na.png,1\nb.png,0\n")
    assert StudyTable.read(path, {"patient": "image"}).frame["patient"].tolist() == ["a.png", "b.png"]


def test_reads_labels_splits_and_extras(tmp_path: Path) -> None:
    table = StudyTable.read(write(tmp_path, GOOD))
    assert table.findings == ("Edema", "Pleural Effusion")
    np.testing.assert_array_equal(table.labels(), np.array([[1, 0], [-1, np.nan], [0, 1]], np.float32))
    assert table.frame["split"].tolist() == ["train", "train", "val"]
    assert table.frame["age"].tolist() == ["60", "61", "70"]
    assert table.image_path(2) == tmp_path / "c.png"
    assert table.mask_paths(0) == {}
    assert table.boxes(0) == []
    assert table.frame_number(0) is None
    assert len(table.subset(split="train")) == 2
    assert table.subset(rows=[2, 0]).frame["image"].tolist() == ["c.png", "a.png"]
    assert table.subset(patients=["p2"]).frame["image"].tolist() == ["c.png"]


@pytest.mark.parametrize(
    ("policy", "blank", "expected"),
    [
        ("zeros", "zero", [[1, 0], [0, 0], [0, 1]]),
        ("ones", "zero", [[1, 0], [1, 0], [0, 1]]),
        ("ignore", "zero", [[1, 0], [np.nan, 0], [0, 1]]),
        ("ones", "ignore", [[1, 0], [1, np.nan], [0, 1]]),
    ],
)
def test_policies(tmp_path: Path, policy: str, blank: str, expected: list[list[float]]) -> None:
    table = StudyTable.read(write(tmp_path, GOOD))
    np.testing.assert_array_equal(table.targets(policy, blank), np.array(expected, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policy"):
        table.targets("U-zeros")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD.replace("c.png,p2,valid,0,1", "c.png,p2,valid,2,1"), ["row 4", "'Edema'", "'2'", "-1 (uncertain)"]),
        (GOOD.replace("c.png,p2", "c.png,p1"), ["row 4", "p1", "'train'", "'val'", "data split"]),
        (GOOD.replace("b.png", "a.png"), ["row 3", "'a.png'", "row 2"]),
        (GOOD.replace("valid", "holdout"), ["row 4", "'split'", "holdout", "train, val or test"]),
        (GOOD.replace("Edema,Effusion", "x,y"), ["no finding column", "--column"]),
        (GOOD.replace("patient", "group"), ["'patient'", "--column patient="]),
        (GOOD.replace("b.png", ""), ["row 3", "'image'", "blank"]),
        ("image,patient,Edema\na,1,1\nb,2,1\n", ["'Edema'", "one class only", "2 rows"]),
        ("image,patient,Edema\n", ["no rows"]),
        ("", ["empty"]),
        ("image;patient;Edema\na.png;1;1\n", ["separated by ';'", "with ','"]),
        ("image,patient,Edema,Edema \na,1,1,0\n", ["'Edema'", "twice"]),
        (GOOD.replace(",age", ",boxes").replace("60", "left"), ["row 2", "'boxes'", "not JSON"]),
        (GOOD.replace(",age", ",frame").replace("61", "1.5"), ["row 3", "'frame'", "1.5"]),
        (GOOD.replace(",age", ",mask_kind").replace("60", "pixel"), ["mask_kind", "row 3", "'61'"]),
        ("image,patient,Edema,mask_kind\na,1,1,pixel\nb,2,0,\n", ["row 2", "mask_kind", "no mask"]),
        ("image,patient,Edema,mask,mask_kind\na,1,1,m.png,empty\nb,2,0,,\n", ["row 2", "none(empty)", "has a mask"]),
    ],
)
def test_complaints_name_row_column_and_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        StudyTable.read(path)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        StudyTable.read(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="is a folder"):
        StudyTable.read(tmp_path)
    (tmp_path / "latin.csv").write_bytes("image,patient,Edema\nä.png,1,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        StudyTable.read(tmp_path / "latin.csv")
    (tmp_path / "no.parquet").write_bytes(b"PNG")
    with pytest.raises(InputError, match="cannot be read as a table"):
        StudyTable.read(tmp_path / "no.parquet")
    with pytest.raises(InputError, match="cannot be read as a table"):
        StudyTable.read(write(tmp_path, "image,patient\na,b\nc,d,e\n", "ragged.csv"))


def test_column_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "file,group,label,sarc\na.png,1,1,0\nb.png,2,0,1\n")
    mapping = {"image": "file", "patient": "group", "Brain Tumor": "label"}
    table = StudyTable.read(path, mapping, findings=["sarc"])
    assert table.findings == ("Brain Tumor", "sarc")
    with pytest.raises(InputError, match=r"'grp'.*no such column.*'group'"):
        StudyTable.read(path, mapping | {"patient": "grp"})
    # The same column may serve twice: every image its own patient.
    alone = StudyTable.read(path, {"image": "file", "patient": "file", "Sarcoidosis": "sarc"})
    assert alone.frame["patient"].tolist() == ["a.png", "b.png"]
    assert alone.findings == ("Sarcoidosis",)


def test_two_columns_of_one_finding_are_merged(tmp_path: Path) -> None:
    table = StudyTable.read(write(tmp_path, "image,patient,Mass,Nodule\na,1,0,1\nb,2,0,\nc,3,-1,0\n"))
    assert table.findings == ("Lung Lesion",)
    assert table.labels()[:, 0].tolist() == [1, 0, -1]


def test_missing_files_are_named(tmp_path: Path) -> None:
    table = StudyTable.read(write(tmp_path, GOOD))
    for name in "ac":
        (tmp_path / f"{name}.png").touch()
    with pytest.raises(InputError, match=r"column 'image'.*row 3.*b\.png"):
        table.validate(check_files=True)
    (tmp_path / "b.png").touch()
    table.validate(check_files=True)


def test_unlabelled_tables_are_welcome_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "image,patient\na,1\n")
    assert StudyTable.read(path, labelled=False).labels().shape == (1, 0)


def test_both_classes_can_be_required(tmp_path: Path) -> None:
    table = StudyTable.read(write(tmp_path, "image,patient,Edema,Hernia\na,1,1,0\nb,2,0,\n"))
    table.require_both_classes(["Edema"])
    with pytest.raises(InputError, match=r"'Hernia'.*one class only: 0 rows with the finding, 2 without"):
        table.require_both_classes()
    with pytest.raises(InputError, match="no such finding"):
        table.require_both_classes(["Gout"])


def test_masks_boxes_and_twins(tmp_path: Path) -> None:
    text = (
        "image,patient,Edema,mask,mask:Effusion,boxes,twin\na,1,1,m.png,e.png,,t.png\n"
        'b,2,0,,,"[{""finding"": ""Nodule"", ""box"": [1, 2, 3, 4]}]",\nc,3,0,,,,\n'
    )
    table = StudyTable.read(write(tmp_path, text))
    assert table.mask_paths(0) == {"": tmp_path / "m.png", "Pleural Effusion": tmp_path / "e.png"}
    assert table.mask_path(0, "Edema") is None
    assert table.boxes(1) == [{"finding": "Lung Lesion", "box": [1.0, 2.0, 3.0, 4.0]}]
    assert table.twin_path(0) == tmp_path / "t.png"
    assert table.twin_path(1) is None
    assert table.frame["mask_kind"].tolist() == ["pixel", "box", "none(unknown)"]


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '[{"box": [1, 2, 3]}]', '[{"box": [1, 2, 0, 4]}]', '[{"box": [NaN,1,1,1]}]']
)
def test_boxes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"list|entry|positive"):
        parse_boxes(text)


def test_written_elsewhere_paths_still_lead_home(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other" / "deep"
    home.mkdir()
    table = StudyTable.read(write(home, GOOD))
    for name in "abc":
        (home / f"{name}.png").touch()
    for ending in ("csv", "parquet", "tsv"):
        table.write(other / f"t.{ending}")
        again = StudyTable.read(other / f"t.{ending}")
        again.validate(check_files=True)
        np.testing.assert_array_equal(again.labels(), table.labels())
        assert not list(other.glob(".*"))


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)
NAME = TEXT.map(str.strip).filter(lambda s: s and s.lower() not in {"nan"})
ROW = st.tuples(
    NAME, st.integers(0, 9), st.sampled_from([1.0, 0.0, -1.0, np.nan]), st.sampled_from([1.0, 0.0, -1.0, np.nan]), TEXT
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=12, unique_by=lambda r: r[0]), ending=st.sampled_from(["csv", "parquet"])
)
def test_round_trip(tmp_path: Path, rows: list[tuple[str, int, float, float, str]], ending: str) -> None:
    frame = pd.DataFrame(rows, columns=["image", "patient", "Edema", "finding:Strange thing", "report"])
    frame["split"] = np.where(frame["patient"] % 2, "train", "")
    table = StudyTable.from_frame(frame, tmp_path)
    path = tmp_path / f"t.{ending}"
    table.write(path)
    again = StudyTable.read(path, labelled=False)
    assert again.findings == ("Edema", "Strange thing")
    np.testing.assert_array_equal(again.labels(), table.labels())
    for column in ("image", "patient", "split", "report"):
        assert again.frame[column].tolist() == table.frame[column].tolist()


@given(
    st.lists(st.one_of(st.sampled_from(["1", "0", "-1", "", " 1.0 ", "nan", "-1.0"]), st.text(max_size=4)), max_size=9)
)
def test_label_values_are_read_or_refused(values: list[str]) -> None:
    series = pd.Series(values, dtype=object)
    meaning = {"": np.nan, "nan": np.nan, "none": np.nan, "na": np.nan, "n/a": np.nan}
    try:
        numbers = [meaning[v.strip().lower()] if v.strip().lower() in meaning else float(v) for v in values]
    except ValueError:
        numbers = [np.inf]
    if all(np.isnan(v) or v in (1, 0, -1) for v in numbers):
        parsed = parse_labels(series, "Edema")
        assert parsed.dtype == np.float32
        np.testing.assert_array_equal(parsed, np.array(numbers, np.float32))
    else:
        with pytest.raises(InputError, match=r"'Edema'.*row "):
            parse_labels(series, "Edema")


@given(st.lists(st.tuples(*[st.sampled_from([1.0, 0.0, -1.0, np.nan])] * 2), min_size=1, max_size=8))
def test_merging_ignores_order(pairs: list[tuple[float, float]]) -> None:
    first, second = np.array(pairs).T
    np.testing.assert_array_equal(merge_labels([first, second]), merge_labels([second, first]))


def test_225_000_rows_take_seconds() -> None:
    count = 225_000
    rng = np.random.default_rng(0)
    columns = {name: rng.choice(["1", "0", "-1", ""], count) for name in ("Edema", "Effusion", "Pneumonia", "Fracture")}
    frame = pd.DataFrame(
        {"image": [f"{i}.png" for i in range(count)], "patient": [f"p{i // 3}" for i in range(count)], **columns}
    )
    began = time.perf_counter()
    StudyTable.from_frame(frame, ".").validate()
    assert time.perf_counter() - began < 10
