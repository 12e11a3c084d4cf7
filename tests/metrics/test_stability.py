"""Stability figures by hand and against SciPy and Captum; randomisation of classifiers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from counterscan.errors import InputError
from counterscan.metrics import stability as st
from counterscan.nets.cnn import Classifier, ClassifierConfig


@pytest.fixture
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_max_sensitivity_of_the_identity(images):
    found = st.max_sensitivity(lambda x: x, images, radius=0.1, draws=4, generator=seeded(5), batch_size=2)
    generator, ratios = seeded(5), []
    for _ in range(4):
        moved = 0.1 * (2 * torch.rand(images.shape, generator=generator).double() - 1)
        ratios.append(moved.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1))
    torch.testing.assert_close(found, torch.stack(ratios).amax(0))
    assert found.dtype == torch.float64
    # Scale does not matter, and a map that does not look at the image is perfectly steady.
    torch.testing.assert_close(
        st.max_sensitivity(lambda x: -3 * x, images, radius=0.1, draws=4, generator=seeded(5)), found
    )
    assert st.max_sensitivity(torch.ones_like, images).tolist() == [0, 0, 0]
    assert st.max_sensitivity(torch.zeros_like, images).isnan().all()


def test_max_sensitivity_equals_captums(images):
    captum = pytest.importorskip("captum.metrics")
    draws, radius = 6, 0.05
    generator = seeded(2)
    noise = torch.stack([torch.rand(images.shape, generator=generator).double() for _ in range(draws)])

    def method(x):
        return torch.sin(9 * x) * x.mean((1, 2, 3), keepdim=True)

    def alone(x):
        return x[0] if isinstance(x, tuple) else x

    def perturb(x):
        # Captum asks once, with every image repeated ``draws`` times.
        return alone(x) + radius * (2 * noise.transpose(0, 1).flatten(0, 1) - 1)

    expected = captum.sensitivity_max(lambda x: (method(alone(x)),), images, perturb, n_perturb_samples=draws)
    found = st.max_sensitivity(method, images, radius=radius, draws=draws, generator=seeded(2))
    torch.testing.assert_close(found, expected)


def test_disturbed_images_stay_in_range_and_padding_does_not_count(images):
    seen = []

    def method(x):
        seen.append(x)
        return torch.where(valid[: len(x)], x, torch.nan)

    valid = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    valid[..., :4] = True
    dark = torch.full_like(images, -1)
    found = st.max_sensitivity(method, dark, radius=0.5, draws=1, valid=valid)
    assert min(float(x.min()) for x in seen) == -1
    assert ((found > 0) & (found < 0.5)).all()
    st.noise_curve(method, images, (0.5,), valid=valid)
    assert max(float(x.abs().max()) for x in seen) <= 1


def test_spearman_equals_scipys_with_ties():
    generator = seeded()
    a = torch.randint(5, (4, 1, 6, 7), generator=generator).double()
    b = (a + torch.randint(4, a.shape, generator=generator)).double()
    valid = torch.rand(a.shape, generator=generator) < 0.7
    plain, masked = st.spearman(a, b), st.spearman(torch.where(valid, a, torch.nan), b, valid)
    for i in range(4):
        assert plain[i].item() == pytest.approx(stats.spearmanr(a[i].flatten(), b[i].flatten()).statistic)
        inside = stats.spearmanr(a[i][valid[i]], b[i][valid[i]]).statistic
        assert masked[i].item() == pytest.approx(inside)
    assert st.spearman(a, a.exp()).tolist() == pytest.approx([1] * 4)
    assert st.spearman(a, -a).tolist() == pytest.approx([-1] * 4)
    assert st.spearman(a, torch.ones_like(a)).isnan().all()


def test_noise_curve(images):
    found = st.noise_curve(lambda x: x, images, (0.01, 0.5), area=0.25, batch_size=2)
    assert found.sigmas.tolist() == [0.01, 0.5]
    assert found.spearman.shape == found.iou.shape == (2, 3)
    assert (found.spearman[0] > 0.99).all()
    assert (found.spearman[1] < 0.9).all()
    assert (found.iou[1] < found.iou[0]).all()
    noisy = (images + 0.01 * torch.randn(images.shape, generator=seeded()).double()).clamp(-1, 1)
    torch.testing.assert_close(found.spearman[0], st.spearman(images, noisy))
    for i in range(3):
        top, other = (set(x[i].flatten().topk(16).indices.tolist()) for x in (images, noisy))
        assert found.iou[0, i].item() == pytest.approx(len(top & other) / len(top | other))
    again = st.noise_curve(lambda x: x, images, (0.01, 0.5), area=0.25)
    torch.testing.assert_close(found.spearman, again.spearman)


def test_noise_curve_does_not_reward_silence(images):
    def one_pixel(x):
        maps = torch.zeros_like(x)
        maps[..., 0, 0] = 1
        return maps

    steady = st.noise_curve(one_pixel, images.repeat(5, 1, 1, 1), (0.1,), area=0.5)
    assert steady.spearman[0].tolist() == pytest.approx([1] * 15)
    # 31 of the 32 highest are zeros, drawn anew for either map: about a third of the union is shared.
    assert 0.2 < steady.iou.mean() < 0.5

    def goes_silent(x):
        return torch.where((x == images).flatten(1).all(1).view(-1, 1, 1, 1), x, 0.0)

    assert st.noise_curve(goes_silent, images, (0.1,)).spearman.tolist() == [[0, 0, 0]]
    always = st.noise_curve(torch.zeros_like, images, (0.1,))
    assert always.spearman.isnan().all()
    assert always.iou.isnan().all()


def test_gini_and_entropy():
    flat, one = torch.full((1, 4, 5), -2.0), torch.zeros(1, 4, 5)
    one[0, 1, 1] = -3
    assert st.gini(flat).item() == pytest.approx(0)
    assert st.gini(one).item() == pytest.approx(1 - 1 / 20)
    assert st.entropy(flat).item() == pytest.approx(math.log(20))
    assert st.entropy(one).item() == 0
    assert st.gini(torch.zeros(1, 4, 5)).isnan().all()
    assert st.entropy(torch.zeros(1, 4, 5)).isnan().all()
    maps = torch.randn(2, 1, 5, 5, generator=seeded())
    valid = torch.rand(maps.shape, generator=seeded(1)) < 0.6
    for i in range(2):
        kept = maps[i][valid[i]].abs().double().numpy()
        spread = np.abs(kept[:, None] - kept[None]).sum() / (2 * len(kept) ** 2 * kept.mean())
        assert st.gini(maps, valid)[i].item() == pytest.approx(spread)
        assert st.entropy(maps, valid)[i].item() == pytest.approx(stats.entropy(kept))


def test_map_similarity():
    maps = torch.rand(2, 1, 16, 16, generator=seeded())
    same = st.map_similarity(maps, 100 * maps)
    assert same.spearman.tolist() == pytest.approx([1, 1])
    assert same.ssim.tolist() == pytest.approx([1, 1])
    other = st.map_similarity(maps, torch.rand(maps.shape, generator=seeded(1)))
    assert (other.spearman.abs() < 0.25).all()
    assert (other.ssim < 0.5).all()
    assert st.map_similarity(maps, torch.zeros_like(maps)).spearman.tolist() == [0, 0]
    assert st.map_similarity(torch.zeros_like(maps), maps).spearman.isnan().all()
    half = torch.zeros(maps.shape, dtype=torch.bool)
    half[..., 8:] = True
    masked = st.map_similarity(maps, torch.where(half, maps, torch.nan), half)
    assert masked.ssim.tolist() == pytest.approx([1, 1])


class Scaled(nn.Module):
    """A bare parameter below a batch norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((4, 1, 1), 3.0))
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.gain.mul(self.body(x)).mean((2, 3)))


