"""Train a text-image model on images and their reports: a tiny one from nothing, or a pretrained one further."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterscan.data.augment import augment
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.text.clip import TextImageModel, TinyTextImage, TrainableClip, load_clip
from counterscan.text.clip_config import ClipConfig
from counterscan.text.contrastive import (
    agreement_targets,
    info_nce,
    sigmoid_loss,
    similarity_targets,
    soft_cross_entropy,
)
from counterscan.text.statements import LabelSentence, Statements
from counterscan.text.tokenizer import ReportTokenizer
from counterscan.training import Context, Task, find_checkpoint, load_weights, seed_everything, train

_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and their texts.

    Attributes:
        images: a store, or (N, 1, H, W) in [-1, 1].
        texts: N reports or views of reports.
        labels: (N, K), 1 present, 0 absent, NaN or -1 not known, which the targets of soft losses are made of; None
            where there are none. Columns may be findings, and also what steering needs told apart, such as "Pleural
            Effusion left".
        patients: N names, kept only as a digest; a store's own by default.

    Raises:
        InputError: lengths disagree.
    """

    images: PreparedStore | Tensor
    texts: Sequence[str]
    labels: Tensor | None = None
    patients: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("texts", "labels", "patients"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise InputError(f"{len(value)} for {len(self.images)} images", field=name, remedy="Give one per image")
        if self.patients is None and isinstance(self.images, PreparedStore):
            object.__setattr__(self, "patients", self.images.patients.tolist())

    @classmethod
    def from_store(cls, store: PreparedStore, texts: Sequence[str] | None = None) -> Pairs:
        """A store's images, labels and patients, with its table's reports or with views of them.

        Raises:
            InputError: no texts are given and the table has no reports.
        """
        if texts is None:
            if "report" not in store.table.frame:
                raise InputError(
                    "the table has no reports", field="column 'report'", remedy="Add the column, or give the texts"
                )
            texts = store.table.frame["report"].fillna("").astype(str).tolist()
        return cls(store, list(texts), torch.from_numpy(store.labels))

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Any) -> dict[str, Any]:
        """ "image" (B, 1, H, W), as the training loop reads it."""
        return {"image": self.pictures(indices)}

    def pictures(self, rows: Any) -> Tensor:
        """Images of some rows, (B, 1, H, W)."""
        return self.images.images(rows) if isinstance(self.images, PreparedStore) else self.images[rows]

    def told(self) -> Pairs:
        """The rows whose text says anything.

        Raises:
            InputError: none does.
        """
        rows = np.array([k for k, text in enumerate(self.texts) if any(c.isalnum() for c in text)], dtype=np.int64)
        if not len(rows):
            raise InputError("every text is empty", field="texts", remedy="Give reports")
        if len(rows) == len(self):
            return self
        images = self.images.subset(rows) if isinstance(self.images, PreparedStore) else self.images[rows]
        patients = None if self.patients is None else [self.patients[k] for k in rows]
        labels = None if self.labels is None else self.labels[torch.from_numpy(rows)]
        return Pairs(images, [self.texts[k] for k in rows], labels, patients)


