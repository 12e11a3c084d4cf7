from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import SegmentationStorage

from counterscan.data.readers import ImageItem, is_image, iter_images
from counterscan.errors import InputError
from tests.data.readers_made import dataset, write

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4)


@pytest.fixture
def folder(tmp_path):
    """A folder with a series, a sub-folder and much that is no image."""
    root = tmp_path / "study"
    (root / "series").mkdir(parents=True)
    for number in (1, 2, 10):
        write(dataset(RAMP), root / "series" / f"IM{number}")
    Image.fromarray(RAMP.astype(np.uint8)).save(root / "b.png")
    Image.fromarray(RAMP.astype(np.uint8)).save(root / ".hidden.png")
    (root / "notes.txt").write_text("not an image")
    (root / "empty.png").write_bytes(b"")
    segmentation = dataset(RAMP)
    segmentation.SOPClassUID = segmentation.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    write(segmentation, root / "seg.dcm")
    return root


def test_folders_are_walked_in_natural_order_and_the_rest_is_counted(folder):
    walk = iter_images(folder)
    names = [item.path.relative_to(folder).as_posix() for item in walk]
    assert names == ["b.png", "empty.png", "series/IM1", "series/IM2", "series/IM10"]  # .png promises an image
    assert walk.found == 5
    assert walk.skipped == {"hidden": 1, "not an image": 1, "DICOM object without an image": 1}
    assert [item.path for item in walk] == [item.path for item in walk]  # can be walked again


def test_named_files_are_always_yielded_in_the_order_given(folder):
    items = list(iter_images([folder / "notes.txt", folder / "b.png"]))
    assert items == [ImageItem(folder / "notes.txt"), ImageItem(folder / "b.png")]


def test_frames_on_request(tmp_path):
    path = write(dataset(np.stack([RAMP, RAMP, RAMP]), frames=3), tmp_path / "multi.dcm")
    assert list(iter_images(path)) == [ImageItem(path, None)]
    assert list(iter_images(path, each_frame=True)) == [ImageItem(path, frame) for frame in range(3)]


def test_links_in_circles_end(folder):
    os.symlink(folder, folder / "series" / "up")
    assert len(list(iter_images(folder))) == 5


def test_it_streams(folder):
    walk = iter_images([folder, folder])
    assert next(iter(walk)).path.name == "b.png"
    assert walk.found == 1


def test_a_missing_input_is_told_before_the_first_image(folder):
    with pytest.raises(InputError, match="no such file or folder"):
        next(iter(iter_images([folder, folder / "missing"])))


def test_dangling_links_to_images_are_left_to_the_reader(folder):
    os.symlink(folder / "nowhere", folder / "gone.dcm")
    os.symlink(folder / "nowhere", folder / "gone")
    walk = iter_images(folder)
    assert "gone.dcm" in [item.path.name for item in walk]
    assert walk.skipped["unreadable"] == 1


def test_a_folder_for_answers_is_passed_over(folder):
    walk = iter_images(folder, without=folder / "series")
    assert [item.path.name for item in walk] == ["b.png", "empty.png"]
    assert walk.skipped["folder of answers"] == 1


def test_a_folder_that_cannot_be_listed_costs_the_others_nothing(folder, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("series"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    walk = iter_images(folder)
    assert [item.path.name for item in walk] == ["b.png", "empty.png"]
    assert walk.skipped["folder that cannot be listed"] == 1
    with pytest.raises(InputError, match="cannot be listed"):
        next(iter(iter_images([folder / "b.png", folder / "series"])))


def test_missing_inputs_and_empty_folders_are_errors(tmp_path, folder):
    with pytest.raises(InputError, match="no such file or folder"):
        list(iter_images(folder / "missing"))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.txt").write_text("text")
    with pytest.raises(InputError, match=r"no image found \(1 other files"):
        list(iter_images(tmp_path / "bare"))


def test_is_image_never_raises(folder, tmp_path):
    assert is_image(folder / "b.png")
    assert not any(is_image(path) for path in (folder, folder / "notes.txt", tmp_path / "nowhere"))
