from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.ada import AdaptiveConfig, random_views
from counterscan.nets.discriminator import DOutput
from counterscan.tbsmgan.objective import GANTask, ObjectiveConfig, default_gamma, finding_loss
from counterscan.training import Context, TrainConfig, seed_everything, train
from counterscan.training.checkpoint import read_checkpoint
from counterscan.training.distributed import join
from tests.tbsmgan.small import NETWORK

CONDITIONED = replace(NETWORK, labels=2)
FREQUENCY = torch.tensor([0.25, 0.5])


class Source:
    """Noise, and labels of which some are unknown."""

    def __init__(self, rows: int = 40) -> None:
        dice = np.random.default_rng(0)
        self.images = dice.uniform(-1, 1, (rows, 1, 16, 16)).astype(np.float32)
        self.labels = dice.choice([0.0, 1.0, np.nan], (rows, 2)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        return {"image": self.images[indices], "target": self.labels[indices]}


def loop(steps: int, **changes: Any) -> TrainConfig:
    quiet = {"validate_every": 0, "sample_every": 0, "checkpoint_every": 0, "log_every": 1, "tensorboard": False}
    return TrainConfig(**{"steps": steps, "batch_size": 8, **quiet, **changes})


def task(**objective: Any) -> GANTask:
    seed_everything(0)
    return GANTask(CONDITIONED, ObjectiveConfig(**objective), 8, FREQUENCY)


def run(job: GANTask, folder: Path, steps: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Train and return what each step reported."""
    told, step = [], job.step

    def listening(ctx: Context, batch: dict[str, Tensor]) -> Any:
        told.append({name: float(value) for name, value in step(ctx, batch).items()})
        return told[-1]

    job.step = listening  # type: ignore[method-assign]
    train(job, Source(), loop(steps, **changes), folder)
    return told


class Linear(nn.Module):
    """D(x) = <a, x>, so that grad_x D is a everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 256).view(16, 16))

    def forward(self, x: Tensor, c: Tensor | None = None) -> DOutput:
        return DOutput((x[:, 0] * self.weight).sum(dim=(1, 2)), None, x.flatten(1))


class Alone:
    """The part of a context that the penalties ask for."""

    step, config = 0, TrainConfig(steps=10)

    class world:
        size = 1

    def autocast(self, enabled: bool = True) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=False)


def test_gamma_chooses_itself() -> None:
    assert default_gamma(64, 32) == pytest.approx(4 * 0.0002 * 4096 / 32)
    assert default_gamma(256, 64) == pytest.approx(0.8192)
    assert default_gamma(128, 64, "relativistic") == 4
    assert task().gamma == default_gamma(16, 8)
    assert task(gamma=0.0).gamma == 0


def test_findings_are_learned_where_they_are_known() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
    loss = finding_loss(logits, labels)
    by_hand = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(-3))
    assert float(loss.detach()) == pytest.approx(by_hand / 2)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == 0
    assert float(finding_loss(logits.detach(), torch.full((2, 2), math.nan))) == 0


def test_what_is_unknown_is_asked_for_at_its_frequency() -> None:
    labels = torch.tensor([[1.0, math.nan], [math.nan, 0.0]])
    assert task().asked(labels).tolist() == [[1.0, 0.5], [0.25, 0.0]]


def test_r1_is_half_gamma_times_the_squared_slope() -> None:
    job = task(gamma=0.4)
    job.modules["discriminator"] = critic = Linear()
    x = torch.randn(5, 1, 16, 16)
    squared = float(critic.weight.detach().square().sum())
    assert float(job._penalty(Alone(), x, x, None, 0.0).detach()) == pytest.approx(0.2 * squared, rel=1e-5)  # type: ignore[arg-type]
    # Through a view it is the slope of the view's adjoint.
    torch.manual_seed(3)
    through = float(job._penalty(Alone(), x, x, None, 0.8).detach())  # type: ignore[arg-type]
    torch.manual_seed(3)
    leaf = x.clone().requires_grad_()
    viewed = random_views(leaf, 0.8, job.objective.views)
    (slope,) = torch.autograd.grad((viewed[:, 0] * critic.weight).sum(), leaf)
    assert through == pytest.approx(0.2 * float(slope.square().sum(dim=(1, 2, 3)).mean()), rel=1e-4)


