"""The sections of a report, by their headers: on lines of their own or running on in one line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from counterscan.text.rules import PACKAGED, read_yaml


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a report.

    Attributes:
        name: "findings", "impression", "indication" ...; "body" for text before any header.
        role: "findings" and "impression" are read, "other" is not.
        start, end: offsets of its text, header excluded.
    """

    name: str
    role: str
    start: int
    end: int


@cache
def _headers() -> tuple[re.Pattern[str], tuple[tuple[str, str], ...]]:
    entries = read_yaml(PACKAGED / "sections.yaml")["sections"]
    groups = [f"((?:{'|'.join(sorted(entry['headers'], key=len, reverse=True))}))" for entry in entries]
    words = "|".join(groups).replace(" ", "[ -]+")
    # After a line start, a sentence's end or another blank-separated word; the colon makes it a header.
    pattern = re.compile(rf"(?:(?<=^)|(?<=[\n.:;*] )|(?<=[\n.:;*_ ]))(?:\d+[.)] *)?(?:{words})[ ]*(?::+(?!\d)|(?=\n))")
    return pattern, tuple((entry["name"], entry["role"]) for entry in entries)


def find_sections(text: str) -> list[Section]:
    """Split a report.

    Args:
        text: normalised report.

    Returns:
        Sections in order; without any header one "body", read as findings. Empty ones are left out.
    """
    pattern, names = _headers()
    found: list[Section] = []
    name, role, start = "body", "findings", 0
    # A header without a colon counts only as a whole line.
    marks = [
        m
        for m in pattern.finditer(text)
        if m[0].rstrip().endswith(":") or text[m.start() - 1 : m.start()] in ("", "\n")
    ]
    for mark in marks:
        if text[start : mark.start()].strip():
            found.append(Section(name, role, start, mark.start()))
        name, role = names[(mark.lastindex or 1) - 1]
        start = mark.end()
    if text[start:].strip():
        found.append(Section(name, role, start, len(text)))
    return found
