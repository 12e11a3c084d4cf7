from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from counterscan.data.importers import (
    IMPORTERS,
    import_chexpert,
    import_covid_qu_ex,
    import_covid_radiography,
    import_mimic_cxr,
    import_nih_cxr14,
    import_tbx11k,
)
from counterscan.data.splits import assert_no_leak
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from tests.data import published


def label(table: StudyTable, image: str, finding: str) -> float:
    frame = table.frame[table.frame["image"].str.endswith(image)]
    assert len(frame) == 1
    return float(frame[finding].iloc[0])


def test_chexpert(tmp_path: Path) -> None:
    table = import_chexpert(published.chexpert(tmp_path))
    table.validate(check_files=True)
    assert len(table.findings) == 13
    assert "No Finding" not in table.findings
    assert table.frame["split"].tolist() == ["train", "train", "val"]
    assert table.frame["patient"].tolist() == ["patient00001", "patient00002", "patient64541"]
    uncertain = "patient00002/study2/view1_frontal.jpg"
    assert label(table, uncertain, "Edema") == -1
    assert label(table, uncertain, "Lung Opacity") == 1
    assert np.isnan(label(table, uncertain, "Pneumonia"))
    # "No Finding" makes the blanks of its row 0, but says nothing about devices.
    healthy = "patient00001/study1/view1_frontal.jpg"
    assert label(table, healthy, "Edema") == 0
    assert label(table, healthy, "Support Devices") == 1
    at = table.frame["image"].str.endswith(uncertain).to_numpy()
    edema = table.findings.index("Edema")
    assert [table.targets(policy)[at, edema][0] for policy in ("zeros", "ones")] == [0, 1]
    assert np.isnan(table.targets("ignore")[at, edema][0])
    assert len(import_chexpert(tmp_path, frontal_only=False)) == 4


def test_chexpert_with_missing_images(tmp_path: Path) -> None:
    published.chexpert(tmp_path)
    next(tmp_path.rglob("patient00001/study1/*.jpg")).unlink()
    with pytest.raises(InputError, match=r"1 of 3 images of CheXpert are not there.*patient00001.*skip"):
        import_chexpert(tmp_path)
    assert len(import_chexpert(tmp_path, missing="skip")) == 2


def test_mimic_cxr(tmp_path: Path) -> None:
    base, reports = published.mimic(tmp_path)
    table = import_mimic_cxr(base, reports=reports)
    table.validate(check_files=True)
    assert table.frame["split"].tolist() == ["train", "val"]
    assert table.frame["report"].tolist() == ["FINAL REPORT FINDINGS: Clear.", ""]
    assert label(table, "aa.jpg", "Edema") == 0
    assert label(table, "cc.jpg", "Atelectasis") == -1
    assert len(import_mimic_cxr(base, frontal_only=False)) == 3


def test_nih(tmp_path: Path) -> None:
    table = import_nih_cxr14(published.nih(tmp_path), val_fraction=0.25)
    table.validate(check_files=True)
    where = table.frame.groupby("patient")["split"].first()
    # Listed for testing, or boxed although listed for training: both test.
    assert where["00000005"] == where["00000006"] == "test"
    assert sorted(where.drop(["00000005", "00000006"])) == ["train", "train", "train", "val"]
    assert label(table, "00000001_000.png", "Lung Lesion") == 1
    assert label(table, "00000002_000.png", "Lung Lesion") == 1
    assert label(table, "00000002_000.png", "Pleural Effusion") == 1
    assert label(table, "00000004_000.png", "Pleural Thickening") == 1
    assert label(table, "00000003_000.png", "Hernia") == 0
    boxed = int(np.flatnonzero(table.frame["boxes"] != "")[0])
    assert table.boxes(boxed) == [{"finding": "Infiltration", "box": [225.08, 547.01, 86.77, 79.18]}]
    kinds = dict(zip(table.frame["image"].str[-16:], table.frame["mask_kind"], strict=True))
    assert kinds["00000006_000.png"] == "box"
    assert kinds["00000003_000.png"] == "none(empty)"
    assert kinds["00000001_000.png"] == "none(unknown)"


def test_nih_without_lists_and_with_a_strange_finding(tmp_path: Path) -> None:
    published.nih(tmp_path)
    for name in ("train_val_list.txt", "test_list.txt"):
        (tmp_path / name).unlink()
    table = import_nih_cxr14(tmp_path)
    assert set(table.frame["split"]) == {"train", "val", "test"}
    assert_no_leak(table)
    entry = tmp_path / "Data_Entry_2017.csv"
    entry.write_text(entry.read_text().replace("Infiltration", "Gout"))
    with pytest.raises(InputError, match="Gout"):
        import_nih_cxr14(tmp_path)


