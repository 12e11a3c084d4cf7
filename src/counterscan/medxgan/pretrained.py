"""An explainer on disk: one folder with safetensors, settings and a model card. Nothing is downloaded or pickled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

import counterscan
from counterscan.classify import from_pretrained as classifier_from
from counterscan.classify import save_pretrained as save_classifier
from counterscan.data.intensity import IntensityRecipe
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity
from counterscan.files import read_json, sha256_file, write_json, write_text
from counterscan.medxgan.explain_config import ExplainConfig
from counterscan.medxgan.explainer import Limits, MedXGAN
from counterscan.medxgan.inversion import PersuadeConfig, RefineConfig
from counterscan.medxgan.model import MedXGANNetworks, NetworkConfig
from counterscan.nets.cnn import Classifier
from counterscan.nets.layout import channels_last
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.training.checkpoint import weights_digest

SETTINGS, WEIGHTS, CLASSIFIER, WITNESSES = "medxgan.json", "networks.safetensors", "classifier", "witnesses"
_DONOR = "donors/"


def save(explainer: MedXGAN, folder: Path) -> Path:
    """Write an explainer; the settings file is written last, so that a folder with one is whole.

    A classifier that is not counterscan's own is not written: ``from_pretrained`` must be given it again.
    """
    tensors = dict(explainer.networks.state_dict())
    for number, finding in enumerate(explainer.findings):
        if finding in explainer.donors:
            tensors[f"{_DONOR}{number}"] = explainer.donors[finding].float()
    familiarity = explainer.familiarity
    if familiarity is not None:
        tensors |= familiarity.tensors()
    write_tensors(folder / WEIGHTS, tensors)
    own = explainer.classifier if isinstance(explainer.classifier, Classifier) else None
    if own is not None:
        save_classifier(own, folder / CLASSIFIER)
    for number, witness in enumerate(explainer.witnesses):
        save_classifier(witness, folder / WITNESSES / str(number))
    settings = {
        "version": counterscan.__version__,
        "findings": list(explainer.findings),
        "networks": dataclasses.asdict(explainer.networks.config),
        "explain": dataclasses.asdict(explainer.config),
        "limits": {finding: dataclasses.asdict(limit) for finding, limit in explainer.limits.items()},
        "familiarity": None if familiarity is None else familiarity.limit,
        "size": explainer.size,
        "recipe": explainer.recipe.to_dict() if explainer.recipe is not None else None,
        "classifier": {"own": own is not None, "digest": weights_digest(explainer.classifier)},
        "witnesses": len(explainer.witnesses),
    }
    write_text(folder / "README.md", card(explainer))
    write_json(folder / SETTINGS, settings)
    return folder


def load(folder: Path, classifier: nn.Module | None, device: str = "cpu") -> MedXGAN:
    """Read an explainer.

    Raises:
        InputError: no model, a damaged one, or a classifier that is missing or another one.
    """
    folder = model_folder(
        folder,
        SETTINGS,
        "Give the folder of a finished `counterscan explain train`; the same command again finishes it",
    )
    settings: dict[str, Any] = read_json(folder / SETTINGS)
    with reading(folder):
        known = settings["classifier"]
        if classifier is None and known["own"]:
            classifier = classifier_from(folder / CLASSIFIER, device)
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        findings = settings["findings"]
        familiarity = Familiarity.out_of(tensors, settings.get("familiarity"))  # earlier versions had none
        donors = {findings[int(n.removeprefix(_DONOR))]: t for n, t in tensors.items() if n.startswith(_DONOR)}
        networks = MedXGANNetworks(NetworkConfig(**settings["networks"]), len(findings))
        networks.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(_DONOR)})
        told = dict(settings["explain"])
        told["refine"] = RefineConfig(**told["refine"])
        for name in ("persuade", "insist"):
            if name in told:
                told[name] = _persuasion(told[name])
        config = ExplainConfig(**told)
        limits = {finding: Limits(limit["psnr"], limit["gap"]) for finding, limit in settings["limits"].items()}
        recipe = IntensityRecipe.from_dict(settings["recipe"]) if settings["recipe"] is not None else None
        count = settings.get("witnesses", 0)
        witnesses = [classifier_from(folder / WITNESSES / str(n), device) for n in range(count)]
    if classifier is None:
        raise InputError(
            "this explainer was made for a classifier that is not kept with it",
            path=folder,
            field="classifier",
            remedy="Give the same classifier again",
        )
    if weights_digest(classifier) != known["digest"]:
        raise InputError(
            "this is another classifier than the one the explainer was trained with",
            path=folder,
            field="classifier",
            remedy="Give that one, or train an explainer for this one",
        )
    return MedXGAN(
        channels_last(networks).to(device),
        classifier.to(device),
        witnesses=witnesses,
        config=config,
        donors={finding: donor.to(device) for finding, donor in donors.items()},
        limits=limits,
        familiarity=familiarity,
        size=settings["size"],
        recipe=recipe,
        checkpoint=sha256_file(folder / WEIGHTS)[:16],
    )


def _persuasion(told: dict[str, Any]) -> PersuadeConfig:
    """Settings of a descent; earlier versions bounded it by the difference, ``within``, and where that was 0 not."""
    if told.pop("within", None) == 0:
        told["felt"] = 0.0
    return PersuadeConfig(**told)


def card(explainer: MedXGAN) -> str:
    """The model card."""
    limits = "\n".join(
        f"* {finding}: PSNR of the reconstruction at least {limit.psnr:.1f} dB, logits at most {limit.gap:.2f} apart"
        for finding, limit in explainer.limits.items()
    )
    return f"""---
library_name: counterscan
tags: [medical-imaging, explainability, counterfactual]
---
# medXGAN+ for {", ".join(explainer.findings)}

Explanations of one frozen classifier (digest of its weights {weights_digest(explainer.classifier)[:16]}): the way
from an image to its counterpart, a difference map, latent integrated gradients (counterscan {counterscan.__version__}).

* Input: one-channel images of {explainer.size} x {explainer.size} pixels in [-1, 1], made with the stored recipe.
* It speaks of this classifier only, right or wrong, and of images like those it was trained on.

An image gets the verdict "not explainable" unless, from validation images:

{limits or "* no limits were set"}
{"* it is like the training images to its witnesses" if explainer.familiarity is not None else ""}

**Research use only. Not a medical device.** Counterparts are synthetic images.
"""
