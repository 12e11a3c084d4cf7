"""A generator on disk: one folder with safetensors, settings and a model card. Nothing is downloaded or pickled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch

import counterscan
from counterscan.data.intensity import IntensityRecipe
from counterscan.files import read_json, write_json, write_text
from counterscan.nets.stylegan2 import Generator, StyleGANConfig
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.tbsmgan.generator import LabelMix, StyleGAN, TrainingPatients
from counterscan.training.checkpoint import weights_digest

SETTINGS, WEIGHTS, PATIENTS = "stylegan.json", "generator.safetensors", "training_patients.json"
_MIX_LABELS, _MIX_SHARES = "mix/labels", "mix/shares"


def save(gan: StyleGAN, folder: Path) -> Path:
    """Write a generator; the settings file is written last, so that a folder with one is whole."""
    tensors = {f"generator/{name}": t for name, t in gan.generator.state_dict().items()}
    if gan.mix is not None:
        tensors |= {_MIX_LABELS: gan.mix.labels, _MIX_SHARES: gan.mix.shares}
    write_tensors(folder / WEIGHTS, tensors)
    settings = {
        "version": counterscan.__version__,
        "findings": list(gan.findings),
        "network": dataclasses.asdict(gan.generator.config),
        "recipe": gan.recipe.to_dict() if gan.recipe is not None else None,
        "figures": dict(gan.figures),
        "learned": dict(gan.learned),
        "diagnoses": list(gan.diagnoses),
        "facts": list(gan.facts),
    }
    write_json(folder / PATIENTS, dataclasses.asdict(gan.patients))
    write_text(folder / "README.md", gan.card())
    write_json(folder / SETTINGS, settings)
    return folder


def load(folder: Path, device: str = "cpu") -> StyleGAN:
    """Read a generator; without the file of training patients it can be used, but nothing may be measured with it.

    Raises:
        InputError: no generator, or a damaged one.
    """
    folder = model_folder(
        folder,
        SETTINGS,
        "Give the folder of a finished `counterscan augment gan train`; the same command again finishes it",
    )
    settings: dict[str, Any] = read_json(folder / SETTINGS)
    with reading(folder, "generator"):
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        generator = Generator(StyleGANConfig(**settings["network"]))
        prefix = "generator/"
        generator.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        mix = LabelMix(tensors[_MIX_LABELS], tensors[_MIX_SHARES]) if _MIX_LABELS in tensors else None
        patients = TrainingPatients("")
        if (folder / PATIENTS).is_file():
            kept = read_json(folder / PATIENTS)
            patients = TrainingPatients(kept["salt"], tuple(kept["hashes"]))
        return StyleGAN(
            generator.to(device),
            tuple(settings["findings"]),
            mix,
            IntensityRecipe.from_dict(settings["recipe"]) if settings["recipe"] is not None else None,
            weights_digest(generator)[:16],
            patients,
            settings["figures"],
            settings["learned"],
            tuple(settings["diagnoses"]),
            tuple(settings["facts"]),
        )
