"""Curves, infidelity and counts by hand, by plain loops, and against Captum and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import auc

from counterscan.errors import InputError
from counterscan.metrics import faithfulness as ff


@pytest.fixture
def weights():
    return torch.rand(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.3


@pytest.fixture
def images():
    return torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 - 1


def linear(weights):
    return lambda x: (x * weights).sum((1, 2, 3))


def mean_of(x):
    return x.mean((1, 2, 3))


def test_deletion_and_insertion_by_hand():
    image = torch.tensor([[[[1.0, 0.5], [0.25, 0.25]]]])
    worth = image.clone()
    black = torch.zeros_like(image)
    out = ff.deletion(lambda x: x.sum((1, 2, 3)) / 2, image, worth, black, steps=4)
    assert out.shares.tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    assert out.outputs.tolist() == [[1, 0.5, 0.25, 0.125, 0]]
    assert out.auc.item() == pytest.approx(0.25 * (0.5 + 0.5 + 0.25 + 0.125))
    back = ff.insertion(lambda x: x.sum((1, 2, 3)) / 2, image, worth, black, steps=4)
    assert back.outputs.tolist() == [[0, 0.5, 0.75, 0.875, 1]]
    # The area is the mean over shares, whatever the number of steps, also when it exceeds the pixels.
    fine = ff.deletion(lambda x: x.sum((1, 2, 3)) / 2, image, worth, black, steps=40)
    assert fine.auc.item() == pytest.approx(out.auc.item())
    assert ff.deletion(mean_of, image, worth, black, steps=1).auc.item() == pytest.approx(0.25)


def test_a_linear_classifiers_own_contributions_are_the_best_order(images, weights):
    substrate = torch.zeros_like(images)
    score, truth = linear(weights), images * weights
    best = ff.deletion(score, images, truth, substrate, steps=36).auc
    worst = ff.deletion(score, images, -truth, substrate, steps=36).auc
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = ff.deletion(score, images, torch.rand(images.shape, generator=generator), substrate, steps=36).auc
        assert (best < other).all()
        assert (other < worst).all()
    best_in = ff.insertion(score, images, truth, substrate, steps=36).auc
    # What has gone and what has come add up to the whole image.
    torch.testing.assert_close(best + best_in, score(images))


def test_curve_equals_a_plain_loop_in_any_batches(images, weights):
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(3, 6, 6, generator=generator)
    valid = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    valid[1, :, :2] = False
    maps[1, 0, 0] = torch.nan
    substrate = ff.blur_substrate(images)
    found = ff.deletion(linear(weights), images, maps, substrate, steps=7, valid=valid, batch_size=5)
    for i in range(3):
        order = np.argsort(-np.where(valid[i, 0], maps[i], -np.inf).ravel(), kind="stable")
        size = int(valid[i].sum())
        shares, outputs = [], []
        for k in range(8):
            count = round(k / 7 * size)
            frame = images[i, 0].flatten().clone()
            frame[order[:count]] = substrate[i, 0].flatten()[order[:count]]
            shares.append(count / size)
            outputs.append(float((frame * weights.flatten()).sum()))
        assert found.shares[i].tolist() == pytest.approx(shares)
        assert found.outputs[i].tolist() == pytest.approx(outputs)
        assert found.auc[i].item() == pytest.approx(auc(shares, outputs))
    assert found.auc.dtype == torch.float64
    whole = ff.deletion(linear(weights), images, maps, substrate, steps=7, valid=valid)
    torch.testing.assert_close(whole.outputs, found.outputs, atol=1e-12, rtol=0)


def test_ties_are_shuffled_not_read_from_the_top():
    image = torch.zeros(2, 1, 16, 16)
    image[:, :, :8] = 1
    flat = torch.zeros_like(image)
    found = ff.deletion(mean_of, image, flat, torch.zeros_like(image), steps=4)
    # In reading order the bright half would go first: 0.25 after one step, 0 after two.
    assert 0.3 < found.outputs[0, 1] < 0.45
    assert 0.15 < found.outputs[0, 2] < 0.35
    again = ff.deletion(mean_of, image[1:], flat[1:], torch.zeros_like(image[1:]), steps=4)
    assert found.outputs[1].tolist() == found.outputs[0].tolist() == again.outputs[0].tolist()
    other = ff.deletion(mean_of, image, flat, flat, steps=4, generator=torch.Generator().manual_seed(1))
    assert other.outputs[0].tolist() != found.outputs[0].tolist()


def test_substrates():
    image = torch.tensor([[[[1.0, 0.0], [0.0, -0.6]]]])
    valid = torch.tensor([[[[True, True], [True, False]]]])
    assert ff.mean_substrate(image).flatten().tolist() == pytest.approx([0.1] * 4)
    assert ff.mean_substrate(image, valid).flatten().tolist() == pytest.approx([1 / 3] * 4)
    spot = torch.zeros(1, 1, 32, 32)
    spot[..., 16, 16] = 1
    blurred = ff.blur_substrate(spot, 0.05)
    variance = (blurred.sum((0, 1, 2)) * (torch.arange(32.0) - 16).square()).sum()
    assert variance.sqrt().item() == pytest.approx(0.05 * 32, rel=0.05)


def test_infidelity_of_a_linear_classifier(images, weights):
    substrate = ff.mean_substrate(images)
    score, exact = linear(weights), (images - substrate) * weights
    args = (score, images)
    zero = ff.infidelity(*args, exact, substrate, patch=2)
    torch.testing.assert_close(zero, torch.zeros(3, dtype=torch.float64), atol=1e-20, rtol=0)
    torch.testing.assert_close(ff.infidelity(*args, 7 * exact, substrate, patch=2), zero, atol=1e-20, rtol=0)
    gradient = weights.expand(3, 1, 6, 6)
    torch.testing.assert_close(
        ff.infidelity(*args, gradient, substrate, patch=2, kind="gradient"), zero, atol=1e-20, rtol=0
    )
    nothing = ff.infidelity(*args, torch.zeros_like(exact), substrate, patch=2)
    assert (nothing > 0).all()
    torch.testing.assert_close(ff.infidelity(*args, -exact, substrate, patch=2), nothing)
    # One position only: the patch is the image, one number is always met by the best scalar.
    whole = ff.infidelity(*args, torch.zeros_like(exact), substrate, patch=6, draws=2)
    torch.testing.assert_close(whole, (score(images) - score(substrate)).square())


def test_infidelity_equals_captums(images, weights):
    captum = pytest.importorskip("captum.metrics")

    def score(x):
        return torch.tanh((x * weights).sum((1, 2, 3)))

    substrate = torch.full_like(images, -1.0)
    maps = (images - substrate) * weights.abs()
    draws, side = 40, 3
    spots = torch.randint(16, (draws,), generator=torch.Generator().manual_seed(9)).tolist()

    def perturb(x, baseline):
        squares = torch.zeros_like(x)
        for row in range(len(x)):
            top, left = divmod(spots[row % draws], 4)
            squares[row, :, top : top + side, left : left + side] = 1
        return squares, torch.where(squares > 0, baseline, x)

    expected = captum.infidelity(
        score, perturb, images, maps, baselines=substrate, n_perturb_samples=draws, normalize=True
    )
    generator = torch.Generator().manual_seed(9)
    found = ff.infidelity(score, images, maps, substrate, patch=side, draws=draws, generator=generator, batch_size=17)
    assert (found > 1e-6).all()
    torch.testing.assert_close(found, expected)


def test_infidelity_leaves_padding_alone(images, weights):
    valid = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    valid[..., 3:] = True
    substrate = torch.zeros_like(images)
    maps = torch.where(valid, images * weights, torch.nan)
    found = ff.infidelity(linear(weights), images, maps, substrate, patch=2, valid=valid)
    assert (found < 1e-20).all()


def test_completeness_gap():
    attribution = torch.tensor([[[[0.5, 0.3]]], [[[2.0, 0.0]]], [[[1.0, 1.0]]]])
    gap = ff.completeness_gap(attribution, torch.tensor([1.0, -1.0, 0.2]), torch.tensor([0.0, 0.0, 0.2001]))
    assert gap[:2].tolist() == pytest.approx([0.2, 3.0])
    assert gap[2].isnan()
    loose = ff.completeness_gap(attribution[:1], torch.tensor([1.0]), torch.tensor([0.0]), tolerance=2)
    assert loose.isnan().all()


def test_stray_pixels_and_energy_outside():
    maps = torch.tensor([[[1.0, -0.5], [0.1, 0.09]], [[0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    truth = torch.tensor([[[True, False], [False, False]]]).expand(2, 2, 2)
    assert ff.stray_pixels(maps).tolist() == [3, 0]
    assert ff.stray_pixels(1e-9 * maps).tolist() == [3, 0]
    assert ff.stray_pixels(maps, level=0.3).tolist() == [2, 0]
    assert ff.stray_pixels(maps, truth=truth).tolist() == [2, 0]
    assert ff.stray_pixels(maps, truth=torch.zeros_like(truth)).tolist() == [3, 0]
    # Without the peak, 0.05 is a tenth of what is left.
    assert ff.stray_pixels(maps, valid=~truth).tolist() == [3, 0]
    outside = ff.attribution_energy_outside(maps, truth)
    assert outside.tolist() == pytest.approx([0.69 / 1.69, 1])
    assert ff.attribution_energy_outside(maps, torch.zeros_like(truth)).isnan().all()


def test_no_images_no_figures():
    none = torch.zeros(0, 1, 4, 4)
    assert ff.deletion(mean_of, none, none, none).auc.shape == (0,)
    assert ff.infidelity(mean_of, none, none, none).shape == (0,)


def test_bad_input_names_the_field(images):
    one = torch.zeros_like(images)
    calls = {
        "maps": lambda: ff.deletion(mean_of, images, one[:2], one),
        "end": lambda: ff.deletion(mean_of, images, one, one[..., :3]),
        "start": lambda: ff.deletion(mean_of, images / 0, one, one),
        "score": lambda: ff.deletion(lambda x: x.mean((2, 3)), images, one, one),
        "steps": lambda: ff.deletion(mean_of, images, one, one, steps=0),
        "batch_size": lambda: ff.deletion(mean_of, images, one, one, batch_size=0),
        "valid": lambda: ff.deletion(mean_of, images, one, one, valid=one),
        "patch": lambda: ff.infidelity(mean_of, images, one, one, patch=7),
        "draws": lambda: ff.infidelity(mean_of, images, one, one, draws=0),
        "kind": lambda: ff.infidelity(mean_of, images, one, one, kind="sum"),
        "substrate": lambda: ff.infidelity(mean_of, images, one, one[:1]),
        "attributions": lambda: ff.infidelity(mean_of, images, one * torch.nan, one),
        "f_x": lambda: ff.completeness_gap(one, torch.zeros(2), torch.zeros(3)),
        "level": lambda: ff.stray_pixels(one, level=0),
        "truth": lambda: ff.stray_pixels(one, truth=one),
    }
    for field, call in calls.items():
        with pytest.raises(InputError, match=field):
            call()
    with pytest.raises(InputError, match="NaN or infinite"):
        ff.deletion(lambda x: mean_of(x) / 0, images, one, one)
