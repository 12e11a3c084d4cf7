"""Randomness as a function of where one is in training, so that resuming needs no generator state."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, step: int = 0, rank: int = 0, stream: int = 0) -> None:
    """Seed Python's, numpy's and torch's global generators (CPU and GPUs) from the four numbers, each >= 0.

    The loop calls it before every step with stream 0, before validation with 1, before image grids with 2. A system
    calls it before it builds its networks, so that a run repeats from the start.
    """
    words = np.random.SeedSequence([seed, step, rank, stream]).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # Not torch.manual_seed: while no GPU is in use it keeps a stack trace for later, a millisecond per step.
    number = int(words[0]) << 31 | int(words[2]) >> 1
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
