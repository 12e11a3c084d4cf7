"""PESG's steps by hand, its state, and LibAUC's where that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from counterscan.classify.auc_margin import AUCMargin
from counterscan.classify.pesg import PESG
from counterscan.errors import InputError
from counterscan.training.state import flatten_optimizer, unflatten_optimizer


def test_two_steps_and_a_stage_by_hand() -> None:
    v, alpha = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([0.5]))
    settings = {"lr": 0.1, "momentum": 0.9, "epoch_decay": 0.2, "weight_decay": 0.01, "clip": 1.0}
    optimizer = PESG([v], [alpha], **settings)
    v.grad, alpha.grad = torch.tensor([3.0]), torch.tensor([2.0])
    optimizer.step()
    first = 1.0 + 0.2 * 0.0 + 0.01 * 1.0  # clipped, no distance from the reference yet
    one = 1.0 - 0.1 * first
    assert v.item() == pytest.approx(one)
    assert alpha.item() == pytest.approx(0.7)
    v.grad, alpha.grad = torch.tensor([-0.5]), torch.tensor([-9.0])
    optimizer.step()
    second = -0.5 + 0.2 * (one - 1.0) + 0.01 * one
    two = one - 0.1 * (0.1 * first + 0.9 * second)
    assert v.item() == pytest.approx(two)
    assert alpha.item() == 0.0  # not below
    optimizer.next_stage(10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.01])
    v.grad = torch.tensor([0.0])
    optimizer.step()
    third = 0.2 * (two - (one + two) / 2) + 0.01 * two
    buffer = 0.1 * (0.1 * first + 0.9 * second) + 0.9 * third
    assert v.item() == pytest.approx(two - 0.01 * buffer, rel=1e-6)


def test_descends_on_a_and_b_and_ascends_on_alpha_to_the_saddle() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 2, generator=generator) < 0.4).float()
    scores = torch.rand(60, 2, generator=generator)
    loss = AUCMargin(2)
    optimizer = PESG([loss.a, loss.b], [loss.alpha], lr=0.3, epoch_decay=0.0, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(scores, labels).backward()
        optimizer.step()
    torch.testing.assert_close(loss.per_label(scores, labels), loss.saddle(scores, labels))
    assert torch.allclose(loss.a, torch.stack([scores[labels[:, k] == 1, k].mean() for k in range(2)]), atol=1e-4)
    assert (loss.alpha > 0.5).all()


def test_learns_to_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 5, generator=generator)
    labels = (x[:, :1] + 0.3 * torch.randn(200, 1, generator=generator) > 1).float()
    model, loss = nn.Linear(5, 1), AUCMargin(1)
    optimizer = PESG([*model.parameters(), loss.a, loss.b], [loss.alpha], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(x).sigmoid(), labels).backward()
        optimizer.step()
    z = model(x).detach()
    assert (z[labels == 1][:, None] > z[labels == 0][None]).float().mean() > 0.95


def steps(optimizer: PESG, parameters: list[nn.Parameter], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("through_files", [False, True])
def test_goes_on_from_its_state(through_files: bool) -> None:
    def made() -> tuple[PESG, list[nn.Parameter]]:
        parameters = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
        return PESG(parameters[:2], parameters[2:]), parameters

    whole, expected = made()
    steps(whole, expected, 4, 0)
    whole.next_stage()
    steps(whole, expected, 3, 1)
    first, parameters = made()
    steps(first, parameters, 4, 0)
    first.next_stage()
    second, later = made()
    for old, new in zip(parameters, later, strict=True):
        new.data.copy_(old.data)
    if through_files:
        unflatten_optimizer(second, *flatten_optimizer(first), Path("x"))
    else:
        second.load_state_dict(first.state_dict())
    steps(second, later, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(expected, later, strict=True))


def test_groups_closure_and_parameters_without_gradient() -> None:
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = PESG([{"params": [a], "lr": 0.5}, {"params": [b, c]}], lr=0.1, epoch_decay=0, weight_decay=0)

    def closure() -> float:
        a.grad, b.grad = torch.ones(1), torch.ones(1)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert [x.item() for x in (a, b, c)] == pytest.approx([0.5, 0.9, 1.0])


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"momentum": 0.0}, {"momentum": 1.5}, {"epoch_decay": -1.0}, {"clip": 0.0}]
)
def test_bad_settings_are_named(options: dict[str, float]) -> None:
    with pytest.raises(InputError) as caught:
        PESG([nn.Parameter(torch.ones(1))], **options)
    assert caught.value.field == next(iter(options))


def test_libauc_takes_the_same_steps() -> None:
    pesg = pytest.importorskip("libauc.optimizers.pesg", reason="LibAUC is not installed")
    losses = pytest.importorskip("libauc.losses.auc", reason="LibAUC is not installed")
    ours, theirs = nn.Parameter(torch.linspace(-1, 1, 6)), nn.Parameter(torch.linspace(-1, 1, 6))
    mine = PESG([ours], lr=0.1, epoch_decay=0.02, weight_decay=0.01)
    other = pesg.PESG(
        [theirs],
        loss_fn=losses.AUCMLoss(device="cpu"),
        lr=0.1,
        epoch_decay=0.02,
        weight_decay=0.01,
        verbose=False,
        device="cpu",
    )
    other.param_groups[0]["model_ref"][0].copy_(ours.data)  # theirs starts at random numbers
    for stage in range(2):
        steps(mine, [ours], 3, stage)
        steps(other, [theirs], 3, stage)
        torch.testing.assert_close(ours.data, theirs.data)
        mine.next_stage(10)
        other.update_regularizer(decay_factor=10)
