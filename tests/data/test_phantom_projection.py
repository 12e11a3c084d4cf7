"""Line integrals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from counterscan.data.phantom.projection import (
    Network,
    Tubes,
    around,
    draw,
    half_chord,
    hull,
    length,
    length_outside,
    meet,
    smooth_field,
    wide_blur,
)
from counterscan.data.phantom.view import Acquisition, Frame


def acquisition(**changes: object) -> Acquisition:
    values: dict = {
        "projection": "PA", "source_mm": 1e9, "field_mm": 256.0, "shift_mm": (0.0, 0.0), "lean": 0.0, "turn": 0.0,
        "exposure": 0.0, "latitude": 1.0, "dose": 1.0, "scatter": 0.0, "heel": 0.0, "toe": 0.0, "black": 0.05,
        "marker": False, "collimation": (0.0, 0.0, 0.0, 0.0), "noise_seed": 0,
    }  # fmt: skip
    return Acquisition(**{**values, **changes})


def one_tube(start: tuple, end: tuple, radius: float, density: float = 1.0, limit: float = 10.0) -> Tubes:
    return Tubes(
        np.asarray([[start, end]], np.float32),
        np.full((1, 2), radius, np.float32),
        np.full(1, density, np.float32),
        limit,
    )


def network(*parts: Tubes) -> Network:
    return Network.of(parts)


@pytest.mark.parametrize("radius", [3.0, 17.5])
def test_chord_of_a_sphere(radius):
    d = np.linspace(0, 1.5 * radius, 40, dtype=np.float32)
    expected = 2 * np.sqrt(np.maximum(radius**2 - d**2, 0))
    np.testing.assert_allclose(length(around(4.0, half_chord((d / radius) ** 2, radius))), expected, atol=2e-2)


def test_chord_of_an_ellipsoid_holds_its_volume():
    a, b, c = 31.0, 17.0, 23.0
    axis = np.arange(-40, 40, 0.25, dtype=np.float32) + 0.125
    q = (axis[None] / a) ** 2 + (axis[:, None] / b) ** 2
    volume = length(around(0.0, half_chord(q, c))).sum(dtype=float) * 0.25**2
    assert volume == pytest.approx(4 / 3 * np.pi * a * b * c, rel=2e-3)


def test_intervals():
    one = [np.asarray([0.0, 0.0, 5.0]), np.asarray([10.0, 10.0, -5.0])]  # the last is empty
    two = [np.asarray([4.0, 20.0, 0.0]), np.asarray([6.0, 30.0, 2.0])]
    np.testing.assert_array_equal(length(meet(one, two)), [2, 0, 0])
    np.testing.assert_array_equal(hull(one, two)[0], [0, 0, 0])
    np.testing.assert_array_equal(length(one), [10, 10, 0])


def test_length_outside_a_union_against_sampling():
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(0, 100, (3, 2, 50)), axis=1)
    whole, a, b = ((e[0], e[1]) for e in ends)
    z = np.linspace(0, 100, 20001)[:, None]

    def inside(i):
        return (z > i[0]) & (z < i[1])

    expected = (inside(whole) & ~(inside(a) | inside(b))).mean(0) * 100
    np.testing.assert_allclose(length_outside(whole, a, b), expected, atol=0.05)


def test_chord_of_a_cylinder_across():
    frame = Frame(acquisition(), 256)  # 1 mm a pixel
    image = draw(frame.cut(network(one_tube((-60, 0.5, 0), (60, 0.5, 0), 20.0))), 256)
    y = frame.y[:, 0] - 0.5
    expected = 2 * np.sqrt(np.maximum(400 - y**2, 0))
    middle = np.abs(y) < 19
    np.testing.assert_allclose(image[middle, 128], expected[middle], rtol=0.01, atol=0.1)
    assert image[:, 30].max() == 0


def test_slanted_cylinder_is_longer_by_its_slant():
    frame = Frame(acquisition(), 256)
    flat = draw(frame.cut(network(one_tube((-60, 0.5, 0), (60, 0.5, 0), 8.0))), 256)
    slanted = draw(frame.cut(network(one_tube((-60, 0.5, -60), (60, 0.5, 60), 8.0))), 256)
    assert slanted[128, 128] / flat[128, 128] == pytest.approx(np.sqrt(2), rel=1e-3)


def test_tube_weight_is_its_volume_at_every_size_even_thinner_than_a_pixel():
    for size in (32, 64, 128, 256):
        frame = Frame(acquisition(), size)
        image = draw(frame.cut(network(one_tube((-60, -20, 0), (50, 33, 0), 0.8))), size)
        volume = image.sum(dtype=float) * frame.pixel_mm**2
        assert volume == pytest.approx(np.pi * 0.64 * np.hypot(110, 53), rel=0.06)


def test_bent_chain_has_neither_gap_nor_double_joint():
    angle = np.linspace(0, np.pi, 17)
    nodes = np.stack([80 * np.cos(angle), 80 * np.sin(angle) - 40, 0 * angle], -1)[None].astype(np.float32)
    tubes = Tubes(nodes, np.full((1, 17), 6, np.float32), np.ones(1, np.float32))
    frame = Frame(acquisition(), 256)
    image = draw(frame.cut(network(tubes)), 256)
    column, row = (np.rint(v).astype(int) for v in frame.pixels(nodes[0].T)[0][:, 1:-1])
    np.testing.assert_allclose(image[row, column], 12, rtol=0.03)


def test_a_wall_is_the_outer_minus_the_inner_tube():
    frame = Frame(acquisition(), 256)
    outer = one_tube((-60, 0.5, 0), (60, 0.5, 0), 10.0)
    image = draw(frame.cut(network(outer.with_wall(2.0, 1.5, 0.5))), 256)
    assert image[128, 128] == pytest.approx(1.5 * 20 - 1.0 * 16, rel=0.01)


def test_magnification_of_a_point_source():
    frame = Frame(acquisition(source_mm=1830.0), 128)
    assert frame.magnification(0.0) == pytest.approx(1)
    assert frame.magnification(-100.0) == pytest.approx(1700 / 1600)  # behind, nearer the source
    ap = Frame(acquisition(source_mm=1130.0, projection="AP"), 128)
    assert ap.magnification(100.0) == pytest.approx(1000 / 900)


def test_smooth_fields_agree_across_sizes():
    knots = np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32)
    small, large = smooth_field(knots, 64), smooth_field(knots, 256)
    np.testing.assert_allclose(large.reshape(64, 4, 64, 4).mean((1, 3)), small, atol=0.01)
    flat = np.full((128, 128), 3.0, np.float32)
    np.testing.assert_allclose(wide_blur(flat, 0.08), 3.0, rtol=1e-4)