class ContrastiveTask(Task):
    """Trains one model on pairs. Among several processes each contrasts its own part of the batch.

    Args:
        model: to be trained.
        pairs: the training rows.
        statements: what their texts say, sentence by sentence.
        config: see ``ClipConfig``.
        validation: pairs whose loss is watched; None for none.
    """

    def __init__(
        self,
        model: TrainableClip,
        pairs: Pairs,
        statements: Statements,
        config: ClipConfig,
        validation: tuple[Pairs, Statements] | None = None,
    ) -> None:
        self.model, self.labels, self.statements, self.config = model, pairs.labels, statements, config
        self.validation = validation
        self.modules = {"clip": model}
        # Half the memory of the tokenizer's own type: a large set has a million sentences.
        self.tokens = model.tokenize(statements.sentences).int()
        self._held_tokens = model.tokenize(validation[1].sentences).int() if validation else None
        self._freeze()
        self.optimizers = {"clip": self._optimizer()}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update: one drawn sentence per image against the images of the batch."""
        self._lead(ctx.step)
        images, _ = augment(batch["image"], None, self.config.augment)
        rows = batch["index"].cpu()
        drawn = self.statements.draw(rows, self.config.whole, self.config.rarity)
        loss = self._loss(ctx, images, self.tokens[drawn], self._targets(self.labels, self.statements, rows, drawn))
        ctx.update("clip", loss)
        return {"scale": float(self.model.scale.detach())}

    @torch.no_grad()
    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Mean loss over validation batches, whole texts and sentences as in training."""
        if self.validation is None or self._held_tokens is None:
            return {}
        pairs, statements = self.validation
        losses = []
        size = min(self.config.batch_size, len(pairs))
        for start in range(0, len(pairs) - size + 1, size):
            rows = torch.arange(start, start + size)
            drawn = statements.draw(rows, self.config.whole, self.config.rarity)
            images = pairs.pictures(rows.numpy()).to(ctx.device)
            targets = self._targets(pairs.labels, statements, rows, drawn)
            losses.append(float(self._loss(ctx, images, self._held_tokens[drawn], targets)))
        return {"loss": sum(losses) / len(losses)}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """The last weights are used: a contrastive loss over drawn sentences is too noisy to choose by."""
        return None

    def _targets(self, labels: Tensor | None, statements: Statements, rows: Tensor, drawn: Tensor) -> Tensor | None:
        """(B, B) which drawn sentence suits which image; None when only its own does."""
        if not self.config.uses_labels:
            return None
        assert labels is not None  # fit refuses soft targets without labels
        if statements.labels is None:
            return similarity_targets(labels[rows], self.config.similarity)
        return agreement_targets(labels[rows], statements.labels[drawn]).fill_diagonal_(1.0)

    def _loss(self, ctx: Context, images: Tensor, tokens: Tensor, targets: Tensor | None) -> Tensor:
        # Nothing is computed for places that are empty in all of the batch.
        longest = int((tokens >= 0).sum(1).max())
        with ctx.autocast():
            image = self.model.encode_images(images)
            text = self.model.encode_tokens(tokens[:, :longest].long().to(ctx.device))
        image, text = (torch.nn.functional.normalize(x.float(), dim=1) for x in (image, text))
        logits = self.model.scale * image @ text.T
        if targets is not None:
            targets = targets.to(ctx.device)
        if self.config.loss in ("sigmoid", "sigmoid-soft"):
            return sigmoid_loss(logits, self.model.bias, targets)
        return info_nce(logits) if targets is None else soft_cross_entropy(logits, targets, self.config.own)

    def _freeze(self) -> None:
        """The first share of each tower's parts stays as it is."""
        for blocks in self.model.blocks().values() if self.config.freeze else ():
            for block in blocks[: round(self.config.freeze * len(blocks))]:
                block.requires_grad_(False)

    def _lead(self, step: int) -> None:
        """LP-FT (Kumar et al. 2022): first the projections alone, so that random ones do not spoil the towers."""
        share = 0.0 if step < round(self.config.projection_first * self.config.steps) else 1.0
        for group in self.optimizers["clip"].param_groups:
            if group["part"] in ("image", "text"):
                group["lr"] *= share

    def _optimizer(self) -> torch.optim.Optimizer:
        rates = {
            "image": self.config.rate_image,
            "text": self.config.rate_text,
            "projection": self.config.rate_projection,
            "scale": self.config.rate_projection,
        }
        groups: list[dict[str, Any]] = []
        for part, parameters in self.model.parts().items():
            kept = [p for p in parameters if p.requires_grad]
            for decays in (True, False):
                chosen = [p for p in kept if (p.ndim > 1) == decays]
                if chosen:
                    decay = self.config.decay if decays else 0.0
                    groups.append({"params": chosen, "lr": rates[part], "weight_decay": decay, "part": part})
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9)
        return torch.optim.AdamW(groups)


