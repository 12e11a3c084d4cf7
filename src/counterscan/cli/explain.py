"""``counterscan explain``: learn to explain a frozen classifier, then show for any number of files why it said so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterscan.cli.machine import use
from counterscan.cli.main import Lazy
from counterscan.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from counterscan.data.store import PreparedStore
    from counterscan.medxgan import MedXGAN

_TRAIN = "Train an explainer of a frozen classifier on a prepared store; go on where an interrupted run stopped."
_EVALUATE = "Judge an explainer and its rivals on what the classifier calls positive; write figures and an HTML page."
_RUN = "Write the way to the counterpart, maps, animation and numbers of every image; skip what is done."
_SPEC = (
    "The classifier: a run folder of `counterscan classify train`, a TorchScript file, a torch.export program (.pt2), "
    "or module:function, which returns one."
)


def _train_command() -> type:
    """Its flags are the fields of AdapterConfig and MedXGANConfig, which take torch to import: --adapter.channels,
    --training.steps, --objective.cls ..."""
    from counterscan.classify import AdapterConfig
    from counterscan.medxgan import MedXGANConfig

    source = "Folder made by `counterscan data prepare`, with rows in the splits train and val; no label is used."
    names = (
        "Names of the classifier's outputs, in order; of one of counterscan's own, which knows them, those to explain, "
        "all by default."
    )
    options: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("store", Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help=source)]),
        ("classifier", Annotated[str, tyro.conf.arg(help=_SPEC, metavar="SPEC")]),
        ("out", Annotated[Path, tyro.conf.arg(help="Run folder; the same command goes on with an interrupted run.")]),
        ("findings", Annotated[tuple[str, ...], tyro.conf.arg(help=names)], ()),
        ("adapter", AdapterConfig, field(default_factory=AdapterConfig)),
        ("config", Annotated[MedXGANConfig, tyro.conf.arg(name="")], field(default_factory=MedXGANConfig)),
    ]
    made = make_dataclass("Train", options, namespace={"run": _train, "nested_flags": True})
    made.__doc__ = _TRAIN
    return made


def _train(self: Any) -> None:
    from counterscan.classify import load_external
    from counterscan.cli.tables import say
    from counterscan.data.store import PreparedStore
    from counterscan.medxgan import fit
    from counterscan.systems import ClassifierRecord

    store = PreparedStore.open(self.store)
    device = _device(self.config.training.device)
    classifier = load_external(self.classifier, self.findings, self.adapter, device)
    record = ClassifierRecord.of(classifier, self.classifier, self.adapter)
    earlier = ClassifierRecord.read(self.out) if (self.out / "config.yaml").is_file() else None  # a run has begun
    if earlier is not None and (earlier.digest, earlier.findings) != (record.digest, record.findings):
        raise InputError(
            f"this run explains another classifier, {earlier.spec}",
            path=self.out,
            field="--classifier",
            remedy="Give that one, or another --out",
        )
    _check(classifier, store, device)
    record.write(self.out)
    explainer = fit(store, classifier, self.out, self.config)
    say(f"{self.out / 'model'}: {', '.join(explainer.findings)} as {self.classifier} sees it; {_figures(self.out)}")


def _device(name: str) -> str:
    """Where training will be, so that the classifier's calls on all images are made there too."""
    import os

    import torch

    gpu = name != "cpu" and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu"


def _check(classifier: nn.Module, store: PreparedStore, device: str) -> None:
    """Try the classifier on a few validation images before hours are spent on it."""
    import numpy as np

    from counterscan.classify import AdaptedClassifier, check_classifier
    from counterscan.data.splits import spaced

    trained_at = getattr(classifier, "trained_on", {}).get("size")
    if trained_at is not None:
        store.check_size(trained_at, "and the classifier was trained at")
    rows = np.flatnonzero(store.split == "val")
    if len(rows):  # without any, training says what is missing
        few = store.images(spaced(rows, 4)).to(device)
        findings: tuple[str, ...] = tuple(getattr(classifier, "findings"))  # noqa: B009 (not of every module)
        if not isinstance(classifier, AdaptedClassifier):
            classifier = AdaptedClassifier(classifier, findings)
        check_classifier(classifier, few)


