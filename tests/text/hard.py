"""The hand-written sentences, and how a reading of one is compared with what it should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from counterscan.text import Extraction

CODES = {
    "ECM": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LO": "Lung Opacity",
    "LL": "Lung Lesion",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PT": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
}
SENTENCES: dict[str, list[dict[str, str]]] = yaml.safe_load(
    Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8")
)


def problems(entry: dict[str, str], read: Extraction) -> list[str]:
    """What differs between a sentence's expected and actual reading; empty when nothing does."""
    pairs = (item.split("=") for item in entry["want"].split())
    want = {CODES[code]: float(value) for code, value in pairs}
    got = {name: value for name, value in read.labels.items() if name in CODES.values() and not math.isnan(value)}
    found = [] if want == got else [f"{entry['text']!r}: want {want}, got {got}"]
    for part in filter(None, entry.get("with", "").split(";")):
        code, *pairs = part.split()
        asked = dict(pair.split("=") for pair in pairs)
        about = [f for f in read.findings if f.name == CODES[code]]
        if not any(all(_holds(getattr(f, key), value) for key, value in asked.items()) for f in about):
            found.append(f"{entry['text']!r}: want {part.strip()}, got {about}")
    return found


def _holds(actual: Any, value: str) -> bool:
    if isinstance(actual, tuple):
        return any(_holds(item, value) for item in actual)
    if isinstance(actual, str):
        return actual.replace(" ", "-") == value
    return actual is not None and float(actual) == float(value)
