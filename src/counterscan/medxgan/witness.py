"""Witnesses: small networks that learn to answer as the explained classifier does, on its answers alone.

A change that convinces one network may lean on what only its weights react to. Networks of other shapes and seeds that
learned the same answers share what the classifier goes by and not such accidents, so a counterpart has to convince them
as well. No label is used: right or wrong, they learn what the classifier says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from counterscan.classify import ClassifyConfig, load_classifier
from counterscan.classify.task import ClassifierTask, LabelledRows, masked_bce, predict_logits
from counterscan.classify.train import describe_data
from counterscan.data.augment import AugmentConfig
from counterscan.errors import InputError
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.training import BalancedSampler, Context, TrainConfig, finding_groups, seed_everything, train

_STAGES = 4


@dataclass(frozen=True)
class WitnessConfig:
    """How witnesses are trained.

    Attributes:
        widths: of each witness, the channels of its first stage, which double in each of three more; () for none.
        steps, batch_size: of each, half of a batch called positive.
        noise: largest sigma of the noise on what they are shown.

    Raises:
        InputError: a value is out of range; names the field.
    """

    widths: tuple[int, ...] = (16, 12)
    steps: int = 500
    batch_size: int = 32
    noise: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.widths and min(self.widths) < 1:
            raise InputError("must be one or more channel counts, or none", field="witness.widths")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=f"witness.{name}")
        if self.noise < 0:
            raise InputError("must not be negative", field="witness.noise")


class WitnessTask(ClassifierTask):
    """Trains one witness.

    Args:
        witness: to be trained.
        explained: whose answers it learns; frozen.
        config: of its training.
        validation: rows with the explained classifier's calls as targets.
    """

    def __init__(
        self, witness: Classifier, explained: nn.Module, config: ClassifyConfig, validation: LabelledRows
    ) -> None:
        super().__init__(witness, config, validation)
        self.frozen = {"explained": explained}

    def objective(self, logits: Tensor, views: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Distance to the probabilities that the explained classifier gives the same views."""
        with torch.no_grad():
            wanted = self.frozen["explained"](views).float().sigmoid()
        return masked_bce(logits, wanted)

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Share of the explained classifier's calls that the witness makes as well."""
        assert self.validation is not None
        called = predict_logits(self.modules["classifier"], self.validation.store) >= 0
        return {"agreement": float((called.numpy() == self.validation.targets).mean())}


def train_witnesses(
    learn: LabelledRows,
    val: LabelledRows,
    explained: nn.Module,
    folder: Path,
    config: WitnessConfig,
    training: TrainConfig,
    views: AugmentConfig,
) -> list[Classifier]:
    """Train each in a run folder of its own; what is finished is read, what was interrupted goes on.

    Args:
        learn, val: images with the explained classifier's calls, (N, C) of 0 and 1.
        explained: frozen; (N, 1, H, W) in [-1, 1] to logits (N, C), with ``findings``.
        folder: gets ``0``, ``1``, ...
        config: see ``WitnessConfig``.
        training: the run's settings; its seed, device, threads and precision count here as well.
        views: random views of the images; their noise is the config's.

    Returns:
        Frozen classifiers in evaluation mode on the explained one's findings.
    """
    findings = tuple(explained.findings)  # type: ignore[arg-type]
    groups, _ = finding_groups(learn.targets)
    made = []
    for number, width in enumerate(config.widths):
        shape = ClassifierConfig(widths=tuple(width * 2**stage for stage in range(_STAGES)))
        settings = ClassifyConfig(
            model=shape,
            augment=replace(views, noise=config.noise),
            steps=config.steps,
            batch_size=max(config.batch_size, len(groups)),
            seed=1000 * (number + 1) + training.seed,
            precision=training.precision,
            threads=training.threads,
            device=training.device,
            tensorboard=False,
        )
        seed_everything(settings.seed)
        task = WitnessTask(Classifier(shape, findings), explained, settings, val)
        sampler = BalancedSampler(groups, settings.batch_size, settings.seed)
        about = {**settings.system(), "findings": list(findings), "data": describe_data(learn.store, settings)}
        train(task, learn, settings.training(), folder / str(number), sampler=sampler, settings=about)
        made.append(load_classifier(folder / str(number)))
    return made
