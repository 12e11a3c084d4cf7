"""Train the classifier that tagging, explaining and the bench share, and load it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
import yaml

from counterscan import __version__
from counterscan.classify.calibration import Calibration, calibrate
from counterscan.classify.card import model_card
from counterscan.classify.config import ClassifyConfig, TrainingPolicy
from counterscan.classify.task import ClassifierTask, LabelledRows, predict_logits
from counterscan.data.findings import canonical_name
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import read_json, write_json, write_text
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.training import (
    BalancedSampler,
    TrainResult,
    find_checkpoint,
    finding_groups,
    load_weights,
    seed_everything,
    train,
)
from counterscan.training.checkpoint import write_checkpoint
from counterscan.training.config import plain

# Findings whose doubtful labels the policy "chexpert" takes for present, and the range that "soft" draws from.
_CHEXPERT_ONES, _SOFT = ("Edema", "Atelectasis"), (0.3, 0.7)
_WEIGHTS, _CALIBRATION = "model.safetensors", "calibration.json"


def train_classifier(store: PreparedStore, folder: str | Path, config: ClassifyConfig | None = None) -> Classifier:
    """Train on the rows whose split is "train", calibrate on "val"; the same call goes on where one stopped.

    Args:
        store: prepared images with labels and splits. Without validation rows, probabilities stay uncalibrated.
        folder: the run folder; gets config.yaml, metrics.jsonl, checkpoints/, calibration.json and README.md.
        config: see ``ClassifyConfig``.

    Returns:
        The trained classifier, as ``load_classifier`` gives it.

    Raises:
        InputError: no training rows, an unknown finding, or a finding that all training rows have or lack.
    """
    config = config or ClassifyConfig()
    findings, rows, held = learning_rows(store, config)
    groups, _ = finding_groups(rows.targets)
    sampler = BalancedSampler(groups, config.batch_size, config.seed)
    seed_everything(config.seed)
    task = ClassifierTask(Classifier(config.model, findings), config, held)
    settings = {**config.system(), "findings": list(findings), "data": describe_data(store, config)}
    result = train(task, rows, config.training(), folder, sampler=sampler, settings=settings)
    return conclude(task, folder, config, len(rows), result)


def learning_rows(
    store: PreparedStore, config: ClassifyConfig
) -> tuple[tuple[str, ...], LabelledRows, LabelledRows | None]:
    """Findings to learn, training rows, and validation rows (None when there are none).

    Raises:
        InputError: no training rows, an unknown finding, or a finding that all training rows have or lack.
    """
    findings = tuple(map(canonical_name, config.findings)) or store.findings
    rows, held = (_rows(store, split, findings, config) for split in ("train", "val"))
    _check_classes(rows, findings)
    return findings, rows, held if len(held) else None


def describe_data(store: PreparedStore, config: ClassifyConfig) -> dict[str, Any]:
    """What a run's config.yaml says of its images; becomes ``Classifier.trained_on``."""
    recipe = store.recipe.to_dict() if store.recipe is not None else None
    about = {"size": store.size, "content": store.content, "division": store.division}
    return about | {"recipe": recipe, "blank": config.blank}


def conclude(
    task: ClassifierTask,
    folder: str | Path,
    config: ClassifyConfig,
    trained: int,
    result: TrainResult,
    notes: Sequence[str] = (),
) -> Classifier:
    """Load what a run chose, calibrate it on the task's validation rows, write calibration.json and README.md.

    Args:
        task: as it was trained.
        folder: its run folder.
        config: for the model card.
        trained: number of training images.
        result: of the loop.
        notes: further lines of the model card.
    """
    classifier = load_classifier(folder, device=str(next(task.modules["classifier"].parameters()).device))
    if task.validation is not None:
        logits, targets = predict_logits(classifier, task.validation.store), torch.from_numpy(task.validation.targets)
        _apply(classifier, calibrate(logits, targets, classifier.digest))
    if int(os.environ.get("RANK", 0)) == 0:
        write_json(Path(folder) / _CALIBRATION, _calibration(classifier).to_dict())
        held = len(task.validation) if task.validation is not None else 0
        card = model_card(classifier, config, trained, held, result.metrics)
        write_text(Path(folder) / "README.md", card + "".join(f"\n{line}\n" for line in notes))
    return classifier


def load_classifier(folder: str | Path, device: str = "cpu", which: str | int = "best") -> Classifier:
    """A trained classifier, frozen and in evaluation mode.

    Args:
        folder: a run folder, or what ``save_pretrained`` wrote.
        device: where it goes.
        which: of a run, "best" (the last unless the run kept the best), "last", or a step.

    Returns:
        The classifier; it is calibrated if these very weights were.

    Raises:
        InputError: the folder holds no classifier, or its settings are unknown to this version.
        DamagedCheckpoint: the weights are not what was written.
    """
    folder = Path(folder)
    system = _system(folder)
    classifier = Classifier(_model_config(system["model"], folder), tuple(system["findings"]))
    shipped = folder / _WEIGHTS
    path = shipped if shipped.is_file() else find_checkpoint(folder, which)
    classifier.digest = load_weights(path, {"classifier": classifier})["digest"]
    classifier.trained_on = dict(system.get("data") or {})
    if (folder / _CALIBRATION).is_file():
        found = Calibration.from_dict(read_json(folder / _CALIBRATION))
        if found.checkpoint == classifier.digest:
            _apply(classifier, found)
    return classifier.to(device).eval().requires_grad_(False)


