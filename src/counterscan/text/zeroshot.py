"""What a text-image model can tell apart without having been trained to: scores from prompts, judged on validation
images. How well it does bounds how well it can steer, so what it does not know is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from counterscan.data.findings import canonical_name
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.metrics.classification import mean_over_classes, pr_auc, roc_auc
from counterscan.text.clip import TextImageModel
from counterscan.text.clip_training import embed_all
from counterscan.text.prompts import PromptBank, Prompts

Form = Literal["contrast", "present", "normal"]
FORMS: tuple[Form, ...] = get_args(Form)
LEAST_AUC = 0.75
Embed = Callable[[Sequence[str]], Tensor]


def prompt_direction(model: TextImageModel, prompts: Prompts, form: Form = "contrast") -> Tensor:
    """The vector (d,) whose inner product with an image's embedding is its score over tau.

    Mean of the positives' embeddings, less that of the negatives ("contrast"), of nothing ("present"), or of the
    phrases for a normal image ("normal", for models that never saw "no ..." in training). Not of length 1.
    """
    return _direction(model.embed_texts, prompts, form)


def _direction(embed: Embed, prompts: Prompts, form: Form) -> Tensor:
    if form not in FORMS:
        raise InputError(f"{form!r} must be one of {', '.join(FORMS)}", field="form")
    direction = embed(prompts.positives).mean(0)
    if form == "present":
        return direction
    return direction - embed(prompts.negatives if form == "contrast" else prompts.normal).mean(0)


def zero_shot_scores(
    model: TextImageModel, embeddings: Tensor, prompts: Sequence[Prompts], form: Form = "contrast"
) -> Tensor:
    """tau * (mean cos to the positives - mean cos to the negatives), (N, C) float32 on the CPU.

    Under "contrast" the sigmoid of it is the softmax over the pair, as in CheXzero, though not calibrated.

    Args:
        model: whose texts.
        embeddings: (N, d) of length 1, of images (``embed_all``).
        prompts: C findings.
        form: see ``prompt_direction``.
    """
    return _scores(model, model.embed_texts, embeddings, prompts, form)


def _scores(model: TextImageModel, embed: Embed, embeddings: Tensor, prompts: Sequence[Prompts], form: Form) -> Tensor:
    directions = torch.stack([_direction(embed, p, form) for p in prompts])
    return model.logit_scale * (embeddings.cpu() @ directions.cpu().T)


def _embedded_once(model: TextImageModel, prompts: Sequence[Prompts]) -> Embed:
    """``model.embed_texts`` for the texts of these prompts, of which forms and findings share many."""
    texts = list(dict.fromkeys(text for p in prompts for text in (*p.positives, *p.negatives, *p.normal)))
    known = dict(zip(texts, model.embed_texts(texts), strict=True))
    return lambda wanted: torch.stack([known[text] for text in wanted])


@dataclass(frozen=True)
class ZeroShot:
    """How well a model tells findings apart on validation images.

    Attributes:
        model: its name.
        form: of the prompts, the one with the highest mean AUC over the findings.
        auc, ap: finding -> area under the ROC curve and average precision with that form; NaN where the validation
            images do not hold both outcomes.
        positives, negatives: finding -> number of validation images that have it, and that do not.
        forms: form -> mean AUC.
    """

    model: str
    form: Form
    auc: dict[str, float]
    ap: dict[str, float]
    positives: dict[str, int]
    negatives: dict[str, int]
    forms: dict[str, float]

    @property
    def mean_auc(self) -> float:
        """Over the findings that could be judged."""
        return mean_over_classes(torch.tensor(list(self.auc.values())))

    def known(self, least: float = LEAST_AUC) -> tuple[str, ...]:
        """Findings that may be steered."""
        return tuple(name for name, value in self.auc.items() if value >= least)

    def require_known(self, finding: str, least: float = LEAST_AUC, force: bool = False) -> None:
        """Refuse a finding that the model does not know.

        Args:
            finding: by any name it is known by.
            least: AUC that it must have.
            force: let it pass, provided it was judged at all.

        Raises:
            InputError: it was not judged, or its AUC is too low; says what to do.
        """
        name = canonical_name(finding)
        field = f"finding {name!r}"
        if name not in self.auc:
            raise InputError(
                "the model was not judged on it", field=field, remedy=f"Choose of {', '.join(self.auc) or 'none'}"
            )
        value = self.auc[name]
        if force and math.isfinite(value):
            return
        if not math.isfinite(value):
            raise InputError(
                f"it could not be judged: {self.positives[name]} validation images have it and "
                f"{self.negatives[name]} do not",
                field=field,
                remedy="Add validation images of both kinds",
            )
        if value < least:
            others = ", ".join(self.known(least)) or "none"
            raise InputError(
                f"'{self.model}' hardly knows it: its zero-shot AUC is {value:.2f} ({self.positives[name]} validation "
                f"images with it), below {least:.2f}; an edit would change other things instead",
                field=field,
                remedy="Train the model longer, on rules-v2 texts with soft targets and more images that have it; give "
                f"prompts in the reports' words; or choose of what it knows: {others}. Force it only to look",
            )

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> ZeroShot:
        """Read what ``save`` wrote.

        Raises:
            InputError: missing or of another form.
        """
        try:
            return cls(**read_json(path))
        except TypeError:
            raise InputError("is no zero-shot record", path=path, remedy="Measure the model again") from None


def judge(
    model: TextImageModel,
    images: PreparedStore | Tensor,
    labels: Tensor,
    findings: Sequence[str],
    bank: PromptBank | None = None,
) -> ZeroShot:
    """Choose the form of the prompts and measure each finding, on VALIDATION images.

    One form for all findings: chosen by the mean, it hardly fits itself to the few images of a rare one.

    Args:
        model: to be judged.
        images: a store, or (N, 1, H, W) in [-1, 1], of patients the model was not trained on.
        labels: (N, C), 1, 0, and -1 or NaN for what does not count.
        findings: C names.
        bank: prompts; the shipped ones by default.

    Raises:
        InputError: no images, labels of another shape, or a finding with no prompt that the model knows.
    """
    if not len(images):
        raise InputError("there are no validation images", field="images", remedy="Make splits with validation rows")
    if labels.shape != (len(images), len(findings)):
        raise InputError(
            f"expected {(len(images), len(findings))}, got {tuple(labels.shape)}",
            field="labels",
            remedy="Give one row per image and one column per finding",
        )
    bank = bank or PromptBank.read()
    prompts = [bank.of(name, model) for name in findings]
    embeddings = embed_all(model, images)
    embed = _embedded_once(model, prompts)
    scores = {form: _scores(model, embed, embeddings, prompts, form) for form in FORMS}
    areas = {form: roc_auc(values, labels) for form, values in scores.items()}
    means = {form: mean_over_classes(value) for form, value in areas.items()}
    form = max(FORMS, key=lambda f: -1.0 if math.isnan(means[f]) else means[f])
    names = [p.finding for p in prompts]
    return ZeroShot(
        model.name,
        form,
        dict(zip(names, areas[form].tolist(), strict=True)),
        dict(zip(names, pr_auc(scores[form], labels).tolist(), strict=True)),
        dict(zip(names, (labels == 1).sum(0).tolist(), strict=True)),
        dict(zip(names, (labels == 0).sum(0).tolist(), strict=True)),
        {str(f): means[f] for f in FORMS},
    )
