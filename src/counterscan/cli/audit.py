"""``counterscan augment audit``: a quality card for any set of synthetic images against any real study table."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore
    from counterscan.data.table import StudyTable

AUDIT = (
    "Judge synthetic images against real ones: fidelity, diversity, label truth, memorisation; write a quality card."
)
Intensity = Literal["auto", "real", "full"]


@dataclass
class _Audit:
    synthetic: tyro.conf.Positional[Path]
    """A study table (CSV, Parquet) of synthetic images, whose labels are then judged too; or a folder of images, which
    have none. A table needs no patient column: images without one are taken to have nothing in common."""
    real: tyro.conf.Positional[Path]
    """A folder made by `counterscan data prepare`, or a study table, with the splits train, val and test."""
    out: Path = field(kw_only=True)
    """Folder for card.json and report.html; the same command takes up what an interrupted one has trained."""
    size: int | None = None
    """Side in pixels to prepare a table of real images at; synthetic images are brought to that of the real ones."""
    classifier: Path | None = None
    """Run folder of a classifier whose features are compared; default: one is trained on the real training images."""
    judge: Path | None = None
    """Run folder of a classifier that judges the labels; default: the same. The generator must not have used it."""
    features: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE")] = ()
    """Further feature extractors, such as Inception or RAD-DINO: TorchScript files or torch.export programs (.pt2) that
    return (N, D); --features-adapter says what they take."""
    usefulness: int = 0
    """Steps of small classifiers on real, synthetic and both, tested on real images; 0 leaves this out."""
    seeds: int = 1
    """Classifiers for each of these."""
    steps: int = 500
    """Steps of the classifier that gives features and judges labels, if it is trained here."""
    intensity: Intensity = "auto"
    """How synthetic files become grey values: as the real ones, or with the full range of their numbers as black to
    white, as most generators write them. auto: the full range for 8-bit pictures where real files have another."""
    pairs: int = 8
    """Near copies shown beside the training images."""
    links: Path | None = None
    """Write a CSV of pseudonyms and paths of the images shown; keep it as private as the real images."""
    seed: int = 0
    """Of training and of draws."""
    workers: int = 2
    """Decoding processes."""
    batch_size: int = 64
    """Images at once."""
    threads: int = 1
    """CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where to compute."""


def audit_command() -> type:
    """Its further flags are the fields of AdapterConfig, which takes torch to import."""
    from counterscan.classify import AdapterConfig

    adapter = AdapterConfig(channels=3, size=299)
    options: list[tuple[str, Any, Any]] = [("features_adapter", AdapterConfig, field(default_factory=lambda: adapter))]
    made = make_dataclass("Audit", options, bases=(_Audit,), namespace={"run": _audit, "nested_flags": True})
    made.__doc__ = AUDIT
    return made


def _audit(self: Any) -> None:
    import torch
    from rich.console import Console

    from counterscan.bench.quality import QualityConfig, audit_images
    from counterscan.classify import ClassifyConfig, load_classifier
    from counterscan.cli.classify import open_or_prepare
    from counterscan.cli.tables import say

    if self.threads:
        torch.set_num_threads(self.threads)
    device = "cpu" if self.device == "cpu" or not torch.cuda.is_available() else "cuda"
    given = [None if run is None else load_classifier(run, device) for run in (self.classifier, self.judge)]
    extractors = _extractors(self.features, self.features_adapter, device)
    known = next((c.trained_on for c in given if c is not None), {})
    real = open_or_prepare(self.real, self.out / "store_real", self.size or _size(self.real, known), self.workers)
    for classifier, flag in zip(given, ("--classifier", "--judge"), strict=True):
        side = real.size if classifier is None else classifier.trained_on.get("size", real.size)
        if side != real.size:
            remedy = f"Prepare them with --size {side}"
            raise InputError(f"it was trained at {side} px, real images have {real.size}", field=flag, remedy=remedy)
    synthetic, bad = _prepared(self.synthetic, real, self.out / "store_synthetic", self.intensity, self.workers)
    training = ClassifyConfig(
        steps=self.steps, seed=self.seed, threads=self.threads, device=self.device, tensorboard=False
    )
    config = QualityConfig(
        classifier=training,
        usefulness=self.usefulness,
        seeds=self.seeds,
        pairs=self.pairs,
        seed=self.seed,
        batch_size=self.batch_size,
    )
    with Console(stderr=True).status("measuring") as status:
        card = audit_images(
            synthetic,
            real,
            self.out,
            config,
            classifier=given[0],
            judge=given[1],
            extractors=extractors,
            bad={"real": _bad(real), "synthetic": bad},
            links=self.links,
            progress=lambda name, done, count: status.update(f"{name}: {done} of {count}"),
        )
    for section in card.sections:
        say(f"{section.name}: {section.verdict}. {section.said}")
    for note in card.notes:
        say(note)
    say(f"report: {self.out / 'report.html'}")


def _size(source: Path, known: dict[str, Any]) -> int | None:
    """The size a given classifier was trained at, where a table is to be prepared."""
    from counterscan.cli.inputs import is_table

    return known.get("size") if is_table(source) else None


def _extractors(named: tuple[str, ...], adapter: Any, device: str) -> dict[str, Any]:
    """NAME=FILE to name and extractor."""
    from counterscan.classify import load_external

    found: dict[str, Any] = {}
    for text in named:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or name in found:
            problem = f"{text!r} is not NAME=FILE" if not equals or not name or not file else f"{name!r} comes twice"
            raise InputError(problem, field="--features", remedy="For example --features Inception=inception.pt")
        loaded: Any = load_external(file, ("features",), adapter, device)
        if not hasattr(loaded, "scores"):
            raise InputError("is a classifier", path=file, field="--features", remedy="Give it as --classifier")
        found[name] = loaded.scores
    return found


def _prepared(
    source: Path, real: PreparedStore, folder: Path, intensity: Intensity, workers: int
) -> tuple[PreparedStore, int]:
    """Synthetic images on the real images' grid, and how many cannot be read."""
    from counterscan.cli.tables import show_bad_file
    from counterscan.data.prepare import prepare
    from counterscan.data.store import PreparedStore

    if (source / "store.json").is_file():
        store = PreparedStore.open(source)
        return store, _bad(store)
    table = synthetic_table(source, real.findings)
    report = prepare(table, folder, size=real.size, recipe=_recipe(table, real, intensity), workers=workers)
    show_bad_file(folder / "bad.csv", report.bad, report.rows)
    return PreparedStore.open(folder), report.bad


