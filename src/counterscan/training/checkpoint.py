"""Checkpoints: one safetensors file each, written atomically, with a digest of everything in it.

Tensor names are ``model/<module>/<weight>``, ``ema/<module>/<weight>``, ``optimizer/<name>/<index>/<state>`` and
``task/<key>``. Everything that is not a tensor is JSON in the file's header, under ``counterscan``. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from counterscan.errors import CounterscanError, InputError
from counterscan.files import atomic_write

SUFFIX = ".safetensors"


class DamagedCheckpoint(CounterscanError):
    """A checkpoint that cannot be read, or whose content is not what was written."""


def digest(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the JSON and over every tensor's name, type, shape and bytes, in order of the names."""
    total = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 of a module's weights and buffers: the same however it was saved and loaded."""
    return digest({name: x.detach().cpu() for name, x in module.state_dict().items() if isinstance(x, Tensor)}, {})


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to one file.

    Raises:
        InputError: the disk is full or the folder cannot be written; an earlier file at ``path`` is untouched.
    """
    ready: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # Tied weights share storage, which the format refuses; each name gets its own copy.
        ready[name] = plain.clone() if plain.untyped_storage().data_ptr() in stored else plain
        stored.add(ready[name].untyped_storage().data_ptr())
    meta = json.loads(json.dumps(meta))
    # One entry: the format leaves the order of several open, and equal runs are to give equal files.
    content = save(ready, metadata={"counterscan": json.dumps({**meta, "digest": digest(ready, meta)})})
    with atomic_write(path) as handle:
        handle.write(content)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and JSON of a checkpoint, the latter with its "digest".

    Raises:
        DamagedCheckpoint: it is cut short, altered, or was not written by ``write_checkpoint``.
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError("no such checkpoint", path=path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        meta = json.loads(header["counterscan"])
        written = meta.pop("digest")
        intact = written == digest(tensors, meta)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    if not intact:
        raise DamagedCheckpoint(f"{path} is not what was written: its digest differs")
    return tensors, {**meta, "digest": written}


class Checkpoints:
    """The ``checkpoints`` folder of a run: the latest few by step, and named ones such as "best".

    Args:
        folder: made when missing.
        keep: how many of the latest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def clear(self) -> None:
        """Drop what a killed run left half written; for the run that holds the folder's lock, and nobody else."""
        for leftover in self.folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps with a checkpoint, rising."""
        found = (re.fullmatch(r"step-(\d+)\.safetensors", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, name: int | str) -> Path:
        """File of a step (int) or of a named checkpoint."""
        return self.folder / (f"step-{name:08d}{SUFFIX}" if isinstance(name, int) else f"{name}{SUFFIX}")

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Save a step, then drop the oldest beyond ``keep``; nothing is dropped when saving fails."""
        write_checkpoint(self.path(step), tensors, meta)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        return self.path(step)

    def newest(self) -> Path | None:
        """File of the latest step, unread; None without any."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def set_damaged_aside(self) -> int | None:
        """Latest step whose file is intact; later damaged ones are renamed, with a warning. None without any file.

        Raises:
            InputError: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                read_checkpoint(self.path(step))
            except DamagedCheckpoint as error:
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
                with contextlib.suppress(OSError):
                    os.replace(self.path(step), self.path(step).with_suffix(SUFFIX + ".damaged"))
            else:
                return step
        if steps:
            raise InputError("every checkpoint is damaged", path=self.folder, remedy="Train into a new folder")
        return None


def find_checkpoint(run: str | Path, which: str | int = "best") -> Path:
    """File to take weights from.

    Args:
        run: a run folder, or a checkpoint file, which is returned as it is.
        which: "best" (the latest when none was chosen), "last", or a step.

    Raises:
        InputError: there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    kept = Checkpoints(run / "checkpoints", keep=1)
    path = kept.path(which) if which != "last" else kept.newest()
    if which == "best" and path is not None and not path.exists():
        path = kept.newest()
    if path is None or not path.exists():
        raise InputError(f"holds no checkpoint {which!r}", path=run, remedy="Name a run folder that was trained")
    return path


def load_weights(run: str | Path, modules: Mapping[str, nn.Module], which: str | int = "best") -> dict[str, Any]:
    """Put trained weights into modules: the averaged ones where the run averaged them.

    Args:
        run: a run folder or a checkpoint file.
        modules: modules by the names the task gave them, built with the same settings.
        which: see ``find_checkpoint``.

    Returns:
        "step", "digest" (by which the checkpoint is cited), "best", "metrics", and "task", the task's own state.

    Raises:
        InputError: no checkpoint, no module of that name, or weights of another shape.
        DamagedCheckpoint: the file is damaged.
    """
    path = find_checkpoint(run, which)
    tensors, meta = read_checkpoint(path)
    for name, module in modules.items():
        weights = select(tensors, f"ema/{name}/") or select(tensors, f"model/{name}/")
        fit(module, weights, path, name)
    return {**meta, "task": {**select(tensors, "task/"), **meta["task"]}}


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with ``prefix``, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fit(module: nn.Module, weights: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load weights, with an InputError that names file and module when they do not fit."""
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(
            f"weights do not fit ({str(error).splitlines()[-1].strip()})",
            path=path,
            field=name,
            remedy="Build the module with the settings in the run's config.yaml",
        ) from None
