"""Tokens of report text: byte-pair merges learnt from the training reports, so that nothing need be downloaded.

A word that is common becomes one token; a rare or unseen one is spelt in pieces, which begin with ``##`` unless they
begin the word. Words of fewer reports than ``least`` leave no trace in the vocabulary, names of people among them.
Source: Sennrich et al. 2016 (byte-pair encoding), with the pieces' notation of WordPiece.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.files import read_json, write_json

UNKNOWN, START = "[unk]", "[start]"
_INSIDE = "##"
_PARTS = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
_FORMAT = 1


def words(text: str) -> list[str]:
    """Lower-case words, single digits and single signs, in order."""
    return _PARTS.findall(unicodedata.normalize("NFKC", text).lower())


class ReportTokenizer:
    """Texts to token ids.

    Args:
        pieces: the vocabulary; the place is the id.
        merges: pairs that were joined, in the order in which they were learnt.
        known: words that the training reports use.
    """

    def __init__(self, pieces: Sequence[str], merges: Sequence[tuple[str, str]], known: Iterable[str]) -> None:
        self.pieces, self.merges, self.known = list(pieces), [(a, b) for a, b in merges], frozenset(known)
        self._id = {piece: number for number, piece in enumerate(self.pieces)}
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._word_ids = functools.lru_cache(maxsize=1 << 16)(self._encode_word)

    @classmethod
    def fit(cls, texts: Sequence[str], size: int = 4096, least: int = 3) -> ReportTokenizer:
        """Learn from the training reports.

        Args:
            texts: reports of the TRAINING patients alone.
            size: largest vocabulary.
            least: a word counts when this many texts use it, a merge when it occurs as often.

        Raises:
            InputError: the texts hold no word.
        """
        if not texts or not any(words(text) for text in texts):
            raise InputError("the texts hold no word", field="texts", remedy="Give the training reports")
        spread: Counter[str] = Counter()
        for text in texts:
            spread.update(set(words(text)))
        # A handful of texts is no reason to know nothing.
        least = min(least, max(spread.values()))
        counts = {word: n for word, n in spread.items() if n >= least}
        letters = sorted({piece for word in counts for piece in _letters(word)})
        merges = _learn(counts, max(0, size - 2 - len(letters)), least)
        pieces = [UNKNOWN, START, *letters, *dict.fromkeys(a + b.removeprefix(_INSIDE) for a, b in merges)]
        return cls(list(dict.fromkeys(pieces)), merges, sorted(counts))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids (N, L) int64, each row beginning with the start token and -1 after its end.

        Args:
            texts: N texts; the end of a longer one is cut.
            length: largest L; L is that of the longest text.
        """
        rows = []
        for text in texts:
            row = [self._id[START]]
            for word in words(text):
                row.extend(self._word_ids(word))
                if len(row) >= length:
                    break
            rows.append(row[:length])
        out = torch.full((len(rows), max(map(len, rows), default=1)), -1, dtype=torch.int64)
        for k, row in enumerate(rows):
            out[k, : len(row)] = torch.tensor(row)
        return out

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text, to look at."""
        return [self.pieces[k] for word in words(text) for k in self._word_ids(word)]

    def unfamiliar(self, text: str) -> list[str]:
        """Words of a text that the training reports do not use; digits and signs are not asked about."""
        return [word for word in words(text) if word[0].isalpha() and word not in self.known]

    def save(self, path: str | Path) -> None:
        """Write JSON.

        Raises:
            InputError: it cannot be written.
        """
        value = {"format": _FORMAT, "pieces": self.pieces, "merges": self.merges, "known": sorted(self.known)}
        write_json(path, value)

    @classmethod
    def load(cls, path: str | Path) -> ReportTokenizer:
        """Read what ``save`` wrote.

        Raises:
            InputError: missing, or no tokenizer of this version.
        """
        found = read_json(path)
        try:
            if found["format"] != _FORMAT or found["pieces"][:2] != [UNKNOWN, START]:
                raise ValueError
            return cls(found["pieces"], [(a, b) for a, b in found["merges"]], found["known"])
        except (KeyError, TypeError, ValueError):
            raise InputError("is not a tokenizer of this version", path=path, remedy="Train the model again") from None

    def _encode_word(self, word: str) -> tuple[int, ...]:
        parts = _letters(word)
        while len(parts) > 1:
            rank, at = min((self._rank.get(pair, len(self._rank)), k) for k, pair in enumerate(pairwise(parts)))
            if rank == len(self._rank):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1].removeprefix(_INSIDE)]
        return tuple(self._id.get(part, self._id[UNKNOWN]) for part in parts)


def _letters(word: str) -> list[str]:
    return [word[:1], *(_INSIDE + letter for letter in word[1:])]


def _learn(counts: dict[str, int], most: int, least: int) -> list[tuple[str, str]]:
    """The merges: each joins the most frequent pair of neighbours; among equals the first by spelling."""
    spelt = [_letters(word) for word in counts]
    weights = list(counts.values())
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for k, parts in enumerate(spelt):
        for pair in pairwise(parts):
            pairs[pair] += weights[k]
            places[pair].add(k)
    merges: list[tuple[str, str]] = []
    while pairs and len(merges) < most:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < least:
            break
        merges.append(best)
        for k in places.pop(best):
            parts = spelt[k]
            for pair in pairwise(parts):
                pairs[pair] -= weights[k]
                places[pair].discard(k)
            spelt[k] = parts = _joined(parts, best)
            for pair in pairwise(parts):
                pairs[pair] += weights[k]
                places[pair].add(k)
        del pairs[best]
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part.removeprefix(_INSIDE)
        else:
            out.append(part)
    return out
