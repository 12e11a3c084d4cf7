"""A generator, judged: the quality card of its samples, distances to patients it never saw, which findings it learned,
what truncation costs, and pictures of what it does between and beside images. One page and one JSON file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.bench.generator_page import STYLE, Charts, sheet, tables_and_charts
from counterscan.bench.quality import IN_DOMAIN, Progress, QualityConfig, examine
from counterscan.bench.quality_card import QualityCard
from counterscan.bench.quality_sections import Measured
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import write_json
from counterscan.metrics.distance_interval import distance_interval
from counterscan.metrics.intervals import Interval, roc_auc_intervals
from counterscan.metrics.manifold import manifold_figures
from counterscan.metrics.realism import InDomainFeatures, features_of, fid, kid_of_all
from counterscan.report.charts import series_from_lines
from counterscan.report.files import finite
from counterscan.report.tables import Cell, Table
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.export import facts_of, quantised
from counterscan.tbsmgan.grids import (
    PSIS,
    TruncationPoint,
    findings_grid,
    interpolation_grid,
    mixing_grid,
    shared_logits,
    truncation_curve,
    truncation_grid,
)
from counterscan.training import image_grid, read_metrics

MADE, REAL = "synthetic", "training images"
_BATCH = 64
_COARSE = 8  # px of the pictures that are compared where there is no classifier
_LARGEST = 256  # px of an image in a grid
_WATCHED = ("fid", "kid", "consistency", "diversity", "copies", "r_t", "p")
_NOTES = (
    "FID and KID are in features of a classifier of the same images, not of photographs; they compare only with "
    "figures of the same classifier and the same number of images.",
    "If the checkpoint was chosen with this classifier, its figures flatter the generator: give a judge of its own.",
)


@dataclass(frozen=True)
class GeneratorConfig:
    """How a generator is judged.

    Attributes:
        samples: images that are made.
        psi: their truncation; 1 judges the distribution that was learned.
        psis: of the truncation curve; () leaves it out.
        learned: AUC above which a finding counts as learned.
        columns: images in a row of the pictures.
        draws: half samples behind the intervals of FID and KID.
        card: of the quality card; its ``seed`` is that of the samples too.
    """

    samples: int = 1000
    psi: float = 1.0
    psis: tuple[float, ...] = PSIS
    learned: float = 0.85
    columns: int = 8
    draws: int = 20
    card: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        for name, least in (("samples", 20), ("columns", 2), ("draws", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{getattr(self, name)} must be at least {least}", field=name)
        if not 0 <= self.learned <= 1:
            raise InputError("must lie in [0, 1]", field="learned")


@dataclass(frozen=True)
class GeneratorReport:
    """What ``evaluate_generator`` found.

    Attributes:
        card: quality card of the samples.
        held_out: distances of samples, and of training images, to images of patients that the generator never saw; None
            with fewer than 20 of these.
        findings: which were learned; None where it is asked for none or there is no classifier.
        curve: figures by psi.
        page: the HTML file.
    """

    card: QualityCard
    held_out: Table | None
    findings: Table | None
    curve: tuple[TruncationPoint, ...]
    page: Path

    def tables(self) -> list[Table]:
        """What the card has not."""
        own = [self.held_out, self.findings, truncation_table(self.curve) if self.curve else None]
        return [table for table in own if table is not None]


def evaluate_generator(
    gan: StyleGAN,
    store: PreparedStore,
    folder: str | Path,
    config: GeneratorConfig | None = None,
    *,
    classifier: nn.Module | None = None,
    judge: nn.Module | None = None,
    run: str | Path | None = None,
    key: bytes | None = None,
    progress: Progress | None = None,
) -> GeneratorReport:
    """Sample, measure, write ``report.html``, ``card.json`` and ``generator.json``.

    Args:
        gan: the generator.
        store: real images with the splits train (which it learned from) and val or test (which it did not).
        folder: gets the results.
        config: see ``GeneratorConfig``.
        classifier: whose features are compared, trained on the split train; None trains one.
        judge: of the labels; the classifier by default.
        run: run folder of the generator, whose learning curves are shown.
        key: of the pseudonyms.
        progress: called with (what, done, of how many).

    Raises:
        InputError: sizes differ, a held-out patient is one that the generator learned from, no row in train.
    """
    config, folder = config or GeneratorConfig(), Path(folder)
    if store.size != gan.size:
        remedy = f"Prepare the images with --size {gan.size}"
        raise InputError(f"{store.size} px, but the generator makes {gan.size}", field="size", remedy=remedy)
    held = store.subset(np.isin(store.split, ("val", "test")))
    gan.refuse_patients(held.patients.tolist())
    labels = gan.draw_labels(config.samples, config.card.seed)
    images = gan.sample(labels=labels, psi=config.psi, seed=config.card.seed)
    audit = examine(
        _store_of(gan, images, labels),
        store,
        folder,
        config.card,
        classifier=classifier,
        judge=judge,
        key=key,
        progress=progress,
    )
    extractor = _extractor(audit.classifier, gan.device)
    training = audit.sets.training.some(config.card.most, config.card.seed)
    sets = (audit.sets.synthetic, training, audit.sets.held_out)
    made, real, unseen = (_features(extractor, part, gan.device) for part in sets)
    held_out = _held_out(config, made, real, unseen, training.patients, held.patients.tolist())
    seer = judge or audit.classifier
    findings = _findings(gan, seer, images, labels, config) if seer is not None and gan.findings else None
    curve = tuple(
        truncation_curve(
            gan,
            unseen if held_out is not None else real,
            extractor,
            config.psis,
            samples=config.samples,
            classifier=seer,
            labels=labels,
            seed=config.card.seed,
        )
        if config.psis
        else ()
    )
    report = GeneratorReport(audit.card, held_out, findings, curve, folder / "report.html")
    own = [table for table in (held_out, findings) if table is not None]
    sections = {
        "Generator": ("generator", tables_and_charts(own)),
        "Truncation": ("truncation", tables_and_charts([truncation_table(curve)], _charts(report)) if curve else ""),
        "Training": ("training", tables_and_charts([], _learning(run))),
        "Pictures": ("pictures", "".join(sheet(*grid) for grid in _pictures(gan, config))),
    }
    audit.write_page(report.page, "A generator of images, judged", sections=sections, notes=_NOTES, style=STYLE)
    write_json(folder / "generator.json", finite(_json(gan, report, config)))
    return report


def _store_of(gan: StyleGAN, images: Tensor, labels: Tensor) -> PreparedStore:
    """Samples as a store of 16 bits; each is a patient of its own."""
    return PreparedStore.from_arrays(
        np.stack([quantised(image, 16) for image in images]),
        labels=(labels > 0.5).numpy().astype(np.float32),
        findings=gan.findings,
        patients=[f"sample {i}" for i in range(len(images))],
    )


def _extractor(classifier: nn.Module | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    if classifier is not None and callable(getattr(classifier, "features", None)):
        return InDomainFeatures(classifier.to(device)).eval()
    return lambda x: F.adaptive_avg_pool2d(x, min(_COARSE, x.shape[-1])).flatten(1)


def _features(extractor: Callable[[Tensor], Tensor], part: Measured, device: torch.device) -> Tensor:
    """(N, D) of a set; those that the card was made with, if a classifier gave them."""
    if IN_DOMAIN in part.features:
        return part.features[IN_DOMAIN]
    parts = [
        features_of(extractor, part.store.images(slice(at, at + _BATCH)).to(device), _BATCH).cpu()
        for at in range(0, len(part), _BATCH)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def _held_out(
    config: GeneratorConfig, made: Tensor, real: Tensor, unseen: Tensor, patients: list[str], held: list[str]
) -> Table | None:
    """Samples and, as what can be hoped for, training images against held-out ones, at one number of images."""
    fewest = config.card.limits.fewest
    size = min(len(made), len(real))
    if min(len(unseen), size) < fewest:
        return None
    columns: list[list[Interval]] = []
    for x, whose in ((made, [f"sample {i}" for i in range(len(made))]), (real, patients)):
        fids, kids = (
            distance_interval(
                measure, unseen, x, held, whose, size=size, subsets=4, draws=config.draws, seed=config.card.seed
            )
            for measure in (fid, _kid)
        )
        cover = manifold_figures(
            unseen, x, held, whose, k=config.card.k, size=size, subsets=2, resamples=config.card.resamples
        )
        columns.append([fids, kids, cover.precision, cover.recall, cover.density, cover.coverage])
    note = (
        f"Against {len(unseen)} held-out images, {size} images each; KID is unbiased, FID is not. What {REAL} reach is "
        "as good as a generator can be. Intervals are over patients."
    )
    names = ("FID", "KID x 1000", "Precision", "Recall", "Density", "Coverage")
    rows: list[list[Cell]] = [[name, *pair] for name, *pair in zip(names, *columns, strict=True)]
    return Table("Against images of unseen patients", ("Figure", MADE, REAL), rows, note, digits=3)


def _kid(real: Tensor, fake: Tensor) -> float:
    return 1000 * kid_of_all(real, fake)


def _findings(gan: StyleGAN, judge: nn.Module, images: Tensor, labels: Tensor, config: GeneratorConfig) -> Table | None:
    known, logits = shared_logits(gan, judge, images)
    if not known:
        return None
    asked = (labels[:, [gan.findings.index(name) for name in known]] > 0.5).float()
    patients = [str(i) for i in range(len(images))]
    aucs = roc_auc_intervals(logits, asked, patients, resamples=config.card.resamples)
    rows: list[list[Cell]] = [
        [name, int(column.sum()), auc, _learned(auc, config.learned)]
        for name, column, auc in zip(known, asked.T, aucs, strict=True)
    ]
    note = (
        f"AUC of the classifier for what was asked for, over {len(images)} samples at psi {config.psi:g}. Learned: the "
        f"whole interval is above {config.learned:g}; no: it is below. Do not use samples of what was not learned."
    )
    return Table("Findings", ("Finding", "Samples with it", "AUC", "Learned"), rows, note, digits=3)


def _learned(auc: Interval, bar: float) -> str:
    if math.isnan(auc.value):
        return "not judged"
    if math.isnan(auc.low):
        return "unsure"
    return "yes" if auc.low > bar else "no" if auc.high < bar else "unsure"


def truncation_table(curve: Sequence[TruncationPoint]) -> Table:
    """Figures by psi."""
    rows: list[list[Cell]] = [[f"{p.psi:g}", p.fid, 1000 * p.kid, p.precision, p.recall, p.consistency] for p in curve]
    note = "The same latents at every psi. KID is x 1000. Precision rises and recall falls as psi goes to 0."
    columns = ("psi", "FID", "KID", "Precision", "Recall", "Consistency")
    return Table("Truncation", columns, rows, note, digits=3)


def _pictures(gan: StyleGAN, config: GeneratorConfig) -> list[tuple[str, str, np.ndarray]]:
    """Heading, words and picture of each grid."""
    seed, columns = config.card.seed, config.columns
    found, names = findings_grid(gan, columns, seed=seed)
    grids = [
        ("The same latents, asked for each finding", "Rows: " + ", ".join(names), found),
        ("Between images", "Each row goes straight in W from one sample to another.", interpolation_grid(
            gan, 4, columns, seed=seed)),
        ("Styles mixed", "Coarse styles of the row's first image, fine styles of the column's.", mixing_grid(
            gan, 4, columns - 1, seed=seed)),
    ]  # fmt: skip
    if config.psis:
        rows = ", ".join(f"{psi:g}" for psi in config.psis)
        grids.append(("Truncation", f"The same latents, psi {rows}.", truncation_grid(gan, config.psis, columns)))
    return [(name, words, image_grid(_fitted(grid))) for name, words, grid in grids]


def _fitted(grid: Tensor) -> Tensor:
    """Images of (R, C, 1, S, S) no larger than a page needs."""
    if grid.shape[-1] <= _LARGEST:
        return grid
    return F.interpolate(grid.flatten(0, 1), size=_LARGEST, mode="area").unflatten(0, grid.shape[:2])


def _charts(report: GeneratorReport) -> Charts:
    """Figures by psi, beside those of training images."""
    points = [p for p in report.curve if math.isfinite(p.fid)]
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {
        "FID by psi": {MADE: [(p.psi, p.fid) for p in points]},
        "Precision and recall by psi": {
            "precision": [(p.psi, p.precision) for p in points],
            "recall": [(p.psi, p.recall) for p in points],
        },
        "Consistency by psi": {"": [(p.psi, p.consistency) for p in points if math.isfinite(p.consistency)]},
    }
    if report.held_out is not None and points:
        floor = report.held_out.rows[0][2]
        assert isinstance(floor, Interval)
        charts["FID by psi"][REAL] = [(points[0].psi, floor.value), (points[-1].psi, floor.value)]
    return {name: series for name, series in charts.items() if any(series.values())}


def _learning(run: str | Path | None) -> Charts:
    """A run's metrics that tell of the generator."""
    if run is None or not (Path(run) / "metrics.jsonl").is_file():
        return {}
    series = series_from_lines(read_metrics(run))
    return {name: series[name] for name in _WATCHED if name in series}


def _json(gan: StyleGAN, report: GeneratorReport, config: GeneratorConfig) -> dict[str, Any]:
    def plain(table: Table | None) -> dict[str, Mapping[str, Any]]:
        rows = table.rows if table is not None else ()
        return {
            str(row[0]): {
                name: [cell.value, cell.low, cell.high] if isinstance(cell, Interval) else cell
                for name, cell in zip((table.columns if table else ())[1:], row[1:], strict=True)
            }
            for row in rows
        }

    return {
        "made_by": facts_of(gan),
        "settings": {"samples": config.samples, "psi": config.psi, "seed": config.card.seed, "learned": config.learned},
        "held_out": plain(report.held_out),
        "findings": plain(report.findings),
        "truncation": [asdict(point) for point in report.curve],
        "verdicts": {section.name: section.verdict for section in report.card.sections},
        "trouble": list(gan.diagnoses),
    }


def quick(config: GeneratorConfig) -> GeneratorConfig:
    """Few samples and draws, for a first look."""
    card = replace(config.card, resamples=200)
    return replace(config, samples=min(config.samples, 200), psis=config.psis[::2], draws=8, card=card)
