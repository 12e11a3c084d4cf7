from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.data.geometry import Geometry
from counterscan.errors import InputError
from counterscan.report.files import safe_name, write_outputs
from tests.report.answers import answer, attribution

GEOMETRY = Geometry((32, 24), 16, spacing=(0.5, 0.25), orientation="L\\F")


def test_everything_on_the_native_grid(tmp_path):
    given = answer(geometry=GEOMETRY)
    written = write_outputs(tmp_path, "s1", given)
    assert set(written) == {"map", "evidence", "npz", "counterpart", "mask", "overlay"}
    volume = nibabel.load(written["map"])
    assert volume.shape == (24, 32, 1)
    assert volume.get_data_dtype() == np.float32
    expected = GEOMETRY.to_native(given.delta)[0].numpy()
    np.testing.assert_array_equal(np.asarray(volume.dataobj)[:, :, 0].T, expected)
    assert volume.header.get_zooms()[:2] == (0.25, 0.5)
    # Columns run to the left, rows to the feet.
    np.testing.assert_allclose(volume.affine[:3, :2].T, [[-0.25, 0, 0], [0, 0, -0.5]])
    assert np.linalg.matrix_rank(volume.affine) == 4
    with np.load(written["npz"], allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["map"], expected)
        assert {k: arrays[k].shape for k in ("evidence", "mask", "counterpart")} == dict.fromkeys(
            ("evidence", "mask", "counterpart"), (32, 24)
        )
        assert arrays["mask"].dtype == bool
        about = json.loads(str(arrays["about"]))
    assert about["finding"] == "Lung Lesion"
    assert about["checkpoint"] == "abc"
    healed, mask, overlay = (Image.open(written[k]) for k in ("counterpart", "mask", "overlay"))
    assert healed.text["Synthetic"] == "true"
    assert "Synthetic" not in mask.text
    assert healed.size == mask.size == overlay.size == (24, 32)
    assert (healed.mode, overlay.mode) == ("L", "RGB")
    assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_model_grid_when_asked_or_when_nothing_else_is_known(tmp_path):
    for name, given, native in (("a", answer(geometry=GEOMETRY), False), ("b", answer(), True)):
        written = write_outputs(tmp_path, name, given, native=native, formats=["nifti"])
        assert set(written) == {"map", "evidence"}
        volume = nibabel.load(written["evidence"])
        assert volume.shape == (16, 16, 1)
        np.testing.assert_allclose(volume.affine, np.diag([-1.0, -1, 1, 1]))


def test_native_image_keeps_its_detail(tmp_path):
    native = torch.rand(1, 32, 24) - 0.5
    given = answer(geometry=GEOMETRY)
    written = write_outputs(tmp_path, "s1", given, native_image=native, formats=["npz"])
    with np.load(written["npz"]) as arrays:
        np.testing.assert_allclose(arrays["counterpart"], native[0].numpy() - arrays["map"], atol=1e-6)
    with pytest.raises(InputError, match="native image"):
        write_outputs(tmp_path, "s1", given, native_image=native[:, :8])


def test_attribution_maps_have_no_counterpart_files(tmp_path):
    assert set(write_outputs(tmp_path, "s1", attribution())) == {"evidence", "npz", "overlay"}


def test_output_is_the_same_bytes_twice_and_leaves_no_litter(tmp_path):
    first = {k: p.read_bytes() for k, p in write_outputs(tmp_path, "s1", answer()).items()}
    second = {k: p.read_bytes() for k, p in write_outputs(tmp_path, "s1", answer()).items()}
    assert first == second
    assert len(list(tmp_path.iterdir())) == len(first)


def test_names_stay_in_the_folder(tmp_path):
    assert safe_name("study_01-a") == "study_01-a"
    assert safe_name("a/b") != safe_name("a_b")
    assert safe_name("../../etc/passwd").startswith("etc_passwd-")
    assert safe_name("..").startswith("image-")
    assert len(safe_name("x" * 500)) < 100
    written = write_outputs(tmp_path / "out", "../up", answer(), formats=["npz"])
    assert written["npz"].parent == tmp_path / "out"


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(InputError, match="nifti, npz, png"):
        write_outputs(tmp_path, "s1", answer(), formats=["dicom"])
