"""A quality card for any set of synthetic images against real ones: are they real enough, varied enough, true to their
labels, no copies, and of use?

Every figure stands beside that of held-out real images, which is what a perfect generator would reach: measured alone,
none of them can be read. Feature extractor and judge are classifiers trained here on real training images, unless
others are given; features from photographs or other networks may be added.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.bench.quality_card import QualityCard, QualityLimits, Section
from counterscan.bench.quality_copies import Pair, memorisation, neighbours
from counterscan.bench.quality_page import Picture, write_quality_page
from counterscan.bench.quality_sections import Measured, Sets, diversity, fidelity, label_truth, manifolds
from counterscan.bench.quality_usefulness import usefulness, usefulness_section
from counterscan.bench.subjects import image_names
from counterscan.classify import ClassifyConfig, train_classifier
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.inputs import device_of
from counterscan.metrics.intervals import RESAMPLES
from counterscan.metrics.memorisation import thumbnails
from counterscan.metrics.realism import InDomainFeatures, features_of

IN_DOMAIN = "in-domain"
HELD_SPLITS = ("val", "test")
Extractor = Callable[[Tensor], Tensor]
Progress = Callable[[str, int, int], Any]
_GREY_APART = 0.25


@dataclass(frozen=True)
class QualityConfig:
    """How a set is judged.

    Attributes:
        limits: where verdicts change.
        classifier: training of the feature extractor and judge, and of the classifiers of ``usefulness``.
        usefulness: steps of these; 0 leaves the question out.
        seeds: classifiers per arm of it.
        k: neighbours of precision, recall, density and coverage.
        most: images of a set that distances between sets, and labels, are measured on; near copies are sought in all.
        pairs: near copies shown.
        shown: images in each grid.
        resamples: of the bootstraps over patients.
        seed: of draws of images.
        batch_size: images at once.
    """

    limits: QualityLimits = field(default_factory=QualityLimits)
    classifier: ClassifyConfig = field(default_factory=lambda: ClassifyConfig(tensorboard=False))
    usefulness: int = 0
    seeds: int = 3
    k: int = 5
    most: int = 5000
    pairs: int = 8
    shown: int = 32
    resamples: int = RESAMPLES
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("seeds", "k", "most", "resamples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} must be at least 1", field=name)
        for name in ("usefulness", "pairs", "shown"):
            if getattr(self, name) < 0:
                raise InputError(f"{getattr(self, name)} must not be negative", field=name)


@dataclass(frozen=True)
class Audit:
    """What was found of a set, before its page is written.

    Attributes:
        card: figures and verdicts.
        sets: what was measured of the three sets.
        classifier: whose features are "in-domain"; None if there is none.
        pairs, grids: pictures for the page.
        places: paths of the images shown, by pseudonym.
    """

    card: QualityCard
    sets: Sets
    classifier: nn.Module | None
    pairs: list[tuple[Picture, Picture, str]]
    grids: list[tuple[str, Tensor, bool]]
    places: dict[str, Path]

    def write_page(self, path: str | Path, title: str, **more: Any) -> Path:
        """Write the page, with what else ``write_quality_page`` takes."""
        return write_quality_page(path, self.card, pairs=self.pairs, grids=self.grids, title=title, **more)


def audit_images(
    synthetic: PreparedStore,
    real: PreparedStore,
    folder: str | Path,
    config: QualityConfig | None = None,
    *,
    classifier: nn.Module | None = None,
    judge: nn.Module | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    bad: Mapping[str, int] | None = None,
    key: bytes | None = None,
    links: str | Path | None = None,
    title: str = "Quality of the synthetic images",
    progress: Progress | None = None,
) -> QualityCard:
    """Judge synthetic images; write ``card.json`` and ``report.html``.

    Args:
        synthetic: prepared with the size and recipe of the real images; labels where there are some. Images of one
            "patient" are taken to belong together.
        real: with the splits train (which the generator may have seen) and val or test (which it must not have).
        folder: gets the results, and the runs of classifiers that are trained; the same call takes these up again.
        config: see ``QualityConfig``.
        classifier: whose features are "in-domain"; has ``features`` as ``nets.cnn.Classifier`` does. None trains one.
        judge: of the labels; the classifier by default. The generator must not have been made with it.
        extractors: further spaces, name to images (M, 1, H, W) in [-1, 1] -> (M, D).
        bad: images that could not be read, by set, for the record.
        key: of the pseudonyms.
        links: gets a CSV of pseudonym and path of the images shown; as private as the real images.
        title: of the page.
        progress: called with (what, done, of how many).

    Returns:
        The card. What cannot be measured is left out of it with the reason.

    Raises:
        InputError: sizes differ, no image in a set or in the split train, or an extractor does not fit.
    """
    audit = examine(
        synthetic,
        real,
        folder,
        config,
        classifier=classifier,
        judge=judge,
        extractors=extractors,
        bad=bad,
        key=key,
        progress=progress,
    )
    if links is not None:
        _write_links(Path(links), audit.places)
    audit.write_page(Path(folder) / "report.html", title)
    return audit.card


def examine(
    synthetic: PreparedStore,
    real: PreparedStore,
    folder: str | Path,
    config: QualityConfig | None = None,
    *,
    classifier: nn.Module | None = None,
    judge: nn.Module | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    bad: Mapping[str, int] | None = None,
    key: bytes | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Judge synthetic images and write ``card.json``, but no page, for whoever has more to put there.

    Arguments and errors are those of ``audit_images``.
    """
    config, folder = config or QualityConfig(), Path(folder)
    if synthetic.size != real.size:
        remedy = f"Prepare the synthetic images with --size {real.size}"
        raise InputError(f"{synthetic.size} px, but the real images have {real.size}", field="size", remedy=remedy)
    training, held = real.subset(real.split == "train"), real.subset(np.isin(real.split, HELD_SPLITS))
    if not len(training) or not len(synthetic):
        remedy = "Make splits with `counterscan data split` and prepare again"
        name = "real image in the split train" if not len(training) else "synthetic image"
        raise InputError(f"there is no {name}", path=real.folder, field="split", remedy=remedy)
    notes = _notes(held, bad or {})
    if classifier is None:
        classifier, why = _trained(real, folder, config)
        notes += [why] if why else []
    spaces = dict(extractors or {})
    if callable(getattr(classifier, "features", None)):
        spaces = {IN_DOMAIN: InDomainFeatures(classifier), **spaces}  # type: ignore[arg-type]
    stores = (training, held, synthetic)
    names = ("training images", "held-out images", "synthetic images")
    found = [
        _measured(store, spaces, config, partial(progress, name) if progress else None)
        for store, name in zip(stores, names, strict=True)
    ]
    sets = Sets(found[0], found[1], found[2], config.limits, config.k, config.resamples, config.most, config.seed)
    greys = [float(x.pixels[:, 0].mean()) for x in (sets.synthetic, sets.training)]
    if abs(greys[0] - greys[1]) > _GREY_APART:
        notes.append(
            f"Mean grey is {greys[0]:.2f}, that of real images {greys[1]:.2f}: were both read with the same contrast?"
        )
    near, few = neighbours(sets), sets.few()
    manifold = manifolds(few)
    copies, pairs = memorisation(sets, near, config.pairs)
    test = held.subset(held.split == "test") if (held.split == "test").any() else held
    labels = label_truth(judge or classifier, few.synthetic.store, test, config.limits, config.resamples)
    useful = _usefulness(synthetic, training, test, folder, config, progress)
    sections = (fidelity(few, manifold), diversity(few, manifold, near), labels, copies, useful)
    told, about = _pairs(pairs, synthetic, training, key)
    card = QualityCard(
        sections=sections,
        counts={
            **{name: len(store) for name, store in zip(names, stores, strict=True)},
            **{f"unreadable, {name}": count for name, count in (bad or {}).items()},
        },
        limits=config.limits,
        settings=_settings(config, synthetic, real, judge or classifier, spaces),
        notes=tuple(notes),
        pairs=tuple(told),
    )
    card.save(folder)
    return Audit(
        card,
        sets,
        classifier,
        pairs=[_shown(pair, one, synthetic, training) for pair, one in zip(pairs, told, strict=True)],
        grids=_grids(synthetic, training, config),
        places=about,
    )


