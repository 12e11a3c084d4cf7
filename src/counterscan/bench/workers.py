"""Processes of a long run."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """A worker's initializer: a run that is killed must not leave workers that go on writing into its folder."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
