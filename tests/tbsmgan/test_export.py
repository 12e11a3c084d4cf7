from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import SecondaryCaptureImageStorage

from counterscan.data.intensity import IntensityRecipe
from counterscan.data.prepare import prepare
from counterscan.data.readers import read_image
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.tbsmgan.export import FORMATS, dicom, facts_of, quantised, write_studies
from tests.tbsmgan.lively import FINDINGS, lively_gan

LABELS = torch.tensor([[0.0, 0], [1, 0], [0.6, 1]])
SETTINGS = {"psi": "0.7", "seed": "0"}


def test_grey_values_span_the_whole_range() -> None:
    image = torch.tensor([[[-1.0, 1.0, 0.0, 3.0]]])
    assert quantised(image, 8).tolist() == [[0, 255, 128, 255]]  # 127.5 is rounded to even
    assert quantised(image, 16).tolist() == [[0, 65535, 32768, 65535]]
    assert quantised(image, 16).dtype == np.uint16


@pytest.mark.parametrize("format", FORMATS)
def test_files_read_back_with_the_same_pixels(format: str, tmp_path: Path) -> None:
    gan = lively_gan()
    images = gan.sample(labels=LABELS)
    table = StudyTable.read(write_studies(gan, images, LABELS, tmp_path, format=format, settings=SETTINGS))
    assert table.findings == FINDINGS
    assert table.labels().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert table.frame["patient"].nunique() == 3
    assert set(table.frame["split"]) == {""}
    assert set(table.frame["synthetic"]) == {"1"}
    top = 255 if format.endswith("8") else 65535
    for row, image in enumerate(images):
        raw = read_image(table.image_path(row))
        wanted = ((image[0].double() + 1) * top / 2).round().numpy()
        np.testing.assert_array_equal(raw.pixels, wanted)
        assert raw.stored_range == (0.0, float(top))
        for kind in ("voi", "range"):  # the file's own window shows what its bits say
            np.testing.assert_allclose(IntensityRecipe(kind).apply(raw), wanted * 2 / top - 1, atol=1e-6)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["findings"]["Cardiomegaly"] == {"learned": False}
    assert about["settings"] == SETTINGS


def test_a_png_says_what_it_is(tmp_path: Path) -> None:
    gan = lively_gan()
    write_studies(gan, gan.sample(labels=LABELS), LABELS, tmp_path, format="png16", settings=SETTINGS)
    with Image.open(tmp_path / "images/synthetic-000002.png") as picture:
        assert picture.mode == "I;16"
        assert picture.text["Synthetic"] == "true"
        assert picture.text["Findings asked for"] == "Edema, Cardiomegaly"
        assert picture.text["psi"] == "0.7"


def test_a_dicom_file_is_a_secondary_capture_that_says_it_is_synthetic(tmp_path: Path) -> None:
    gan = lively_gan()
    reports = ["clear", "oedema", "Ödem"]
    settings = SETTINGS | {"by": "Zoë"}
    images = gan.sample(labels=LABELS)
    write_studies(gan, images, LABELS, tmp_path, format="dicom16", settings=settings, reports=reports)
    files = [pydicom.dcmread(path) for path in sorted((tmp_path / "images").glob("*.dcm"))]  # without force
    ds = files[2]
    assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY"]
    assert (ds.SyntheticData, ds.ConversionType, ds.BurnedInAnnotation) == ("YES", "SYN", "NO")
    assert str(ds.PatientName).startswith("SYNTHETIC")
    assert ds.PatientID.startswith("SYNTHETIC-")
    assert "SYNTHETIC" in ds.DerivationDescription
    assert "Findings asked for: Edema, Cardiomegaly" in ds.ImageComments
    assert ds.ImageComments.endswith("Ödem")
    assert "Zoë" in ds.DerivationDescription
    for name in ("PatientIdentityRemoved", "DeidentificationMethod", "PixelSpacing", "StudyDate"):
        assert not ds.get(name)
    # Type 1 and 2 attributes of the modules of a Secondary Capture image (PS3.3 A.8.1) are there.
    for name in ("PatientBirthDate", "PatientSex", "StudyTime", "ReferringPhysicianName", "AccessionNumber", "StudyID"):
        assert name in ds
    for name in ("Modality", "SeriesInstanceUID", "StudyInstanceUID", "InstanceNumber", "PatientOrientation"):
        assert name in ds
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        assert len({file[name].value for file in files}) == 3
    np.testing.assert_array_equal(ds.pixel_array, quantised(images[2], 16))


def test_odd_sizes_and_the_same_bytes_again() -> None:
    pixels, facts = np.arange(9, dtype=np.uint8).reshape(3, 3), facts_of(lively_gan())
    made = dicom(pixels, facts, patient="SYNTHETIC-1")
    ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(made))
    assert ds.pixel_array.tolist() == pixels.tolist()
    assert len(ds.PixelData) == 10
    assert dicom(pixels, facts, patient="SYNTHETIC-1") == made
    assert dicom(pixels, facts, patient="SYNTHETIC-2") != made


def test_studies_can_be_prepared_beside_real_ones(tmp_path: Path) -> None:
    gan = lively_gan()
    images = gan.sample(labels=LABELS)
    table = StudyTable.read(write_studies(gan, images, LABELS, tmp_path, format="dicom16"))
    prepare(table, tmp_path / "store", size=16, workers=1)
    store = PreparedStore.open(tmp_path / "store")
    torch.testing.assert_close(store.images(), images, atol=1 / 255, rtol=0)


def test_findings_with_names_of_their_own_and_none_at_all(tmp_path: Path) -> None:
    gan = lively_gan()
    gan.findings = ("Edema", "Sternal wires")
    table = StudyTable.read(write_studies(gan, gan.sample(labels=LABELS), LABELS, tmp_path / "own"))
    assert table.findings == ("Edema", "Sternal wires")
    plain = lively_gan(labels=0)
    path = write_studies(plain, plain.sample(2), torch.zeros(2, 0), tmp_path / "none")
    assert len(StudyTable.read(path, labelled=False)) == 2


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    gan = lively_gan()
    images = gan.sample(labels=LABELS)
    with pytest.raises(InputError, match="must be one of png8"):
        write_studies(gan, images, LABELS, tmp_path, format="jpeg")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels"):
        write_studies(gan, images, LABELS[:2], tmp_path)
    with pytest.raises(InputError, match="reports"):
        write_studies(gan, images, LABELS, tmp_path, reports=["one"])
    with pytest.raises(InputError, match="images"):
        write_studies(gan, images * torch.nan, LABELS, tmp_path)
    assert not list(tmp_path.iterdir())