def _notes(held: PreparedStore, bad: Mapping[str, int]) -> list[str]:
    notes = [f"{count} {name} images cannot be read and are left out." for name, count in bad.items() if count]
    if not len(held):
        notes.append("No real image is held out (splits val and test): nothing says what a good figure would be.")
    return notes


def _trained(real: PreparedStore, folder: Path, config: QualityConfig) -> tuple[nn.Module | None, str]:
    """A classifier of all findings that can be learned, or why there is none."""
    training = real.subset(real.split == "train")
    targets = training.table.targets("ignore", config.classifier.blank)
    learnable = [name for name, y in zip(real.findings, targets.T, strict=True) if (y == 1).any() and (y == 0).any()]
    wanted = config.classifier.findings or tuple(learnable)
    if not wanted:
        return None, "The real training images have no finding with both outcomes, so no classifier could be trained."
    return train_classifier(real, folder / "classifier", replace(config.classifier, findings=wanted)), ""


def _measured(
    store: PreparedStore,
    spaces: Mapping[str, Extractor],
    config: QualityConfig,
    progress: Callable[[int, int], Any] | None,
) -> Measured:
    """One pass over a set; images are not kept."""
    features: dict[str, list[Tensor]] = {space: [] for space in spaces}
    small, mirrored, pixels = list[Tensor](), list[Tensor](), list[Tensor]()
    for start in range(0, len(store), config.batch_size):
        images = store.images(slice(start, start + config.batch_size))
        for space, extractor in spaces.items():
            made = features_of(extractor, images.to(device_of(extractor)), config.batch_size).float().cpu()
            if not bool(torch.isfinite(made).all()):
                raise InputError("gives features that are NaN or infinite", field=f"extractor {space!r}")
            features[space].append(made)
        small.append(thumbnails(images))
        mirrored.append(thumbnails(images.flip(-1)))
        down, right = (images.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
        pixels.append(torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3)), (down + right) / 2], dim=1))
        if progress is not None:
            progress(min(start + config.batch_size, len(store)), len(store))
    empty = torch.zeros(0, 1)
    joined = {space: torch.cat(parts) if parts else empty for space, parts in features.items()}
    if not small:
        return Measured(store, joined, empty, empty, torch.zeros(0, 3))
    return Measured(store, joined, torch.cat(small), torch.cat(mirrored), torch.cat(pixels))


