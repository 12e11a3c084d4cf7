"""A study in seconds: 8 px images, a generator and a text-image model in which everything is linear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from counterscan.bench import study_content, study_models, study_run
from counterscan.bench.study_config import StudyConfig
from counterscan.bench.study_models import Study
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.taggan.filling import Regions
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.generator import StyleGAN, TrainingPatients
from counterscan.tbsmgan.steering import Steering
from tests.tbsmgan.linear import (
    BANK,
    BlockFiller,
    BlockTagger,
    BlockVerifier,
    LinearText,
    block_regions,
    encoded,
    linear_gan,
    store,
    zero_shot,
)

CONFIG = StudyConfig(
    arms=(
        "real",
        "classic",
        "duplicate",
        "plain",
        "swap",
        "text+",
        "text-",
        "both",
        "random",
        "naive",
        "both:only",
        "both:pretrain",
    ),
    synthetic=24,
    seeds=2,
    steps=6,
    batch_size=16,
    widths=(4, 8),
    verifiers=1,
    resamples=50,
    off=0.9,
)


def toy_store(count: int = 240, seed: int = 0) -> PreparedStore:
    """With splits train, val and test, and reports."""
    made = store(count, seed)
    split = [("train", "train", "val", "test")[i % 4] for i in range(count)]
    frame = made.table.frame.assign(split=split, report="no edema")
    view = made.subset(slice(None))
    view.table = StudyTable(frame, made.table.root, made.findings)
    view.split = np.array(split)
    return view


def gan_of(data: PreparedStore, *splits: str) -> StyleGAN:
    """A generator that says it learned from these splits."""
    patients = data.patients[np.isin(data.split, splits)].tolist()
    made = linear_gan(patients=TrainingPatients.of(patients, "salt"))
    net = made.generator
    net.forward = lambda z, c, psi: net.synthesize(net.map(z, c, psi), noise="const")  # type: ignore[method-assign]
    return made


def use_toys(monkeypatch: pytest.MonkeyPatch, blind: bool = False) -> None:
    """Models that need no training instead of the trained ones; ``blind`` ones take no lesion out."""

    def gate(study: Study) -> Gate:
        made = Gate.calibrate([BlockVerifier()], study.store)  # type: ignore[list-item]
        made.limits = replace(made.limits, shape=1.9, change=0.9, copy=0.0)
        return made

    def generator(study: Study, number: int) -> StyleGAN:
        return gan_of(study.store, "train")

    def steering(study: Study, view: str, number: int) -> Steering:
        known = zero_shot()
        return Steering(generator(study, number), LinearText(), zero_shot=known, bank=BANK)

    def lesions(study: Study) -> tuple[BlockTagger, Regions, BlockFiller]:
        return BlockTagger(), block_regions(study.targets("train")), BlockFiller(blind)

    for module, name, stub in (
        (study_run, "load_gate", gate),
        (study_content, "load_gate", gate),
        (study_models, "fit_encoder", lambda study, number, gan: SimpleNamespace(encode=encoded)),
        (study_run, "fit_encoder", lambda study, number: None),
        (study_content, "load_generator", generator),
        (study_content, "load_steering", steering),
        (study_run, "load_steering", steering),
        (study_run, "fit_generator", generator),
        (study_run, "fit_text_model", lambda study, view: None),
        (study_run, "fit_verifier", lambda study, number: None),
        (study_run, "fit_lesions", lambda study: None),
        (study_content, "fit_lesions", lesions),
    ):
        monkeypatch.setattr(module, name, stub)


def quiet(line: str) -> None:
    """Says nothing."""


def run(data: PreparedStore, out: Path, config: StudyConfig = CONFIG, **more: object):
    return study_run.run_study(data, out, config, workers=1, say=quiet, **more)  # type: ignore[arg-type]
