"""What every attribution peer promises, tried on all of them."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest
import torch

from counterscan.care import Care, average_over_views, smooth
from counterscan.counterpart import Query, StudyBatch, StudyRef
from counterscan.errors import InputError
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.gradient_shap import GradientSHAP
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.peers.latent_shift import LatentShift
from counterscan.peers.layercam import LayerCAM
from counterscan.peers.occlusion import Occlusion
from counterscan.peers.rise import RISE
from counterscan.peers.smoothgrad import SmoothGrad
from counterscan.peers.wachter import Wachter
from tests.peers.tiny import Blocks, TwoStages

IMAGES = torch.rand(3, 1, 16, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
captum = pytest.mark.skipif(find_spec("captum") is None, reason="Captum computes it")

# Those that show where a finding is, and those that take it away; quick settings.
MAPS = [
    GradCAM,
    LayerCAM,
    pytest.param(partial(RISE, n_masks=40, cells=4), id="RISE"),
    pytest.param(IntegratedGradients, marks=captum),
    pytest.param(partial(SmoothGrad, n_samples=5), marks=captum, id="SmoothGrad"),
    pytest.param(partial(GradientSHAP, n_samples=5), marks=captum, id="GradientSHAP"),
    pytest.param(
        partial(GradientSHAP, n_samples=5, baseline=IMAGES.flip(0)), marks=captum, id="GradientSHAP-background"
    ),
    pytest.param(partial(Occlusion, window=0.25, stride=0.2), marks=captum, id="Occlusion"),
]
CHANGES = [
    pytest.param(partial(Wachter, steps=5, rounds=1, care=Care()), id="Wachter"),
    pytest.param(partial(LatentShift, autoencoder=Blocks(), max_shift=1.0), id="LatentShift"),
]
PEERS = [*MAPS, *CHANGES]


@pytest.fixture
def images():
    return IMAGES.clone()


@pytest.mark.parametrize("peer", MAPS)
def test_answers_with_counterparts(peer, images):
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[..., :4] = False
    batch = StudyBatch(images, valid=valid, sources=[StudyRef(f"s{i}") for i in range(3)])
    net = TwoStages()
    system = peer(net, masker=lambda evidence, _: evidence > evidence.mean())
    answers = system.counterparts(batch, Query("Lung Lesion"))
    expected = net.eval()(images)[:, 1].sigmoid()
    for i, answer in enumerate(answers):
        assert answer.evidence.shape == (1, 16, 20)
        assert (answer.evidence >= 0).all()
        assert (answer.evidence[..., :4] == 0).all()
        assert answer.evidence.any()
        assert answer.mask.dtype == torch.bool
        assert answer.counterpart is None
        assert answer.score_before == pytest.approx(expected[i].item(), abs=1e-6)
        assert answer.source.pseudonym == f"s{i}"
        assert answer.made_by.system == system.name
        assert not answer.evidence.requires_grad
    assert system.counterparts(StudyBatch(images[:0]), Query("Edema")) == []


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_leaves_the_classifier_as_it_was(peer, frozen, images):
    net = TwoStages().train()
    net.late.eval()
    net.requires_grad_(not frozen)
    for p in net.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.inference_mode():
        first = peer(net).attribute(images, "Edema")
    assert net.training
    assert not net.late.training
    assert net.drop.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all((p.grad == 7).all() and p.requires_grad is not frozen for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    with torch.no_grad():
        assert torch.equal(first, peer(net).attribute(images, 0))


@pytest.mark.parametrize("peer", PEERS)
def test_images_do_not_meet_in_a_batch_and_targets_may_differ(peer, images):
    method = peer(TwoStages())
    mixed = method.attribute(images, torch.tensor([0, 1, 0]))
    for i, target in enumerate(["Edema", "Lung Lesion", "Edema"]):
        torch.testing.assert_close(mixed[i : i + 1], method.attribute(images[i : i + 1], target), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("peer", PEERS)
def test_flips_make_the_map_mirror_with_the_image(peer, images):
    method = peer(TwoStages(), care=Care(flips=True))
    maps, mirrored = method.attribute(images, 0), method.attribute(images.flip(-1), 0)
    torch.testing.assert_close(mirrored, maps.flip(-1))
    assert method.settings()["flips"] is True


@pytest.mark.parametrize("peer", PEERS)
def test_bad_input_is_refused(peer, images):
    method = peer(TwoStages())
    with pytest.raises(InputError, match="It knows Edema, Lung Lesion"):
        method.attribute(images, "Fracture")
    with pytest.raises(InputError, match="columns"):
        method.attribute(images, 2)
    with pytest.raises(InputError, match=r"\(N, 1, H, W\)"):
        method.attribute(images[0], 0)
    with pytest.raises(InputError, match="findings"):
        peer(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("peer", MAPS)
def test_what_only_shows_a_finding_cannot_add_it(peer, images):
    with pytest.raises(InputError, match="cannot add"):
        peer(TwoStages()).counterparts(StudyBatch(images), Query("Edema", direction="add"))


def test_views_come_back_to_their_place(images):
    care = Care(flips=True, shifts=((2, 0), (-1, 3)))
    # A map that is the image itself must come back unchanged from every view.
    torch.testing.assert_close(average_over_views(lambda x: x, images, care), images)
    seen = []
    average_over_views(lambda x: seen.append(x) or x, images, care)
    assert len(seen) == 6
    assert torch.equal(seen[2][:, :, 2:], images[:, :, :-2])  # shifted down by two


def test_smoothing_keeps_the_mean_and_blurs(images):
    assert torch.equal(smooth(images, 0), images)
    constant = torch.full((1, 1, 16, 16), 0.3)
    torch.testing.assert_close(smooth(constant, 0.1), constant)
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    blurred = smooth(point, 2 / 33)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    ratio = blurred[0, 0, 16, 18] / blurred[0, 0, 16, 16]
    assert ratio.item() == pytest.approx(torch.exp(torch.tensor(-0.5)).item(), abs=1e-5)
