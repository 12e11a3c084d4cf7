"""What a prompt asks for: a finding, on a side, of a degree; and the direction of that in a text-image model.

A direction is the mean embedding of phrases that say the finding is there less that of phrases that say it is not, as
in StyleCLIP (Patashnik et al. 2021, section 6), where many templates of one phrase are averaged. A side is no part of
it: text-image models tell left from right poorly, and an edit can be kept to a half of the image; see ``Editor``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.data.findings import NO_FINDING, canonical_name, is_known
from counterscan.errors import InputError
from counterscan.text.extract import Extractor
from counterscan.text.prompts import PromptBank, Prompts
from counterscan.text.zeroshot import Form, prompt_direction
from counterscan.transfer import SIDES


class TextImage(Protocol):
    """What steering asks of a text-image model; ``counterscan.text.clip.TextImageModel`` has it."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, d) of length 1, differentiable in the images."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, d) of length 1."""
        ...


@dataclass(frozen=True)
class Mention:
    """One finding that a text speaks of.

    Attributes:
        finding: canonical name.
        present: whether the text says that it is there; hedges count.
        side: "left", "right", "bilateral" or "".
        degree: "mild", "moderate", "severe" or "", in the reader's words.
        severity: 1 mild or small, 2 moderate, 3 severe or large, halves between; None where nothing is said.
    """

    finding: str
    present: bool = True
    side: str = ""
    degree: str = ""
    severity: float | None = None


Reader = Callable[[str], Sequence[Mention]]


class ReportReader:
    """What the rules for reports (``counterscan.text.extract``) read in a text.

    Args:
        extractor: with rules of one's own; the packaged ones by default.
    """

    def __init__(self, extractor: Extractor | None = None) -> None:
        self._extractor = extractor

    def __call__(self, text: str) -> Sequence[Mention]:
        """Mentions in the order of the text.

        Raises:
            InputError: the text is empty or not English.
        """
        if self._extractor is None:
            self._extractor = Extractor()
        read = self._extractor(text)
        if read.refusal:
            raise InputError(
                f"{text!r} is {read.refusal}",
                field="text",
                remedy="Write as a report does, such as 'small left pleural effusion'",
            )
        return [
            Mention(found.name, found.status != "absent", found.laterality, found.degree, found.severity)
            for found in read.findings
            if is_known(found.name)
        ]


@dataclass(frozen=True)
class Prompt:
    """What is asked for.

    Attributes:
        text: as given.
        finding: the one that is steered.
        also: further findings that the text names; they may change, too.
        side, degree, severity: see ``Mention``.
        phrases: what says that it is there, on whichever side, that it is not, and that all is well.
        strange: words of the text that the text-image model cannot know.
    """

    text: str
    finding: str
    phrases: Prompts
    also: tuple[str, ...] = ()
    side: str = ""
    degree: str = ""
    severity: float | None = None
    strange: tuple[str, ...] = ()

    @property
    def further(self) -> int:
        """How many strengths an edit goes on beyond the first that convinces (``acceptance.fit_strengths``).

        Directions of "mild" and "severe" hardly differ in a text-image model; the length of the move does tell them.
        """
        if self.severity is None:
            return 1
        return 0 if self.severity < 2 else 1 if self.severity < 3 else 3


def parse(text: str, bank: PromptBank, read: Reader, model: object = None) -> Prompt:
    """The name of a finding, or free text such as "small left pleural effusion".

    Args:
        text: what is wanted.
        bank: phrases of findings.
        read: what a text says.
        model: phrases with words that it cannot know are left out.

    Raises:
        InputError: it speaks of no finding, or only of absent ones.
    """
    name = canonical_name(text)
    if name in bank.findings and name != NO_FINDING:
        return Prompt(text, name, bank.of(name, model))
    mentions = [mention for mention in read(text) if mention.finding != NO_FINDING]
    present = [mention for mention in mentions if mention.present]
    if not present:
        if mentions:
            gone = mentions[0].finding
            raise InputError(
                f"{text!r} says that {gone} is absent",
                field="text",
                remedy=f"Ask for {gone.lower()!r} with a negative strength",
            )
        raise InputError(
            f"{text!r} speaks of nothing known",
            field="text",
            remedy="Name a finding, and if wanted its side and degree, such as 'small left pleural effusion'",
        )
    first = present[0]
    phrases = bank.of(first.finding, model)
    if canonical_name(unsided(text)) == first.finding:
        return Prompt(text, first.finding, phrases, side=first.side)
    positives, strange = _asked(unsided(text), first.side, phrases.positives, model)
    said = Prompts(first.finding, positives, phrases.negatives, phrases.normal)
    also = tuple(dict.fromkeys(m.finding for m in present[1:] if m.finding != first.finding))
    return Prompt(text, first.finding, said, also, first.side, first.degree, first.severity, strange)


def _asked(text: str, side: str, bank: Sequence[str], model: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The text and the bank's phrases that say the same; and the text's words that the model cannot know."""
    unfamiliar = getattr(model, "unfamiliar", None)
    strange = tuple(unfamiliar(text)) if unfamiliar is not None else ()
    both = "bilateral"
    there = [
        p for p in bank if (side == both and both in _words(p)) or (side != both and not _words(p) & {*SIDES, both})
    ]
    words = _words(text)
    similar = [p for p in there if _words(p) <= words] or there
    own = () if strange and similar else (text,)
    return tuple(dict.fromkeys((*own, *similar))), strange


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def unsided(text: str) -> str:
    """A text that says no more on which side.

    >>> unsided("small left-sided pleural effusion")
    'small pleural effusion'
    """
    return " ".join(re.sub(r"\b((on|of) the )?(left|right)(-sided| side)?\b", "", text, flags=re.IGNORECASE).split())


class TextDirections:
    """Directions of prompts in a text-image model, each computed once.

    Args:
        model: the text-image model.
        bank: phrases of findings.
        findings: whose directions tell what else an edit changes.
        form: what positive phrases are compared with; the one that told findings apart best on validation images.
    """

    def __init__(
        self,
        model: TextImage,
        bank: PromptBank,
        findings: Sequence[str] = (),
        form: Form = "contrast",
    ) -> None:
        self.model, self.bank, self.form = model, bank, form
        self._known: dict[tuple[str, ...], Tensor] = {}
        self._findings: dict[str, Tensor | None] = dict.fromkeys(findings)

    def of(self, prompt: Prompt) -> Tensor:
        """(d,) of length 1."""
        key = prompt.phrases.positives
        if key not in self._known:
            self._known[key] = self._direction(prompt.phrases)
        return self._known[key]

    def others(self, prompt: Prompt) -> Mapping[str, Tensor]:
        """finding -> (d,) of those that the prompt does not name."""
        wanted = (prompt.finding, *prompt.also)
        return {name: self._finding(name) for name in self._findings if name not in wanted}

    def beside(self, prompt: Prompt) -> list[Tensor]:
        """(d,) of length 1 each: the others' directions without their share in the prompt's own.

        Directions of findings that occur together overlap: forbidding change along the whole of another one would
        forbid what is asked for.
        """
        own = self.of(prompt)
        return [F.normalize(v - (v @ own) * own, dim=0, eps=1e-8) for v in self.others(prompt).values()]

    def _finding(self, name: str) -> Tensor:
        found = self._findings[name]
        if found is None:
            found = self._findings[name] = self._direction(self.bank.of(name, self.model))
        return found

    @torch.no_grad()
    def _direction(self, phrases: Prompts) -> Tensor:
        return F.normalize(prompt_direction(self.model, phrases, self.form), dim=0, eps=1e-8)  # type: ignore[arg-type]