def save_pretrained(classifier: Classifier, folder: str | Path) -> None:
    """Write what ``from_pretrained`` needs and nothing else: settings, weights, calibration, no training state.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    system = plain({"model": classifier.config, "findings": classifier.findings, "data": classifier.trained_on})
    tensors = {f"model/classifier/{name}": value for name, value in classifier.state_dict().items()}
    write_text(folder / "config.yaml", yaml.safe_dump({"system": system}, sort_keys=False, allow_unicode=True))
    write_checkpoint(folder / _WEIGHTS, tensors, {"format": 1, "version": __version__, "task": {}})
    written = load_weights(folder / _WEIGHTS, {"classifier": Classifier(classifier.config, classifier.findings)})
    write_json(folder / _CALIBRATION, _calibration(classifier, written["digest"]).to_dict())
    write_text(folder / "README.md", model_card(classifier))


def from_pretrained(folder: str | Path, device: str = "cpu") -> Classifier:
    """What ``save_pretrained`` wrote; the same as ``load_classifier``."""
    return load_classifier(folder, device)


def _rows(store: PreparedStore, split: str, findings: tuple[str, ...], config: ClassifyConfig) -> LabelledRows:
    """Rows of one split with their targets; uncertain labels are only ever trained on."""
    missing = [name for name in findings if name not in store.findings]
    if missing:
        raise InputError(
            f"the images have no label {missing[0]!r}",
            field="findings",
            remedy=f"Choose of {', '.join(store.findings)}",
        )
    columns = [store.findings.index(name) for name in findings]
    part = store.subset(store.split == split)
    policy = config.policy if split == "train" else "ignore"
    return LabelledRows(part, np.ascontiguousarray(_targets(part, policy, config)[:, columns]))


def _targets(part: PreparedStore, policy: TrainingPolicy, config: ClassifyConfig) -> np.ndarray:
    """(N, C) float32 in [0, 1] or NaN, columns as in ``part.findings``."""
    if policy == "zeros" or policy == "ones" or policy == "ignore":
        return part.table.targets(policy, config.blank)
    doubtful = part.labels == -1
    if policy == "soft":
        drawn = np.random.default_rng(config.seed).uniform(*_SOFT, doubtful.shape).astype(np.float32)
        return np.where(doubtful, drawn, part.table.targets("zeros", config.blank))
    ones = np.isin(part.findings, _CHEXPERT_ONES)
    return np.where(ones, part.table.targets("ones", config.blank), part.table.targets("zeros", config.blank))


def _check_classes(rows: LabelledRows, findings: tuple[str, ...]) -> None:
    if not len(rows):
        raise InputError(
            'no image is in the split "train"',
            field="column 'split'",
            remedy="Make splits with 'counterscan data split' and prepare the images again",
        )
    for name, values in zip(findings, rows.targets.T, strict=True):
        present, absent = int((values == 1).sum()), int((values == 0).sum())
        if not present or not absent:
            lacking = "none with" if not present else "none without"
            raise InputError(
                f"the training images hold {lacking} it ({present} with, {absent} without, "
                f"{len(values) - present - absent} unknown)",
                field=f"finding {name!r}",
                remedy="Add such images, split again, or leave the finding out by naming the others",
            )


def _system(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        system = yaml.safe_load(path.read_text(encoding="utf-8"))["system"]
        if not {"model", "findings"} <= system.keys():
            raise KeyError
    except FileNotFoundError:
        raise InputError(
            "no such file", path=path, remedy="Name a folder that 'counterscan classify train' made"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(
            "does not describe a classifier", path=path, remedy="Name a folder that 'counterscan classify train' made"
        ) from None
    return system


def _model_config(values: Any, folder: Path) -> ClassifierConfig:
    known = get_type_hints(ClassifierConfig).keys()
    if not isinstance(values, dict) or (unknown := sorted(values.keys() - known)):
        raise InputError(
            f"unknown settings {unknown if isinstance(values, dict) else values!r}",
            path=folder / "config.yaml",
            field="system.model",
            remedy="Load it with the version of counterscan that trained it",
        )
    return ClassifierConfig(**values)


def _apply(classifier: Classifier, calibration: Calibration) -> None:
    for name in ("temperature", "offset", "threshold"):
        buffer = getattr(classifier, name)
        buffer.copy_(torch.tensor(getattr(calibration, name)))


def _calibration(classifier: Classifier, digest: str | None = None) -> Calibration:
    values = {name: tuple(getattr(classifier, name).tolist()) for name in ("temperature", "offset", "threshold")}
    return Calibration(**values, checkpoint=classifier.digest if digest is None else digest)
