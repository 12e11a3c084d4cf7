from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from counterscan.errors import InputError
from counterscan.training import Interrupted, Task, read_metrics, train
from counterscan.training.checkpoint import read_checkpoint
from tests.training.toy import Source, ToyGAN, toy_config, toy_run

CLOCK = {"images_per_second"}


def without_clock(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(folder)]


def assert_same_run(first: Path, second: Path, step: int = 40) -> None:
    name = f"checkpoints/step-{step:08d}.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "checkpoints/best.safetensors").read_bytes() == (
        second / "checkpoints/best.safetensors"
    ).read_bytes()
    assert without_clock(first) == without_clock(second)


def start(folder: Path, pause: float) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.toy", str(folder), str(pause)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and any(line["step"] >= step for line in read_metrics(folder)):
            return
        time.sleep(0.01)
    raise AssertionError("the run made no progress")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    toy_run(str(folder))
    return folder


def test_sigterm_then_sigkill_then_finish_equals_one_run(uninterrupted: Path, tmp_path: Path) -> None:
    process = start(tmp_path, pause=0.03)
    wait_for_step(tmp_path, 4)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped after step" in told
    stopped = max(int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert 0 < stopped < 40

    process = start(tmp_path, pause=0.03)
    wait_for_step(tmp_path, stopped + 5)
    time.sleep(time.time_ns() % 100 / 500)  # anywhere in a step or a save
    process.kill()
    process.communicate(timeout=30)
    assert not (tmp_path / "checkpoints/step-00000040.safetensors").exists()

    toy_run(str(tmp_path))
    assert_same_run(uninterrupted, tmp_path)


def test_two_halves_by_sigint_equal_one_run(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ToyGAN.step

    def interrupted_step(self, ctx, batch):
        if ctx.step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, ctx, batch)

    monkeypatch.setattr(ToyGAN, "step", interrupted_step)
    with pytest.raises(Interrupted, match="step 21") as caught:
        toy_run(str(tmp_path))
    assert (caught.value.code, caught.value.step) == (130, 21)
    monkeypatch.setattr(ToyGAN, "step", whole)
    assert toy_run(str(tmp_path)).step == 40
    assert_same_run(uninterrupted, tmp_path)


def test_shorter_run_can_be_prolonged(tmp_path: Path) -> None:
    toy_run(str(tmp_path / "a"), steps=20, schedule="const", validate_every=0)
    toy_run(str(tmp_path / "b"), steps=10, schedule="const", validate_every=0)
    result = toy_run(str(tmp_path / "b"), steps=20, schedule="const", validate_every=0)
    assert result.step == 20
    tensors = [read_checkpoint(tmp_path / run / "checkpoints/step-00000020.safetensors")[0] for run in "ab"]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_finished_run_is_left_alone(uninterrupted: Path) -> None:
    before = without_clock(uninterrupted)
    result = toy_run(str(uninterrupted))
    assert (result.step, result.checkpoint.name) == (40, "step-00000040.safetensors")
    assert without_clock(uninterrupted) == before


def test_changed_settings_are_named(uninterrupted: Path) -> None:
    with pytest.raises(InputError, match=r"training\.batch_size.*started with 6, now it is 8"):
        toy_run(str(uninterrupted), batch_size=8)
    with pytest.raises(InputError, match=r"system\.pause"):
        train(ToyGAN(), Source(), toy_config(), uninterrupted, settings={"pause": 1})


def test_damaged_latest_falls_back_and_ends_the_same(uninterrupted: Path, tmp_path: Path) -> None:
    toy_run(str(tmp_path))
    latest = tmp_path / "checkpoints/step-00000040.safetensors"
    latest.write_bytes(latest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="going back"):
        toy_run(str(tmp_path))
    assert_same_run(uninterrupted, tmp_path)
    assert latest.with_suffix(".safetensors.damaged").exists()


def test_another_task_does_not_load(uninterrupted: Path) -> None:
    class Other(ToyGAN):
        def __init__(self) -> None:
            super().__init__()
            self.modules["critic"] = torch.nn.Linear(3, 1)

    with pytest.raises(InputError, match="critic: weights do not fit"):
        train(Other(), Source(), toy_config(), uninterrupted, settings={"pause": 0})


def test_task_with_state_must_load_it() -> None:
    class Forgetful(ToyGAN):
        load_state_dict = Task.load_state_dict

    with pytest.raises(NotImplementedError, match="Forgetful"):
        Forgetful().load_state_dict({"seen": 1})
