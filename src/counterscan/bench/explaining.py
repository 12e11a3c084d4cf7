"""Explainers on held-out images: what counterparts, ways and maps are worth beside the classifier that they explain.

Every image that the classifier calls positive is asked about once. Localisation is measured by ``bench.localise``; what
only explanations have is measured here from the same answers, into the same table of one line per image. Nothing here
asks who made a Counterpart: what an answer lacks is NaN in its figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from counterscan.bench.evaluation import FIGURES, Evaluation, Kept, Part
from counterscan.bench.explain_classifier import Reading, called_positive, oracle_reading
from counterscan.bench.explain_tables import EXPLAINED, THEMSELVES, ExplainerEvaluation, Realism
from counterscan.bench.localise import NativeMasks, evaluate_systems
from counterscan.bench.subjects import image_names, rows_of
from counterscan.counterpart import Counterpart, Query, StudyBatch, System
from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.inputs import device_of
from counterscan.medxgan.attribution import LEAST_RISE
from counterscan.metrics import faithfulness, stability, validity
from counterscan.metrics.intervals import RESAMPLES
from counterscan.metrics.realism import features_of
from counterscan.training.checkpoint import weights_digest

Systems = Mapping[str, System | Sequence[System]]
Extractor = Callable[[Tensor], Tensor]
Progress = Callable[[str, int, int], Any]


@dataclass(frozen=True)
class Probe:
    """How closely explanations are looked at.

    Attributes:
        steps: of the deletion and insertion curves.
        patches, patch: of the infidelity: how many squares, and their side in pixels.
        radius, draws: of the max-sensitivity: largest change of a pixel, and disturbances tried.
        sigmas, area: of the noise curves: noise, and the share of the highest pixels that IoU compares.
    """

    steps: int = 25
    patches: int = 50
    patch: int = 4
    radius: float = 0.05
    draws: int = 10
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1)
    area: float = 0.05


def evaluate_explainers(
    systems: Systems,
    store: PreparedStore,
    rows: Any,
    finding: str,
    *,
    classifier: nn.Module,
    oracle: nn.Module | None = None,
    negatives_rows: Any = None,
    features: Mapping[str, Extractor] | None = None,
    substrate: str | None = None,
    slow: Sequence[str] = (),
    sample: int = 12,
    probe: Probe | None = None,
    any_lesion: bool = False,
    native_masks: NativeMasks | None = None,
    batch_size: int = 16,
    resamples: int = RESAMPLES,
    key: bytes | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> ExplainerEvaluation:
    """Ask every system once about every image that the classifier calls positive, and measure the answers.

    Args:
        systems: by name; several under one name are seeds of one method. The first name is "ours".
        store: prepared images.
        rows: indices, slice or (N,) bool mask. Those called positive are asked about; of these, those labelled so and
            with a lesion mask give the figures of localisation.
        finding: what is explained by being taken away.
        classifier: the explained one; (N, 1, H, W) to logits (N, C), with ``findings``. It calls from one half.
        oracle: trained independently (another seed and architecture), for the oracle's flips.
        negatives_rows: real images without the finding, for KID and FID.
        features: spaces in which these are measured; name to extractor, see ``metrics.realism``.
        substrate: the system whose counterparts (of its first seed) pixels give way to in "deletion_negative" and
            "insertion_negative", for all systems alike; ours by default.
        slow: systems that are asked about ``sample`` images only, evenly spaced among those labelled positive.
        sample: how many.
        probe: see there.
        any_lesion, native_masks: see ``bench.localise.evaluate_systems``.
        batch_size: images per question.
        resamples: of the patient bootstrap.
        key: of the pseudonyms.
        folder: keeps what is measured of each system in ``parts/``; the same call goes on after an interruption.
        progress: called with (system, images done, images).

    Raises:
        InputError: no image is called positive, an unknown finding or system, or an oracle that is the classifier.
    """
    names = list(systems)
    lender = substrate or next(iter(names), "")
    for name in (lender, *slow):
        if name not in systems:
            raise InputError(f"there is no system {name!r}", field="systems", remedy=f"There are: {', '.join(names)}")
    ill, others = called_positive(classifier, store, rows, finding)
    trial, everyone = _Trial(store, finding, classifier, oracle, probe, features, negatives_rows), np.r_[ill, others]
    kept = Kept(
        folder,
        {
            **trial.about(),
            "store": [store.content, store.size],
            "images": image_names(store, everyone, key),
            "lender": identity(seeds_of(systems[lender])[0]),
            "masks": [any_lesion, native_masks is not None],
        },
    )

    def ask(name: str, system: System, ill: np.ndarray, others: np.ndarray, lends: bool) -> Part:
        recorder = _Recorder(system, trial, np.r_[ill, others], lends)
        found = evaluate_systems(
            {name: recorder},
            store,
            ill,
            finding,
            healthy_rows=others,
            native_masks=native_masks,
            any_lesion=any_lesion,
            batch_size=batch_size,
            key=key,
            progress=progress,
        )
        return recorder.part(found.per_image)

    parts: dict[tuple[str, int], Part] = {}
    for name in sorted(names, key=lambda name: name != lender):  # first the one that lends the others its counterparts
        asked = (spaced(ill, sample), others[:0]) if name in slow else (ill, others)
        for seed, system in enumerate(seeds_of(systems[name])):
            lends = name == lender and not seed
            about = identity(system) | {"asked": image_names(store, np.r_[asked], key), "lends": lends}
            part = kept.part(f"{name} {seed}", about, partial(ask, name, system, *asked, lends))
            parts[name, seed] = part
            if part.images is not None:
                trial.lend(np.concatenate(asked), torch.from_numpy(part.images))
    order = [(name, seed) for name in names for seed in range(len(seeds_of(systems[name])))]
    frame = pd.concat([parts[at].frame.assign(seed=at[1]) for at in order], ignore_index=True)
    distances = {
        name: [Realism.from_dict(x) for at in order if at[0] == name for x in parts[at].numbers] for name in names
    }
    distances[THEMSELVES] = trial.realism(store.images(everyone))
    return ExplainerEvaluation(Evaluation(finding, frame, names[0], resamples, (*FIGURES, *EXPLAINED)), distances)


def seeds_of(entry: System | Sequence[System]) -> list[System]:
    """The systems under one name."""
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]  # type: ignore[list-item]


def identity(system: Any) -> dict[str, Any]:
    """What tells two systems apart, in plain values."""
    settings = getattr(system, "settings", None)
    said = settings() if callable(settings) else str(getattr(system, "config", ""))
    return {"kind": type(system).__name__, "checkpoint": getattr(system, "checkpoint", None), "settings": said}


class _Trial:
    """What the answers of all systems are measured with."""

    def __init__(
        self,
        store: PreparedStore,
        finding: str,
        classifier: nn.Module,
        oracle: nn.Module | None,
        probe: Probe | None,
        features: Mapping[str, Extractor] | None,
        negatives_rows: Any,
    ) -> None:
        self.seen, self.probe = Reading(classifier, finding), probe or Probe()
        self.judge = oracle_reading(classifier, oracle, finding)
        self.digests = [weights_digest(c) for c in (classifier, oracle) if c is not None]
        self.features, self.lent = dict(features or {}), dict[int, Tensor]()
        rows = rows_of(store, [] if negatives_rows is None else negatives_rows)
        self.real = {space: self._features(space, store.images(rows)) for space in self.features} if len(rows) else {}

    def about(self) -> dict[str, Any]:
        """Plain values of what figures depend on, whoever answers."""
        real = {space: [list(x.shape), float(x.double().sum())] for space, x in self.real.items()}
        return {"probe": asdict(self.probe), "classifiers": self.digests, "finding": self.seen.column, "real": real}

    def lend(self, rows: np.ndarray, images: Tensor) -> None:
        """Take counterparts (n, 1, H, W) as what pixels give way to; NaN where there is none."""
        there = torch.isfinite(images).flatten(1).all(1).tolist()
        self.lent |= {row: image for row, image, use in zip(rows.tolist(), images, there, strict=True) if use}

    def realism(self, images: Tensor) -> list[Realism]:
        """Of images (M, 1, H, W), in every space."""
        if len(images) < 2:
            return []
        found = [Realism.of(space, real, self._features(space, images)) for space, real in self.real.items()]
        return [entry for entry in found if entry is not None]

    def _features(self, space: str, images: Tensor) -> Tensor:
        extractor = self.features[space]
        return features_of(extractor, images.to(device_of(extractor))).cpu()

    def measure(
        self, rows: np.ndarray, batch: StudyBatch, answers: list[Counterpart], healed: Tensor
    ) -> dict[str, Tensor]:
        """(n,) figures of a batch by column; counterparts ``healed`` are NaN where there is none."""
        figures = self._counterfactual(batch, answers, healed)
        figures |= self._way(batch, answers)
        return figures | self._maps(rows, batch, torch.stack([a.evidence.detach().float().cpu() for a in answers]))

    def _counterfactual(self, batch: StudyBatch, answers: list[Counterpart], healed: Tensor) -> dict[str, Tensor]:
        made = torch.isfinite(healed).flatten(1).all(1)
        x, valid, y = batch.images, batch.valid, torch.where(made.view(-1, 1, 1, 1), healed, batch.images)
        # A score after of NaN counts as not flipped: silence cannot raise a rate.
        before, after = self.seen.probabilities(x), _only(made, self.seen.probabilities(y))
        figures = {
            "flip": validity.flipped(before, after, self.seen.threshold),
            "cv80": validity.counterfactual_validity(before, after),
            "drop": before - after,
            "trusted": _only(made, torch.tensor([float(a.trusted) for a in answers])),
            "l1": _only(made, validity.l1(x - y, valid)),
            "l0": _only(made, validity.l0(x - y, valid=valid)),
            "ssim": _only(made, validity.ssim(x, y, valid)),
        }
        if self.judge is not None:
            before, after = self.judge.probabilities(x), _only(made, self.judge.probabilities(y))
            figures["oracle_flip"] = validity.flipped(before, after, self.judge.threshold)
        return figures

    def _way(self, batch: StudyBatch, answers: list[Counterpart]) -> dict[str, Tensor]:
        """Of the path and of the reconstruction."""
        lines = [dict.fromkeys(("monotonicity", "psnr", "logit_gap", "completeness_gap"), math.nan) for _ in answers]
        for i, (answer, line) in enumerate(zip(answers, lines, strict=True)):
            again = answer.extras.get("reconstruction")
            if again is not None:
                x, again = batch.images[i : i + 1], again.detach().float().cpu()[None]
                line["psnr"] = float(validity.psnr(x, again, None if batch.valid is None else batch.valid[i : i + 1]))
                line["logit_gap"] = float(self.seen.margins(torch.cat([x, again])).diff().abs())
            line["completeness_gap"] = answer.figures.get("completeness_gap", math.nan)
            if answer.path is not None:
                margins = self.seen.margins(answer.path.frames)  # probabilities that have arrived at 1 stand still
                line["monotonicity"] = float(validity.monotonicity(margins[None], "remove"))
                if float((margins[0] - margins[-1]).abs()) < LEAST_RISE:
                    line["completeness_gap"] = math.nan
        return {name: torch.tensor([line[name] for line in lines], dtype=torch.float64) for name in lines[0]}

    def _maps(self, rows: np.ndarray, batch: StudyBatch, maps: Tensor) -> dict[str, Tensor]:
        """What maps say of the classifier."""
        x, valid, p = batch.images, batch.valid, self.probe
        mean = faithfulness.mean_substrate(x, valid)
        have = torch.tensor([row in self.lent for row in rows.tolist()])
        negative = torch.stack([self.lent.get(row, x[i]) for i, row in enumerate(rows.tolist())])
        figures = {
            "infidelity": faithfulness.infidelity(
                self.seen.margins, x, maps, mean, patch=p.patch, draws=p.patches, valid=valid
            ),
            "gini": stability.gini(maps, valid),
            "stray": stray_share(maps, valid),
        }
        for name, substrate in (("mean", mean), ("blur", faithfulness.blur_substrate(x)), ("negative", negative)):
            if name == "negative" and not bool(have.any()):
                continue
            for kind, curve in (("deletion", faithfulness.deletion), ("insertion", faithfulness.insertion)):
                area = curve(self.seen.probabilities, x, maps, substrate, steps=p.steps, valid=valid).auc
                figures[f"{kind}_{name}"] = _only(have, area) if name == "negative" else area
        return figures


class _Recorder:
    """A system whose answers are timed and measured as they are given."""

    def __init__(self, system: System, trial: _Trial, rows: np.ndarray, lends: bool) -> None:
        self.system, self.trial, self.rows, self.lends = system, trial, rows, lends
        self.figures: list[dict[str, Tensor]] = []
        self.healed: list[Tensor] = []

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """See ``counterscan.counterpart.System``."""
        device, done = self.trial.seen.device, sum(map(len, self.healed))
        there, start = batch.to(device), time.perf_counter()
        answers = self.system.counterparts(there, query)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - start) / len(batch)
        if len(answers) == len(batch):  # else the caller says what is wrong
            nothing = torch.full_like(batch.images[0], torch.nan)
            made = [nothing if a.counterpart is None else a.counterpart.detach().float().cpu() for a in answers]
            healed, rows = torch.stack(made), self.rows[done : done + len(batch)]
            if self.lends:
                self.trial.lend(rows, healed)
            taken = {"seconds": torch.full((len(batch),), seconds, dtype=torch.float64)}
            self.figures.append(self.trial.measure(rows, batch, answers, healed) | taken)
            self.healed.append(healed)
        return answers

    def part(self, frame: pd.DataFrame) -> Part:
        """The figures of localisation with those recorded, and realism."""
        healed = torch.cat(self.healed)
        made = torch.isfinite(healed).flatten(1).all(1)
        columns = dict.fromkeys(EXPLAINED, np.full(len(frame), math.nan))
        for name in dict.fromkeys(name for figures in self.figures for name in figures):
            nothing = [torch.full((len(part),), torch.nan) for part in self.healed]
            columns[name] = torch.cat(
                [f.get(name, none).double() for f, none in zip(self.figures, nothing, strict=True)]
            ).numpy()
        if not bool(made.any()):  # a system that makes no counterparts has not failed to flip them
            columns |= dict.fromkeys(("flip", "oracle_flip", "cv80"), np.full(len(frame), math.nan))
        distances = [asdict(entry) for entry in self.trial.realism(healed[made])]
        return Part(frame.assign(**columns), distances, healed.numpy() if self.lends else None)


def stray_share(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(n,) share of the valid pixels that reach a tenth of the map's maximum; see ``faithfulness.stray_pixels``."""
    pixels = maps.flatten(1) if valid is None else valid.flatten(1)
    area = pixels.shape[1] if valid is None else pixels.sum(1)
    return faithfulness.stray_pixels(maps, valid=valid) / area


def _only(chosen: Tensor, values: Tensor) -> Tensor:
    """Values (n,) where chosen, else NaN."""
    return torch.where(chosen, values.double(), torch.nan)
