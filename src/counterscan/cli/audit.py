"""``counterscan augment audit``: a quality card for any set of synthetic images against any real study table."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from counterscan.cli.machine import use
from counterscan.cli.synthetic import Intensity, count_bad, prepared_synthetic
from counterscan.errors import InputError

AUDIT = (
    "Judge synthetic images against real ones: fidelity, diversity, label truth, memorisation; write a quality card."
)


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
    seeds: int = 3
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

    use(self.threads, self.device)
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
    synthetic, bad = prepared_synthetic(
        self.synthetic, real, self.out / "store_synthetic", self.intensity, self.workers
    )
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
            bad={"real": count_bad(real), "synthetic": bad},
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
