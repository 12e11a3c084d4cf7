"""Settings of a classifier's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from counterscan.data.augment import AugmentConfig
from counterscan.errors import InputError
from counterscan.nets.cnn import ClassifierConfig
from counterscan.training import TrainConfig
from counterscan.training.config import plain
from counterscan.training.precision import Precision

TrainingPolicy = Literal["zeros", "ones", "ignore", "chexpert", "soft"]
# What changes the machine or the display, not what is learned.
_LOOP = ("steps", "batch_size", "seed", "threads", "device", "precision", "tensorboard")


@dataclass(frozen=True)
class ClassifyConfig:
    """How a classifier is trained; the defaults suit a small network and some hundreds to thousands of images.

    Attributes:
        model: the network.
        augment: random views; ``AugmentConfig.strong()`` for the large networks.
        findings: label columns to learn, by any name they are known by; all when empty.
        policy: what an uncertain label (-1) is while training (Irvin et al. 2019): "zeros", "ones", "ignore";
            "chexpert", ones for Edema and Atelectasis and zeros for the rest, as is usual there; or "soft", each a
            number drawn once from .3 to .7, with the run's seed. It is never evaluated on.
        blank: what an unmentioned finding is: absent, as CheXpert's own baselines have it, or not asked.
        label_smoothing: targets are this far from 0 and 1, halved: 0.1 trains towards .05 and .95.
        rate: AdamW's peak learning rate.
        decay: its weight decay; norms and biases are spared.
        warmup: share of the steps in which the rate rises; it then falls to zero along a cosine, which averages the
            last weights well enough that no moving average is kept (its batch-norm statistics would fit no weights).
        steps: length of training in batches.
        batch_size: images per step, as many with as without each finding.
        seed: of weights, batches and views.
        precision: "auto" computes in bfloat16 where that is fast; see ``training.precision``.
        threads: CPU threads; 0 leaves torch's choice.
        device: "auto" takes the GPU when there is one.
        keep_best: use the weights with the highest validation AUC instead of the last; off, because a small validation
            set chooses by luck.
        tensorboard: write event files.

    Raises:
        InputError: a value is out of range; names the field.
    """

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    findings: tuple[str, ...] = ()
    policy: TrainingPolicy = "zeros"
    blank: Literal["zero", "ignore"] = "zero"
    label_smoothing: float = 0.1
    rate: float = 3e-3
    decay: float = 0.05
    warmup: float = 0.15
    steps: int = 500
    batch_size: int = 32
    seed: int = 0
    precision: Precision = "auto"
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep_best: bool = False
    tensorboard: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        if self.policy not in get_args(TrainingPolicy):
            raise InputError(f"{self.policy!r} must be one of {', '.join(get_args(TrainingPolicy))}", field="policy")
        if self.blank not in ("zero", "ignore"):
            raise InputError(f"{self.blank!r} must be zero or ignore", field="blank")
        for name in ("label_smoothing", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError("must be at least 0 and below 1", field=name)
        if not self.rate > 0:
            raise InputError("must be positive", field="rate")
        if not self.decay >= 0:
            raise InputError("must not be negative", field="decay")

    def training(self) -> TrainConfig:
        """Settings of the loop."""
        return TrainConfig(
            **{name: getattr(self, name) for name in _LOOP},
            schedule="cosine",
            warmup=round(self.warmup * self.steps),
            validate_every=max(50, self.steps // 10),
            sample_every=0,
            keep=1,
        )

    def system(self) -> dict[str, Any]:
        """What is learned and how, for the run's config.yaml."""
        return {name: value for name, value in plain(self).items() if name not in _LOOP}
