"""TagGAN on disk: one folder with safetensors, settings and a model card. Nothing is downloaded, nothing is pickled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

import counterscan
from counterscan.care import Care
from counterscan.classify import from_pretrained as classifier_from
from counterscan.classify import save_pretrained as save_classifier
from counterscan.data.intensity import IntensityRecipe
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity
from counterscan.files import read_json, sha256_file, write_json, write_text
from counterscan.nets.cnn import Classifier
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.taggan.masks import MaskRule
from counterscan.taggan.model import MapGenerator, NetworkConfig
from counterscan.taggan.tagger import TagGAN

SETTINGS, WEIGHTS, CLASSIFIER = "taggan.json", "map.safetensors", "classifier"
_REMEDY = "Give the folder of a finished `counterscan tag train`; run the same command again to finish it"


def save(tagger: TagGAN, folder: Path) -> Path:
    """Write a tagger; the settings file is written last, so that a folder with one is whole.

    A classifier that is not counterscan's own cannot be written: the reloaded tagger scores by its maps, until its
    ``classifier`` is set again.
    """
    tensors = {
        f"{k}/{name}": tensor
        for k, generator in enumerate(tagger.generators)
        for name, tensor in generator.state_dict().items()
    }
    familiarity = tagger.familiarity
    if familiarity is not None:
        tensors |= familiarity.tensors()
    write_tensors(folder / WEIGHTS, tensors)
    own = tagger.classifier if isinstance(tagger.classifier, Classifier) else None
    if own is not None:
        save_classifier(own, folder / CLASSIFIER)
    settings = {
        "version": counterscan.__version__,
        "findings": list(tagger.findings),
        "networks": [dataclasses.asdict(generator.config) for generator in tagger.generators],
        "size": tagger.size,
        "recipe": tagger.recipe.to_dict() if tagger.recipe is not None else None,
        "care": dataclasses.asdict(tagger.care),
        "rules": {finding: rule.to_dict() for finding, rule in tagger.rules.items()},
        "classifier": own is not None,
        "familiarity": None if familiarity is None else familiarity.limit,
    }
    write_text(folder / "README.md", card(tagger))
    write_json(folder / SETTINGS, settings)
    return folder


def load(folders: Sequence[str | Path], device: str = "cpu") -> TagGAN:
    """One tagger, or the average of several of the same findings, size and recipe.

    Mask rules belong to the maps they were calibrated on: of several taggers they are averaged.

    Raises:
        InputError: no model, a damaged one, or models that do not go together.
    """
    parts = [_load(model_folder(Path(folder), SETTINGS, _REMEDY), device) for folder in folders]
    if not parts:
        raise InputError("no model folder given", field="model")
    first = parts[0]
    for folder, part in zip(folders, parts, strict=True):
        for name in ("findings", "size", "recipe", "care"):
            if getattr(part, name) != getattr(first, name):
                raise InputError(
                    f"{getattr(part, name)} is not the {getattr(first, name)} of {folders[0]}",
                    path=folder,
                    field=name,
                    remedy="Average models that were trained on the same store with the same settings",
                )
    if len(parts) == 1:
        return first
    rules = {finding: _mean_rule([p.rules[finding] for p in parts]) for finding in first.rules}
    return TagGAN(
        [generator for part in parts for generator in part.generators],
        first.findings,
        classifier=first.classifier,
        rules=rules,
        familiarity=first.familiarity,
        care=first.care,
        size=first.size,
        recipe=first.recipe,
        checkpoint="+".join(part.checkpoint or "?" for part in parts),
    )


def _load(folder: Path, device: str) -> TagGAN:
    settings: dict[str, Any] = read_json(folder / SETTINGS)
    weights = folder / WEIGHTS
    with reading(folder):
        tensors = safetensors.torch.load_file(weights)
        familiarity = Familiarity.out_of(tensors, settings.get("familiarity"))  # earlier versions had none
        findings = settings["findings"]
        generators = []
        for k, sizes in enumerate(settings["networks"]):
            generator = MapGenerator(NetworkConfig(**sizes), len(findings))
            prefix = f"{k}/"
            generator.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            generators.append(generator.to(device))
        care = Care(**{**settings["care"], "shifts": tuple(map(tuple, settings["care"]["shifts"]))})
        rules = {finding: MaskRule(**rule) for finding, rule in settings["rules"].items()}
        recipe = IntensityRecipe.from_dict(settings["recipe"]) if settings["recipe"] is not None else None
    classifier = classifier_from(folder / CLASSIFIER, device) if settings["classifier"] else None
    return TagGAN(
        generators,
        findings,
        classifier=classifier,
        rules=rules,
        familiarity=familiarity,
        care=care,
        size=settings["size"],
        recipe=recipe,
        checkpoint=sha256_file(weights)[:16],
    )


def _mean_rule(rules: Sequence[MaskRule]) -> MaskRule:
    return dataclasses.replace(rules[0], threshold=sum(rule.threshold for rule in rules) / len(rules))


def card(tagger: TagGAN) -> str:
    """The model card."""
    rules = "\n".join(
        f"* {finding}: evidence above {rule.threshold:.4g} (the {rule.percentile:g}th percentile on healthy validation "
        f"images), regions of at least {rule.min_area:.2%} of the image"
        for finding, rule in tagger.rules.items()
    )
    return f"""---
library_name: counterscan
tags: [medical-imaging, weakly-supervised-localisation, counterfactual]
---
# TagGAN for {", ".join(tagger.findings)}

Disease maps, healthy counterparts and masks from image-level labels (counterscan {counterscan.__version__}).

* Input: one-channel images of {tagger.size} x {tagger.size} pixels in [-1, 1], made with the stored intensity recipe.
* Output: signed map M, counterpart x - M, evidence |M|, mask, score.
* Generators averaged: {len(tagger.generators)}.

Mask thresholds, set without pixel labels:

{rules or "* none"}

**Research use only. Not a medical device.** Counterparts are synthetic images. Maps show what the model
changes to make an image look free of the finding; they can be wrong, and they follow shortcuts in the training labels.
"""
