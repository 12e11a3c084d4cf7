from __future__ import annotations

import pytest
import torch

from counterscan.care import Care, smooth
from counterscan.errors import InputError
from counterscan.peers.integrated_gradients import IntegratedGradients
from tests.peers.tiny import ByHand, TwoStages

pytest.importorskip("captum")


def test_by_hand():
    image = torch.tensor([[[[0.5, -0.5], [1.0, 0.0]]]])
    # S = 2 mean(x) is linear: (x + 1) * 2 / 4.
    torch.testing.assert_close(IntegratedGradients(ByHand()).attribute(image, 0), (image + 1) / 2)
    signed = IntegratedGradients(ByHand(), baseline="mean").attribute(image, 0)
    torch.testing.assert_close(signed, (image - 0.25) / 2)
    plain = Care()
    assert (IntegratedGradients(ByHand(), care=plain).evidence(signed, image) == signed.relu()).all()
    assert (IntegratedGradients(ByHand(), part="magnitude", care=plain).evidence(signed, image) == signed.abs()).all()
    smoothed = IntegratedGradients(ByHand(), care=Care(smoothing=0.5)).evidence(signed, image)
    torch.testing.assert_close(smoothed, smooth(signed.relu(), 0.5))
    assert IntegratedGradients(ByHand()).settings()["smoothing"] == 0.02


@pytest.mark.parametrize("baseline", ["black", "blur", "mean"])
def test_attributions_sum_to_the_change_of_the_logit(baseline):
    net = TwoStages().eval()
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    method = IntegratedGradients(net, baseline=baseline, n_steps=200, internal_batch_size=7)
    with torch.no_grad():
        change = (net(images) - net(method.baselines(images)))[:, 1]
    torch.testing.assert_close(method.attribute(images, 1).sum((1, 2, 3)), change, atol=2e-3, rtol=1e-2)


def test_the_baseline_may_be_a_function_of_the_images():
    image = torch.tensor([[[[0.5, -0.5], [1.0, 0.0]]]])

    def healed(images):
        return torch.where(images > 0.9, 0.2, images)

    method = IntegratedGradients(ByHand(), baseline=healed)
    # S = 2 mean(x): what the counterpart leaves alone gets nothing, the pixel it changes (1 - 0.2) * 2 / 4.
    torch.testing.assert_close(method.attribute(image, 0), torch.tensor([[[[0.0, 0.0], [0.4, 0.0]]]]))
    assert method.settings()["baseline"] == "healed"
    net = TwoStages().eval()
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    maps = IntegratedGradients(net, baseline=torch.sin, n_steps=200).attribute(images, 1)
    with torch.no_grad():
        change = (net(images) - net(images.sin()))[:, 1]
    torch.testing.assert_close(maps.sum((1, 2, 3)), change, atol=2e-3, rtol=1e-2)
    with pytest.raises(InputError, match="one baseline image per image"):
        IntegratedGradients(net, baseline=lambda x: x[:1]).attribute(images, 1)


def test_a_bad_baseline_is_explained():
    with pytest.raises(InputError, match="black, blur or mean"):
        IntegratedGradients(ByHand(), baseline="white")
