from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from counterscan.errors import InputError
from counterscan.training import TrainConfig, image_grid, read_metrics
from counterscan.training.distributed import World
from counterscan.training.logging import RunLog, truncate_metrics


def test_later_and_half_written_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1, "a": 1}\n{"step": 2}\n'
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path / "elsewhere")


def test_nan_becomes_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, TrainConfig(tensorboard=False), World())
    log.record(1, {"a": float("nan"), "b": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": 2.0}\n'


def test_full_disk_is_named(tmp_path: Path) -> None:
    log = RunLog(tmp_path, TrainConfig(tensorboard=False), World())
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        log.record(1, {"a": 1.0})


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_key_metrics(tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterscan.training.logging.PLAIN_SECONDS", 0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=120)
    log = RunLog(tmp_path, TrainConfig(steps=10, tensorboard=False), World(), console=console)
    log.record(2, {"critic/loss": 0.25, "critic/grad_norm": 1.0})
    log.progress(2)
    log.close()
    text = shown.getvalue()
    assert "2/10" in text
    assert "critic/loss 0.25" in text
    assert "grad_norm" not in text
    assert terminal or "min left" in text


def test_grid_of_rows() -> None:
    rows = torch.stack([torch.full((3, 1, 2, 2), -1.0), torch.ones(3, 1, 2, 2)])
    grid = image_grid(rows, gap=1)
    assert grid.shape == (5, 8)
    assert grid.dtype == np.uint8
    assert grid[0].tolist() == [0] * 8
    assert grid[3].tolist() == [255, 255, 0] * 2 + [255, 255]
    assert image_grid(torch.zeros(5, 3, 2, 2), gap=0).shape == (4, 6, 3)
