"""Whether a text is English, by a rule simple enough to state in an error."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from counterscan.text.rules import PACKAGED, read_yaml

_WORD = re.compile(r"[^\W\d_]+")
RULE = (
    "more than half of its letters are not Latin, or of its words more are common in another language than in English"
)


@cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    lists = read_yaml(PACKAGED / "language.yaml")
    return frozenset(map(str, lists["english"])), frozenset(map(str, lists["other"]))


def is_english(text: str) -> bool:
    """False when the text is clearly not English; texts too short to tell count as English.

    A text is refused when more than half of its letters are not Latin, or when at least two of its words are common
    in German, French, Spanish, Italian, Portuguese, Dutch, Swedish or Polish and more of them are than in English
    (lists in ``rules/language.yaml``; accents do not matter).

    Args:
        text: normalised text.
    """
    if not text.isascii():
        letters = [c for c in text if c.isalpha()]
        latin = sum(c < "\u0250" or "\u1e00" <= c < "\u1f00" for c in letters)
        if latin * 2 < len(letters):
            return False
        text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    english, other = _words()
    words = _WORD.findall(text)
    foreign = sum(word in other for word in words)
    return foreign < 2 or foreign <= sum(word in english for word in words)
