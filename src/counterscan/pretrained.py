"""Model folders: settings as JSON, weights as safetensors. Found, read and written alike by every system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.files import atomic_write


def model_folder(folder: Path, settings: str, remedy: str, inner: str = "model") -> Path:
    """The folder that holds the settings: this one, or ``inner`` in a run folder.

    Args:
        folder: what the user named.
        settings: name of the settings file, which is written last, so that a folder with one is whole.
        remedy: what to do when there is none.
        inner: where a run keeps its model.

    Raises:
        InputError: neither has it.
    """
    for candidate in (folder, folder / inner):
        if (candidate / settings).is_file():
            return candidate
    raise InputError(f"there is no {settings} here", path=folder, remedy=remedy)


@contextlib.contextmanager
def reading(folder: Path, what: str = "model") -> Iterator[None]:
    """Whatever a damaged or foreign folder raises inside the block comes out as an InputError that says so."""
    try:
        yield
    except (KeyError, TypeError, OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the {what} is damaged or of another version ({' '.join(str(error).split())[:200]})",
            path=folder,
            remedy="Copy the folder again, or train anew",
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device atomically, with text about them if there is some."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_write(path) as handle:
        handle.write(safetensors.torch.save(plain, metadata=dict(about) if about is not None else None))
