"""Settings of a text-image model's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from counterscan.data.augment import AugmentConfig
from counterscan.errors import InputError
from counterscan.nets.text_image import TinyClipConfig
from counterscan.text.contrastive import Similarity
from counterscan.training import TrainConfig
from counterscan.training.config import plain
from counterscan.training.precision import Precision

Loss = Literal["info-nce", "soft", "sigmoid", "sigmoid-soft"]
_LOSSES = ("info-nce", "soft", "sigmoid", "sigmoid-soft")
# Views that rules write; see ``text.views``.
_LISTED = ("rules-v1", "rules-v2", "shuffled", "inverted")
# What changes the machine or the display, not what is learned.
_LOOP = ("steps", "batch_size", "seed", "threads", "device", "precision", "tensorboard")
_WORD = "abcdefghijklmnopqrstuvwxyz0123456789-"


def _views() -> AugmentConfig:
    # No mirrored views: "left" must stay left.
    return AugmentConfig(flip=0.0)


@dataclass(frozen=True)
class ClipConfig:
    """How a text-image model is trained; the defaults train a tiny one from nothing, in 2 minutes of one core at 64 px.

    Attributes:
        model: shape of a tiny model; a pretrained one has its own.
        view: name of the texts (report, impression, findings, summary, rules-v1, rules-v2, shuffled, inverted), kept
            with the model.
        loss: "info-nce", "soft" (several right answers by labels), "sigmoid" and "sigmoid-soft" (every pair a question
            of its own).
        own: of "soft", share of the target that is each image's own text whatever the labels say. At 64 px on the
            phantom 0.3 told left from right with labels that name no side, which 0 did not.
        similarity: how alike studies are where sentences have no labels of their own.
        whole: probability that a step takes the whole text rather than one sentence of it.
        rarity: sentences are drawn with weight 1 / (number of texts with it) ** rarity.
        vocabulary: largest number of tokens.
        augment: random views; no mirrored ones, for sides are named.
        rate_image, rate_text, rate_projection: peak learning rates of towers and of what leads into the joint space.
        decay: weight decay; norms, biases and the scale are spared.
        optimizer: "adamw" or, as CheXzero has it, "sgd" with momentum 0.9.
        warmup: share of the steps in which the rates rise; they then fall to zero along a cosine.
        grad_clip: largest gradient norm.
        freeze: share of each tower's parts, from the input on, that is not trained.
        projection_first: share of the steps in which the projections alone are trained.
        steps: length of training in batches.
        batch_size: pairs per step, each the others' contrast.
        seed: of weights, batches, views and sentences.
        precision: "auto" computes in bfloat16 where that is fast; see ``training.precision``.
        threads: CPU threads; 0 leaves torch's choice.
        device: "auto" takes the GPU when there is one.
        tensorboard: write event files.

    Raises:
        InputError: a value is out of range; names the field.
    """

    model: TinyClipConfig = field(default_factory=TinyClipConfig)
    view: str = "report"
    loss: Loss = "soft"
    own: float = 0.3
    similarity: Similarity = "cosine"
    whole: float = 0.0
    rarity: float = 0.5
    vocabulary: int = 4096
    augment: AugmentConfig = field(default_factory=_views)
    rate_image: float = 2e-3
    rate_text: float = 2e-3
    rate_projection: float = 2e-3
    decay: float = 0.05
    optimizer: Literal["adamw", "sgd"] = "adamw"
    warmup: float = 0.1
    grad_clip: float = 1.0
    freeze: float = 0.0
    projection_first: float = 0.0
    steps: int = 1500
    batch_size: int = 96
    seed: int = 0
    precision: Precision = "auto"
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.loss not in _LOSSES:
            raise InputError(f"{self.loss!r} must be one of {', '.join(_LOSSES)}", field="loss")
        if self.optimizer not in ("adamw", "sgd"):
            raise InputError(f"{self.optimizer!r} must be adamw or sgd", field="optimizer")
        if self.similarity not in ("cosine", "equal"):
            raise InputError(f"{self.similarity!r} must be cosine or equal", field="similarity")
        if not self.view or set(self.view) - set(_WORD):
            raise InputError(f"{self.view!r} must be a word such as rules-v2", field="view")
        for name in ("own", "whole"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError("must lie within [0, 1]", field=name)
        for name in ("warmup", "freeze", "projection_first"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError("must be at least 0 and below 1", field=name)
        for name in ("rate_image", "rate_text", "rate_projection", "grad_clip"):
            if not getattr(self, name) > 0:
                raise InputError("must be positive", field=name)
        for name in ("decay", "rarity"):
            if not getattr(self, name) >= 0:
                raise InputError("must not be negative", field=name)
        if self.batch_size < 2:
            raise InputError("must be at least 2: other pairs are the contrast", field="batch_size")

    @classmethod
    def fine_tuning(cls, pairs: int, epochs: int = 4, batch_size: int = 64, **changes: Any) -> ClipConfig:
        """For a pretrained model: small rates, the first half of both towers frozen, projections first.

        Args:
            pairs: number of training pairs, of which the steps follow.
            epochs: passes over them.
            batch_size: pairs per step.
            changes: any other field.
        """
        recipe: dict[str, Any] = {
            "rate_image": 1e-5,
            "rate_text": 2e-5,
            "rate_projection": 1e-4,
            "warmup": 0.05,
            "freeze": 0.5,
            "projection_first": 1 / (epochs + 1),
            "steps": max(1, -(-pairs // batch_size) * epochs),
            "batch_size": batch_size,
        }
        return cls(**{**recipe, **changes})

    @classmethod
    def chexzero(cls, pairs: int, epochs: int = 4, **changes: Any) -> ClipConfig:
        """CheXzero's published recipe (Tiu et al. 2022): whole texts, InfoNCE, plain SGD of everything, no views."""
        recipe: dict[str, Any] = {
            "loss": "info-nce",
            "whole": 1.0,
            "augment": AugmentConfig.none(),
            "optimizer": "sgd",
            "rate_image": 1e-4,
            "rate_text": 1e-4,
            "rate_projection": 1e-4,
            "decay": 0.0,
            "warmup": 0.0,
            "steps": max(1, -(-pairs // 16) * epochs),
            "batch_size": 16,
        }
        return cls(**{**recipe, **changes})

    @property
    def listed(self) -> bool:
        """Whether the view's texts are lists of statements with commas between them."""
        return self.view in _LISTED

    @property
    def uses_labels(self) -> bool:
        """Whether labels decide what suits what."""
        return self.loss in ("soft", "sigmoid-soft")

    def training(self) -> TrainConfig:
        """Settings of the loop."""
        return TrainConfig(
            **{name: getattr(self, name) for name in _LOOP},
            schedule="cosine",
            warmup=round(self.warmup * self.steps),
            grad_clip=self.grad_clip,
            validate_every=max(50, self.steps // 10),
            sample_every=0,
            keep=1,
        )

    def system(self) -> dict[str, Any]:
        """What is learned and how, for the run's config.yaml."""
        return {name: value for name, value in plain(self).items() if name not in _LOOP}
