from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.data.intensity import CT_LUNG, IntensityRecipe, default_recipe, fit_recipe
from counterscan.data.load import load, on_grid
from counterscan.data.readers import RawImage, VoiTable, Window
from counterscan.errors import InputError


def plane(values, stored_range=(0.0, 255.0), kind="raster", **rest):
    return RawImage(np.asarray(values, dtype=np.float32), stored_range, kind, **rest)


def test_bytes_span_the_whole_scale():
    image = IntensityRecipe("range").apply(plane([[0, 127.5, 255]]))
    np.testing.assert_allclose(image, [[-1, 0, 1]])
    assert image.dtype == np.float32


def test_range_follows_the_stored_bits_and_given_ends_come_first():
    np.testing.assert_allclose(IntensityRecipe("range").apply(plane([[65535]], (0, 65535))), [[1]])
    np.testing.assert_allclose(IntensityRecipe("range", 0, 4095).apply(plane([[4095]], (0, 65535))), [[1]])


def test_a_window_clips():
    image = IntensityRecipe("window", -1350, 150).apply(plane([[-3000, -600, 900]], (-1024, 3071), "dicom"))
    np.testing.assert_allclose(image, [[-1, 0, 1]], atol=1e-6)


def test_voi_uses_the_file_and_else_its_bits():
    raw = plane([[0, 100, 4095]], (0, 4095), "dicom", voi=(Window(100, 50, "LINEAR_EXACT"), Window(0, 2, "SIGMOID")))
    np.testing.assert_allclose(IntensityRecipe().apply(raw), [[-1, 0, 1]])
    np.testing.assert_allclose(IntensityRecipe(voi_index=1).apply(raw), [[0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(IntensityRecipe(voi_index=7).apply(raw), [[0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(IntensityRecipe().apply(replace(raw, voi=())), [[-1, 200 / 4095 - 1, 1]], atol=1e-6)
    table = VoiTable(99, np.array([0.0, 0.75], dtype=np.float32))
    np.testing.assert_allclose(IntensityRecipe().apply(replace(raw, voi=(table,))), [[-1, 0.5, 0.5]])


def test_linear_is_the_standards_formula():
    """PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0 to the lowest and 4095 to the highest output."""
    np.testing.assert_allclose(Window(2048, 4096).apply(np.float32([[0, 2047.5, 4095]])), [[0, 0.5, 1]], atol=1e-6)
    np.testing.assert_array_equal(Window(2048, 1).apply(np.float32([[2047, 2047.5, 2048]])), [[0, 0, 1]])


def test_an_image_never_sets_its_own_contrast():
    """Doubling the brightest pixel leaves every other pixel where it was, whatever the recipe."""
    before, after = plane([[10, 20, 60]]), plane([[10, 20, 120]])
    for recipe in (IntensityRecipe(), IntensityRecipe("range"), IntensityRecipe("percentile", 5, 90)):
        np.testing.assert_array_equal(recipe.apply(before)[0, :2], recipe.apply(after)[0, :2])


def test_padding_takes_the_pad_value_and_is_not_valid():
    raw = plane([[50, 200]], valid=np.array([[False, True]]))
    image, valid = IntensityRecipe("range", pad=-0.5).apply_with_valid(raw)
    assert image[0, 0] == -0.5
    np.testing.assert_array_equal(valid, [[False, True]])
    assert IntensityRecipe("range", valid="all").valid_mask(raw).all()


def test_black_bars_are_not_valid_by_the_border_rule():
    picture = np.zeros((6, 8))
    picture[:, 2:6] = 90
    picture[3, 3] = 0  # black within the picture stays image
    valid = IntensityRecipe("range", valid="border").valid_mask(plane(picture))
    assert valid[:, 2:6].all()
    assert not valid[:, :2].any()
    assert not valid[:, 6:].any()
    assert IntensityRecipe("range", valid="border").valid_mask(plane(np.zeros((3, 3)))).all()


def test_without_a_range_a_recipe_is_asked_for():
    with pytest.raises(InputError, match=r"needs a range.*IntensityRecipe"):
        IntensityRecipe().apply(plane([[1.0]], None, "nifti"))


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "minmax"},
        {"kind": "window"},
        {"kind": "window", "lo": 1.0},
        {"kind": "window", "lo": 2.0, "hi": 1.0},
        {"kind": "window", "lo": float("nan"), "hi": 1.0},
        {"kind": "voi", "lo": 0.0, "hi": 1.0},
        {"pad": -2.0},
        {"valid": "some"},
        {"colour": "red"},
    ],
)
def test_nonsense_is_refused(values):
    with pytest.raises(InputError, match="intensity"):
        IntensityRecipe.from_dict(values)


def test_dict_and_back_through_json():
    recipe = IntensityRecipe("percentile", 3.0, 9.5, percentiles=(1.0, 99.0), valid="border")
    assert IntensityRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_fitting_bytes_and_ct():
    assert fit_recipe([plane([[3, 9]])] * 3) == IntensityRecipe("range")
    ct = plane([[-900, 40]], (-1024, 3071), "dicom", modality="CT", voi=(Window(40, 400),))
    assert fit_recipe([ct]) == IntensityRecipe("window", *CT_LUNG)
    assert default_recipe(ct) == IntensityRecipe("window", *CT_LUNG)
    radiograph = plane([[1, 2]], (0, 4095), "dicom", modality="CR", voi=(Window(40, 400),))
    assert fit_recipe([radiograph]) == default_recipe(radiograph) == IntensityRecipe("voi")


def test_fitting_twelve_bits_in_sixteen():
    sample = [plane([[0, 3000]], (0, 65535)), plane([[0, 4090]], (0, 65535))]
    assert fit_recipe(sample) == IntensityRecipe("range", 0.0, 4095.0)


def test_fitting_pools_percentiles_over_image_pixels_only():
    rng = np.random.default_rng(0)
    sample = []
    for offset in (0, 100):
        values = rng.normal(500 + offset, 50, (80, 80))
        valid = np.ones((80, 80), dtype=bool)
        values[:40], valid[:40] = 1e6, False
        sample.append(plane(values, (-32768, 32767), "dicom", modality="MR", valid=valid))
    recipe = fit_recipe(iter(sample), percentiles=(1, 99))
    pooled = np.concatenate([raw.pixels[raw.valid] for raw in sample])
    np.testing.assert_allclose((recipe.lo, recipe.hi), np.percentile(pooled, (1, 99)), rtol=1e-6)
    assert recipe.kind == "percentile"
    assert recipe.percentiles == (1, 99)


def test_fitting_nothing_is_refused():
    with pytest.raises(InputError, match="holds no image"):
        fit_recipe([])
    with pytest.raises(InputError, match="all pixels are alike"):
        fit_recipe([plane(np.ones((4, 4)), None, "nifti")])


def test_load_puts_a_file_on_the_grid(tmp_path):
    Image.fromarray(np.full((20, 40), 255, dtype=np.uint8)).save(tmp_path / "a.png")
    image, geometry, raw = load(tmp_path / "a.png", size=32)
    assert image.shape == (1, 32, 32)
    assert torch.allclose(image[0], geometry.valid() * 2.0 - 1.0)
    assert image.abs().max() <= 1
    assert raw.shape == geometry.native == (20, 40)


def test_padding_is_not_valid_on_the_grid():
    valid = np.ones((40, 40), dtype=bool)
    valid[:20] = False
    image, inside, _ = on_grid(plane(np.full((40, 40), 255), valid=valid), IntensityRecipe("range"), 20)
    assert not inside[:10].any()
    assert inside[10:].all()
    assert (image[0, :9] == -1).all()
