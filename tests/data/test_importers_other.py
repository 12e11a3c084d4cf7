from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterscan.data.importers import import_busi, import_lgg_mri, import_manifest
from counterscan.data.splits import assert_no_leak
from counterscan.errors import InputError
from tests.data import published
from tests.real import real_data


def test_lgg(tmp_path: Path) -> None:
    table = import_lgg_mri(published.lgg(tmp_path / "set"), derived=tmp_path / "made", min_pixels=10)
    table.validate(check_files=True)
    assert table.frame["Brain Tumor"].tolist() == [0, 1, -1] * 3
    assert table.frame["slice"].tolist()[:3] == ["2", "10", "11"]
    assert table.frame["mask_kind"].tolist()[:3] == ["none(empty)", "pixel", "pixel"]
    assert sorted(set(table.frame["patient"])) == ["TCGA_CS_4941", "TCGA_DU_5849", "TCGA_HT_7473"]
    assert set(table.frame["split"]) == {"train", "val", "test"}
    source = tmp_path / "set/kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_10.tif"
    with Image.open(source) as image, Image.open(table.image_path(1)) as made:
        np.testing.assert_array_equal(np.asarray(image)[:, :, 1], np.asarray(made))
    other = import_lgg_mri(tmp_path / "set", derived=tmp_path / "made", channel="post")
    assert other.image_path(1) != table.image_path(1)
    assert other.frame["Brain Tumor"].tolist() == [0, 1, 1] * 3


def test_lgg_complaints(tmp_path: Path) -> None:
    root = published.lgg(tmp_path / "set")
    with pytest.raises(InputError, match=r"three sequences.*derived"):
        import_lgg_mri(root)
    next(root.rglob("*CS_4941_19960909_2_mask.tif")).unlink()
    with pytest.raises(InputError, match="has no mask"):
        import_lgg_mri(root, derived=tmp_path / "made")
    published.lgg(root)
    published.picture(next(root.rglob("*DU_5849_19950405_10.tif")))
    with pytest.raises(InputError, match="not three 8-bit channels"):
        import_lgg_mri(root, derived=tmp_path / "made")


def test_busi(tmp_path: Path) -> None:
    root = published.busi(tmp_path / "set")
    with pytest.raises(InputError, match=r"benign \(2\)\.png has 2 masks"):
        import_busi(root)
    table = import_busi(root, derived=tmp_path / "made")
    table.validate(check_files=True)
    assert len(table) == 9
    by_class = table.frame.groupby(table.frame["image"].str.split("/").str[0])
    assert by_class["Breast Lesion"].sum().to_dict() == {"benign": 3, "malignant": 3, "normal": 0}
    assert by_class["Malignant Breast Lesion"].sum().to_dict() == {"benign": 0, "malignant": 3, "normal": 0}
    assert by_class["mask_kind"].first()["normal"] == "none(empty)"
    two = int(np.flatnonzero(table.frame["image"] == "benign/benign (2).png")[0])
    with Image.open(str(table.mask_path(two))) as merged:
        assert int((np.asarray(merged) > 0).sum()) == 6 * 6 + 5 * 10
    # The copy under another class is the same "patient", so no split can tell the two apart.
    twins = table.frame[table.frame["image"].isin(["benign/benign (3).png", "malignant/malignant (3).png"])]
    assert twins["patient"].nunique() == 1
    assert table.frame["patient"].nunique() == 8
    (tmp_path / "set/Dataset_BUSI_with_GT/benign/benign (1)_mask.png").unlink()
    with pytest.raises(InputError, match="has no mask"):
        import_busi(root, derived=tmp_path / "made")


def manifest(root: Path, header: str, rows: list[str]) -> Path:
    published.text(root / "manifest.csv", "\n".join([header, *rows]) + "\n")
    return root


def test_a_manifest_with_boxes_keeps_their_patients_for_testing(tmp_path: Path) -> None:
    box = '"[{""finding"": ""Pneumonia"", ""box"": [1, 2, 3, 4]}]"'
    kinds = ("0,no_finding,,,,,No Finding", "1,pneumonia,,,,,Mass|Pneumonia")
    rows = [f"i{n}.png,g{n // 2},{kinds[n % 2]}" for n in range(20)]
    rows += ["b0.png,g3,1,pneumonia,m.png,box," + box + ",,", "b1.png,boxed,1,pneumonia,,box," + box + ",,Edema"]
    table = import_manifest(
        manifest(tmp_path, "image,group,label,label_name,mask,mask_kind,boxes,text,nih_findings", rows)
    )
    where = table.frame.groupby("patient")["split"].first()
    assert where["g3"] == where["boxed"] == "test"
    assert set(where.drop(["g3", "boxed"])) == {"train", "val", "test"}
    frame = table.frame.set_index("image")
    assert frame.loc["i1.png", ["Abnormal", "Pneumonia", "Lung Lesion", "Edema"]].tolist() == [1, 1, 1, 0]
    # Its list is blank: only what the label says is known.
    assert frame.loc["b0.png", ["Abnormal", "Pneumonia"]].tolist() == [1, 1]
    assert np.isnan(frame.loc["b0.png", "Edema"])
    assert frame.loc["i1.png", "report"] == "Mass, Pneumonia"


def test_a_manifest_with_notes_joins_patients_who_share_one(tmp_path: Path) -> None:
    rows = [f"i{n}.png,g{n},1,COVID-19,,none(unknown),,note {n % 5},{n % 2}" for n in range(10)]
    table = import_manifest(manifest(tmp_path, "image,group,label,label_name,mask,mask_kind,boxes,text,covid", rows))
    assert table.findings == ("COVID-19", "Abnormal")
    assert table.frame.groupby("report")["split"].nunique().max() == 1
    assert table.frame["patient"].nunique() == 5


def test_any_other_manifest_and_a_broken_one(tmp_path: Path) -> None:
    header = "image,group,label,label_name,mask,mask_kind,boxes,text"
    rows = [f"i{n}.png,g{n},{n % 2},,,,," for n in range(6)]
    assert import_manifest(manifest(tmp_path, header, rows)).findings == ("Abnormal",)
    with pytest.raises(InputError, match="column 'group'"):
        import_manifest(manifest(tmp_path, header.replace("group", "who"), rows))


@pytest.mark.parametrize(
    ("name", "images", "findings"),
    [
        ("lgg_mri", 1078, {"Brain Tumor": 549}),
        ("nih_cxr", 848, {"Abnormal": 400, "Pneumonia": 400, "Infiltration": 122, "Pleural Effusion": 61, "Edema": 55}),
        ("covid_cxr", 286, {"COVID-19": 205, "Abnormal": 274}),
    ],
)
def test_real_manifests(name: str, images: int, findings: dict[str, int]) -> None:
    table = import_manifest(real_data(name))
    table.validate(check_files=True)
    assert_no_leak(table)
    assert len(table) == images
    for finding, count in findings.items():
        assert int((table.frame[finding] == 1).sum()) == count
    assert set(table.frame["split"]) == {"train", "val", "test"}
    if name == "nih_cxr":
        boxed = table.frame[table.frame["boxes"] != ""]
        assert len(boxed) == 23
        patients = set(boxed["patient"])
        assert len(patients) == 22
        assert set(table.frame["split"][table.frame["patient"].isin(patients)]) == {"test"}