def fit(
    pairs: Pairs,
    folder: str | Path,
    config: ClipConfig | None = None,
    *,
    model: TrainableClip | None = None,
    validation: Pairs | None = None,
    label_sentence: LabelSentence | None = None,
    name: str | None = None,
) -> TrainableClip:
    """Train on pairs of TRAINING patients; the same call goes on where one stopped.

    Args:
        pairs: images and texts; rows with an empty text are left out.
        folder: the run folder; the model comes to ``model/`` in it.
        config: see ``ClipConfig``; for a pretrained model ``ClipConfig.fine_tuning()``.
        model: to go on from; by default a tiny one, whose tokenizer is fitted on the texts.
        validation: pairs of other patients, whose loss is logged.
        label_sentence: a sentence to its K labels (1, 0, NaN where it does not say), in the order of ``pairs.labels``.
            With it the soft targets know what each sentence says: "no pneumothorax" suits every image without one.
            Without it a sentence suits images by how alike the whole studies are, which teaches far less.
        name: of the model.

    Returns:
        The model, frozen and in evaluation mode, as ``load_clip`` reads it.

    Raises:
        InputError: no text, soft targets without labels, fewer pairs than a batch, or a patient in both sets.
    """
    config = config or ClipConfig()
    if config.uses_labels and pairs.labels is None:
        raise InputError(
            f"the loss {config.loss!r} needs labels", field="labels", remedy="Give labels, or use the loss info-nce"
        )
    pairs = pairs.told()
    if len(pairs) < config.batch_size:
        raise InputError(
            f"{len(pairs)} pairs with a text are fewer than a batch of {config.batch_size}",
            field="batch_size",
            remedy="Give more pairs or a smaller batch",
        )
    held = validation.told() if validation is not None else None
    _check_apart(pairs, held)
    seed_everything(config.seed)
    if model is None:
        tokenizer = ReportTokenizer.fit(list(pairs.texts), config.vocabulary)
        model = TinyTextImage(tokenizer, config.model, name or f"tiny CLIP ({config.view}, {config.loss})")
    elif name is not None:
        model.name = name
    model.requires_grad_(True)
    options = {"keep_whole": config.whole > 0, "listed": config.listed}
    statements = Statements.of(pairs.texts, label_sentence, **options)
    watched = (held, Statements.of(held.texts, label_sentence, **options)) if held is not None else None
    task = ContrastiveTask(model, pairs, statements, config, watched)
    model.trained_on = _about(pairs, config)
    train(
        task,
        pairs,
        config.training(),
        folder,
        settings={**config.system(), "model_name": model.name, "data": model.trained_on},
    )
    load_weights(find_checkpoint(folder, "last"), {"clip": model})
    model.requires_grad_(False).eval().save(Path(folder) / "model")
    return load_clip(folder, str(model.device))


@torch.no_grad()
def embed_all(
    model: TextImageModel, images: PreparedStore | Tensor, device: str | torch.device | None = None
) -> Tensor:
    """Unit vectors (N, d) on the CPU of all images of a store or (N, 1, H, W) tensor, in batches of 128."""
    place = device if device is not None else getattr(model, "device", "cpu")
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        block = images.images(rows) if isinstance(images, PreparedStore) else images[rows]
        parts.append(model.embed_images(block.to(place)).cpu())
    return torch.cat(parts)


def patients_digest(patients: Sequence[str]) -> str:
    """SHA-256 of the sorted distinct names: tells whether two sets of patients are the same, and names nobody."""
    return hashlib.sha256("\n".join(sorted(set(map(str, patients)))).encode()).hexdigest()


def _about(pairs: Pairs, config: ClipConfig) -> dict[str, Any]:
    about: dict[str, Any] = {"images": len(pairs), "view": config.view, "loss": config.loss}
    if pairs.patients is not None:
        about |= {"patients": len(set(pairs.patients)), "patients_digest": patients_digest(pairs.patients)}
    if isinstance(pairs.images, PreparedStore):
        about |= {"size": pairs.images.size, "content": pairs.images.content, "findings": list(pairs.images.findings)}
    else:
        about["size"] = pairs.images.shape[-1]
    return about


def _check_apart(pairs: Pairs, held: Pairs | None) -> None:
    if held is None or pairs.patients is None or held.patients is None:
        return
    if both := sorted(set(pairs.patients) & set(held.patients)):
        raise InputError(
            f"{len(both)} patients are among the training and the validation pairs",
            field="patients",
            remedy="Split by patient",
        )
