"""From a prepared store and a frozen classifier to a finished explainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.classify.task import LabelledRows, predict_logits
from counterscan.counterpart import Query
from counterscan.data.splits import spaced
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity, check_share
from counterscan.inputs import device_of, findings_of
from counterscan.medxgan.explain_config import ExplainConfig, convinced
from counterscan.medxgan.explainer import Limits, MedXGAN
from counterscan.medxgan.inversion import RefineConfig
from counterscan.medxgan.model import MedXGANNetworks, NetworkConfig
from counterscan.medxgan.objective import MedXGANTask, ObjectiveConfig
from counterscan.medxgan.witness import WitnessConfig, train_witnesses
from counterscan.metrics.validity import psnr
from counterscan.nets.layout import channels_last
from counterscan.training import BalancedSampler, TrainConfig, finding_groups, load_weights, seed_everything, train
from counterscan.training.config import shaping

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore
    from counterscan.nets.cnn import Classifier

DONORS = 24
_VALIDATED = 64


def _training() -> TrainConfig:
    return TrainConfig(
        steps=2000,
        batch_size=16,
        precision="auto",
        channels_last=True,
        schedule="cosine",
        final_factor=0.03,
        warmup=50,
        grad_clip=5.0,
        ema_half_life=200,
        validate_every=200,
        checkpoint_every=200,
        sample_every=500,
    )


@dataclass(frozen=True)
class MedXGANConfig:
    """Everything that a run is made of.

    Attributes:
        training: the loop's settings.
        networks, objective, witness, explain: see there.
        trust: share of validation images whose inversion counts as good enough, and which count as like the training
            images; what is worse than the rest of them gets the verdict "not explainable".

    Raises:
        InputError: ``trust`` is not in (0, 1].
    """

    training: TrainConfig = field(default_factory=_training)
    networks: NetworkConfig = field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    witness: WitnessConfig = field(default_factory=WitnessConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    trust: float = 0.98

    def __post_init__(self) -> None:
        check_share(self.trust, "trust")


def fit(
    store: PreparedStore, classifier: nn.Module, folder: str | Path, config: MedXGANConfig | None = None
) -> MedXGAN:
    """Train the networks, then the witnesses, set limits, save to ``folder/model``.

    Called again after an interruption it goes on from there.

    No label is used: what counts as positive is what the classifier calls so.

    Args:
        store: rows split into "train" and "val".
        classifier: frozen; (N, 1, H, W) to logits (N, C), with ``findings``. See ``classify.adapter`` for others.
        folder: the run folder.
        config: settings.

    Raises:
        InputError: a split is empty, a patient is in both, or the classifier calls all training images alike.
    """
    config, folder, findings = config or MedXGANConfig(), Path(folder), findings_of(classifier)
    learn, val = store.parts("train", "val")
    classifier = classifier.eval().requires_grad_(False)
    called = calls(classifier, learn)
    groups, meaning = _groups(called, findings, learn.folder, config.training.batch_size)
    seed_everything(config.training.seed)
    held = LabelledRows(val, calls(classifier, val))
    validation = Validation(val, called=held.targets, explain=config.explain)
    watch = val.batch(np.argsort(-validation.called.sum(axis=1), kind="stable")[:8])
    task = MedXGANTask(
        config.networks, config.objective, findings, classifier, meaning, watch=watch, figures=validation
    )
    train(
        task,
        LabelledRows(learn, called),
        config.training,
        folder,
        sampler=BalancedSampler(groups, config.training.batch_size, config.training.seed),
        settings={
            "kind": "medxgan",
            "findings": findings,
            "content": store.content,
            "division": store.division,
            "medxgan": shaping(config, "explain", "trust"),
        },
    )
    witnesses = train_witnesses(
        LabelledRows(learn, called),
        held,
        classifier,
        folder / "witnesses",
        config.witness,
        training=config.training,
        views=config.objective.augment,
    )
    explainer = _assembled(folder, store, classifier, config, called, witnesses)
    explainer.save_pretrained(folder / "model")
    return explainer


def _assembled(
    folder: Path,
    store: PreparedStore,
    classifier: nn.Module,
    config: MedXGANConfig,
    called: np.ndarray,
    witnesses: Sequence[Classifier],
) -> MedXGAN:
    """An explainer from a run's averaged weights; donors from its training rows, of which ``called`` (N, C) are the
    classifier's calls, limits from its validation rows."""
    networks = MedXGANNetworks(config.networks, called.shape[1])
    info = load_weights(folder, {"networks": networks}, "last")
    place = device_of(classifier)
    channels_last(networks).to(place)  # training may have brought the classifier to a GPU
    explainer = MedXGAN(
        networks,
        classifier,
        witnesses=[witness.to(place) for witness in witnesses],
        config=config.explain,
        size=store.size,
        recipe=store.recipe,
        checkpoint=info["digest"][:16],
    )
    learn, val = store.parts("train", "val")
    for column, finding in enumerate(explainer.findings):
        rows = spaced(np.flatnonzero(called[:, column] == 1), DONORS)
        with torch.no_grad():
            explainer.donors[finding] = networks.encode(learn.images(rows).to(place)).z2[:, column]
    explainer.limits = _limits(explainer, val, config.trust)
    if witnesses:
        explainer.familiarity = Familiarity.fit(witnesses, learn, val, config.trust)
    return explainer


