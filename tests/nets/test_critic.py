from __future__ import annotations

import torch

from counterscan.nets.critic import ResidualCritic


def critic(labels: int = 2) -> ResidualCritic:
    torch.manual_seed(0)
    return ResidualCritic(base=4, stages=2, labels=labels)


def test_one_answer_per_image_whatever_its_batch() -> None:
    net, x, c = critic(), torch.rand(3, 1, 16, 20), torch.rand(3, 2)
    together = net(x, c)
    assert together.shape == (3,)
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_the_condition_is_a_projection() -> None:
    net, x = critic(), torch.rand(1, 1, 16, 16)
    zero, one = net(x, torch.zeros(1, 2)), net(x, torch.ones(1, 2))
    torch.testing.assert_close(net(x, torch.full((1, 2), 0.5)), (zero + one) / 2)  # linear in the condition
    assert not torch.isclose(zero, one)
    assert critic(labels=0)(x).shape == (1,)


def test_it_can_be_held_by_r1() -> None:
    from counterscan.losses import r1_penalty

    net, condition = critic(), torch.rand(2, 2)
    r1_penalty(lambda x: net(x, condition), torch.rand(2, 1, 16, 16)).backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if name.startswith("stages"))
