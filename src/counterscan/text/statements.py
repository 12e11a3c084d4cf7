"""Texts as the sentences they are made of, and the drawing of one per image and step.

A small model learns more from one sentence at a time than from whole reports: a sentence says one thing, and is short.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterscan.errors import InputError

LabelSentence = Callable[[str], Sequence[float]]
# After . ; ! ? or a new line, but not inside "3.2 cm" and not after the number of a list.
_BREAK = re.compile(r"(?<=[.;!?])\s+(?=\S)|\n+")
_HEADING = re.compile(r"^\s*(?:[A-Z][A-Z /&]{3,}:|\d+[.)](?!\d))\s*")
_LONE_NUMBER = re.compile(r"^\s*\d+[.)]\s*$")


def split_sentences(text: str) -> list[str]:
    """Sentences of a report, without section headings and the numbers of lists; repeated ones once.

    >>> split_sentences("FINDINGS: A 3.2 cm mass. No effusion.")
    ['A 3.2 cm mass.', 'No effusion.']
    """
    parts = (_HEADING.sub("", _HEADING.sub("", part)).strip() for part in _BREAK.split(text) if part)
    kept = [part for part in parts if any(sign.isalnum() for sign in part) and not _LONE_NUMBER.match(part)]
    return list(dict.fromkeys(kept))


def split_list(text: str) -> list[str]:
    """Statements of a text that lists them, as the rules' views do; repeated ones once.

    >>> split_list("mild edema, no pneumothorax")
    ['mild edema', 'no pneumothorax']
    """
    return list(dict.fromkeys(part for piece in split_sentences(text) for part in piece.split(", ") if part))


@dataclass(frozen=True)
class Statements:
    """The distinct sentences of N texts, the whole texts among them.

    Attributes:
        sentences: S distinct texts.
        of_row: (N, M) int64, which sentences a text is made of, -1 after the last.
        whole: (N,) int64, which of them is the whole text; -1 where it was not kept.
        spread: (S,) float32, how many texts hold the sentence.
        labels: (S, K) float32, what each states (1, 0, NaN where it does not say), or None.
    """

    sentences: list[str]
    of_row: Tensor
    whole: Tensor
    spread: Tensor
    labels: Tensor | None

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        label_sentence: LabelSentence | None = None,
        keep_whole: bool = True,
        listed: bool = False,
    ) -> Statements:
        """Take texts apart.

        Args:
            texts: N texts.
            label_sentence: gives a sentence's K labels; a whole text's come from its sentences, present before absent.
            keep_whole: keep the whole texts too; without, texts of several sentences are only drawn by sentence.
            listed: commas part statements too (``split_list``).

        Raises:
            InputError: labels of different lengths.
        """
        take_apart = split_list if listed else split_sentences
        split = [take_apart(text) or [text] for text in texts]
        spread = Counter(sentence for row in split for sentence in row)
        place: dict[str, int] = {sentence: k for k, sentence in enumerate(spread)}
        for text in texts if keep_whole else ():
            place.setdefault(text, len(place))
        of_row = torch.full((len(texts), max(map(len, split), default=1)), -1, dtype=torch.int64)
        for k, row in enumerate(split):
            of_row[k, : len(row)] = torch.tensor([place[sentence] for sentence in row])
        counts = torch.tensor([float(max(1, spread[sentence])) for sentence in place])
        whole = torch.tensor([place.get(text, -1) for text in texts], dtype=torch.int64)
        labels = _labels(list(place), len(spread), split, whole, label_sentence) if label_sentence else None
        return cls(list(place), of_row, whole, counts, labels)

    def draw(self, rows: Tensor, whole: float, rarity: float) -> Tensor:
        """One text per row from torch's own generator: (B,) int64, places in ``sentences``.

        Args:
            rows: (B,) int64 on the CPU.
            whole: probability of the whole text; else one of its sentences.
            rarity: sentences are drawn with weight 1 / spread ** rarity: those that most reports hold ("no
                pneumothorax") say little about the one at hand. 0 draws evenly.
        """
        choices = self.of_row[rows]
        weights = self.spread[choices.clamp_min(0)] ** -rarity * (choices >= 0)
        drawn = choices.gather(1, torch.multinomial(weights, 1)).squeeze(1)
        return torch.where(torch.rand(len(rows)) < whole, self.whole[rows], drawn)


def _labels(
    sentences: list[str], single: int, split: list[list[str]], whole: Tensor, label_sentence: LabelSentence
) -> Tensor:
    """(S, K); the first ``single`` are sentences, the others whole texts of several."""
    own = [list(map(float, label_sentence(sentence))) for sentence in sentences[:single]]
    if len({len(row) for row in own}) > 1:
        raise InputError(
            "a sentence's labels must be as many for every sentence", field="label_sentence", remedy="Give K numbers"
        )
    labels = torch.full((len(sentences), len(own[0]) if own else 0), torch.nan)
    labels[:single] = torch.tensor(own)
    place = {sentence: k for k, sentence in enumerate(sentences[:single])}
    for row, at in zip(split, whole.tolist(), strict=True):
        if at >= single:
            # -inf where no sentence says anything, so that present wins over absent and anything over nothing.
            said = labels[[place[sentence] for sentence in row]].nan_to_num(nan=-torch.inf).max(0).values
            labels[at] = said.where(said > -torch.inf, torch.nan)
    return labels
