from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from counterscan.classify import AdaptedClassifier
from counterscan.errors import InputError
from counterscan.peers.layercam import LayerCAM
from tests.peers.tiny import FINDINGS, ByHand, TwoStages


def test_by_hand():
    image = torch.tensor([[[[0.5, -0.5], [1.0, 0.0]]]])
    # dS/dA is (2, 0) / 4 for logit 0 and (-1, 2) / 4 for logit 1; negative gradients drop out.
    torch.testing.assert_close(LayerCAM(ByHand()).attribute(image, 0), image.relu() / 2)
    torch.testing.assert_close(LayerCAM(ByHand()).attribute(image, 1), (-image).relu() / 2)


def test_equals_plain_autograd_at_each_stage():
    net = TwoStages().eval()
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    early = net.early(images).detach().requires_grad_()
    late = net.late(early.relu())
    logits = net.head(late.mean((2, 3)))
    grads = torch.autograd.grad(logits[:, 1].sum(), [early, late])
    maps = [(g.relu() * a).sum(1, keepdim=True).relu().detach() for a, g in zip((early, late), grads, strict=True)]
    up = [F.interpolate(m, size=(16, 16), mode="bilinear") for m in maps]
    torch.testing.assert_close(LayerCAM(net, layers=[net.late]).attribute(images, 1), up[1])
    torch.testing.assert_close(LayerCAM(net, stages=1).attribute(images, 1), up[1])
    peaks = [m.amax((2, 3), keepdim=True).clamp_min(1e-12) for m in maps]
    fused = up[0] / peaks[0] + up[1] / peaks[1]
    torch.testing.assert_close(LayerCAM(net).attribute(images, 1), fused)
    scaled = [F.interpolate((2 * m / p).tanh(), (16, 16), mode="bilinear") for m, p in zip(maps, peaks, strict=True)]
    torch.testing.assert_close(LayerCAM(net, fusion="max").attribute(images, 1), torch.maximum(*scaled))


def test_a_layer_that_is_not_run_is_named():
    net = TwoStages()
    with pytest.raises(InputError, match="takes no part"):
        LayerCAM(net, layers=[torch.nn.Conv2d(1, 1, 1)]).attribute(torch.zeros(1, 1, 8, 8), 0)
    with pytest.raises(InputError, match="no feature maps"):
        LayerCAM(net, layers=[net.head]).attribute(torch.zeros(1, 1, 8, 8), 0)


def test_a_classifier_without_visible_layers_is_refused_with_a_remedy():
    script = torch.jit.trace(TwoStages().eval(), torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match=r"no convolutional layers.*Integrated Gradients") as caught:
        LayerCAM(AdaptedClassifier(script, FINDINGS))
    assert caught.value.field == "layers"
