"""The public image sets are used where they lie and never copied; a test without them skips and says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """Folder of a real data set, or skip the calling test."""
    folder = Path(os.environ.get("COUNTERSCAN_DATA", DEFAULT)) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here (set COUNTERSCAN_DATA to the folder that holds it)")
    return folder