def _usefulness(
    synthetic: PreparedStore,
    training: PreparedStore,
    test: PreparedStore,
    folder: Path,
    config: QualityConfig,
    progress: Progress | None,
) -> Section:
    steps = config.usefulness
    if not steps:
        return Section("Usefulness", "not judged", "Not asked for.", left_out=("Ask for it with steps to train.",))
    settings = replace(config.classifier, steps=steps, seed=config.classifier.seed + 1000, findings=())
    place = folder / "usefulness"
    try:
        found = usefulness(
            *(synthetic, training, test, place, settings),
            seeds=config.seeds,
            resamples=config.resamples,
            progress=progress,
        )
    except InputError as error:
        if error.field != "findings":
            raise
        return Section("Usefulness", "not judged", f"{error.problem}.", left_out=(f"{error.problem}.",))
    return usefulness_section(found, steps, config.seeds)


def _settings(
    config: QualityConfig,
    synthetic: PreparedStore,
    real: PreparedStore,
    judge: nn.Module | None,
    spaces: Mapping[str, Extractor],
) -> dict[str, Any]:
    shown = asdict(config)
    shown.pop("limits")
    return {
        "size": real.size,
        "real": real.content,
        "synthetic": synthetic.content,
        "spaces": list(spaces),
        "judge": getattr(judge, "digest", ""),
        **shown,
    }


def _pairs(
    pairs: list[Pair], synthetic: PreparedStore, training: PreparedStore, key: bytes | None
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Pairs under pseudonyms, and the paths behind these."""
    sides = [(synthetic, [p.synthetic for p in pairs]), (training, [p.training for p in pairs])]
    names = [image_names(store, np.array(rows, dtype=np.int64), key) for store, rows in sides]
    about = {
        name: store.table.image_path(row)
        for (store, rows), called in zip(sides, names, strict=True)
        for name, row in zip(called, rows, strict=True)
    }
    told = [
        {**asdict(pair), "synthetic": made, "training": real} for pair, made, real in zip(pairs, *names, strict=True)
    ]
    finite = [{k: None if isinstance(v, float) and v != v else v for k, v in pair.items()} for pair in told]
    return finite, about


def _write_links(path: Path, about: Mapping[str, Path]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("image", "path"), *((name, str(place)) for name, place in about.items())])
    write_text(path, text.getvalue())


def _shown(
    pair: Pair, told: Mapping[str, Any], synthetic: PreparedStore, training: PreparedStore
) -> tuple[Picture, Picture, str]:
    """A pair's pictures and what is said of it."""
    words = f"by {pair.space}: distance {pair.distance:.3g}"
    if pair.limit == pair.limit:
        words += (
            f" (near: up to {pair.limit:.3g}), relative {pair.relative:.3g} (near: up to {pair.relative_limit:.3g})"
        )
    words += f"; correlation of the pictures {pair.correlation:.3f}"
    made = Picture(synthetic.images(pair.synthetic)[0], f"Synthetic {told['synthetic'][:8]}", True)
    real = Picture(training.images(pair.training)[0], f"Training {told['training'][:8]}", False)
    return made, real, words


def _grids(synthetic: PreparedStore, training: PreparedStore, config: QualityConfig) -> list[tuple[str, Tensor, bool]]:
    """Random images of both sets, and of those with each finding that both have."""
    groups: list[tuple[str, np.ndarray, np.ndarray, int]] = [
        ("All images", np.arange(len(training)), np.arange(len(synthetic)), config.shown)
    ]
    for name in training.findings:
        if name in synthetic.findings:
            real, made = (np.flatnonzero(s.labels[:, s.findings.index(name)] == 1) for s in (training, synthetic))
            groups.append((name, real, made, config.shown // 4))
    grids, rng = [], np.random.default_rng(config.seed)
    for name, real, made, most in groups:
        for kind, store, rows in (("real", training, real), ("synthetic", synthetic, made)):
            chosen = np.sort(rng.permutation(rows)[:most])
            if len(chosen):
                grids.append((f"{name}, {kind}", store.images(chosen), kind == "synthetic"))
    return grids
