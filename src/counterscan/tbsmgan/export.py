"""What leaves a generator: synthetic studies as image files with a study table, marked for what they are.

PNG of 8 or 16 bits, whose text chunks say that the image is synthetic; or DICOM Secondary Capture (PS3.3 A.8.1) that
says it wherever the standard has a place for it: Synthetic Data YES, Conversion Type SYN, Image Type DERIVED and
SECONDARY, Derivation Description, Image Comments, and a patient whose name is SYNTHETIC. Nothing is burnt into pixels.
No de-identification is claimed, since there is nobody to identify; a generator that copies its training images would
make that untrue, so judge it first.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch import Tensor

import counterscan
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import atomic_write, write_json
from counterscan.png import DISCLAIMER, png
from counterscan.tbsmgan.generator import StyleGAN

Format = Literal["png8", "png16", "dicom8", "dicom16"]
FORMATS: tuple[Format, ...] = get_args(Format)
NOTICE = "SYNTHETIC IMAGE: shows no patient. Research use only. Not a medical device."
_WHO = "SYNTHETIC"


def quantised(image: Tensor, bits: int) -> np.ndarray:
    """(1, H, W) in [-1, 1] to (H, W) uint8 or uint16 over the whole range, as prepared stores hold it."""
    top = 2**bits - 1
    values = (image.detach().cpu().double()[0].numpy().clip(-1, 1) + 1) * (top / 2)
    return np.rint(values).astype(np.uint8 if bits == 8 else np.uint16)


def facts_of(
    gan: StyleGAN, shown: Sequence[str] | None = None, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a file says of itself: who made it and what was asked for; None where that is not one thing."""
    return {
        "Synthetic": "true",
        "Description": NOTICE,
        "Disclaimer": DISCLAIMER,
        "Software": f"counterscan {counterscan.__version__}",
        "Checkpoint": gan.checkpoint,
        **({} if shown is None else {"Findings asked for": ", ".join(shown) or "none"}),
        **(settings or {}),
    }


def dicom(pixels: np.ndarray, facts: Mapping[str, str], *, patient: str, number: int = 1, report: str = "") -> bytes:
    """A Secondary Capture file of (H, W) uint8 or uint16; the same arguments give the same bytes.

    Study, series and instance have UIDs of their own, made from the pixels and the facts. Dates stay empty: nothing was
    acquired. The window spans the whole range, so that viewers show the pixels as they are.

    Args:
        pixels: MONOCHROME2 values.
        facts: see ``facts_of``.
        patient: Patient ID, at most 64 characters.
        number: of the instance.
        report: text that goes with the image, into Image Comments.
    """
    bits = 8 * pixels.dtype.itemsize
    words = "; ".join(f"{key}: {value}" for key, value in facts.items() if key != "Description")
    seed = hashlib.sha256(pixels.tobytes() + words.encode() + patient.encode()).hexdigest()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[seed, "instance"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta = meta
    ds.SpecificCharacterSet = "ISO_IR 192"
    # SOP common
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SyntheticData = "YES"
    # Patient, study, series: required fields that have nothing to say are empty
    ds.PatientName, ds.PatientID = f"{_WHO}^", patient
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientComments = NOTICE
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[seed, "study"])
    ds.StudyDate = ds.StudyTime = ds.ReferringPhysicianName = ds.AccessionNumber = ""
    ds.StudyID, ds.StudyDescription = _WHO, f"{_WHO} study"
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[seed, "series"])
    ds.Modality, ds.SeriesNumber, ds.SeriesDescription = "OT", "1", f"{_WHO} image"
    # Equipment
    ds.ConversionType = "SYN"
    ds.SecondaryCaptureDeviceManufacturer = "counterscan"
    ds.SecondaryCaptureDeviceSoftwareVersions = counterscan.__version__
    # Image
    ds.InstanceNumber, ds.PatientOrientation = str(number), ""
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.DerivationDescription = f"{NOTICE} Made by a generative network; {words}"[:1024]
    ds.ImageComments = "\n".join([NOTICE, words, *([report] if report else [])])[:10240]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    ds.WindowCenter, ds.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    raw = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"))).tobytes()
    ds.add_new("PixelData", "OB" if bits == 8 else "OW", raw + b"\0" * (len(raw) % 2))
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write_studies(
    gan: StyleGAN,
    images: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    format: Format = "png8",
    settings: Mapping[str, str] | None = None,
    reports: Sequence[str] | None = None,
) -> Path:
    """Images as files, a study table of them and ``about.json``; each image is a patient of its own.

    Args:
        gan: who made them.
        images: (N, 1, H, W) in [-1, 1].
        labels: (N, K) what they were asked for; above one half counts as present.
        out: folder for images/, table.csv and about.json.
        format: of the files.
        settings: how they were made, such as seed and psi, for the files and for the patients' ids.
        reports: (N,) text for each image, for the table's column ``report``.

    Returns:
        The table's path. It has no split: synthetic images are for training alone, so say so when you mix them in.

    Raises:
        InputError: an unknown format, lengths that do not agree, images that are not finite, or a folder that cannot be
            written.
    """
    out, settings = Path(out), dict(settings or {})
    if format not in FORMATS:
        raise InputError(f"{format!r} must be one of {', '.join(FORMATS)}", field="format")
    if images.ndim != 4 or images.shape[1] != 1 or not bool(images.isfinite().all()):
        raise InputError(f"expected finite images (N, 1, H, W), got {tuple(images.shape)}", field="images")
    if labels.shape != (len(images), len(gan.findings)):
        raise InputError(
            f"expected ({len(images)}, {len(gan.findings)}), got {tuple(labels.shape)}",
            field="labels",
            remedy="Give what the images were asked for, one column per finding",
        )
    if reports is not None and len(reports) != len(images):
        raise InputError(f"{len(reports)} for {len(images)} images", field="reports")
    batch = hashlib.sha256("\n".join([gan.checkpoint, *map(str, sorted(settings.items()))]).encode()).hexdigest()[:8]
    ending, bits = (".dcm" if format.startswith("dicom") else ".png"), int(format.lstrip("pngdicom"))
    rows = []
    for number, (image, label) in enumerate(zip(images, labels > 0.5, strict=True)):
        name, patient = f"images/synthetic-{number:06d}{ending}", f"{_WHO}-{batch}-{number:06d}"
        shown = [finding for finding, value in zip(gan.findings, label.tolist(), strict=True) if value]
        facts, pixels = facts_of(gan, shown, settings), quantised(image, bits)
        report = reports[number] if reports is not None else ""
        content = dicom(pixels, facts, patient=patient, report=report) if ending == ".dcm" else png(pixels, facts)
        with atomic_write(out / name) as handle:
            handle.write(content)
        row: dict[str, object] = {"image": name, "patient": patient, "split": ""}
        row |= {finding: float(value) for finding, value in zip(gan.findings, label.tolist(), strict=True)}
        rows.append(row | {"synthetic": 1} | ({"report": report} if reports is not None else {}))
    table = StudyTable.from_frame(pd.DataFrame(rows), out, findings=gan.findings)
    table.write(out / "table.csv")
    about = {
        "notice": NOTICE,
        "made_by": {"system": "stylegan", "version": counterscan.__version__, "checkpoint": gan.checkpoint},
        "images": len(images),
        "format": format,
        "settings": settings,
        "findings": {name: {"learned": gan.learned.get(name)} for name in gan.findings},
        "trouble": list(gan.diagnoses),
    }
    write_json(out / "about.json", about)
    return out / "table.csv"
