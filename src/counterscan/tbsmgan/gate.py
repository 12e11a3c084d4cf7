"""Which edits may be used: an acceptance gate of verifiers that never saw the text-image model.

An edit passes if, for its verifiers,

    target      every one of them is sure: P(finding), below one half on average before, is at least 0.8 after
                (from at least one half to at most 0.2 where the finding is to go)
    off-target  the other findings' P changes by less than 0.1 on average
    identity    the body stays: 1 - cos of small pictures and the mean |difference| are within real variation
    realism     the image is as near to the training images' features (Mahalanobis) as real ones are
    new         it is no near copy of a training image

and is rejected otherwise. A model that steers would accept what fools it; the verifiers are classifiers of the training
images alone, with calibrated probabilities. Limits of the last three come from real validation images and are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from counterscan.care import evaluating
from counterscan.data.findings import canonical_name
from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.metrics.mahalanobis import Mahalanobis
from counterscan.metrics.memorisation import FEWEST, thumbnails
from counterscan.metrics.realism import InDomainFeatures, features_of, nearest_neighbours
from counterscan.nets.cnn import Classifier
from counterscan.pretrained import write_tensors
from counterscan.tbsmgan.judgement import Judgement, Sign
from counterscan.training.checkpoint import weights_digest

_SETTINGS, _TENSORS = "gate.json", "gate.safetensors"
_BATCH = 64
_PAIRS = 4_000  # of images of different patients, drawn to see how alike bodies are
_FITTED = 20_000  # training images that the features' distribution is fitted to


@dataclass(frozen=True)
class GateConfig:
    """What counts as what.

    Attributes:
        sure: P(finding) that every verifier must give an edit towards it; 1 - sure at most for an edit away. One half
            would let through what just convinces the verifiers at hand, and others half of the time.
        off: mean change of the other findings' P that is too much.
        within: percentile of the differences between images of one patient that an edit may reach; where patients have
            one image, 1 - within is the percentile of those between two patients.
        realism: percentile of the validation images' distances that is still real.
        copies: share of validation images that are nearer to a training image than what counts as new.

    Raises:
        InputError: a value is outside of (0, 1).
    """

    sure: float = 0.8
    off: float = 0.1
    within: float = 0.98
    realism: float = 0.99
    copies: float = 0.01

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < 1:
                raise InputError("must lie between 0 and 1", field=name)


@dataclass(frozen=True)
class Limits:
    """Of real images.

    Attributes:
        shape: 1 - cos of small pictures.
        change: mean |difference| of two images, in [0, 2].
        realism: Mahalanobis distance of features.
        copy: distance of small pictures to the nearest training image, at least.
        variation: whose differences ``shape`` and ``change`` are: "images of one patient" or "images of two patients".
    """

    shape: float
    change: float
    realism: float
    copy: float
    variation: str


class Gate:
    """See the module; made by ``calibrate``.

    Args:
        verifiers: classifiers with the same findings; features are the first one's.
        limits: see ``Limits``.
        reference: "mean" (D,) and "whitening" (D, D) of the training images' features, and their "thumbnails" (N, P).
        config: see ``GateConfig``.

    Raises:
        InputError: no verifier, one that is a text-image model or not calibrated to findings, or unlike findings.
    """

    def __init__(
        self,
        verifiers: Sequence[Classifier],
        limits: Limits,
        reference: dict[str, Tensor],
        config: GateConfig | None = None,
    ) -> None:
        self.verifiers, self.limits, self.reference = _checked(verifiers), limits, reference
        self.config, self.findings = config or GateConfig(), tuple(verifiers[0].findings)

    @classmethod
    def calibrate(cls, verifiers: Sequence[Classifier], store: PreparedStore, config: GateConfig | None = None) -> Gate:
        """Set the limits on the store's rows of the splits "train" and "val".

        Args:
            verifiers: trained on the split train of this store.
            store: the generator's own.
            config: see ``GateConfig``.

        Raises:
            InputError: a split is missing, fewer than 20 validation patients, or a verifier of other images.
        """
        config, verifiers = config or GateConfig(), _checked(verifiers)
        for verifier in verifiers:
            content = verifier.trained_on.get("content")
            if content and store.content and content != store.content:
                raise InputError(
                    "it was trained on another store, which may hold validation or test patients of this one",
                    field="verifiers",
                    remedy="Train one on this store: counterscan classify train",
                )
        train, val = store.parts("train", "val")
        check_validation(val)
        _, firsts = np.unique(val.patients, return_index=True)
        extract = InDomainFeatures(verifiers[0])
        rows = spaced(np.arange(len(train)), _FITTED)
        features = train.over(rows, lambda x: features_of(extract, x))
        near = Mahalanobis.fit(features)
        reference = {
            "mean": near.mean,
            "whitening": near.whitening,
            "thumbnails": train.over(np.arange(len(train)), thumbnails),
        }
        shape, change, variation = _variation(val, config.within)
        gate = cls(verifiers, Limits(shape, change, 0.0, 0.0, variation), reference, config)
        distances = val.over(np.arange(len(val)), gate.distance)
        nearest = nearest_neighbours(val.over(firsts, thumbnails), reference["thumbnails"]).distances[:, 0]
        gate.limits = Limits(
            shape,
            change,
            float(distances.double().quantile(config.realism)),
            float(nearest.quantile(config.copies)),
            variation,
        )
        return gate

    @torch.no_grad()
    def opinions(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to calibrated probabilities (V, N, C) of the V verifiers, on the CPU."""
        parts = []
        for verifier in self.verifiers:
            device = next(verifier.parameters()).device
            with evaluating(verifier):
                seen = [verifier.probabilities(verifier(part.to(device))).cpu() for part in images.split(_BATCH)]
            parts.append(torch.cat(seen))
        return torch.stack(parts)

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, C), the mean of ``opinions``."""
        return self.opinions(images).mean(0)

    def distance(self, images: Tensor) -> Tensor:
        """(N,) Mahalanobis distance of features to the training images'."""
        verifier = self.verifiers[0]
        features = features_of(InDomainFeatures(verifier), images.to(next(verifier.parameters()).device))
        return Mahalanobis(self.reference["mean"], self.reference["whitening"])(features)

    def judge(
        self,
        before: Tensor,
        after: Tensor,
        finding: str,
        sign: Sign = 1,
        *,
        also: Sequence[str] = (),
        own: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Judgement:
        """Judge edits.

        Args:
            before, after: (N, 1, H, W) in [-1, 1].
            finding: what was asked for.
            sign: 1 towards it, -1 away from it.
            also: findings that may change, too.
            own: (N,) rows of the training images that were edited themselves, -1 for none: an edit may be like its own
                source, but not like another image.
            known: ``opinions`` of ``before``, where the same images are judged again.

        Raises:
            InputError: the verifiers do not know the finding, or images of unlike shapes.
        """
        finding = canonical_name(finding)
        if finding not in self.findings:
            raise InputError(
                f"the verifiers do not know {finding!r}",
                field="finding",
                remedy=f"They know {', '.join(self.findings)}",
            )
        if before.shape != after.shape or not len(after):
            raise InputError(f"{tuple(before.shape)} and {tuple(after.shape)} are no pairs", field="after")
        before, after = before.detach().float().cpu(), after.detach().float().cpu()
        column = self.findings.index(finding)
        opinions = (self.opinions(before) if known is None else known), self.opinions(after)
        first, second = (each.mean(0) for each in opinions)
        allowed = {finding, *map(canonical_name, also)}
        others = [k for k, name in enumerate(self.findings) if name not in allowed]
        off = (second - first)[:, others].abs().mean(1) if others else torch.zeros(len(after))
        start, end, each = first[:, column], second[:, column], opinions[1][:, :, column]
        if sign > 0:
            target = (start < 0.5) & (each >= self.config.sure).all(0)
        else:
            target = (start >= 0.5) & (each <= 1 - self.config.sure).all(0)
        shape, change = _apart(before, after)
        realism, nearest = self.distance(after), self._nearest(after, own)
        limits = self.limits
        passed = torch.stack(
            [
                target,
                off < self.config.off,
                (shape <= limits.shape) & (change <= limits.change),
                realism <= limits.realism,
                nearest > limits.copy,
            ],
            dim=1,
        )
        return Judgement(finding, sign, passed, start, end, off, shape, change, realism, nearest, second)

    def _nearest(self, images: Tensor, own: Tensor | None) -> Tensor:
        """(N,) distance to the nearest training image that is not the edit's own source."""
        reference = self.reference["thumbnails"]
        count = min(2, len(reference)) if own is not None else 1
        found = nearest_neighbours(thumbnails(images), reference, count)
        if own is None:
            return found.distances[:, 0]
        distances = found.distances.masked_fill(found.indices == own[:, None], torch.inf)
        return distances.min(1).values

    def save(self, folder: str | Path) -> Path:
        """Write limits and reference; the verifiers are not written, and must be given to ``load``.

        The reference holds small pictures of all training images: keep it as private as they are.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        write_tensors(folder / _TENSORS, self.reference)
        settings = {
            "config": asdict(self.config),
            "limits": asdict(self.limits),
            "findings": list(self.findings),
            "verifiers": self.digests(),
        }
        write_json(folder / _SETTINGS, settings)
        return folder

    @classmethod
    def load(cls, folder: str | Path, verifiers: Sequence[Classifier]) -> Gate:
        """Read what ``save`` wrote.

        Raises:
            InputError: no gate there, a damaged one, or one of other verifiers.
        """
        folder = Path(folder)
        settings: dict[str, Any] = read_json(folder / _SETTINGS)
        try:
            reference = safetensors.torch.load_file(folder / _TENSORS)
            gate = cls(verifiers, Limits(**settings["limits"]), reference, GateConfig(**settings["config"]))
            known = settings["verifiers"]
        except (KeyError, TypeError, OSError, SafetensorError) as error:
            raise InputError(
                f"the gate is damaged or of another version ({' '.join(str(error).split())[:200]})",
                path=folder,
                remedy="Calibrate it again",
            ) from None
        if gate.digests() != known:
            raise InputError(
                "its limits belong to other verifiers", path=folder, remedy="Give those, or calibrate it again"
            )
        return gate

    def digests(self) -> list[str]:
        """16 hex digits of each verifier's weights."""
        return [weights_digest(verifier)[:16] for verifier in self.verifiers]


def check_validation(val: PreparedStore) -> None:
    """Whether a gate can be calibrated on validation images, for who has much to do before.

    Raises:
        InputError: fewer than 20 patients.
    """
    count = len(np.unique(val.patients))
    if count < FEWEST:
        raise InputError(f"{count} validation patients, but {FEWEST} are needed", field="store", remedy="Hold out more")


def _checked(verifiers: Sequence[Classifier]) -> tuple[Classifier, ...]:
    if not verifiers:
        raise InputError("none is given", field="verifiers", remedy="Train one: counterscan classify train")
    for verifier in verifiers:
        if hasattr(verifier, "embed_texts") or not callable(getattr(verifier, "probabilities", None)):
            raise InputError(
                "a text-image model cannot judge what was made to please it"
                if hasattr(verifier, "embed_texts")
                else "it gives no calibrated probabilities",
                field="verifiers",
                remedy="Give classifiers of counterscan classify train",
            )
        if tuple(verifier.findings) != tuple(verifiers[0].findings):
            raise InputError("they know different findings", field="verifiers", remedy="Train them on the same ones")
    return tuple(verifiers)


def _apart(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos of small pictures, and mean |difference|, (N,) each."""
    shape = 1 - (thumbnails(first) * thumbnails(second)).sum(1)
    return shape, (first - second).abs().flatten(1).mean(1)


def _variation(store: PreparedStore, within: float) -> tuple[float, float, str]:
    """How far apart real images are; see ``GateConfig.within``."""
    rows = np.arange(len(store))
    by_patient: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_patient.setdefault(store.patients[row], []).append(row)
    pairs = [(p[i], p[j]) for p in by_patient.values() for i in range(len(p)) for j in range(i)][:_PAIRS]
    several = sum(len(p) > 1 for p in by_patient.values()) >= FEWEST
    if not several:
        dice = np.random.default_rng(0)
        drawn = dice.integers(0, len(rows), (min(_PAIRS, len(rows) ** 2), 2))
        pairs = [(a, b) for a, b in drawn.tolist() if store.patients[a] != store.patients[b]]
    figures = [
        _apart(store.images([a for a, _ in part]), store.images([b for _, b in part]))
        for part in (pairs[at : at + _BATCH] for at in range(0, len(pairs), _BATCH))
    ]
    shape, change = (torch.cat(parts).double() for parts in zip(*figures, strict=True))
    if several:
        return float(shape.quantile(within)), float(change.quantile(within)), "images of one patient"
    return float(shape.quantile(1 - within)), float(change.quantile(1 - within)), "images of two patients"
