"""Small DICOM files with hand-picked fields, written for the reader tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dataset(pixels: np.ndarray, *, frames: int | None = None, **values: Any) -> FileDataset:
    """A plain grey image; ``values`` override or add fields by keyword, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance"])
    made = FileDataset("made.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.4", "1.2.3.5"
    made.PatientName, made.PatientID, made.PatientBirthDate = "Secret^Person", "ID-4711", "19700101"
    made.StudyDate, made.AccessionNumber, made.InstitutionName = "20200202", "ACC-99", "Hidden Hospital"
    made.Modality = "CR"
    plane = pixels if frames is None else pixels[0]
    made.Rows, made.Columns = plane.shape[:2]
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames is not None:
        made.NumberOfFrames = frames
    for keyword, value in values.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    if "BitsStored" in values and "HighBit" not in values:
        made.HighBit = made.BitsStored - 1
    data = pixels.tobytes()
    made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    return made


def write(made: Dataset, path: Path) -> Path:
    """Write a data set as a DICOM file."""
    made.save_as(path, enforce_file_format=True)
    return path


def sequence_item(**values: Any) -> Dataset:
    """A sequence item with the given fields."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
