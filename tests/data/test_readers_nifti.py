from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from counterscan.data.readers import frame_count, read_image
from counterscan.errors import InputError

VOLUME = np.random.default_rng(0).integers(-900, 900, (5, 6, 7)).astype(np.int16)
RAS = np.diag([2.0, 3.0, 4.0, 1.0])


def saved(tmp_path, volume, affine=RAS, name="a.nii", kind=nib.Nifti1Image):
    path = tmp_path / name
    nib.save(kind(volume, affine), path)
    return path


def displayed(volume, index):
    """Axial slice of an RAS+ volume: the patient's right at the left of the screen, anterior at the top."""
    return volume[::-1, ::-1, index].T


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_axial_slices_hang_radiologically(tmp_path, name, kind):
    path = saved(tmp_path, VOLUME, name=name, kind=kind)
    raw = read_image(path, frame=2)
    np.testing.assert_array_equal(raw.pixels, displayed(VOLUME, 2))
    assert (raw.spacing, raw.orientation, raw.frames) == ((3.0, 2.0), "L\\P", 7)
    assert (raw.kind, raw.stored_range, raw.pixels.dtype) == ("nifti", None, np.float32)
    assert frame_count(path) == 7


@pytest.mark.parametrize("codes", [*itertools.permutations("RAS"), ("L", "P", "I"), ("I", "L", "A"), ("P", "S", "L")])
def test_any_storage_order_shows_the_same_slice(tmp_path, codes):
    stored = nib.Nifti1Image(VOLUME, RAS)
    change = nib.orientations.ornt_transform(nib.io_orientation(RAS), nib.orientations.axcodes2ornt(codes))
    stored = stored.as_reoriented(change)
    assert nib.aff2axcodes(stored.affine) == tuple(codes)
    path = tmp_path / "a.nii"
    nib.save(stored, path)
    raw = read_image(path, frame=4)
    np.testing.assert_array_equal(raw.pixels, displayed(VOLUME, 4))
    assert raw.spacing == (3.0, 2.0)
    reference = nib.as_closest_canonical(nib.load(path)).get_fdata()
    np.testing.assert_array_equal(raw.pixels, displayed(reference, 4))


def test_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(VOLUME.astype(np.float32) * 0.5 + 3, RAS)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").get_fdata()[:, :, 0]
    np.testing.assert_allclose(read_image(tmp_path / "a.nii", frame=0).pixels, expected[::-1, ::-1].T, rtol=1e-6)


def test_bytes_name_their_range(tmp_path):
    path = saved(tmp_path, (VOLUME % 200).astype(np.uint8))
    assert read_image(path, frame=0).stored_range == (0, 255)


def test_two_dimensions_and_trailing_ones_need_no_frame(tmp_path):
    plane = VOLUME[:, :, 0]
    for volume in (plane, plane[..., None], plane[..., None, None]):
        np.testing.assert_array_equal(read_image(saved(tmp_path, volume)).pixels, displayed(VOLUME, 0))
    with pytest.raises(InputError, match="it holds 1"):
        read_image(saved(tmp_path, plane), frame=1)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"dim: holds 7 frames and none was chosen"):
        read_image(saved(tmp_path, VOLUME))
    with pytest.raises(InputError, match=r"dim: has the shape \(5, 6, 7, 2\)"):
        read_image(saved(tmp_path, np.stack([VOLUME, VOLUME], axis=3)), frame=0)
    with pytest.raises(InputError, match=r"datatype: voxels of type complex64"):
        read_image(saved(tmp_path, VOLUME.astype(np.complex64)), frame=0)
    holes = VOLUME.astype(np.float32)
    holes[0, 0, 3] = np.nan
    path = saved(tmp_path, holes)
    assert read_image(path, frame=2).shape == (6, 5)
    with pytest.raises(InputError, match="voxels: 1 of 30 pixels are NaN"):
        read_image(path, frame=3)
    content = saved(tmp_path, VOLUME).read_bytes()
    (tmp_path / "short.nii").write_bytes(content[:-50])
    with pytest.raises(InputError, match="dim: is truncated"):
        read_image(tmp_path / "short.nii", frame=0)
    nib.save(nib.Nifti1Pair(VOLUME, RAS), tmp_path / "pair.hdr")
    with pytest.raises(InputError, match="two-file NIfTI"):
        read_image(tmp_path / "pair.hdr", frame=0)


def test_a_volume_that_claims_too_much_is_refused(tmp_path):
    content = bytearray(saved(tmp_path, VOLUME).read_bytes())
    content[40:48] = np.array([3, 30000, 30000, 30000], dtype="<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"dim: claims the shape"):
        read_image(tmp_path / "huge.nii", frame=0)
