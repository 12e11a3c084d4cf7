"""How slow this machine is now, so that a test of speed says something about the code on any of them."""

import re
import time
from collections.abc import Callable

import numpy as np

_NOMINAL = 0.014  # CPU seconds of the yardstick on the machine (2026, x86-64 with AVX2) that the tests' limits are for


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of some work: the best of some goes."""
    took = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def slowness() -> float:
    """How many times slower than that machine, at least 1; measure it beside what it is to excuse."""
    return max(1.0, cpu_seconds(_yardstick) / _NOMINAL)


def _yardstick() -> None:
    """Some of what the timed code does: text, dictionaries, small arrays."""
    words = re.compile(r"\w+")
    text = "No focal consolidation, pleural effusion or pneumothorax is seen in the left lower lobe. " * 20
    for _ in range(40):
        counts: dict[str, int] = {}
        for match in words.finditer(text):
            word = match.group().lower()
            counts[word] = counts.get(word, 0) + 1
    image = np.linspace(0, 1, 128 * 128).reshape(128, 128)
    for _ in range(40):
        image = np.sqrt(np.abs(np.roll(image, 1, 0)) + 0.5)
