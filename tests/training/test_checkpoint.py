from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from counterscan.errors import InputError
from counterscan.training import DamagedCheckpoint, find_checkpoint, load_weights
from counterscan.training.checkpoint import Checkpoints, read_checkpoint, write_checkpoint
from counterscan.training.state import flatten_optimizer, unflatten_optimizer
from tests.training.toy import ToyGAN, toy_run

META = {"step": 3, "task": {"text": "é", "number": 0.1}}


def tensors() -> dict[str, torch.Tensor]:
    shared = torch.arange(6.0)
    return {
        "a": shared,
        "b": shared,
        "c": shared.view(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(4),
        "empty": torch.zeros(0, 3),
    }


def test_round_trip_with_tied_and_strided_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.safetensors", tensors(), META)
    back, meta = read_checkpoint(tmp_path / "x.safetensors")
    assert {k: v for k, v in meta.items() if k != "digest"} == META
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors().items())


@pytest.mark.parametrize("harm", ["cut", "empty", "bit", "header", "text"])
def test_damage_is_noticed(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, tensors(), META)
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[-30] ^= 1
    if harm == "header":
        content = content.replace(b"0.1", b"0.2")
    path.write_bytes({"cut": content[:-7], "empty": b"", "text": b"not a checkpoint at all"}.get(harm, content))
    with pytest.raises(DamagedCheckpoint, match=r"x\.safetensors"):
        read_checkpoint(path)


def test_keeps_the_latest_and_the_named(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=2)
    write_checkpoint(kept.path("best"), tensors(), META)
    (tmp_path / ".step-00000001.safetensors.x.part").write_bytes(b"left by a killed process")
    for step in (1, 2, 10):
        kept.save(step, tensors(), META)
    assert kept.steps() == [2, 10]
    assert kept.path("best").exists()
    assert Checkpoints(tmp_path, keep=2).newest() == kept.path(10)
    assert list(tmp_path.glob(".*"))  # whoever reads leaves alone what another process may be writing
    kept.clear()
    assert not list(tmp_path.glob(".*"))


def test_falls_back_to_the_latest_intact(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        kept.save(step, tensors(), META)
    kept.path(2).write_bytes(b"")
    kept.path(3).write_bytes(kept.path(3).read_bytes()[:-1])
    with pytest.warns(UserWarning, match="going back to the checkpoint before it"):
        assert kept.set_damaged_aside() == 1
    assert kept.steps() == [1]
    kept.path(1).write_bytes(b"")
    with pytest.warns(UserWarning, match="going back"), pytest.raises(InputError, match="every checkpoint is damaged"):
        kept.set_damaged_aside()


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, tensors(), META)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            kept.save(2, {"big": torch.zeros(10_000)}, META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["step-00000001.safetensors"]
    assert kept.set_damaged_aside() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.1, betas=(0.5, 0.9), amsgrad=True),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: torch.optim.Adagrad(ps, lr=0.1),
    ],
)
def test_optimizer_goes_on_exactly(make, tmp_path: Path) -> None:
    def go(module: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            torch.manual_seed(seed)
            module(torch.randn(4, 2, 3, 3)).square().mean().backward()
            optimizer.step()

    def layer() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)

    whole = layer()
    optimizer = make(whole.parameters())
    go(whole, optimizer, range(3))
    flat, meta = flatten_optimizer(optimizer)
    write_checkpoint(tmp_path / "x.safetensors", flat, meta)
    half = layer()
    half.load_state_dict(whole.state_dict())
    go(whole, optimizer, range(3, 6))

    resumed = make(half.parameters())
    back, meta = read_checkpoint(tmp_path / "x.safetensors")
    unflatten_optimizer(resumed, back, meta, tmp_path)
    assert resumed.param_groups[0].get("betas") == optimizer.param_groups[0].get("betas")
    go(half, resumed, range(3, 6))
    assert torch.equal(whole.weight, half.weight)

    with pytest.raises(InputError, match="groups differ"):
        unflatten_optimizer(make([nn.Parameter(torch.zeros(1))]), back, meta, tmp_path)


def test_weights_for_use_are_the_averaged_ones(tmp_path: Path) -> None:
    result = toy_run(str(tmp_path))
    assert result.best_step is not None
    best = find_checkpoint(tmp_path)
    assert best.name == "best.safetensors"
    generator, last = ToyGAN().modules["generator"], ToyGAN().modules["generator"]
    meta = load_weights(tmp_path, {"generator": generator})
    assert meta["step"] == result.best_step
    assert meta["task"]["seen"] == 6 * result.best_step
    assert len(meta["digest"]) == 64
    with torch.no_grad():
        assert float(generator.eval()(torch.ones(2, 1, 8, 8)).mean()) == pytest.approx(result.best_value, abs=1e-6)

    assert load_weights(tmp_path, {"generator": last}, which="last")["step"] == 40
    stored, _ = read_checkpoint(result.checkpoint)
    assert torch.equal(last[0].weight, stored["ema/generator/0.weight"])
    assert not torch.equal(last[0].weight, stored["model/generator/0.weight"])

    with pytest.raises(InputError, match="nobody: weights do not fit"):
        load_weights(tmp_path, {"nobody": nn.Linear(1, 1)})
    with pytest.raises(InputError, match="no checkpoint 'best'"):
        find_checkpoint(tmp_path / "checkpoints")
