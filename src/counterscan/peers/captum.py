"""How peers reach Captum and the random numbers it draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from counterscan.errors import InputError


def captum_method(name: str) -> Any:
    """A class of ``captum.attr``.

    Raises:
        InputError: Captum is not installed.
    """
    try:
        import captum.attr as methods
    except ImportError as error:
        raise InputError(f"{name} needs Captum", remedy="pip install counterscan[bench]") from error
    return getattr(methods, name)


def check_sampling(sigma: float, n_samples: int, internal_batch_size: int) -> None:
    """Raise InputError if no samples could be drawn so."""
    if not 0 <= sigma < float("inf"):
        raise InputError(f"{sigma} must be a number of at least 0", field="sigma")
    for name, value in (("n_samples", n_samples), ("internal_batch_size", internal_batch_size)):
        if value < 1:
            raise InputError(f"{value} must be at least 1", field=name)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators that Captum draws from, torch's and numpy's, and put them back after the block."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)