def test_tbx11k(tmp_path: Path) -> None:
    table = import_tbx11k(published.tbx11k(tmp_path))
    table.validate(check_files=True)
    names = ("Tuberculosis", "Active Tuberculosis", "Latent Tuberculosis", "Abnormal")
    expected = {
        "h0001.png": (0, 0, 0, 0),
        "s0001.png": (0, 0, 0, 1),
        "tb0001.png": (1, 1, 0, 1),
        "tb0002.png": (1, 1, 1, 1),
        "tb0003.png": (1, 0, 1, 1),
        "tb1199.png": (1, -1, -1, 1),
    }
    for image, values in expected.items():
        assert tuple(label(table, image, name) for name in names) == values
    row = int(np.flatnonzero(table.frame["image"] == "imgs/tb/tb0002.png")[0])
    assert [box["finding"] for box in table.boxes(row)] == ["Active Tuberculosis", "Latent Tuberculosis"]
    assert table.frame["split"].value_counts().to_dict() == {"train": 4, "val": 3}
    kinds = dict(zip(table.frame["image"].str[5:], table.frame["mask_kind"], strict=True))
    assert kinds["sick/s0001.png"] == "none(empty)"
    assert kinds["tb/tb1199.png"] == "none(unknown)"


def test_tbx11k_uncertain_activity_and_contradictions(tmp_path: Path) -> None:
    published.tbx11k(tmp_path)
    path = tmp_path / "TBX11K/annotations/json/TBX11K_train.json"
    data = read_json(path)
    data["annotations"][0]["category_id"] = 3
    write_json(path, data)
    table = import_tbx11k(tmp_path)
    assert label(table, "tb0001.png", "Tuberculosis") == 1
    assert label(table, "tb0001.png", "Active Tuberculosis") == -1
    data["annotations"][0]["image_id"] = 0
    write_json(path, data)
    with pytest.raises(InputError, match=r"health/h0001\.png.*without tuberculosis"):
        import_tbx11k(tmp_path)
    del data["categories"]
    write_json(path, data)
    with pytest.raises(InputError, match="is not COCO JSON"):
        import_tbx11k(tmp_path)


def test_covid_qu_ex(tmp_path: Path) -> None:
    table = import_covid_qu_ex(published.covid_qu_ex(tmp_path))
    table.validate(check_files=True)
    assert table.frame["split"].value_counts().to_dict() == {"train": 3, "val": 3, "test": 3}
    assert label(table, "covid_1_Train.png", "COVID-19") == 1
    assert np.isnan(label(table, "covid_1_Train.png", "Pneumonia"))
    assert label(table, "non_COVID (2)_Val.png", "Pneumonia") == 1
    assert label(table, "Normal (3)_Test.png", "Abnormal") == 0
    kinds = table.frame.groupby(table.frame["patient"].str.split("/").str[0])["mask_kind"].first().to_dict()
    assert kinds == {"COVID-19": "pixel", "Non-COVID": "none(unknown)", "Normal": "none(empty)"}
    assert (table.frame["lung_mask"] != "").all()
    lungs = import_covid_qu_ex(tmp_path, part="lung")
    assert set(lungs.frame["mask_kind"]) == {"none(unknown)", "none(empty)"}
    next(tmp_path.rglob("infection masks/covid_1_Val.png")).unlink()
    with pytest.raises(InputError, match="has no infection mask"):
        import_covid_qu_ex(tmp_path)


def test_covid_radiography(tmp_path: Path) -> None:
    table = import_covid_radiography(published.covid_radiography(tmp_path))
    table.validate(check_files=True)
    assert len(table) == 12
    assert label(table, "/COVID-1.png", "COVID-19") == 1
    assert label(table, "Lung_Opacity-1.png", "COVID-19") == 0
    assert np.isnan(label(table, "Lung_Opacity-1.png", "Viral Pneumonia"))
    assert (table.frame["mask_kind"] != "pixel").all()
    assert (table.frame["lung_mask"] != "").sum() == 9
    assert set(table.frame["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("name", sorted(IMPORTERS))
def test_another_folder_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="Give the folder"):
        IMPORTERS[name](tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        IMPORTERS[name](tmp_path / "absent")
