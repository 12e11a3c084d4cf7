from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from counterscan.memory import keep_freed_memory

_STEPS = """
import resource
import torch
from counterscan.memory import keep_freed_memory

torch.set_num_threads(1)
{before}
def step():
    torch.ones(16, 1024, 1024).mul(2)  # twice 64 MiB

for _ in range(4):  # until its blocks have found their places
    step()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def faults(before: str) -> int:
    """Pages that five equal steps map anew."""
    done = subprocess.run(
        [sys.executable, "-c", _STEPS.format(before=before)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_equal_steps_map_their_memory_once() -> None:
    assert faults("assert keep_freed_memory()") < 0.2 * faults("")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