def test_both_sides_are_held_when_relativistic_and_gamma_falls_to_a_tenth() -> None:
    job = task(gamma=0.4, loss="relativistic")
    job.modules["discriminator"] = critic = Linear()
    x, alone = torch.randn(5, 1, 16, 16), Alone()
    squared = float(critic.weight.detach().square().sum())
    assert float(job._penalty(alone, x, x, None, 0.0).detach()) == pytest.approx(2 * 0.2 * squared, rel=1e-5)  # type: ignore[arg-type]
    alone.step = 10
    assert job._gamma(alone) == pytest.approx(0.04)  # type: ignore[arg-type]
    assert task(gamma=0.4)._gamma(alone) == 0.4  # type: ignore[arg-type]


def test_losses_are_the_equations() -> None:
    real, fake = torch.tensor([1.0, -0.5]), torch.tensor([0.2, -2.0])
    plain, paired = task(), task(loss="relativistic")
    assert torch.allclose(plain._d_loss(real, fake), F.softplus(-real).mean() + F.softplus(fake).mean())
    assert torch.allclose(plain._g_loss(fake, None), F.softplus(-fake).mean())
    assert torch.allclose(paired._d_loss(real, fake), -F.logsigmoid(real - fake).mean())
    assert torch.allclose(paired._g_loss(fake, real), -F.logsigmoid(fake - real).mean())


def test_path_length_is_that_of_the_jacobian() -> None:
    """An image that is A w for a fixed A with equal singular values s has |J^T y| = s |y| for all w."""

    class Flat(nn.Module):
        config = CONDITIONED

        def __init__(self) -> None:
            super().__init__()
            self.basis = nn.Parameter(3 * torch.linalg.qr(torch.randn(256, 256)).Q)

        def map(self, z: Tensor, c: Tensor | None) -> Tensor:
            return z.repeat(1, 32)[:, None].requires_grad_()

        def synthesize(self, ws: Tensor, noise: str) -> Tensor:
            return (ws[:, 0] @ self.basis.T).view(-1, 1, 16, 16)

    job = task(path=2.0)
    torch.manual_seed(0)
    job._path_length(Alone(), Flat(), torch.zeros(400, 2), 400, torch.device("cpu"))  # type: ignore[arg-type]
    assert job._path_mean == pytest.approx(0.01 * 3, rel=0.02)  # |y| is 1 in the mean


def test_each_step_moves_both_networks_and_lazy_terms_come_when_due(tmp_path: Path) -> None:
    job = task(r1_every=2, path=2.0, path_every=3, mixing=1.0)
    before = {name: [p.clone() for p in module.parameters()] for name, module in job.modules.items()}
    told = run(job, tmp_path, steps=4)
    for name, module in job.modules.items():
        moved = [not torch.equal(p, q) for p, q in zip(module.parameters(), before[name], strict=True)]
        assert all(moved), name
    assert ["r1" in line for line in told] == [True, False, True, False]
    assert ["path" in line for line in told] == [True, False, False, True]
    assert {"d", "d_find", "g", "g_find", "p", "d_real", "d_fake"} <= told[0].keys()
    assert not torch.equal(job.modules["generator"].w_avg, torch.zeros(8))


def test_betas_and_rates_are_corrected_for_lazy_penalties() -> None:
    job = task(path=2.0, path_every=4, r1_every=16, rate=0.1)
    d, g = (job.optimizers[name].param_groups[0] for name in ("discriminator", "generator"))
    assert d["lr"] == pytest.approx(0.1 * 16 / 17)
    assert d["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    assert g["lr"] == pytest.approx(0.1 * 4 / 5)
    assert task(rate=0.1).optimizers["generator"].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("objective", "highest"),
    [({"augment": "none"}, 0.0), ({"augment": "ramp", "ramp": 0.4}, 0.4), ({"loss": "relativistic"}, 0.3)],
)
def test_augmentation_that_does_not_adapt(tmp_path: Path, objective: dict[str, Any], highest: float) -> None:
    told = run(task(**objective), tmp_path, steps=4)
    ps = [line["p"] for line in told]
    assert ps[0] == 0
    assert max(ps) == pytest.approx(highest)
    assert all("r_t" not in line for line in told)


