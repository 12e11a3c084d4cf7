from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.training import Context, Interrupted, NonFiniteError, seed_everything, train, uniform_sampler
from counterscan.training.checkpoint import read_checkpoint
from counterscan.training.distributed import World, all_reduce_mean, average_gradients, join, leave
from tests.training.toy import Source, ToyGAN, toy_config

SETTINGS = {"steps": 6, "validate_every": 0, "checkpoint_every": 3}
LAST = "checkpoints/step-00000006.safetensors"


class Recorded(ToyGAN):
    """The toy GAN without what depends on the process (noise, batch statistics); keeps each update's gradient."""

    def __init__(self) -> None:
        super().__init__(noise=False)
        self.modules["generator"][1] = nn.GroupNorm(2, 4)
        # Plain descent: Adam turns rounding in a near-zero gradient into a whole step.
        self.optimizers = {k: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.5) for k, m in self.modules.items()}
        self.gradients: dict[str, Tensor] = {}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
        original = ctx.update

        def update(name: str, loss: Tensor) -> None:
            original(name, loss)
            for key, parameter in self.modules[name].named_parameters():
                assert parameter.grad is not None
                self.gradients[f"{ctx.step}.{len(self.gradients)}.{name}.{key}"] = parameter.grad.clone()

        ctx.update = update
        try:
            return super().step(ctx, batch)
        finally:
            ctx.update = original


def work(folder: Path) -> None:
    world = join("cpu")
    seed_everything(world.rank)  # different initial weights: rank 0's must win
    task = Recorded()
    train(task, Source(), toy_config(**SETTINGS), folder / "run")
    save_file(task.gradients, folder / f"gradients-{world.rank}.safetensors")
    save_file(
        {f"{m}.{k}": v.contiguous() for m, net in task.modules.items() for k, v in net.state_dict().items()},
        folder / f"weights-{world.rank}.safetensors",
    )
    stop_and_go_on(folder, world)
    stop_at_bad_values(folder, world)
    used, idle = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    if world.rank == 0:
        used.grad = torch.tensor([2.0, 4.0])
    mean = average_gradients([used, idle], torch.tensor(float(world.rank)), world)
    assert used.grad is not None
    assert used.grad.tolist() == [1, 2]
    assert idle.grad is None
    assert mean == 0.5
    assert all_reduce_mean(torch.tensor([float(world.rank)]), world) == 0.5


def stop_and_go_on(folder: Path, world: World) -> None:
    """A signal that reaches one process stops all of them after the same step; the rest ends in the same weights."""

    class Signalled(Recorded):
        def step(self, ctx: Context, batch: dict[str, Tensor]) -> dict[str, Any]:
            if ctx.step == 3 and ctx.world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(ctx, batch)

    seed_everything(0)
    with pytest.raises(Interrupted, match="step 4"):
        train(Signalled(), Source(), toy_config(**SETTINGS), folder / "stopped")
    train(Recorded(), Source(), toy_config(**SETTINGS), folder / "stopped")
    whole, parts = (read_checkpoint(folder / run / LAST)[0] for run in ("run", "stopped"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def stop_at_bad_values(folder: Path, world: World) -> None:
    """A value that is not finite on one process stops both."""

    class Broken(Source):
        def batch(self, indices: np.ndarray) -> dict[str, Any]:
            return {"image": self.images[indices] * (np.nan if world.rank == 1 else 1)}

    with pytest.raises(NonFiniteError, match=f"step 1: loss 'critic' is nan.* Inputs on rank {world.rank}"):
        train(Recorded(), Broken(), toy_config(**SETTINGS), folder / "broken")


def leave_nothing_running() -> None:
    """The group's threads end with the group: at the interpreter's end they would abort the process."""
    leave()
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
    assert not [name for name in threads if "gloo" in name]


def torchrun(arguments: list[str]) -> subprocess.CompletedProcess:
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.training.test_distributed",
    ]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    done = torchrun([str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    seed_everything(0)
    alone = Recorded()
    train(alone, Source(), toy_config(**SETTINGS), tmp_path / "alone")

    first, second = (load_file(tmp_path / f"gradients-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == alone.gradients.keys()
    assert len(first) == 6 * (2 * 4 + 6)  # both critic updates and the generator's, every parameter
    for name, gradient in alone.gradients.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - gradient).abs().max() < 1e-6, name

    first, second = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1))
    saved, _ = read_checkpoint(tmp_path / "run" / LAST)
    for name, weight in first.items():
        module, key = name.split(".", 1)
        assert torch.equal(weight, second[name])
        assert torch.equal(weight, saved[f"model/{module}/{key}"])
        assert (weight - alone.modules[module].state_dict()[key]).abs().max() < 1e-6


def test_alone_needs_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join("cpu")
    assert (world.rank, world.size, world.main) == (0, 1, True)
    assert all_reduce_mean(torch.tensor([3.0]), World()) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: no GPU"):
        join("cuda")


def test_sampler_must_fit_the_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size: the sampler was built for another"):
        train(ToyGAN(), Source(), toy_config(), tmp_path, sampler=uniform_sampler(37, 8))


def test_batch_must_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterscan.training.distributed.join", lambda device: World(size=4))
    with pytest.raises(InputError, match="multiple of the 4 processes"):
        train(ToyGAN(), Source(), toy_config(), tmp_path)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    leave_nothing_running()
