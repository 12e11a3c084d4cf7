"""The ceiling: the map generator's own U-Net trained on the masks, with the same images, views and patience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import counterscan
from counterscan.care import average_over_views, evaluating, tidy
from counterscan.counterpart import Counterpart, Provenance, Query, StudyBatch
from counterscan.data.augment import AugmentConfig, augment
from counterscan.data.store import PreparedStore
from counterscan.taggan import MapGenerator, TagGANConfig
from counterscan.training import Context, Task, load_weights, seed_everything, train, uniform_sampler


@dataclass
class Rows:
    """Images and masks as the loop reads them."""

    store: PreparedStore

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Any) -> dict[str, Tensor]:
        """Images (B, 1, S, S) and masks (B, 1, S, S)."""
        return {"image": self.store.images(indices), "mask": self.store.masks(indices)}


class MaskTask(Task):
    """Cross-entropy plus soft Dice."""

    ema = ("map",)

    def __init__(self, config: TagGANConfig) -> None:
        self.modules = {"map": MapGenerator(config.networks, 1)}
        self.optimizers = {"map": torch.optim.AdamW(self.modules["map"].parameters(), 2e-3, weight_decay=0.01)}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """One update."""
        views = AugmentConfig(degrees=12, scale=0.12, shift=0.06, gain=0.2, bias=0.15, noise=0.0)
        images, masks = augment(batch["image"], None, views, masks=batch["mask"])
        assert masks is not None
        with ctx.autocast():
            logits = self.modules["map"](images, torch.zeros(len(images), dtype=torch.long)).float()
        truth, p = masks.float(), logits.sigmoid()
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        ctx.update("map", F.binary_cross_entropy_with_logits(logits, truth) + dice)
        return {}


class Supervised:
    """The trained ceiling as a System; its mask is p > 0.5, which it was trained for."""

    name = "Supervised by masks"

    def __init__(self, generator: nn.Module, config: TagGANConfig) -> None:
        self.generator, self.care = generator.eval(), config.care

    @torch.no_grad()
    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Probability maps, without a counterpart."""

        def of(x: Tensor) -> Tensor:
            return self.generator(x, torch.zeros(len(x), dtype=torch.long)).float().sigmoid()

        with evaluating(self.generator):
            p = average_over_views(of, batch.images, self.care)
        evidence = tidy(p, batch.images, self.care)
        made_by = Provenance(self.name, counterscan.__version__)
        scores = evidence.flatten(1).amax(1).tolist()
        return [
            Counterpart(x, e, query, made_by, mask=e > 0.5, score_before=s)
            for x, e, s in zip(batch.images, evidence, scores, strict=True)
        ]


def supervised(store: PreparedStore, folder: Path, config: TagGANConfig) -> Supervised:
    """Train it, or load it when it is there."""
    loop = replace(config.training, schedule="cosine", final_factor=0.0, warmup=40, validate_every=0, sample_every=0)
    seed_everything(loop.seed)
    learn = store.subset(np.flatnonzero((store.split == "train") & store.mask_known))
    train(MaskTask(config), Rows(learn), loop, folder, sampler=uniform_sampler(len(learn), loop.batch_size, loop.seed))
    generator = MapGenerator(config.networks, 1)
    load_weights(folder, {"map": generator}, "last")
    return Supervised(generator, config)
