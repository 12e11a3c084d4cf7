from __future__ import annotations

import torch

from counterscan.nets.critic import Critic
from counterscan.nets.unet import UNet


def test_unet_keeps_the_grid_and_starts_at_zero() -> None:
    out = UNet(inputs=2, base=4, levels=3)(torch.randn(2, 2, 16, 24))
    assert out.shape == (2, 1, 16, 24)
    assert not out.any()


def test_unet_sees_beyond_its_neighbourhood() -> None:
    """A change in one corner reaches the centre through the lower levels, and the label reaches every pixel."""
    torch.manual_seed(0)
    net = UNet(base=4, levels=3, labels=2)
    torch.nn.init.normal_(net.head.weight)
    x, label = torch.zeros(1, 1, 16, 16, requires_grad=True), torch.tensor([[1.0, 0.0]], requires_grad=True)
    net(x, label)[0, 0, 8, 8].backward()
    assert x.grad is not None
    assert label.grad is not None
    assert x.grad[0, 0, 1, 1] != 0
    assert label.grad.abs().min() > 0


def test_critic_is_a_mean_over_patches_of_each_image_alone() -> None:
    critic = Critic(base=4, stages=2).eval()
    x = torch.randn(3, 1, 16, 16)
    assert torch.allclose(critic(x)[1], critic(x[1:2])[0], atol=1e-5)


def test_critic_is_lipschitz() -> None:
    """Spectral norms of at most one, leaky ReLU and averaging: no direction grows by more than the padding allows."""
    torch.manual_seed(0)
    critic = Critic(base=4, stages=3)
    for _ in range(30):
        critic(torch.randn(2, 1, 16, 16))  # power iterations
    critic.eval()
    x, step = torch.randn(8, 1, 16, 16), torch.randn(8, 1, 16, 16) * 1e-2
    with torch.no_grad():
        grown = (critic(x + step) - critic(x)).abs() / step.flatten(1).norm(dim=1)
    assert grown.max() < 1.0
