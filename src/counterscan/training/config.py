"""How a run is trained, and the guarantee that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.training.precision import Precision


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop; what is learned belongs to the system's own configuration.

    Attributes:
        steps: length of the run in steps (one call of ``Task.step`` each).
        batch_size: images per step over all processes together; a multiple of their number.
        seed: start of all randomness; batch and noise of a step depend on (seed, step, rank) alone.
        threads: CPU threads of torch; 0 leaves torch's choice. Bit-exact resume needs the same number.
        device: "auto" takes the GPU when there is one.
        precision: "bf16" makes ``ctx.autocast()`` compute in bfloat16; weights stay float32. Halves the step time on a
            CPU with AMX (a U-Net of base 16, batch 16 at 64 px, one thread: 0.11 s for 0.20 s). "auto" does so where
            it is fast, see ``training.precision``.
        channels_last: keep 4-D weights and images in NHWC order, meant for convolutions on GPUs. On that CPU it gained
            a tenth in fp32 and cost eager bf16 half its speed-up (0.16 s); medXGAN+'s networks gain from it in
            bf16 as well.
        compile: let ``ctx.compile`` compile; costs up to a minute per module. On that CPU it gained nothing over eager
            bf16 (0.11 s for 0.11 to 0.13 s).
        prefetch: read the next batch in a thread while the current step computes.
        schedule: course of the learning rate after warm-up, as a factor on every optimizer's own rate.
        warmup: steps of linear rise from near zero.
        final_factor: what "linear" and "cosine" end at.
        grad_clip: largest gradient norm per update; None never clips (the norm is logged either way).
        ema_half_life: half-life of the averaged weights, in ``ema_unit``.
        ema_unit: "steps" or "images"; the latter does not depend on the batch size.
        ema_ramp: early half-life as a share of what was seen so far, so that the start is forgotten; 0 for none.
        checkpoint_every: steps between checkpoints; 0 saves only at the start and the end.
        keep: latest checkpoints kept on disk, besides the best.
        log_every, sample_every, validate_every: steps between log lines, image grids, validations; 0 for never.
        best_metric: the validation metric that chooses the best checkpoint; None leaves it to ``Task.criterion``.
        best_mode: whether more or less of it is better.
        tensorboard: write TensorBoard event files as well.

    Raises:
        InputError: a value is out of range; names the field.
    """

    steps: int = 1000
    batch_size: int = 16
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    prefetch: bool = True
    schedule: Literal["const", "linear", "cosine"] = "const"
    warmup: int = 0
    final_factor: float = 0.0
    grad_clip: float | None = None
    ema_half_life: float = 500.0
    ema_unit: Literal["steps", "images"] = "steps"
    ema_ramp: float = 0.1
    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 20
    sample_every: int = 500
    validate_every: int = 500
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "max"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "keep"):
            _require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in (
            "threads",
            "warmup",
            "checkpoint_every",
            "log_every",
            "sample_every",
            "validate_every",
            "ema_ramp",
        ):
            _require(getattr(self, name) >= 0, name, "must not be negative")
        for name, choices in CHOICES.items():
            _require(getattr(self, name) in choices, name, f"must be one of {', '.join(choices)}")
        _require(0 <= self.seed < 2**32, "seed", "must be at least 0 and below 2^32")
        _require(self.ema_half_life > 0, "ema_half_life", "must be positive")
        _require(0 <= self.final_factor <= 1, "final_factor", "must be between 0 and 1")
        _require(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "must be positive, or none")

    def rate_factor(self, step: int) -> float:
        """Factor on every optimizer's learning rate at ``step`` (counted from 0)."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = min(1.0, max(0, step - self.warmup) / max(1, self.steps - self.warmup))
        fall = {"const": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]
        return rise * (self.final_factor + (1 - self.final_factor) * fall)


CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "precision": get_args(Precision),
    "schedule": ("const", "linear", "cosine"),
    "ema_unit": ("steps", "images"),
    "best_mode": ("max", "min"),
}

# What a resumed run may change: its length, what it shows and saves, and the machine it uses.
MAY_CHANGE = {
    f"training.{name}"
    for name in (
        "steps",
        "threads",
        "device",
        "precision",
        "prefetch",
        "checkpoint_every",
        "keep",
        "log_every",
        "sample_every",
        "validate_every",
        "tensorboard",
    )
}


def _require(good: bool, field: str, problem: str) -> None:
    if not good:
        raise InputError(problem, field=field)


def settle_config(folder: Path, config: TrainConfig, settings: Any = None) -> None:
    """Write ``config.yaml``, or check that the one there describes the same run.

    Args:
        folder: the run folder.
        config: goes under ``training``.
        settings: the system's own settings, a dataclass or a mapping of plain values; goes under ``system``.

    Raises:
        InputError: a resumed run differs in a field outside ``MAY_CHANGE``; names the field and both values.
    """
    path = folder / "config.yaml"
    wanted = {"training": plain(config), "system": plain(settings if settings is not None else {})}
    if path.exists():
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(
                f"is not valid YAML ({error})", path=path, remedy="Restore it, or start a new run"
            ) from None
        for name, old, new in changes(found, wanted):
            if name not in MAY_CHANGE:
                raise InputError(
                    f"the run was started with {old!r}, now it is {new!r}",
                    path=path,
                    field=name,
                    remedy="Resume with the settings of the run, or train into a new folder",
                )
    write_text(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as the dictionaries, lists and strings that YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def shaping(config: Any, *after: str) -> dict[str, Any]:
    """A run's settings in plain values, for ``train``'s ``settings``: without its ``training``, which the loop keeps
    itself, and without those named, which count only after the training and may change."""
    return {name: value for name, value in plain(config).items() if name not in ("training", *after)}


def changes(before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names at which nests of plain values differ, in order, with both values; "(absent)" where one has none."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    for name in sorted(old.keys() | new.keys()):
        pair = old.get(name, "(absent)"), new.get(name, "(absent)")
        if pair[0] != pair[1]:
            yield name, *pair


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