def synthetic_table(source: Path, findings: tuple[str, ...] = ()) -> StudyTable:
    """A study table of synthetic images from a table or a folder.

    Args:
        source: CSV or Parquet with the column image, or a folder that is searched for images.
        findings: names of the real images' findings, which may be no known ones.

    Raises:
        InputError: nothing is there, no image is found, or the table cannot be read.
    """
    import pandas as pd

    from counterscan.cli.inputs import is_table
    from counterscan.data.readers import iter_images
    from counterscan.data.table import StudyTable, read_frame

    if is_table(source):
        frame = read_frame(source)
        columns = {name.strip().lower(): name.strip() for name in map(str, frame.columns)}
        image = columns.get("image")
        mapped = {} if "patient" in columns or image is None else {"patient": image, "image": image}
        own = [name for name in findings if name in frame.columns]
        table = StudyTable.from_frame(frame, source.parent, columns=mapped, findings=own, path=source)
    else:
        paths = [str(item.path.resolve()) for item in iter_images(source)]
        table = StudyTable.from_frame(pd.DataFrame({"image": paths, "patient": paths}), source)
    table.validate(labelled=False, path=source)
    return table


def _recipe(table: StudyTable, real: PreparedStore, intensity: Intensity) -> IntensityRecipe | None:
    """How synthetic files become [-1, 1]."""
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.readers import read_image

    full = IntensityRecipe("range")
    if intensity == "full":
        return full
    if intensity == "real" or real.recipe is None or real.recipe.lo is None:
        return real.recipe
    eight_bit = (0.0, 255.0)
    for row in range(min(len(table), 20)):  # some may be damaged
        try:
            raw = read_image(table.image_path(row), frame=table.frame_number(row))
        except InputError:
            continue
        other = (real.recipe.lo, real.recipe.hi) != eight_bit
        return full if raw.kind == "raster" and raw.stored_range == eight_bit and other else real.recipe
    return real.recipe


def _bad(store: PreparedStore) -> int:
    """Images of a store's table that could not be read."""
    from counterscan.files import read_json

    return 0 if store.folder is None else int(read_json(store.folder / "store.json").get("bad", 0))
