"""Freed memory is kept for the next step instead of being given back and mapped anew."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt, malloc.h
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep what it frees.

    glibc returns large blocks to the system when they are freed, so that every training step maps and zeroes much of
    its memory again: a twentieth to a fifth of a step on a CPU. The process stays as large as it once was.

    Returns:
        Whether the C library is glibc and took it; others are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(name, _KEPT) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
