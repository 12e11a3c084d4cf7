"""A run folder to its system, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from counterscan.counterpart import System
from counterscan.errors import InputError


def load_system(folder: str | Path, device: str = "cpu") -> System:
    """Load whatever a folder holds.

    Args:
        folder: a run folder, whose ``config.yaml`` says its kind, or one written by ``save_pretrained``.
        device: where to compute.

    Raises:
        InputError: no run there, an unknown kind, or a damaged one.
    """
    folder = Path(folder)
    kind = _kind(folder)
    if kind == "taggan":
        from counterscan.taggan import TagGAN

        return TagGAN.from_pretrained(folder, device)
    raise InputError(
        f"{kind!r} is no system that answers with counterparts",
        path=folder / "config.yaml",
        field="system.kind",
        remedy="Systems are: taggan",
    )


def _kind(folder: Path) -> Any:
    path = folder / "config.yaml"
    if not path.is_file() and (folder / "taggan.json").is_file():
        return "taggan"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["system"]["kind"]
    except FileNotFoundError:
        raise InputError(
            "no such file", path=path, remedy="Name a run folder, or one written by save_pretrained"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError("does not say which system it is of", path=path, field="system.kind") from None