def calls(classifier: nn.Module, store: PreparedStore) -> np.ndarray:
    """(N, C) 1 where the classifier's probability is at least 0.5, else 0: what explanations are about.

    Raises:
        InputError: it returns NaN or infinite values.
    """
    with evaluating(classifier):
        logits = predict_logits(classifier, store)
    if bad := int((~logits.isfinite()).any(dim=1).sum()):
        raise InputError(
            f"the classifier returns NaN or infinite values for {bad} of {len(store)} images",
            path=store.folder,
            field="classifier",
            remedy="See what it does with them (range, constant images), or leave them out",
        )
    return (logits >= 0).numpy().astype(np.float32)


def _groups(
    called: np.ndarray, findings: tuple[str, ...], folder: Path | None, batch_size: int
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    groups, meaning = finding_groups(called)
    for column, finding in enumerate(findings):
        for value, what in ((1, "positive"), (0, "negative")):
            if (column, value) not in meaning:
                raise InputError(
                    f"the classifier calls no training image {what} for it",
                    path=folder,
                    field=finding,
                    remedy="Explaining needs both; check the classifier's pixel range, size and output, or add images",
                )
    if batch_size < len(groups):
        raise InputError(
            f"{batch_size} images per step cannot hold both calls of each of {len(findings)} findings",
            field="batch_size",
            remedy=f"Use at least {len(groups)}",
        )
    return groups, meaning


@dataclass
class Validation:
    """Figures of the networks on validation images, from the classifier's calls alone.

    Attributes:
        store: validation rows.
        called: (N, C) calls of the classifier.
        explain: how the finished explainer will explain; here without any descent and without boosts.
    """

    store: PreparedStore
    called: np.ndarray
    explain: ExplainConfig

    def __call__(self, networks: nn.Module, classifier: nn.Module) -> dict[str, float]:
        """``psnr`` of reconstructions, ``flip`` of images called positive, mean ``change`` by the images' calls."""
        assert isinstance(networks, MedXGANNetworks)
        still = {name: replace(getattr(self.explain, name), steps=0) for name in ("refine", "persuade", "insist")}
        config = replace(self.explain, **still, boosts=(1.0,), frames=2)
        figures: dict[str, list[Tensor]] = {"psnr": [], "flip": [], "change_positive": [], "change_negative": []}
        trainable = [p.requires_grad for p in networks.parameters()]
        explainer = MedXGAN(networks, classifier, config=config)
        for column, finding in enumerate(explainer.findings):
            for value, name in ((1, "change_positive"), (0, "change_negative")):
                rows = spaced(np.flatnonzero(self.called[:, column] == value), _VALIDATED)
                if not len(rows):
                    continue
                batch = self.store.batch(rows).to(explainer.device)
                way = explainer.way(batch.images, Query(finding), batch.valid)
                figures[name].append((way.path[0] - way.path[-1]).abs().flatten(1).mean(dim=1))
                figures["psnr"].append(psnr(batch.images, way.again, batch.valid))
                if value:
                    figures["flip"].append(convinced(way.logits[-1, :, column].sigmoid(), "remove").float())
        for p, wanted in zip(networks.parameters(), trainable, strict=True):
            p.requires_grad_(wanted)
        return {name: float(torch.cat(parts).mean()) for name, parts in figures.items() if parts}


def _limits(explainer: MedXGAN, val: PreparedStore, trust: float) -> dict[str, Limits]:
    """The worst inversions that a share ``trust`` of the validation images still reach in E's one pass, with a margin
    of 1 dB and a quarter of the gap; refinement only betters them."""
    rows = spaced(np.arange(len(val)), _VALIDATED + 32)
    reached, gaps = [], []
    for start in range(0, len(rows), 32):
        batch = val.batch(rows[start : start + 32]).to(explainer.device)
        x = batch.images
        _, again = explainer.invert(x, RefineConfig(steps=0))
        reached.append(psnr(x, again, batch.valid).cpu())
        with torch.no_grad(), evaluating(explainer.classifier):
            seen, repeated = (explainer.classifier(images).float() for images in (x, again))
        gaps.append((seen - repeated).abs().cpu())
    worst, gap = torch.cat(reached), torch.cat(gaps)
    return {
        finding: Limits(
            psnr=float(worst.quantile(1 - trust)) - 1.0,
            gap=1.25 * float(gap[:, column].float().quantile(trust)),
        )
        for column, finding in enumerate(explainer.findings)
    }
