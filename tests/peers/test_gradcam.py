from __future__ import annotations

import pytest
import torch

from counterscan.classify import AdaptedClassifier
from counterscan.errors import InputError
from counterscan.peers.gradcam import GradCAM
from tests.peers.tiny import FINDINGS, ByHand, TwoStages


def test_by_hand():
    image = torch.tensor([[[[0.5, -0.5], [1.0, 0.0]]]])
    # alpha for logit 0 is (2, 0) / 4, for logit 1 (-1, 2) / 4: maps x / 2 and -3x / 4 before the ReLU.
    torch.testing.assert_close(GradCAM(ByHand()).attribute(image, 0), image.relu() / 2)
    torch.testing.assert_close(GradCAM(ByHand()).attribute(image, 1), (-0.75 * image).relu())


@pytest.mark.parametrize("layer", ["early", "late"])
def test_equals_captum(layer):
    attr = pytest.importorskip("captum.attr")
    net = TwoStages().eval()
    net.relu.inplace = False  # Captum would read the feature maps after the in-place ReLU
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    theirs = attr.LayerGradCam(net, getattr(net, layer)).attribute(images, target=1, relu_attributions=True)
    theirs = attr.LayerAttribution.interpolate(theirs, (16, 16), "bilinear")
    ours = GradCAM(net, layer=getattr(net, layer)).attribute(images, 1)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)
    net.relu.inplace = True
    torch.testing.assert_close(GradCAM(net, layer=getattr(net, layer)).attribute(images, 1), ours)
    assert torch.equal(GradCAM(net).attribute(images, 1), GradCAM(net, layer=net.late).attribute(images, 1))


def test_a_classifier_without_visible_layers_is_refused_with_a_remedy():
    script = torch.jit.trace(TwoStages().eval(), torch.zeros(1, 1, 16, 16))
    with pytest.raises(InputError, match=r"no convolutional layer.*Integrated Gradients") as caught:
        GradCAM(AdaptedClassifier(script, FINDINGS))
    assert caught.value.field == "layer"
