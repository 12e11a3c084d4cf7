from __future__ import annotations

import pytest
import torch

from counterscan.errors import InputError
from counterscan.taggan.model import AbnormalGenerator, ConditionalCritic, MapGenerator, NetworkConfig

SMALL = NetworkConfig(base=4, levels=3, back_base=4, back_levels=2, critic_base=4, critic_stages=2)


@pytest.mark.parametrize("findings", [1, 3])
def test_training_starts_from_nothing_changes(findings: int) -> None:
    x, c = torch.randn(2, 1, 16, 16), torch.tensor([0, findings - 1])
    m = MapGenerator(SMALL, findings)(x, c)
    assert torch.equal(m, torch.zeros_like(x))
    assert torch.equal(AbnormalGenerator(SMALL, findings)(x, m, c), x)


def test_the_label_steers_the_map() -> None:
    torch.manual_seed(0)
    generator = MapGenerator(SMALL, 2)
    torch.nn.init.normal_(generator.net.head.weight)
    x = torch.randn(1, 1, 16, 16)
    first, second = (generator(x, torch.tensor([k])) for k in (0, 1))
    assert (first - second).abs().max() > 0.01


def test_sides_must_halve() -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        MapGenerator(SMALL, 1)(torch.zeros(1, 1, 18, 16), torch.zeros(1, dtype=torch.long))


def test_critic_conditions_on_the_other_findings_but_not_on_its_own_label() -> None:
    torch.manual_seed(0)
    critic = ConditionalCritic(SMALL, 2).eval()
    x, c = torch.randn(1, 1, 16, 16), torch.tensor([0])
    answer = [critic(x, c, torch.tensor([labels])) for labels in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0])]
    assert torch.allclose(answer[0], answer[1])
    assert not torch.allclose(answer[0], answer[2])
    assert torch.allclose(2 * answer[3], answer[0] + answer[2], atol=1e-5)  # uncertain counts as half
