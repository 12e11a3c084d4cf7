"""From what a user names (files, folders, series) to a stream of images, with a count of what was passed over."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from counterscan.data.readers.dicom import dicom_frames, holds_image
from counterscan.data.readers.nifti import nifti_frames
from counterscan.data.readers.raster import raster_frames
from counterscan.data.readers.sniff import sniff, unreadable
from counterscan.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii", ".nii.gz")


@dataclass(frozen=True)
class ImageItem:
    """One image to read: `read_image(item.path, frame=item.frame)`."""

    path: Path
    frame: int | None = None


class ImageWalk:
    """Iterate over images; after (or while) doing so, ask what was found and what was passed over.

    Nothing is decoded and nothing is held: any number of files costs the same memory, bar one folder's names.

    Attributes:
        found: items yielded so far.
        skipped: reason -> number of files and folders inside the folders passed over so far.
    """

    def __init__(self, inputs: Iterable[str | Path], each_frame: bool, without: Path | None = None) -> None:
        self._inputs = [Path(entry) for entry in inputs]
        self._each_frame = each_frame
        self._without = None if without is None else os.path.realpath(without)
        self.found = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ImageItem]:
        self.found, self.skipped = 0, Counter()
        for entry in self._inputs:
            if not entry.exists():
                raise InputError("no such file or folder", path=entry, remedy="Check the path")
            if entry.is_dir():
                _listed(entry)
        for entry in self._inputs:
            for path in self._files(entry):
                for item in self._frames(path):
                    self.found += 1
                    yield item
        if not self.found:
            passed = f" ({sum(self.skipped.values())} other files were passed over)" if self.skipped else ""
            raise InputError(
                f"no image found{passed}",
                path=self._inputs[0] if self._inputs else None,
                field="inputs",
                remedy="Give DICOM, PNG, JPEG, TIFF, BMP or NIfTI files, or a folder that holds some",
            )

    def _files(self, entry: Path) -> Iterator[Path]:
        if entry.is_dir():
            yield from self._folder(entry, _listed(entry), set())
        else:
            yield entry  # named by the user, so whatever is wrong with it is theirs to hear from the reader

    def _folder(self, folder: Path, names: list[str], seen: set[str]) -> Iterator[Path]:
        seen.add(os.path.realpath(folder))
        for name in names:
            path = folder / name
            if name.startswith("."):
                self.skipped["hidden"] += 1
            elif path.is_dir():
                yield from self._inner(path, seen)
            elif (reason := why_not(path)) and not _should_be_read(path, reason):
                self.skipped[reason] += 1
            else:
                yield path

    def _inner(self, folder: Path, seen: set[str]) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where we are
            return
        if real == self._without:
            self.skipped["folder of answers"] += 1
            return
        try:
            names = _listed(folder)
        except InputError:  # one folder costs the others nothing
            self.skipped["folder that cannot be listed"] += 1
            return
        yield from self._folder(folder, names, seen)

    def _frames(self, path: Path) -> Iterator[ImageItem]:
        if not self._each_frame:
            yield ImageItem(path)
            return
        try:
            frames = frame_count(path)
        except InputError:  # yielded all the same: the reader says what is wrong, and the caller counts it as bad
            frames = 1
        yield from (ImageItem(path, frame if frames > 1 else None) for frame in range(frames))


def iter_images(
    inputs: Iterable[str | Path] | str | Path, *, each_frame: bool = False, without: Path | None = None
) -> ImageWalk:
    """Stream the images of files and folders, in the order named; folders recursively, in natural order (2 before 10).

    A DICOM series is a folder like any other: one item per file. Hidden files, files that are no image and DICOM
    objects without one (reports, structures, segmentations, DICOMDIR) are passed over in folders and counted in
    ``skipped``. Files named one by one, and those whose ending promises an image, are always yielded, so that whoever
    reads them hears what is wrong.

    Args:
        inputs: paths, or one path.
        each_frame: yield one item per frame of multi-frame files, instead of one item with ``frame=None``.
        without: a folder inside those named that is passed over, such as the one that answers go to.

    Returns:
        An iterable of `ImageItem` with the counts ``found`` and ``skipped``.

    Raises:
        InputError: on iteration, before the first image when an input does not exist or cannot be listed, after the
            last when there is none at all.
    """
    return ImageWalk([inputs] if isinstance(inputs, (str, Path)) else inputs, each_frame, without)


def is_image(path: str | Path) -> bool:
    """Whether the content (not the name) is of a kind that `read_image` takes; never raises on files."""
    return why_not(Path(path)) is None


def why_not(path: Path) -> str | None:
    """Why a file is passed over in a folder; None for an image."""
    try:
        sniffed = sniff(path)
    except InputError:
        return "unreadable"
    if sniffed.kind is None:
        return "not an image"
    if sniffed.kind == "dicom" and sniffed.bare_start is None and not holds_image(path):
        return "DICOM object without an image"
    return None


def _should_be_read(path: Path, reason: str) -> bool:
    """Whether a file that is not read is one that was to be: cut short, zeroed, without permission, a dangling link."""
    return reason in ("unreadable", "not an image") and path.name.lower().endswith(_SUFFIXES)


def _listed(folder: Path) -> list[str]:
    """Names in a folder, in natural order."""
    try:
        return sorted((entry.name for entry in os.scandir(folder)), key=_natural)
    except OSError as error:
        raise InputError(f"cannot be listed ({error.strerror})", path=folder, remedy="Check its permissions") from None


def frame_count(path: str | Path) -> int:
    """Number of frames, pages or slices of an image file, without decoding it.

    Raises:
        InputError: the file is missing, damaged or no image.
    """
    path = Path(path)
    sniffed = sniff(path)
    try:
        if sniffed.kind == "dicom":
            return dicom_frames(path, sniffed.bare_start)
        if sniffed.kind == "nifti":
            return nifti_frames(path, sniffed.compressed)
        if sniffed.kind == "raster":
            return raster_frames(path)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything in the libraries below
        raise InputError(
            f"its header is damaged ({type(error).__name__})", path=path, remedy="Restore it from its source"
        ) from None
    raise unreadable(path, sniffed)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
