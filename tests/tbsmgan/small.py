"""Settings small enough for tests: 16 px, a handful of channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from counterscan.classify import ClassifyConfig
from counterscan.data.store import PreparedStore
from counterscan.nets.cnn import ClassifierConfig
from counterscan.nets.stylegan2 import StyleGANConfig
from counterscan.tbsmgan import GANConfig, MonitorConfig
from tests.taggan.blobs import blob_store

NETWORK = StyleGANConfig(size=16, z_dim=8, w_dim=8, channels=(8, 8, 8))


def store(count: int = 96, findings: int = 2, seed: int = 0) -> PreparedStore:
    return blob_store(count, 16, findings, seed)


def config(steps: int = 4, **objective: Any) -> GANConfig:
    base = GANConfig()
    loop = replace(
        base.training,
        steps=steps,
        batch_size=8,
        validate_every=steps,
        checkpoint_every=steps,
        sample_every=steps,
        threads=1,
        tensorboard=False,
    )
    classifier = ClassifyConfig(model=ClassifierConfig(widths=(8, 16)), steps=40, batch_size=16, tensorboard=False)
    return replace(
        base,
        training=loop,
        network=NETWORK,
        objective=replace(base.objective, **objective),
        monitor=MonitorConfig(samples=64),
        classifier=classifier,
    )
