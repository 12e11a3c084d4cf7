"""Every job once, briefly, on real images where they lie: from the published files to an answer on the native grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from counterscan.classify import ClassifyConfig, train_classifier
from counterscan.counterpart import Query
from counterscan.data.importers import IMPORTERS
from counterscan.data.prepare import prepare
from counterscan.data.splits import folds
from counterscan.data.store import PreparedStore
from counterscan.medxgan import MedXGAN, MedXGANConfig
from counterscan.nets.cnn import ClassifierConfig
from counterscan.taggan import TagGAN, TagGANConfig
from tests.real import real_data

SIZE, FINDING = 32, "Brain Tumor"
SHORT = {"steps": 6, "batch_size": 8, "tensorboard": False, "validate_every": 0, "sample_every": 0, "warmup": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PreparedStore:
    """About 150 slices of 14 patients."""
    table = IMPORTERS["manifest"](real_data("lgg_mri")).with_findings([FINDING])
    folder = tmp_path_factory.mktemp("lgg")
    prepare(table, folder, size=SIZE, workers=1)
    whole = PreparedStore.open(folder)
    few = whole.subset(np.isin(whole.patients, sorted(set(whole.patients.tolist()))[:14]))
    train, val, test = folds(few.table, 4, 0)[0]
    for name, patients in (("train", train), ("val", val), ("test", test)):
        few.split[np.isin(few.patients, list(patients))] = name
    return few


@pytest.fixture(scope="module")
def trained(store: PreparedStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[TagGAN, MedXGAN]:
    folder: Path = tmp_path_factory.mktemp("runs")
    quick = ClassifyConfig(
        model=ClassifierConfig(widths=(8, 16, 16)), steps=60, batch_size=16, precision="fp32", tensorboard=False
    )
    classifier = train_classifier(store, folder / "classifier", quick)
    base, why = TagGANConfig(), MedXGANConfig()
    tag = replace(base, training=replace(base.training, **SHORT), networks=replace(base.networks, base=8))
    witness = replace(why.witness, widths=(8,), steps=20)
    explain = replace(
        why, training=replace(why.training, **SHORT), networks=replace(why.networks, base=8), witness=witness
    )
    tagger = TagGAN.fit(store, folder / "tag", tag, classifiers=[classifier])
    return tagger, MedXGAN.fit(store, classifier, folder / "why", explain)


def test_both_jobs_answer_on_unseen_patients(store: PreparedStore, trained: tuple[TagGAN, MedXGAN]) -> None:
    rows = np.flatnonzero(store.split == "test")[:4]
    assert not set(store.patients[rows]) & set(store.patients[store.split == "train"])
    batch = store.batch(rows)
    for system in trained:
        for row, answer in zip(rows.tolist(), system.counterparts(batch, Query(FINDING)), strict=True):
            assert answer.counterpart is not None
            assert torch.isfinite(answer.evidence).all()
            assert answer.counterpart.min() >= -1
            assert answer.counterpart.max() <= 1
            native = store.geometry(row).to_native(answer.evidence)
            assert tuple(native.shape[1:]) == store.geometry(row).native