def weights_of(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def test_randomised_leaves_the_original_and_the_random_state_alone():
    torch.manual_seed(3)
    net = Scaled()
    with torch.no_grad():
        net.body[1].running_mean.fill_(7)
        net.body[1].weight.fill_(2)
    before, state = weights_of(net), torch.get_rng_state()
    twin = st.randomised(net.eval(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert isinstance(twin, Scaled)
    assert not twin.training
    changed = {name for name, x in twin.state_dict().items() if not torch.equal(x, before[name])}
    norm = {"body.1.weight", "body.1.running_mean"}
    assert changed == norm | {"gain", "body.0.weight", "body.0.bias", "head.weight", "head.bias"}
    assert twin.body[1].running_mean.tolist() == [0] * 4
    assert twin.gain.std() > 0
    same, other = st.randomised(net, seed=1), st.randomised(net, seed=2)
    assert all(torch.equal(x, same.state_dict()[name]) for name, x in twin.state_dict().items())
    assert not torch.equal(other.head.weight, twin.head.weight)


def test_a_cascade_changes_one_more_layer_each_time():
    torch.manual_seed(0)
    net = Classifier(ClassifierConfig(widths=(4, 6)), ("Edema",)).eval()
    layers = st.parameter_layers(net)
    assert layers[0] == "head"
    assert layers[-1] == "stem"
    assert len(layers) == len(set(layers)) == sum(1 for m in net.modules() if list(m.parameters(recurse=False)))
    x = torch.rand(2, 1, 16, 16, generator=seeded())
    original = weights_of(net)
    assert torch.equal(st.randomised(net, depth=0)(x), net(x))
    full = st.randomised(net).state_dict()
    for depth in (1, 3, len(layers)):
        found = st.randomised(net, depth=depth)
        fresh = tuple(f"{name}." for name in layers[:depth])
        for name, value in found.state_dict().items():
            expected = full if name.startswith(fresh) else original
            assert torch.equal(value, expected[name]), name
        assert found(x).isfinite().all()
        assert not torch.equal(found(x), net(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_randomised_takes_a_scripted_network():
    net = torch.jit.script(Scaled().eval())
    x = torch.rand(2, 1, 8, 8, generator=seeded())
    before = net(x)
    assert not torch.equal(st.randomised(net, depth=1)(x), before)
    assert torch.equal(net(x), before)


def test_bad_input_names_the_field(images):
    calls = {
        "radius": lambda: st.max_sensitivity(lambda x: x, images, radius=0),
        "draws": lambda: st.max_sensitivity(lambda x: x, images, draws=0),
        "batch_size": lambda: st.max_sensitivity(lambda x: x, images, batch_size=0),
        "attribute": lambda: st.max_sensitivity(lambda x: x[..., :4], images),
        "attribute: holds NaN": lambda: st.noise_curve(lambda x: x / 0, images),
        "area": lambda: st.noise_curve(lambda x: x, images, area=0),
        "sigmas": lambda: st.noise_curve(lambda x: x, images, (0.1, -1)),
        "sigmas: at least": lambda: st.noise_curve(lambda x: x, images, ()),
        "b: got": lambda: st.spearman(images, images[:2]),
        "maps": lambda: st.gini(images[0, 0]),
        "depth": lambda: st.randomised(nn.Linear(2, 2), depth=2),
        "classifier": lambda: st.randomised(nn.ReLU()),
    }
    for field, call in calls.items():
        with pytest.raises(InputError, match=field):
            call()
