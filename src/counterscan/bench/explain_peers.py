"""Who enters beside an explainer: its rivals, on the same classifier and with the same smoothing and spreading; the two
that are used most also without spreading, as they are commonly used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterscan.bench.explain_classifier import without
from counterscan.bench.explain_stability import Factory
from counterscan.care import Care
from counterscan.classify import AdaptedClassifier
from counterscan.counterpart import Counterpart, Query, StudyBatch, System
from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.inputs import device_of
from counterscan.medxgan import MedXGAN
from counterscan.medxgan.published import PublishedMedXGAN
from counterscan.peers.autoencoder import AutoencoderConfig, AutoencoderShape, train_autoencoder
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.gradient_shap import GradientSHAP
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.peers.latent_shift import LatentShift
from counterscan.peers.layercam import LayerCAM
from counterscan.peers.occlusion import Occlusion
from counterscan.peers.rise import RISE
from counterscan.peers.smoothgrad import SmoothGrad
from counterscan.peers.wachter import Wachter

# Settings of the rivals; the full ones are their own defaults.
_QUICK: dict[str, dict[str, Any]] = {
    "ig": {"n_steps": 8},
    "samples": {"n_samples": 5},
    "occlusion": {"window": 0.25, "stride": 0.25},
    "rise": {"n_masks": 50},
    "wachter": {"steps": 20, "rounds": 2},
}
_QUICK_AUTOENCODER = AutoencoderConfig(shape=AutoencoderShape(base=8, codes=16), steps=60)
_PUBLISHED_STEPS = 100
OTHER_MAPS = {"difference": "difference", "lig": "LIG"}  # of an explainer that enter where they are not its main one
BACKGROUND = 50  # healthy training images that GradientSHAP draws from


@dataclass(frozen=True)
class Peers:
    """Who enters beside an explainer, itself included.

    Attributes:
        systems: by name; the explainer first, then its other map, then the rivals.
        factories: the same around any classifier and without witnesses, for the randomisation test.
        classifier: the explained one, as the rivals take it.
        slow: names of those that take minutes for an image.
        notes: who is left out, and why.
    """

    systems: dict[str, System]
    factories: dict[str, Factory]
    classifier: nn.Module
    slow: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class OtherMap:
    """A further map of an explainer as a system of its own, without the counterpart that both have in common.

    Args:
        explainer: whose.
        evidence: which, see ``medxgan.ExplainConfig``.
        name: of the system.
    """

    def __init__(self, explainer: MedXGAN, evidence: str, name: str) -> None:
        self.explainer, self.name = explainer.variant(config=replace(explainer.config, evidence=evidence)), name
        self.checkpoint = explainer.checkpoint

    def settings(self) -> dict[str, Any]:
        """The explainer's."""
        return self.explainer.settings()

    def attribute(self, inputs: Tensor, target: int | str) -> Tensor:
        """The signed map (N, 1, H, W)."""
        return self.explainer.attribute(inputs, target)

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Plain attribution maps."""
        bare: dict[str, Any] = {"counterpart": None, "score_after": None, "path": None, "figures": {}, "extras": {}}
        answers = self.explainer.counterparts(batch, query)
        return [replace(a, **bare, made_by=replace(a.made_by, system=self.name)) for a in answers]


def explain_peers(
    explainer: MedXGAN,
    store: PreparedStore,
    finding: str,
    care: Care | None = None,
    quick: bool = False,
    *,
    folder: str | Path | None = None,
    published: PublishedMedXGAN | None = None,
    rivals: Sequence[str] = (),
) -> Peers:
    """The explainer and its rivals, all on its classifier and with its smoothing and spreading, but for those whose
    name says otherwise and the published medXGAN.

    Args:
        explainer: ours.
        store: its healthy training images are GradientSHAP's baselines; the rows of its split "train" teach the
            autoencoder of Latent Shift.
        finding: what is explained.
        care: of the rivals' maps; by default the explainer's smoothing and reach, without further views.
        quick: few samples, masks and steps, for tests and demonstrations.
        folder: where that autoencoder is trained, once; without it Latent Shift is left out.
        published: the published medXGAN, trained for the same classifier.
        rivals: who else enters beside the explainer, by name; all by default.

    Raises:
        InputError: a rival that there is not.
    """
    care = care or Care(smoothing=explainer.config.smoothing, reach=explainer.config.reach)
    own, given = explainer.name, _QUICK if quick else {name: {} for name in _QUICK}
    classifier = _with_layers(explainer.classifier, store)
    healthy = spaced(without(store, "train", finding, classifier), BACKGROUND)
    background = store.images(healthy).to(explainer.device)

    usual = replace(care, reach=0.0)

    def made_with(explainer: MedXGAN) -> dict[str, Factory]:
        """Everybody, by name."""

        def around(other: nn.Module) -> MedXGAN:
            return explainer.variant(classifier=other, witnesses=explainer.witnesses if other is classifier else ())

        def negative_counterpart(images: Tensor, explainer: MedXGAN) -> Tensor:
            answers = explainer.explain(images, finding)
            return torch.stack([a.counterpart for a in answers if a.counterpart is not None])

        def integrated(classifier: nn.Module, baseline: Any = "black", care: Care = care) -> System:
            if baseline == "counterpart":
                baseline = partial(negative_counterpart, explainer=around(classifier))
            return IntegratedGradients(classifier, baseline=baseline, care=care, **given["ig"])

        def other_map(classifier: nn.Module, evidence: str, name: str) -> System:
            return OtherMap(around(classifier), evidence, name)

        return {
            own: around,
            **{
                f"{own}, {words}": partial(other_map, evidence=evidence, name=f"{own}, {words}")
                for evidence, words in OTHER_MAPS.items()
                if evidence != explainer.config.evidence
            },
            GradCAM.name: partial(GradCAM, care=care),
            LayerCAM.name: partial(LayerCAM, care=care),
            "IG, black": integrated,
            "IG, blur": partial(integrated, baseline="blur"),
            "IG, counterpart": partial(integrated, baseline="counterpart"),
            SmoothGrad.name: partial(SmoothGrad, care=care, **given["samples"]),
            GradientSHAP.name: partial(GradientSHAP, baseline=background, care=care, **given["samples"]),
            Occlusion.name: partial(Occlusion, care=care, **given["occlusion"]),
            RISE.name: partial(RISE, care=care, **given["rise"]),
            Wachter.name: partial(Wachter, care=care, **given["wachter"]),
            f"{GradCAM.name}, not spread": partial(GradCAM, care=usual),
            "IG, black, not spread": partial(integrated, care=usual),
            LatentShift.name: partial(_latent_shift, store=store, folder=folder, care=care, quick=quick),
        }

    makers = made_with(explainer)
    # A scrambled classifier has no witnesses, so what its maps are compared with was made without any, too.
    factories = made_with(explainer.variant(witnesses=()))
    for name in rivals:
        if name not in factories or name == own:
            known = ", ".join(repr(other) for other in factories if other != own)
            raise InputError(f"there is no {name!r}", field="rivals", remedy=f"There are {known}")
    if rivals:
        factories = {name: factory for name, factory in factories.items() if name in (own, *rivals)}
    systems, notes = dict[str, System](), []
    for name in list(factories):
        try:
            systems[name] = explainer if name == own else makers[name](classifier)
        except InputError as error:
            notes.append(f"{name} is left out: {error}.")
            del factories[name]
    slow: tuple[str, ...] = ()
    if published is not None and published.finding == finding:
        systems[published.name], slow = _published(published, quick), (published.name,)
    elif published is not None:
        notes.append(f"{published.name} is left out: it explains {published.finding}.")
    return Peers(systems, factories, classifier, slow, tuple(notes))


def _with_layers(classifier: nn.Module, store: PreparedStore) -> nn.Module:
    """The classifier with the contract of ``peers.base``, after one look at an image of the right size."""
    with torch.no_grad():
        classifier(store.images([0]).to(device_of(classifier)))
    findings: tuple[str, ...] = tuple(getattr(classifier, "findings"))  # noqa: B009 (not of every module)
    return classifier if hasattr(classifier, "cam_layers") else AdaptedClassifier(classifier, findings)


def _latent_shift(
    classifier: nn.Module, store: PreparedStore, folder: str | Path | None, care: Care, quick: bool
) -> System:
    if folder is None:
        raise InputError("there is no folder to train its autoencoder in", field="folder", remedy="Name one")
    config, device = _QUICK_AUTOENCODER if quick else AutoencoderConfig(), device_of(classifier)
    halvings = config.shape.halvings
    while halvings > 1 and store.size % 2**halvings:
        halvings -= 1
    kind = "cuda" if device.type == "cuda" else "cpu"
    config = replace(config, shape=replace(config.shape, halvings=halvings), device=kind, tensorboard=False)  # type: ignore[arg-type]
    autoencoder = train_autoencoder(store, Path(folder) / f"autoencoder{'_quick' if quick else ''}", config)
    return LatentShift(classifier, autoencoder.to(device), care=care)


def _published(explainer: PublishedMedXGAN, quick: bool) -> PublishedMedXGAN:
    if not quick:
        return explainer
    config = replace(explainer.config, steps=min(explainer.config.steps, _PUBLISHED_STEPS))
    return PublishedMedXGAN(
        explainer.generator,
        explainer.classifier,
        explainer.finding,
        config=config,
        recipe=explainer.recipe,
        checkpoint=explainer.checkpoint,
    )
