"""Sentences: full stops, semicolons, blank lines, bullets and numbered lists; wrapped lines are joined."""

from __future__ import annotations

import re

# A line end is a break before a bullet, a number, a blank line or a short heading, and after a full stop or colon.
_WRAP = re.compile(r"(?<![.:;\n])\n(?![ ]*(?:\n|[-*]|\d+[.)] ?|[a-z ]{3,30}:))")
_END = re.compile(
    r"(?<!\bdr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bapprox)[.!](?=\s|$|[\"')])"  # a full stop
    r"|(?<=[a-z]{3})\.(?=[a-z]{3})"  # one without a blank
    r"|;|\n"
    r"|(?<=[ .;:])\d{1,2}[.)](?= )(?![ ]*(?:mm|cm)\b)"  # the number of a list item
    r"|(?<= )\*(?= )|\?(?=\s|$)"
)


def unwrap(text: str) -> str:
    """The same text, same length, with a blank for every line end that only wraps a sentence."""
    return _WRAP.sub(" ", text)


def find_sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Offsets (start, end) of the sentences of ``text[start:end]``, blanks trimmed, empty ones left out."""
    found, begin = [], start
    for mark in _END.finditer(text, start, end):
        found.append((begin, mark.start()))
        begin = mark.end()
    found.append((begin, end))
    return [(a, b) for a, b in found if any(c.isalpha() for c in text[a:b])]
