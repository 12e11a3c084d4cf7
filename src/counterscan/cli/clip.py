"""``counterscan augment clip``: the text-image model that steers the generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.text.clip import TrainableClip
    from counterscan.text.clip_config import ClipConfig

# What `augment edit` looks for beside a model.
ZERO_SHOT = "zeroshot.json"


@dataclass
class ClipTrain:
    """Train a text-image model on images and reports; say what it knows of each finding. Go on where a run stopped."""

    store: tyro.conf.Positional[Path]
    """Folder made by `counterscan data prepare` from a table with reports, with rows in the splits train and val."""
    out: Path = field(kw_only=True)
    """Run folder; the same command goes on with an interrupted run."""
    view: Literal["findings", "impression", "summary", "rules-v1", "rules-v2", "shuffled", "inverted", "report"] = (
        "rules-v2"
    )
    """What of a report is learned from; shuffled and inverted are controls."""
    loss: Literal["info-nce", "soft", "sigmoid", "sigmoid-soft"] = "soft"
    """Soft targets know which images a sentence is true of, by the labels of both."""
    pretrained: Path | None = None
    """Local folder of CLIP, SigLIP or a dual encoder to fine-tune; default: a small model from nothing."""
    rules: tuple[Path, ...] = ()
    """Rule files of one's own, beside the packaged ones."""
    steps: int = 1500
    """Length of the training of a small model."""
    epochs: int = 4
    """Length of a fine-tuning."""
    seed: int = 0
    """Of weights, batches and sentences."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def run(self) -> None:
        import torch

        from counterscan.cli.tables import say
        from counterscan.data.store import PreparedStore
        from counterscan.text.clip_training import Pairs, fit
        from counterscan.text.extract import Extractor
        from counterscan.text.stated import SentenceReader
        from counterscan.text.views import corpus_view
        from counterscan.text.zeroshot import judge

        learn, val = PreparedStore.open(self.store).parts("train", "val")
        extractor = Extractor(list(self.rules) or None)
        pairs = Pairs.from_store(learn)
        if self.view != "report":
            pairs = Pairs.from_store(learn, corpus_view(self.view, pairs.texts, extractor, seed=self.seed))
        config = self._config(len(pairs))
        if self.view in ("shuffled", "inverted") and config.uses_labels:
            raise InputError(
                f"true labels would mend the {self.view} texts, which are wrong on purpose",
                field="--loss",
                remedy="A control takes --loss info-nce",
            )
        stated = SentenceReader(learn.findings, extractor, by_name=True) if config.uses_labels else None
        model = fit(pairs, self.out, config, model=self._start(), label_sentence=stated)
        known = judge(model, val, torch.from_numpy(val.labels), val.findings)
        known.save(self.out / ZERO_SHOT)
        for name, auc in known.auc.items():
            say(
                f"{name}: zero-shot AUC {auc:.3f} on validation, " + ("known" if name in known.known() else "not known")
            )

    def _config(self, pairs: int) -> ClipConfig:
        from counterscan.text.clip_config import ClipConfig

        shared: dict[str, Any] = {
            "view": self.view, "loss": self.loss, "seed": self.seed, "threads": self.threads, "device": self.device,
        }  # fmt: skip
        if self.pretrained is not None:
            return ClipConfig.fine_tuning(pairs, self.epochs, **shared)
        return ClipConfig(steps=self.steps, **shared)

    def _start(self) -> TrainableClip | None:
        if self.pretrained is None:
            return None
        from counterscan.text.hub import load_pretrained

        return load_pretrained(self.pretrained)


COMMANDS = {"train": ClipTrain}
