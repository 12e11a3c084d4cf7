"""Systems on held-out images: every figure of every image, whoever answered.

Nothing here asks who made a Counterpart. What an answer lacks (a counterpart, a mask, a score) is NaN in its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from counterscan.bench.evaluation import Evaluation
from counterscan.bench.explain_classifier import Reading
from counterscan.bench.subjects import image_names, patient_names, rows_of, study_batch
from counterscan.counterpart import Counterpart, Query, StudyBatch, System
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics import counterfactual, localisation
from counterscan.metrics.intervals import RESAMPLES

NativeMasks = Callable[[int], Any]
Figures = dict[str, Tensor]


def evaluate_systems(
    systems: Mapping[str, System | Sequence[System]],
    store: PreparedStore,
    rows: Any,
    finding: str,
    *,
    healthy_rows: Any = None,
    native_masks: NativeMasks | None = None,
    any_lesion: bool = False,
    classifier: nn.Module | None = None,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    key: bytes | None = None,
    progress: Callable[[str, int, int], Any] | None = None,
) -> Evaluation:
    """Ask every system about every image and measure the answers.

    Images with the finding and a stored lesion mask give the figures of localisation; all of ``rows`` with
    ``healthy_rows`` give those of detection. One system is asked at a time, one batch at a time; what is kept is one
    map per lesion image at working size, for the oracle threshold.

    Args:
        systems: by name; several under one name are seeds of one method, whose figures are averaged per image. The
            first name is "ours": differences are taken from it.
        store: prepared images; its true twins are used where it has them and the finding is the image's only one.
        rows: images with the finding: indices, slice, or (N,) bool mask.
        finding: what the systems are asked to take away.
        healthy_rows: images without it.
        native_masks: row to its lesion mask (H, W), bool, on the image's own grid; maps and masks are then also judged
            there. See ``bench.native_truth``.
        any_lesion: masks of every finding count as the truth, not only those of ``finding``.
        classifier: logits (N, C) with ``findings``, trained independently of the systems, for the healed rate. It is
            judged at its own threshold if it has one (``nets.cnn.Classifier``), else at 0.5.
        batch_size: images per question.
        resamples: of the patient bootstrap.
        key: of the pseudonyms; ``report.pseudonym.secret_key()`` by default.
        progress: called with (system, images done, images) after each batch.

    Raises:
        InputError: no rows, rows on both sides, an unknown finding, or a system that answers with another number of
            Counterparts than there are images.
    """
    trial = _Trial(store, rows, healthy_rows, finding, native_masks, any_lesion, classifier, batch_size, key)
    frames = []
    for name, entry in systems.items():
        for seed, system in enumerate(entry if isinstance(entry, (list, tuple)) else [entry]):
            frames.append(trial.run(system, name, progress).assign(system=name, seed=seed, fold=0))
    if not frames:
        raise InputError("there is no system to evaluate", field="systems")
    return Evaluation(finding, pd.concat(frames, ignore_index=True), own=next(iter(systems)), resamples=resamples)


@dataclass
class _Answers:
    """Answers to one batch, stacked; what not all of them have is None."""

    evidence: Tensor
    masks: Tensor | None
    healed: Tensor | None
    scores: Tensor

    @classmethod
    def of(cls, answers: Sequence[Counterpart]) -> _Answers:
        masks = [a.mask for a in answers if a.mask is not None]
        healed = [a.counterpart for a in answers if a.counterpart is not None]
        return cls(
            evidence=torch.stack([a.evidence.detach().float().cpu() for a in answers]),
            masks=torch.stack(masks).cpu() if len(masks) == len(answers) else None,
            healed=torch.stack(healed).detach().float().cpu() if len(healed) == len(answers) else None,
            scores=torch.tensor([math.nan if a.score_before is None else a.score_before for a in answers]),
        )


class _Trial:
    """One set of images, the same for every system."""

    def __init__(
        self,
        store: PreparedStore,
        rows: Any,
        healthy_rows: Any,
        finding: str,
        native_masks: NativeMasks | None,
        any_lesion: bool,
        classifier: nn.Module | None,
        batch_size: int,
        key: bytes | None,
    ) -> None:
        ill, well = rows_of(store, rows), rows_of(store, [] if healthy_rows is None else healthy_rows)
        if not len(ill):
            raise InputError("no image with the finding to evaluate on", path=store.folder, field=finding)
        if set(ill.tolist()) & set(well.tolist()):
            raise InputError("some images are given both as ill and as healthy", path=store.folder, field=finding)
        self.store, self.finding, self.native_masks = store, finding, native_masks
        self.truth_of = None if any_lesion else finding
        self.rows, self.diseased = np.concatenate([ill, well]), np.arange(len(ill) + len(well)) < len(ill)
        self.batch_size = batch_size
        self.patients, self.names = patient_names(store, self.rows, key), image_names(store, self.rows, key)
        self.judge = None if classifier is None else Reading(classifier, finding, calibrated=True)
        if self.judge is not None:
            self.before = torch.cat([self.judge.probabilities(store.images(self.rows[part])) for part in self._parts()])

    def run(self, system: System, name: str, progress: Callable[[str, int, int], Any] | None) -> pd.DataFrame:
        """One row per image."""
        parts: list[Figures] = []
        kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for part in self._parts():
            rows = self.rows[part]
            batch = study_batch(self.store, rows, self.patients[part])
            answers = system.counterparts(batch, Query(self.finding))
            if len(answers) != len(rows):
                raise InputError(f"{name} gave {len(answers)} answers to {len(rows)} images", field=name)
            truth = self.store.masks(rows, self.truth_of)
            lesion = truth.flatten(1).any(1) & torch.from_numpy(self.diseased[part])
            stacked = _Answers.of(answers)
            parts.append(self._measure(part, batch, stacked, truth, lesion))
            assert batch.valid is not None
            kept.append((stacked.evidence[lesion], truth[lesion], batch.valid[lesion], lesion))
            if progress is not None:
                progress(name, int(part[-1]) + 1, len(self.rows))
        figures = {column: torch.cat([p[column] for p in parts]) for column in parts[0]}
        figures["dice_oracle"] = _oracle(*(torch.cat(column) for column in zip(*kept, strict=True)))
        frame = pd.DataFrame({column: values.double().numpy() for column, values in figures.items()})
        frame.insert(0, "image", self.names)
        frame.insert(1, "patient", self.patients)
        frame.insert(2, "diseased", self.diseased)
        return frame

    def _parts(self) -> list[np.ndarray]:
        everything = np.arange(len(self.rows))
        return [everything[i : i + self.batch_size] for i in range(0, len(everything), self.batch_size)]

    def _measure(
        self, part: np.ndarray, batch: StudyBatch, answers: _Answers, truth: Tensor, lesion: Tensor
    ) -> Figures:
        """(n,) figures of a batch by column; NaN where an image cannot be judged."""
        valid, healthy = batch.valid, torch.from_numpy(~self.diseased[part])
        assert valid is not None
        nothing = torch.full((len(part),), math.nan, dtype=torch.float64)
        judged = truth & lesion.view(-1, 1, 1, 1)
        figures: Figures = localisation.map_scores(answers.evidence, judged, valid)
        figures["lesion_area"] = torch.where(lesion, localisation.area_fraction(judged, valid), torch.nan)
        names = ("recall", "precision", "area", "iou", "dice", "area_healthy")
        figures |= dict.fromkeys(names, nothing)
        if answers.masks is not None:
            figures |= localisation.mask_scores(answers.masks, judged, valid)
            figures["area_healthy"] = torch.where(healthy, figures["area"], torch.nan)
            figures["area"] = torch.where(lesion, figures["area"], torch.nan)
        figures |= self._healing(part, batch.images, answers.healed, judged, valid, lesion)
        figures |= self._at_native(part, answers, lesion)
        figures["score"] = answers.scores.double()
        return figures

    def _healing(
        self, part: np.ndarray, images: Tensor, healed: Tensor | None, truth: Tensor, valid: Tensor, lesion: Tensor
    ) -> Figures:
        """Figures of the healthy counterparts."""
        nothing = torch.full((len(part),), math.nan, dtype=torch.float64)
        names = ("magnitude", "outside", "healed", "twin_inside", "twin_outside", "twin_remaining")
        figures = dict.fromkeys(names, nothing)
        if healed is None:
            return figures
        delta = images - healed
        figures["magnitude"] = counterfactual.mean_magnitude(delta, valid)
        figures["outside"] = torch.where(lesion, counterfactual.change_outside(delta, truth, valid), torch.nan)
        if self.judge is not None:
            cured = counterfactual.healed(self.before[part], self.judge.probabilities(healed), self.judge.threshold)
            figures["healed"] = torch.where(torch.from_numpy(self.diseased[part]), cured, torch.nan)
        return figures | self._against_twins(self.rows[part], images, healed, truth, valid, lesion)

    def _against_twins(
        self, rows: np.ndarray, images: Tensor, healed: Tensor, truth: Tensor, valid: Tensor, lesion: Tensor
    ) -> Figures:
        """Figures against the true healthy twins of images whose only finding is the one taken away."""
        alone = (self.store.labels[rows] == 1).sum(axis=1) == 1
        chosen = lesion & torch.from_numpy(alone & self.store.has_twin[rows])
        if not bool(chosen.any()):
            return {}
        twins = self.store.twins(rows[chosen.numpy()])
        error = counterfactual.twin_error(healed[chosen], twins, images[chosen], truth[chosen], valid[chosen])
        nothing = torch.full((len(rows),), math.nan, dtype=torch.float64)
        return {
            "twin_inside": nothing.masked_scatter(chosen, error.inside),
            "twin_outside": nothing.masked_scatter(chosen, error.outside),
            "twin_remaining": nothing.masked_scatter(chosen, error.remaining),
        }

    def _at_native(self, part: np.ndarray, answers: _Answers, lesion: Tensor) -> Figures:
        """Maps and masks brought to the image's own grid and judged against the mask drawn there."""
        names = ("ap_native", "ncc_native", "dice_native")
        columns = {name: torch.full((len(part),), math.nan, dtype=torch.float64) for name in names}
        if self.native_masks is None:
            return columns
        for i in torch.nonzero(lesion)[:, 0].tolist():
            row = int(self.rows[part[i]])
            truth = torch.as_tensor(self.native_masks(row)).bool()[None]
            geometry = self.store.geometry(row)
            evidence = geometry.to_native(answers.evidence[i])
            if evidence.shape != truth.shape:
                raise InputError(
                    f"the native mask is {tuple(truth.shape[1:])}, the image {geometry.native}",
                    path=self.store.table.image_path(row),
                    field="native_masks",
                )
            columns["ap_native"][i] = localisation.pixel_average_precision(evidence, truth)[0]
            columns["ncc_native"][i] = localisation.ncc(evidence, truth)[0]
            if answers.masks is not None:
                columns["dice_native"][i] = localisation.dice(geometry.to_native(answers.masks[i]), truth)[0]
        return columns


def _oracle(maps: Tensor, truth: Tensor, valid: Tensor, lesion: Tensor) -> Tensor:
    """(N,) Dice of each image at the one threshold that suits these images best; NaN without a lesion."""
    dice = torch.full((len(lesion),), math.nan, dtype=torch.float64)
    if len(maps):
        threshold = localisation.oracle_dice(maps, truth, valid).threshold
        dice[lesion] = localisation.dice(maps >= threshold, truth, valid)
    return dice
