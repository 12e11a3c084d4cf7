"""What a run tells: metrics.jsonl, TensorBoard, progress on the terminal, image grids."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from counterscan.errors import InputError
from counterscan.files import atomic_write, write_text
from counterscan.training.config import TrainConfig
from counterscan.training.distributed import World, all_reduce_mean

PLAIN_SECONDS = 20.0  # between progress lines where there is no terminal


class RunLog:
    """Collects scalars step by step and writes their means.

    Args:
        folder: the run folder.
        config: length and intervals.
        world: only rank 0 writes; all take part in averaging.
        start: steps already done; later lines of an earlier attempt are dropped.
        window: sums from a checkpoint, see ``window``.
        console: where progress goes; standard error by default.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        world: World,
        start: int = 0,
        window: Mapping[str, Sequence[float]] | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.config, self.world = folder, config, world
        self._values: dict[str, list[Tensor | float]] = {k: list(v) for k, v in (window or {}).items()}
        self._latest: dict[str, float] = {}
        self._since = (time.monotonic(), start)
        self._spoke = self._begun = time.monotonic()
        self._start = start
        self._board: Any = None
        self._bar: Progress | None = None
        if world.main:
            self.console = console or Console(stderr=True)
            truncate_metrics(folder / "metrics.jsonl", start)
            self._open(start)

    def _open(self, start: int) -> None:
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1)
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._row = self._bar.add_task("", total=self.config.steps, completed=start)

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Take in one step's scalars; nothing waits for the GPU here."""
        if not self.config.log_every:
            return
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else float(value))

    @property
    def window(self) -> dict[str, list[float]]:
        """What was taken in since the last line, for the checkpoint."""
        return {name: [float(value) for value in values] for name, values in self._values.items()}

    def flush(self, step: int, **more: float) -> None:
        """Write the means since the last call, over steps and processes. Every rank calls it."""
        window = self.window
        names = sorted(window)
        means = torch.tensor([math.fsum(window[name]) / len(window[name]) for name in names], dtype=torch.float64)
        means = all_reduce_mean(means.to(self.world.device), self.world)
        now, (then, before) = time.monotonic(), self._since
        speed = (step - before) * self.config.batch_size / max(now - then, 1e-9)
        self._values, self._since = {}, (now, step)
        self.record(step, {**dict(zip(names, means.tolist(), strict=True)), **more, "images_per_second": speed})

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl now."""
        if not self.world.main:
            return
        self._latest |= values
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()} | {"step": step}
        try:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", path=self.folder / "metrics.jsonl") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def images(self, step: int, grids: Mapping[str, Tensor]) -> None:
        """Write image grids to ``samples/step-<step>-<name>.png``."""
        for name, tensor in grids.items():
            picture = image_grid(tensor)
            with atomic_write(self.folder / "samples" / f"step-{step:08d}-{name}.png") as handle:
                Image.fromarray(picture).save(handle, format="PNG")
            if self._board is not None:
                self._board.add_image(name, picture, step, dataformats="HW" if picture.ndim == 2 else "HWC")

    def progress(self, step: int) -> None:
        """Show where the run is: a bar on a terminal, else a line every ``PLAIN_SECONDS``."""
        if not self.world.main:
            return
        shown = [f"{k} {v:.4g}" for k, v in self._latest.items() if not k.endswith(("grad_norm", "rate"))]
        if self._bar is not None:
            self._bar.update(self._row, completed=step, description="  ".join(shown[:5]))
        elif time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._spoke = time.monotonic()
            left = (self._spoke - self._begun) / (step - self._start) * (self.config.steps - step)
            self.note(f"step {step}/{self.config.steps}, {left / 60:.1f} min left  " + "  ".join(shown))

    def note(self, text: str) -> None:
        """One line for people."""
        if self.world.main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the progress bar and the TensorBoard file."""
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()


def truncate_metrics(path: Path, last: int) -> None:
    """Drop the lines after step ``last``, and a half-written one, from a metrics.jsonl."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (entry := _parsed(line)) is not None and entry["step"] <= last]
        write_text(path, "".join(line + "\n" for line in kept))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, in order; each has "step". A half-written line is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise InputError("no such file", path=path, remedy="Name a run folder")
    return [entry for line in path.read_text(encoding="utf-8").splitlines() if (entry := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and "step" in entry else None


def image_grid(images: Tensor, gap: int = 2) -> np.ndarray:
    """Tile images into one picture.

    Args:
        images: (N, C, H, W) in [-1, 1], C 1 or 3, tiled near a square; or (R, N, C, H, W) with R rows, such as input,
            map and counterpart, of N columns.
        gap: black pixels between images.

    Returns:
        uint8, (height, width) grey or (height, width, 3).
    """
    images = images.detach().float().cpu()
    columns = images.shape[1] if images.ndim == 5 else math.ceil(math.sqrt(len(images)))
    flat = images.flatten(0, 1) if images.ndim == 5 else images
    rows = math.ceil(len(flat) / columns)
    count, channels, height, width = flat.shape
    pixels = ((flat.nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    canvas = torch.zeros(channels, rows * (height + gap) - gap, columns * (width + gap) - gap, dtype=torch.uint8)
    for number in range(count):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = pixels[number]
    return canvas[0].numpy() if channels == 1 else canvas.permute(1, 2, 0).numpy()
