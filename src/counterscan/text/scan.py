"""One pass of one regular expression over a report: every phrase of every rule, longer phrases first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from counterscan.text.rules import Rule, spaced


class Hit(NamedTuple):
    """A phrase found in a text.

    Attributes:
        rule: whose phrase it is.
        start, end: offsets.
    """

    rule: Rule
    start: int
    end: int


COMMA = Rule("grammar", "comma", (), role="comma")
COLON = Rule("grammar", "colon", (), role="verb")
SLASH = Rule("grammar", "slash", (), role="or")
ASKED = Rule("assertion", "question-mark", (), effect="uncertain")
_PUNCTUATION = {",": COMMA, "(": COMMA, ")": COMMA, ":": COLON, "/": SLASH, "?": ASKED}
_DEPTH = 4  # letters by which the alternatives are grouped
_KINDS = ("finding", "ignore", "structure", "state", "assertion", "modifier", "grammar")


class Scanner:
    """Finds the phrases of all rules.

    The alternatives are grouped by the first letters they need, so that at each word only a few are tried.

    Args:
        rules: on equal length, earlier kinds come first: finding, ignore, structure, state, assertion, modifier,
            grammar.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        entries = []
        for order, rule in enumerate(rules):
            for phrase in rule.phrases:
                for part in _alternatives(phrase):
                    entries.append((-_length(part), _KINDS.index(rule.kind), order, part, rule))
        entries.sort(key=lambda entry: entry[:4])
        self._rules: list[Rule] = []
        choices = self._choices([(phrase, rule) for *_, phrase, rule in entries], 0)
        self._pattern = re.compile(rf"(?<![a-z0-9])(?:{choices})(?![a-z0-9])|[,:/?()]")

    def _choices(self, entries: Sequence[tuple[str, Rule]], depth: int) -> str:
        """Alternatives in order, grouped by the letter at ``depth``; each phrase in a capturing group of its own."""
        groups: dict[str, list[tuple[str, Rule]]] = defaultdict(list)
        for phrase, rule in entries:
            groups[_letter(phrase, depth)].append((phrase, rule))
        parts = []
        for letter in sorted(groups, reverse=True):  # phrases that may go on with any letter come last
            if letter and len(groups[letter]) > 2 and depth < _DEPTH:
                ahead = "." * depth + letter
                parts.append(f"(?={ahead})(?:{self._choices(groups[letter], depth + 1)})")
            else:
                self._rules += [rule for _, rule in groups[letter]]
                parts += [f"({spaced(phrase)})" for phrase, _ in groups[letter]]
        return "|".join(parts)

    def scan(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Hit]:
        """Hits in ``text[start:end]``, in order, not overlapping."""
        rules = self._rules
        for match in self._pattern.finditer(text, start, len(text) if end is None else end):
            index = match.lastindex
            if index is not None:
                yield Hit(rules[index - 1], match.start(), match.end())
            elif match[0] == "/":
                if text[match.start() - 1 : match.start()].isalpha() and text[match.end() : match.end() + 1].isalpha():
                    yield Hit(SLASH, match.start(), match.end())
            elif match[0] != "?" or text[match.end() : match.end() + 1].strip():
                yield Hit(_PUNCTUATION[match[0]], match.start(), match.end())


def _alternatives(phrase: str) -> list[str]:
    """The phrase cut at its outermost bars, with leading groups and options written out, so that first letters show."""
    parts = _cut(phrase)
    if len(parts) > 1:
        return [whole for part in parts for whole in _alternatives(part)]
    if not phrase.startswith("(?:"):
        optional = re.match(rf"([a-z ]{{0,{_DEPTH}}})([a-z ])\?(?!\?)", phrase)
        if optional:
            start, letter = optional[1], optional[2]
            rest = phrase[optional.end() :]
            return [whole for option in (letter, "") for whole in _alternatives(start + option + rest)]
        return [phrase]
    close = _closing(phrase)
    inner, rest = phrase[3:close], phrase[close + 1 :]
    if rest[:1] == "{" or (rest[1:2] == "?" and rest[:1] in ("?", "*", "+")):
        return [phrase]
    tails = {"?": [rest[1:]], "*": [phrase, rest[1:]], "+": [f"{phrase[: close + 1]}*{rest[1:]}"]}.get(rest[:1], [rest])
    if rest[:1] == "*":  # once or more, or not at all
        return [choice + tails[0] for choice in _cut(inner)] + _alternatives(tails[1].removeprefix(" ?"))
    written = [whole for choice in _cut(inner) for whole in _alternatives(choice + tails[0])]
    return written + (_alternatives(tails[0].removeprefix(" ?")) if rest[:1] == "?" else [])


def _cut(phrase: str) -> list[str]:
    """The phrase cut at its outermost bars."""
    parts, start = [], 0
    for i, c, depth in _walk(phrase):
        if c == "|" and depth == 0:
            parts.append(phrase[start:i])
            start = i + 1
    return [*parts, phrase[start:]]


def _closing(phrase: str) -> int:
    """Where the group that opens at 0 is closed."""
    return next(i for i, c, depth in _walk(phrase) if c == ")" and depth == 0)


def _walk(phrase: str) -> Iterator[tuple[int, str, int]]:
    """(position, character, depth in groups) of what is neither escaped nor in a class of characters."""
    depth, escaped, in_class = 0, False, False
    for i, c in enumerate(phrase):
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
        else:
            depth += (c == "(") - (c == ")")
            yield i, c, depth


def _letter(phrase: str, depth: int) -> str:
    """The letter a match must have at ``depth``, "" if there are several or it has fewer letters to start with."""
    plain = re.match(rf"[a-z]{{{depth + 1}}}(?![?*{{|])", phrase)
    return plain[0][depth] if plain else ""


def _length(phrase: str) -> int:
    """How many letters and blanks a phrase can be long, not counting repetitions."""
    bare, before = phrase, ""
    while bare != before:
        before = bare
        bare = re.sub(r"\(\?(?:[=!]|<[=!])[^()]*\)", "", bare)
        bare = re.sub(r"\(\?:([^()]*)\)", lambda m: max(m[1].split("|"), key=len), bare)
    return len(re.sub(r"\\[wdb]|[\[\]?*+]", "", bare))
