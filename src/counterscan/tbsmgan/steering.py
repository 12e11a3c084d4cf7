"""Steering a generator by text: prompts, refusals, and the editors that answer them.

Signs: a positive strength leads towards the finding, a negative one away from it. A strength is a number of standard
deviations of what is moved: of w along the direction, or of each style channel. What the text-image model cannot tell
apart, or the generator has not learnt, is refused: the edit would leave the finding out and change other things
instead, and a label taken from the prompt would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from counterscan.errors import InputError
from counterscan.tbsmgan.edits.base import Edited, Editor, Origin
from counterscan.tbsmgan.edits.label_swap import LabelSwap
from counterscan.tbsmgan.edits.learned_direction import LearnedConfig, LearnedDirection
from counterscan.tbsmgan.edits.per_image import PerImage, PerImageConfig
from counterscan.tbsmgan.edits.prompt import Prompt, Reader, ReportReader, TextDirections, TextImage, parse
from counterscan.tbsmgan.edits.random_direction import RandomDirection
from counterscan.tbsmgan.edits.style_directions import Progress, StyleConfig, StyleDirections, cached
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.text.prompts import PromptBank
from counterscan.text.zeroshot import Form, ZeroShot

Method = Literal["style", "learned", "per-image", "label-swap", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
BEST: tuple[Method, ...] = ("label-swap", "learned", "style")  # asked in turn about each body (``acceptance.fit_best``)


@dataclass(frozen=True)
class SteeringConfig:
    """Settings of the editors, see there.

    Attributes:
        style, learned, per_image: of the methods that have settings.
        least_auc: zero-shot AUC on validation images below which a finding is not steered by text.
    """

    style: StyleConfig = field(default_factory=StyleConfig)
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    per_image: PerImageConfig = field(default_factory=PerImageConfig)
    least_auc: float = 0.75


class Steering:
    """One generator, one text-image model, every method.

    Args:
        gan: the generator.
        model: the text-image model, trained on the same training images.
        zero_shot: how well it tells findings apart on validation images (``counterscan.text.zeroshot.judge``).
        read: what a free text says; the report rules by default.
        bank: phrases of findings; the shipped ones by default.
        cache: folder for what costs minutes and is the same for all prompts; None keeps nothing.
        config: see ``SteeringConfig``.
        learned: finding -> whether the generator shows it when asked; the generator's own record by default.
        progress: of measuring the style channels.
    """

    def __init__(
        self,
        gan: StyleGAN,
        model: TextImage,
        *,
        zero_shot: ZeroShot | None = None,
        read: Reader | None = None,
        bank: PromptBank | None = None,
        cache: str | Path | None = None,
        config: SteeringConfig | None = None,
        learned: Mapping[str, bool] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.gan, self.model, self.zero_shot = gan, model, zero_shot
        self.bank, self.config = bank or PromptBank.read(), config or SteeringConfig()
        self.learned = dict(gan.learned if learned is None else learned)
        self._read, self._progress = read or ReportReader(), progress
        self._cache = Path(cache) if cache is not None else None
        self.texts = TextDirections(model, self.bank, gan.findings, _form(zero_shot))
        self._editors: dict[Method, Editor] = {}

    def prompt(self, text: str, *, method: Method = "style", force: bool = False) -> Prompt:
        """What a text asks for, if it can be had.

        Args:
            text: the name of a finding, or free text such as "small left pleural effusion".
            method: by which it is to be had: swapping labels does not ask the text-image model.
            force: ask for it although it will probably not come out right.

        Raises:
            InputError: it speaks of nothing known or only of what is absent; the generator has not learnt it; or the
                text-image model does not know it.
        """
        asked = parse(text, self.bank, self._read, self.model)
        for finding in (asked.finding, *asked.also):
            self._require_learnt(finding, force)
            if method != "label-swap":
                self._require_known(finding, force)
        return asked

    def editor(self, method: Method = "style") -> Editor:
        """The editor of a method, made once; the first "style" measures the channels or reads them from the cache.

        Raises:
            InputError: no such method.
        """
        if method not in METHODS:
            raise InputError(f"{method!r} must be one of {', '.join(METHODS)}", field="method")
        if method not in self._editors:
            self._editors[method] = self._make(method)
        return self._editors[method]

    def edit(
        self,
        w: Tensor | Origin,
        text: str | Prompt,
        strength: float | None = None,
        *,
        method: Method = "style",
        force: bool = False,
    ) -> Edited:
        """Edit images.

        Args:
            w: (N, num_ws, w_dim), of samples or of inverted images.
            text: see ``prompt``.
            strength: in standard deviations, positive towards the text, negative away; None for the method's usual.
            method: see ``Method``.
            force: see ``prompt``.

        Raises:
            InputError: see ``prompt`` and ``Editor.edit``.
        """
        asked = text if isinstance(text, Prompt) else self.prompt(text, method=method, force=force)
        return self.editor(method).edit(w, asked, strength)

    def _make(self, method: Method) -> Editor:
        gan, config = self.gan, self.config
        if method == "label-swap":
            return LabelSwap(gan, self.texts)
        if method == "learned":
            return LearnedDirection(gan, self.texts, config.learned)
        if method == "per-image":
            return PerImage(gan, self.texts, config.per_image)
        if method == "random":
            return RandomDirection(self.editor("style"))
        channels = cached(self._cache, gan, self.model, config.style, self._progress)
        return StyleDirections(gan, self.texts, channels, config.style)

    def _require_learnt(self, finding: str, force: bool) -> None:
        if force or self.learned.get(finding, False):
            return
        shown = [name for name, yes in self.learned.items() if yes]
        judged = finding in self.learned
        raise InputError(
            "the generator has not learnt it: samples that are asked for it do not show it"
            if judged
            else "nobody measured whether the generator shows it",
            field=f"finding {finding!r}",
            remedy=f"It has learnt {', '.join(shown) or 'none'}; train it longer or on more images with the finding. "
            "Force it only to look",
        )

    def _require_known(self, finding: str, force: bool) -> None:
        if self.zero_shot is not None:
            if not force:
                self.zero_shot.require_known(finding, self.config.least_auc)
        elif not force:
            raise InputError(
                "nobody measured what the text-image model knows",
                field="zero_shot",
                remedy="Judge it on validation images (counterscan.text.zeroshot.judge), or force the edit",
            )


def _form(known: ZeroShot | None) -> Form:
    """What a finding's phrases are compared with: its negatives or phrases for a normal image, whichever told findings
    apart better. Positive phrases alone name no direction."""
    if known is None:
        return "contrast"
    better = known.forms.get("normal", 0.0) > known.forms.get("contrast", 0.0)
    return "normal" if better else "contrast"