def _figures(folder: Path) -> str:
    """The last validation of a run in a few words."""
    from counterscan.training.logging import read_metrics

    latest: dict[str, float] = {}
    for line in read_metrics(folder):
        latest |= {name: value for name, value in line.items() if name.startswith("validation/") and value is not None}
    said = [f"{name.removeprefix('validation/')} {value:.3g}" for name, value in latest.items()]
    return f"validation: {', '.join(said)}" if said else "not validated"


@dataclass
class _Run:
    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan explain train`, or a folder written by save_pretrained."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, folders, DICOM series, study tables (CSV or Parquet)."""
    out: Path = field(kw_only=True)
    """Folder for the answers."""
    finding: tuple[str, ...] = ()
    """Which findings to explain; default: all that the classifier knows."""
    direction: Literal["remove", "add"] = "remove"
    """Take the finding out of the image, or bring it in."""
    steps: int | None = None
    """Refinement of each inversion: 0 fast, 50 usual, 200 best; default: the model's."""
    frames: int | None = None
    """Frames of the way, image and counterpart included; default: the model's."""
    animation: Literal["gif", "apng", "none"] = "gif"
    """The way as moving picture."""
    classifier: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """The explained classifier, if it is no longer where the run recorded it; the forms are those of explain train."""
    each_frame: bool = False
    """Take every frame of multi-frame files."""
    formats: tuple[Literal["nifti", "npz", "png"], ...] = ("nifti", "npz", "png")
    """What to write for each image besides, on its own grid: map, evidence, counterpart, overlay."""
    links: Path | None = None
    """Write a CSV of pseudonymous id and path here; keep it as private as the images."""
    batch_size: int = 16
    """Images answered at once."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""


def _adapter_flags() -> tuple[str, Any, Any]:
    """The fields of AdapterConfig as an option: what is given stands in for what the run recorded, one by one."""
    from typing import get_type_hints

    from counterscan.classify import AdapterConfig

    kinds = get_type_hints(AdapterConfig)
    flags = [(f.name, kinds[f.name] | None, None) for f in fields(AdapterConfig)]
    made = make_dataclass("Adapter", flags, frozen=True)
    _, _, described = (AdapterConfig.__doc__ or "").partition("\n\n")  # its attributes
    made.__doc__ = f"Stands in for what the run recorded of its classifier; None leaves that.\n\n{described}"
    return "adapter", made, field(default_factory=made)


def _given(adapter: Any) -> dict[str, Any]:
    """Those flags that were given, by name."""
    return {f.name: getattr(adapter, f.name) for f in fields(adapter) if getattr(adapter, f.name) is not None}


def _run_command() -> type:
    """Its further flags are the fields of AdapterConfig, which takes torch to import."""
    options = [_adapter_flags()]
    made = make_dataclass("Run", options, bases=(_Run,), namespace={"run": _run, "nested_flags": True})
    made.__doc__ = _RUN
    return made


def _run(self: Any) -> int:
    from counterscan.classify import AdaptedClassifier
    from counterscan.cli.inputs import answer
    from counterscan.report.strips import write_explanation
    from counterscan.systems import load_explainer

    use(self.threads, self.device)
    explainer = load_explainer(self.model, self.device, classifier=self.classifier, adapter=_given(self.adapter))
    adapted = explainer.classifier.config if isinstance(explainer.classifier, AdaptedClassifier) else None
    _set(explainer, self.steps, self.frames)
    return answer(
        explainer,
        self.inputs,
        self.out,
        _asked(explainer, self.finding, self.direction),
        doing="explaining",
        each_frame=self.each_frame,
        direction=self.direction,
        batch_size=self.batch_size,
        formats=self.formats,
        links=self.links,
        settings=lambda finding: {
            "checkpoint": explainer.checkpoint,
            **explainer.settings(),
            "adapter": None if adapted is None else asdict(adapted),
        },
        write=partial(write_explanation, findings=explainer.findings, animation=self.animation),
    )


def _set(explainer: MedXGAN, steps: int | None, frames: int | None) -> None:
    """What the command line says in place of the model's own settings."""
    from dataclasses import replace

    config = explainer.config
    if steps is not None:
        if steps < 0:
            raise InputError("must be 0 or more", field="--steps")
        config = replace(config, refine=replace(config.refine, steps=steps))
    if frames is not None:
        config = replace(config, frames=frames)
    explainer.config = config


def _asked(explainer: MedXGAN, names: tuple[str, ...], direction: str) -> tuple[str, ...]:
    """The findings to explain, checked before the first image is read."""
    from counterscan.cli.inputs import named

    findings = named(names, explainer.findings, "classifier")
    for finding in findings:
        if direction == "add" and not len(explainer.donors.get(finding, ())):
            raise InputError(
                f"the model holds no example of {finding!r} to bring in", field="--direction", remedy="Train it anew"
            )
    return findings


@dataclass
class _Evaluate:
    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan explain train`, or a folder written by save_pretrained."""
    store: tyro.conf.Positional[Path]
    """A prepared store, or a study table, which is then prepared with the model's size and recipe."""
    out: Path = field(kw_only=True)
    """Folder for figures and report.html; the same command goes on with an interrupted evaluation."""
    finding: tuple[str, ...] = ()
    """Which findings to explain; default: all that the classifier knows."""
    split: str = "test"
    """Whose images are judged; rows of the split train are the rivals' background."""
    oracle: Path | None = None
    """Run folder of a classifier trained independently, with another seed and architecture: does it flip too?"""
    published: Path | None = None
    """Run folder of the published medXGAN, trained for the same classifier."""
    rivals: tuple[str, ...] = ()
    """Who enters beside the explainer, by the names in the tables, such as "Grad-CAM" "IG, black"; default: all."""
    sample: int = 12
    """Images for what is slow: stability, randomisation, the published inversion."""
    quick: bool = False
    """Few samples, masks and steps; for a first look, not for comparison."""
    inception: Path | None = None
    """Inception as TorchScript or torch.export program that returns features (N, D), as a further space of KID and FID;
    --inception-adapter says what it takes."""
    cases: int = 3
    """Cases shown of each kind: best, median, worst."""
    classifier: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """The explained classifier, if it is no longer where the run recorded it; the forms are those of explain train."""
    batch_size: int = 16
    """Images asked about at once."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""


def _evaluate_command() -> type:
    """Its further flags are the fields of AdapterConfig, which takes torch to import."""
    from counterscan.classify import AdapterConfig

    inception = AdapterConfig(channels=3, size=299)
    options: list[tuple[str, Any, Any]] = [
        _adapter_flags(),
        ("inception_adapter", AdapterConfig, field(default_factory=lambda: inception)),
    ]
    made = make_dataclass("Evaluate", options, bases=(_Evaluate,), namespace={"run": _evaluate, "nested_flags": True})
    made.__doc__ = _EVALUATE
    return made


def _evaluate(self: Any) -> None:
    from rich.console import Console

    from counterscan.bench.explain_report import evaluate_explainer
    from counterscan.classify import load_classifier, load_external
    from counterscan.cli.classify import open_or_prepare
    from counterscan.cli.inputs import is_table
    from counterscan.cli.tables import say
    from counterscan.medxgan.published import PublishedMedXGAN
    from counterscan.systems import load_explainer

    use(self.threads, self.device)
    explainer = load_explainer(self.model, self.device, classifier=self.classifier, adapter=_given(self.adapter))
    findings, published, inception = _asked(explainer, self.finding, "remove"), None, None
    if self.published is not None:
        published = PublishedMedXGAN.from_pretrained(self.published, explainer.classifier, self.device)
    if self.inception is not None:
        extractor: Any = load_external(str(self.inception), ("features",), self.inception_adapter, self.device)
        inception = extractor.scores
    size = explainer.size if is_table(self.store) else None
    store = open_or_prepare(self.store, self.out / "store", size, recipe=explainer.recipe)
    with Console(stderr=True).status("evaluating") as status:
        report = evaluate_explainer(
            explainer,
            store,
            self.out,
            findings=findings,
            split=self.split,
            oracle=None if self.oracle is None else load_classifier(self.oracle, self.device),
            published=published,
            inception=inception,
            rivals=self.rivals,
            sample=self.sample,
            quick=self.quick,
            cases=self.cases,
            batch_size=self.batch_size,
            run=self.model if (self.model / "metrics.jsonl").is_file() else None,
            progress=lambda name, done, count: status.update(f"{name}: {done} of {count}"),
        )
    for table in report.headlines():
        Console().print(table.to_rich())
    for note in report.notes:
        say(note)
    say(f"report: {report.page}")


COMMANDS = {
    "train": Lazy(_TRAIN, _train_command),
    "run": Lazy(_RUN, _run_command),
    "evaluate": Lazy(_EVALUATE, _evaluate_command),
}
