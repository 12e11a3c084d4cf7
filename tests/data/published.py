"""Miniatures of the published layouts of public sets, drawn by the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)


def picture(path: Path, seed: int = 0, shape: tuple[int, ...] = (32, 32)) -> Path:
    """Noise, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, box: tuple[int, int, int, int] | None, shape: tuple[int, int] = (32, 32)) -> Path:
    """Black with one white rectangle (top, left, bottom, right)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(shape, np.uint8)
    if box:
        pixels[box[0] : box[2], box[1] : box[3]] = 255
    Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def chexpert(root: Path) -> Path:
    base = root / "CheXpert-v1.0-small"
    train = [
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
        "CheXpert-v1.0-small/train/patient00002/study1/view2_lateral.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,",
    ]
    valid = [
        "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,"
        "0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0"
    ]
    for name, rows in (("train", train), ("valid", valid)):
        text(base / f"{name}.csv", CHEXPERT_HEADER + "\n".join(rows) + "\n")
        for row in rows:
            picture(root / row.split(",")[0])
    return root


def mimic(root: Path) -> tuple[Path, Path]:
    base, reports = root / "mimic-cxr-jpg", root / "mimic-cxr-reports"
    text(
        base / "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
        "aa,10000032,50414267,CHEST,PA,3056,2544\nbb,10000032,50414267,CHEST,LATERAL,3056,2544\n"
        "cc,10000764,57375967,CHEST,AP,2544,3056\n",
    )
    text(
        base / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split\naa,50414267,10000032,train\nbb,50414267,10000032,train\n"
        "cc,57375967,10000764,validate\n",
    )
    text(
        base / "mimic-cxr-2.0.0-chexpert.csv",
        "subject_id,study_id,Atelectasis,Cardiomegaly,Edema,No Finding,Support Devices\n"
        "10000032,50414267,,,,1.0,\n10000764,57375967,-1.0,1.0,0.0,,\n",
    )
    for place in ("p10/p10000032/s50414267/aa", "p10/p10000032/s50414267/bb", "p10/p10000764/s57375967/cc"):
        picture(base / "files" / f"{place}.jpg")
    text(reports / "files/p10/p10000032/s50414267.txt", "FINAL REPORT\n FINDINGS:  Clear.\n")
    return base, reports


def nih(root: Path) -> Path:
    rows = [
        ("00000001_000.png", "Cardiomegaly|Mass", 1),
        ("00000001_001.png", "No Finding", 1),
        ("00000002_000.png", "Effusion|Nodule", 2),
        ("00000003_000.png", "No Finding", 3),
        ("00000004_000.png", "Pleural_Thickening", 4),
        ("00000005_000.png", "No Finding", 5),
        ("00000006_000.png", "Infiltration", 6),
    ]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    )
    lines = [f"{name},{found},0,{who},58,M,PA,2682,2749,0.143,0.143,\n" for name, found, who in rows]
    text(root / "Data_Entry_2017.csv", header + "".join(lines))
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000006_000.png,Infiltrate,225.08,547.01,86.77,79.18,,,\n"
    text(root / "BBox_List_2017.csv", boxes)
    listed = [name for name, _, who in rows if who in (1, 2, 3, 4, 6)]
    text(root / "train_val_list.txt", "\n".join(listed))
    text(root / "test_list.txt", "00000005_000.png")
    for i, (name, _, _) in enumerate(rows):
        picture(root / f"images_00{1 + i % 2}" / "images" / name, i)
    return root


def tbx11k(root: Path) -> Path:
    base = root / "TBX11K"
    categories = [
        {"id": 1, "name": "ActiveTuberculosis"},
        {"id": 2, "name": "ObsoletePulmonaryTuberculosis"},
        {"id": 3, "name": "PulmonaryTuberculosis"},
    ]
    parts: Mapping[str, list[tuple[str, list[tuple[int, list[float]]]]]] = {
        "train": [
            ("health/h0001.png", []),
            ("sick/s0001.png", []),
            ("tb/tb0001.png", [(1, [10.0, 20.0, 5.0, 6.0])]),
            ("tb/tb0002.png", [(1, [1.0, 2.0, 5.0, 6.0]), (2, [7.0, 8.0, 3.0, 3.0])]),
        ],
        "val": [("tb/tb0003.png", [(2, [1.0, 2.0, 5.0, 6.0])]), ("tb/tb1199.png", []), ("health/h0002.png", [])],
    }
    for split, images in parts.items():
        listed = [{"id": i, "file_name": name, "width": 512, "height": 512} for i, (name, _) in enumerate(images)]
        drawn = [
            {"id": 10 * i + j, "image_id": i, "category_id": kind, "bbox": box, "area": 1, "iscrowd": 0}
            for i, (_, boxes) in enumerate(images)
            for j, (kind, box) in enumerate(boxes)
        ]
        content = {"images": listed, "annotations": drawn, "categories": categories}
        text(base / f"annotations/json/TBX11K_{split}.json", json.dumps(content))
        for name, _ in images:
            picture(base / "imgs" / name)
    return root


def covid_qu_ex(root: Path) -> Path:
    for part in ("Infection", "Lung"):
        base = root / f"{part} Segmentation Data" / f"{part} Segmentation Data"
        for split in ("Train", "Val", "Test"):
            for kind, name in (("COVID-19", "covid_1"), ("Non-COVID", "non_COVID (2)"), ("Normal", "Normal (3)")):
                folder = base / split / kind
                file = f"{name}_{split}.png"
                picture(folder / "images" / file)
                mask(folder / "lung masks" / file, (4, 4, 28, 28))
                if part == "Infection":
                    mask(folder / "infection masks" / file, (8, 8, 12, 12) if kind == "COVID-19" else None)
    return root


def covid_radiography(root: Path) -> Path:
    base = root / "COVID-19_Radiography_Dataset"
    for kind, stem in (("COVID", "COVID"), ("Lung_Opacity", "Lung_Opacity"), ("Normal", "Normal")):
        for i in range(1, 4):
            picture(base / kind / "images" / f"{stem}-{i}.png")
            mask(base / kind / "masks" / f"{stem}-{i}.png", (4, 4, 20, 20))
    for i in range(1, 4):
        picture(base / "Viral Pneumonia" / "images" / f"Viral Pneumonia-{i}.png")
    text(base / "README.md.txt", "as published")
    return root


def lgg(root: Path) -> Path:
    base = root / "kaggle_3m"
    for who, day in (("TCGA_CS_4941", "19960909"), ("TCGA_DU_5849", "19950405"), ("TCGA_HT_7473", "19970826")):
        for n, box in ((2, None), (10, (5, 5, 15, 15)), (11, (5, 5, 6, 6))):
            stem = base / f"{who}_{day}" / f"{who}_{day}_{n}"
            picture(stem.with_suffix(".tif"), n, (32, 32, 3))
            mask(stem.with_name(f"{stem.name}_mask.tif"), box)
    text(base / "data.csv", "Patient,RNASeqCluster\nTCGA_CS_4941,2\n")
    return root


def busi(root: Path) -> Path:
    base = root / "Dataset_BUSI_with_GT"
    for i, kind in enumerate(("benign", "malignant", "normal")):
        for n in (1, 2, 3):
            picture(base / kind / f"{kind} ({n}).png", seed=n + 10 * i, shape=(32, 40, 3))
            mask(base / kind / f"{kind} ({n})_mask.png", None if kind == "normal" else (3, 3, 9, 9), (32, 40))
    mask(base / "benign" / "benign (2)_mask_1.png", (20, 20, 25, 30), (32, 40))
    # The published set holds some pictures twice, under two classes.
    (base / "malignant" / "malignant (3).png").write_bytes((base / "benign" / "benign (3).png").read_bytes())
    return root