def test_p_rises_when_the_critic_is_sure(tmp_path: Path) -> None:
    job = task(adaptive=AdaptiveConfig(kimg=0.1, interval=1, target=-0.99))
    told = run(job, tmp_path, steps=3)
    assert [line["p"] for line in told] == pytest.approx([0, 0.08, 0.16])
    assert job.adaptive.p == pytest.approx(0.24)


def test_an_unconditional_network_needs_no_labels(tmp_path: Path) -> None:
    seed_everything(0)
    job = GANTask(NETWORK, ObjectiveConfig(), 8, torch.zeros(0))
    assert "d_find" not in run(job, tmp_path, steps=1)[0]


def test_bf16_keeps_the_penalties_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, seen = task(), []
    critic = job.modules["discriminator"]
    forward = critic.forward

    def spied(x: Tensor, c: Tensor | None = None) -> DOutput:
        seen.append((torch.is_autocast_enabled("cpu"), x.requires_grad))
        return forward(x, c)

    monkeypatch.setattr(critic, "forward", spied)
    run(job, tmp_path, steps=1, precision="bf16")
    assert seen == [(True, False), (True, False), (False, True), (True, True)]  # real, fake, R1, generator


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"r1_every": 2, "path": 1.0, "path_every": 2, "adaptive": AdaptiveConfig(kimg=0.5)}
    train(task(**settings), Source(), loop(8), tmp_path / "whole")
    train(task(**settings), Source(), loop(3), tmp_path / "parts")
    train(task(**settings), Source(), loop(8), tmp_path / "parts")
    whole, parts = (
        read_checkpoint(tmp_path / run / "checkpoints" / "step-00000008.safetensors") for run in ("whole", "parts")
    )
    assert whole[1]["task"] == parts[1]["task"]
    assert all(torch.equal(whole[0][name], parts[0][name]) for name in whole[0])


def work(folder: Path) -> None:
    """One of two processes: p must be steered by what both saw, and the weights must agree."""
    world = join("cpu")
    job, own = task(adaptive=AdaptiveConfig(kimg=0.1, interval=2, target=0.0), path=1.0, path_every=2), []
    update = job.adaptive.update

    def spied(logits: Tensor, total: Any) -> float:
        own.append(logits.detach().sign())
        return update(logits, total)

    job.adaptive.update = spied  # type: ignore[method-assign]
    train(job, Source(), loop(4), folder / "run")
    save_file(
        {
            "signs": torch.stack(own),
            "p": torch.tensor(job.adaptive.p),
            "r_t": torch.tensor(job.adaptive.r_t),
            "path": torch.tensor(job._path_mean),
            "w_avg": job.modules["generator"].w_avg.clone(),
        },
        folder / f"rank-{world.rank}.safetensors",
    )


def test_two_processes_share_one_p(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.tbsmgan.test_objective", str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    for name in ("p", "r_t", "path", "w_avg"):
        assert torch.equal(first[name], second[name]), name
    signs = torch.cat([first["signs"], second["signs"]], dim=1)  # (4 steps, 8 images)
    assert signs.shape == (4, 8)
    assert float(first["r_t"]) == pytest.approx(float(signs[2:].mean()))
    p = 0.0
    for window in (signs[:2], signs[2:]):
        p = min(max(p + float(window.mean().sign()) * 16 / 100, 0.0), 0.6)
    assert float(first["p"]) == pytest.approx(p)
    assert not torch.equal(first["signs"], second["signs"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", "hinge"), ("augment", "often"), ("gamma", -1.0), ("path", math.inf), ("mixing", 1.5), ("r1_every", 0)],
)
def test_bad_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        ObjectiveConfig(**{field: value})  # type: ignore[arg-type]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
