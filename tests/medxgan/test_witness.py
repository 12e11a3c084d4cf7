from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterscan.classify.task import LabelledRows
from counterscan.data.augment import AugmentConfig
from counterscan.errors import InputError
from counterscan.medxgan import WitnessConfig, train_witnesses
from counterscan.medxgan.training import calls
from counterscan.training import TrainConfig
from tests.medxgan.ladders import Blobs
from tests.taggan.blobs import FINDINGS, blob_store

CONFIG = WitnessConfig(widths=(6, 4), steps=60, batch_size=8)
TRAINING = TrainConfig(seed=3, device="cpu")


def made(folder: Path, config: WitnessConfig = CONFIG, explained: Blobs | None = None):  # type: ignore[no-untyped-def]
    store, explained = blob_store(), explained or Blobs()
    rows = [
        LabelledRows(part, calls(explained, part))
        for part in (store.subset(store.split == name) for name in ("train", "val"))
    ]
    return train_witnesses(*rows, explained, folder, config, training=TRAINING, views=AugmentConfig(flip=0.0))


def test_they_learn_the_classifiers_answers_not_the_labels(tmp_path: Path) -> None:
    store, mistaken = blob_store(), Blobs(offset=0.0)
    forward = mistaken.forward
    mistaken.forward = lambda x: -forward(x)  # type: ignore[method-assign]
    witnesses = made(tmp_path, replace(CONFIG, steps=150), mistaken)
    x = store.images(slice(None))[store.split == "val"]
    with torch.no_grad():
        wanted = mistaken(x) > 0
        for witness in witnesses:
            assert witness.findings == FINDINGS[:1]
            assert ((witness(x) > 0) == wanted).float().mean() > 0.85
            assert not any(p.requires_grad for p in witness.parameters())


def test_they_differ_in_shape_and_seed_and_are_not_trained_twice(tmp_path: Path) -> None:
    first, second = made(tmp_path)
    assert first.config.widths == (6, 12, 24, 48)
    assert second.config.widths == (4, 8, 16, 32)
    written = (tmp_path / "0" / "metrics.jsonl").read_bytes()
    again, _ = made(tmp_path)
    assert again.digest == first.digest
    assert (tmp_path / "0" / "metrics.jsonl").read_bytes() == written


def test_none_are_trained_where_none_are_asked_for(tmp_path: Path) -> None:
    assert made(tmp_path, WitnessConfig(widths=())) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"widths": (8, 0)}, {"steps": 0}, {"batch_size": 0}, {"noise": -0.1}])
def test_settings_out_of_range_are_named(wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=next(iter(wrong))):
        WitnessConfig(**wrong)
