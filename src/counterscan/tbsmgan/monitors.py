"""What is watched while a generator trains: fidelity, label truth, variety, copies; and what trouble they spell.

All figures come from one set of samples with the labels of real training images, always the same z. Features are those
of a small classifier that saw the training split only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.care import evaluating
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.classification import mean_over_classes, roc_auc
from counterscan.metrics.memorisation import thumbnails
from counterscan.metrics.realism import InDomainFeatures, features_of, fid, kid, nearest_neighbours
from counterscan.nets.ada import AdaptiveConfig
from counterscan.nets.stylegan2 import Generator

NOBODY = "none of them"  # the class of images without any finding
_COARSE = 8
_PER_CLASS = 200
_FEWEST = 20  # images of a class, or held-out images, below which nothing is said about them
_BATCH = 64


@dataclass(frozen=True)
class MonitorConfig:
    """How closely it is watched.

    Attributes:
        samples: generated at each validation.
        limit: training images they are compared with, drawn once.
        learned: AUC of label consistency above which a finding counts as learned.
        acceptable: mean AUC below which a checkpoint is only chosen if none reaches it.
        varied: variety within a class, as a share of real images', below which it counts as collapsed.
        near: how near to a training image, as a share of what only 5 % of held-out images fall short of, is a copy.
        copies: share of copies above which the generator counts as memorising.

    Raises:
        InputError: a value is out of range; names the field.
    """

    samples: int = 1000
    limit: int = 5000
    learned: float = 0.85
    acceptable: float = 0.75
    varied: float = 0.5
    near: float = 0.8
    copies: float = 0.01

    def __post_init__(self) -> None:
        for name in ("samples", "limit"):
            if getattr(self, name) < 2:
                raise InputError("must be at least 2", field=name)
        for name in ("learned", "acceptable", "varied", "near", "copies"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError("must be between 0 and 1", field=name)


class Monitors:
    """Figures of a generator against the images it learns from.

    Args:
        learn: training rows.
        held: rows of other patients; with fewer than 20, training images are compared with each other instead.
        labels: (N, K) of the training rows: 0, 1, NaN for unknown; K = 0 without findings.
        asked: turns labels into conditions; see ``GANTask.asked``.
        findings: names of the K columns.
        classifier: gives features and logits; None, as where nothing is labelled, compares images of 8 x 8 pixels.
        conditional: whether samples are asked for findings.
        config: see ``MonitorConfig``.

    Raises:
        InputError: the classifier does not know one of the findings.
    """

    def __init__(
        self,
        learn: PreparedStore,
        held: PreparedStore,
        labels: np.ndarray,
        asked: Callable[[Tensor], Tensor],
        findings: tuple[str, ...],
        classifier: nn.Module | None = None,
        *,
        conditional: bool = True,
        config: MonitorConfig | None = None,
    ) -> None:
        self.config, self.findings, self.conditional = config or MonitorConfig(), findings, conditional
        self.classifier = classifier.eval().requires_grad_(False) if classifier is not None else None
        self.columns = _columns(classifier, findings)
        # Without a condition nothing tells classes of samples apart.
        self.classes = (*findings, NOBODY) if findings and conditional else ("all images",)
        self.extractor: Callable[[Tensor], Tensor] = (
            InDomainFeatures(self.classifier) if self.classifier is not None else _coarse
        )
        dice = np.random.default_rng(0)
        rows = np.sort(dice.permutation(len(learn))[: self.config.limit])
        self.labels = torch.from_numpy(labels[rows]).float()
        self.real, self.small = self._seen(learn, rows)
        drawn = rows[dice.integers(0, len(rows), self.config.samples)]
        self.wanted = torch.from_numpy(labels[drawn]).float()  # (S, K), NaN where unknown
        self.conditions = asked(self.wanted)
        others = np.sort(dice.permutation(len(held))[: self.config.limit])
        self.floor = math.nan
        if len(others) >= _FEWEST:
            unseen, small = self._seen(held, others)
            self.floor = fid(self.real, unseen)
            self.reach = nearest_neighbours(small, self.small).distances[:, 0]
        elif len(rows) > 2:
            self.reach = nearest_neighbours(self.small, self.small, 2).distances[:, 1]
        else:
            self.reach = torch.zeros(0)

    @torch.no_grad()
    def __call__(self, generator: Generator) -> dict[str, float]:
        """ "fid", "kid"; "consistency" (mean AUC) and "consistency/<finding>"; "diversity" (the least) and
        "diversity/<finding>"; "near_ratio" and "copies". What cannot be measured is left out."""
        fakes = self._samples(generator)
        device = fakes.device
        if self.classifier is not None:
            self.classifier.to(device)
        features = features_of(self.extractor, fakes, _BATCH).cpu()
        figures = {"fid": fid(self.real, features), "kid": kid(self.real, features, subsets=20).value}
        if self.classifier is not None and self.conditional and self.findings:
            logits = torch.cat([self.classifier(part) for part in fakes.split(_BATCH)]).float().cpu()
            aucs = roc_auc(logits[:, self.columns], self.wanted)
            figures |= _named("consistency", self.findings, aucs.tolist())
            figures["consistency"] = mean_over_classes(aucs)
        variety = self._variety(features)
        figures |= {f"diversity/{name}": value for name, value in variety.items()}
        if variety:
            figures["diversity"] = min(variety.values())
        if len(self.reach):
            nearest = nearest_neighbours(thumbnails(fakes).cpu(), self.small).distances[:, 0]
            figures["near_ratio"] = float(nearest.median() / self.reach.median().clamp_min(1e-12))
            figures["copies"] = float((nearest < self.config.near * self.reach.quantile(0.05)).double().mean())
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """How good a checkpoint is: 1 / (1 + FID), plus 1 if its findings are acceptably consistent, so that any that
        are come before any that are not."""
        if "fid" not in metrics:
            return None
        truthful = metrics.get("consistency", 1.0) >= self.config.acceptable
        return 1 / (1 + max(0.0, metrics["fid"])) + truthful

    def diagnose(self, metrics: Mapping[str, float], adaptive: AdaptiveConfig | None = None) -> list[str]:
        """Trouble by name, each with its remedy; empty when there is none.

        Args:
            metrics: of a validation, with "r_t" and "p" if there are any.
            adaptive: how p was steered; None when it was not.
        """
        found = []
        poor = [n for n in self.classes if metrics.get(f"diversity/{n}", 1.0) < self.config.varied]
        if poor:
            found.append(
                f"mode collapse: samples of {', '.join(poor)} vary less than {self.config.varied:.0%} of real images. "
                "Raise gamma, lower the weight of the findings, or use the relativistic loss"
            )
        if metrics.get("copies", 0.0) > self.config.copies:
            found.append(
                f"memorisation: {metrics['copies']:.1%} of the samples are nearer to a training image than nearly all "
                "held-out images are. Do not share them; train on more images, with more augmentation, or for less time"
            )
        if adaptive is not None and "r_t" in metrics:
            stuck = metrics["p"] >= adaptive.ceiling - 1e-9
            if stuck and metrics["r_t"] > adaptive.target + 0.1:
                found.append(
                    f"overfitted discriminator: it is sure of {(1 + metrics['r_t']) / 2:.0%} of the training images "
                    f"although augmentation is at its ceiling, p = {adaptive.ceiling:g}. Add images, raise gamma, or "
                    "stop earlier; the best checkpoint was kept"
                )
        return found

    def learned(self, metrics: Mapping[str, float]) -> dict[str, bool]:
        """Which findings samples show when asked; those that could not be judged are left out."""
        return {
            name: metrics[f"consistency/{name}"] > self.config.learned
            for name in self.findings
            if f"consistency/{name}" in metrics
        }

    def _seen(self, store: PreparedStore, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features (N, D) and thumbnails (N, P) of some rows."""
        device = next(self.classifier.parameters()).device if self.classifier is not None else torch.device("cpu")
        features, small = [], []
        for start in range(0, len(rows), _BATCH):
            images = store.images(rows[start : start + _BATCH]).to(device)
            features.append(features_of(self.extractor, images, _BATCH).cpu())
            small.append(thumbnails(images).cpu())
        return torch.cat(features), torch.cat(small)

    def _samples(self, generator: Generator) -> Tensor:
        """(S, 1, H, W) in [-1, 1]."""
        device = next(generator.parameters()).device
        z = torch.randn(self.config.samples, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
        parts = []
        with evaluating(generator):
            for start in range(0, len(z), _BATCH):
                part = slice(start, start + _BATCH)
                c = self.conditions[part].to(device) if self.conditional and self.findings else None
                parts.append(generator(z[part].to(device), c).float().clamp(-1, 1))
        return torch.cat(parts)

    def _variety(self, features: Tensor) -> dict[str, float]:
        """Mean distance between samples of a class as a share of that between real images of it."""
        result = {}
        groups = zip(self.classes, self._members(self.labels), self._members(self.wanted), strict=True)
        for name, of_real, of_fake in groups:
            real, fake = self.real[of_real][:_PER_CLASS], features[of_fake][:_PER_CLASS]
            if len(real) >= _FEWEST and len(fake) >= _FEWEST:
                result[name] = float(_spread(fake) / _spread(real).clamp_min(1e-12))
        return result

    def _members(self, labels: Tensor) -> list[Tensor]:
        """Rows (N,) bool of each class."""
        present = labels == 1
        if len(self.classes) == 1:
            return [torch.ones(len(labels), dtype=torch.bool)]
        return [*present.T, ~present.any(dim=1)]


def _columns(classifier: nn.Module | None, findings: tuple[str, ...]) -> list[int]:
    if classifier is None:
        return []
    known: list[str] = list(classifier.findings)  # type: ignore[arg-type]
    missing = [name for name in findings if name not in known]
    if missing:
        raise InputError(
            f"the classifier does not know {missing[0]!r}",
            field="classifier",
            remedy="Give one that was trained on the same findings, or none to have one trained",
        )
    return [known.index(name) for name in findings]


def _spread(features: Tensor) -> Tensor:
    return torch.pdist(features.double()).mean()


def _coarse(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, min(_COARSE, images.shape[-1])).flatten(1)


def _named(what: str, names: tuple[str, ...], values: list[float]) -> dict[str, float]:
    return {f"{what}/{name}": value for name, value in zip(names, values, strict=True)}
