"""``counterscan tag``: learn disease maps from image-level labels, run them over any number of files, judge them."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterscan.cli.machine import use
from counterscan.cli.main import Lazy

if TYPE_CHECKING:
    from counterscan.taggan import TagGAN


def _train_command() -> type:
    """Its flags are the fields of TagGANConfig, which takes torch to import: --training.steps, --objective.lam ..."""
    from counterscan.taggan import TagGANConfig

    def run(self: Any) -> None:
        from counterscan.cli.tables import say
        from counterscan.data.store import PreparedStore
        from counterscan.files import read_json
        from counterscan.taggan import fit

        tagger = fit(PreparedStore.open(self.store), self.out, self.config)
        choice = read_json(self.out / "choice.json")
        say(f"{self.out / 'model'}: {', '.join(tagger.findings)}; weights of step {choice['step']}")

    source = "Folder made by `counterscan data prepare`, with rows in the splits train and val."
    options: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("store", Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help=source)]),
        ("out", Annotated[Path, tyro.conf.arg(help="Run folder; the same command goes on with an interrupted run.")]),
        ("config", Annotated[TagGANConfig, tyro.conf.arg(name="")], field(default_factory=TagGANConfig)),
    ]
    made = make_dataclass("Train", options, namespace={"run": run, "nested_flags": True})
    made.__doc__ = "Train classifier and TagGAN on a prepared store; go on where an interrupted run stopped."
    return made


@dataclass
class Run:
    """Write map, counterpart, mask and overlay of every image, and results.csv; skip what is done."""

    model: tyro.conf.Positional[Path]
    """A run folder, or a folder written by save_pretrained."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, folders, DICOM series, study tables (CSV or Parquet)."""
    out: Path = field(kw_only=True)
    """Folder for the answers."""
    finding: tuple[str, ...] = ()
    """Which findings to look for; default: all that the model knows."""
    also: tuple[Path, ...] = ()
    """Further models (other seeds) whose maps are averaged with the first one's."""
    each_frame: bool = False
    """Take every frame of multi-frame files."""
    fast: bool = False
    """One view instead of the model's averaged views; mask thresholds are kept, and were set for the averaged maps."""
    uncertainty: bool = False
    """Also write the standard deviation of the map over models, mirror images and shifts."""
    hide_and_seek: float | None = None
    """Drop mask regions that bring back less than this share of the classifier's evidence (0.1 is a good start)."""
    formats: tuple[Literal["nifti", "npz", "png"], ...] = ("nifti", "npz", "png")
    """What to write for each image."""
    links: Path | None = None
    """Write a CSV of pseudonymous id and path here; keep it as private as the images."""
    batch_size: int = 16
    """Images answered at once."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""

    def run(self) -> int:
        from counterscan.cli.inputs import answer, named
        from counterscan.taggan import TagGAN

        use(self.threads, self.device)
        tagger = TagGAN.from_pretrained([self.model, *self.also], self.device)
        if self.fast:
            rules = tagger.rules
            tagger = tagger.with_care(_one_view(tagger))
            tagger.rules = rules
        return answer(
            tagger,
            self.inputs,
            self.out,
            named(self.finding, tagger.findings, "model"),
            doing="tagging",
            each_frame=self.each_frame,
            batch_size=self.batch_size,
            formats=self.formats,
            links=self.links,
            settings=lambda finding: {
                "checkpoint": tagger.checkpoint,
                **tagger.settings(finding),
                "uncertainty": self.uncertainty,
                "hide_and_seek": self.hide_and_seek,
            },
            ask=lambda batch, query: tagger.counterparts(
                batch, query, uncertainty=self.uncertainty, hide_and_seek_share=self.hide_and_seek
            ),
        )


def _one_view(tagger: TagGAN) -> Any:
    from dataclasses import replace

    return replace(tagger.care, flips=False, shifts=())


@dataclass
class Evaluate:
    """Judge a model and its first peers on rows with lesion masks; write figures and an HTML page."""

    model: tyro.conf.Positional[Path]
    """A run folder, or a folder written by save_pretrained."""
    source: tyro.conf.Positional[Path]
    """A prepared store, or a study table, which is then prepared with the model's size and recipe."""
    out: Path = field(kw_only=True)
    """Folder for figures and report.html."""
    split: str = "test"
    """Which rows are judged; the thresholds of the peers come from healthy rows of the split val."""
    judge: Path | None = None
    """Run folder of an independently trained classifier, for the healed rate."""
    ig_steps: int = 16
    """Points of Integrated Gradients."""
    cases: int = 4
    """Cases shown of each kind: best, median, worst."""
    native: bool = True
    """Also judge on the native grid of the image files."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""

    def run(self) -> None:
        from rich.console import Console

        from counterscan.bench.tagging import evaluate_tagger
        from counterscan.classify import load_classifier
        from counterscan.cli.classify import open_or_prepare
        from counterscan.cli.inputs import is_table
        from counterscan.cli.tables import say
        from counterscan.taggan import TagGAN

        use(self.threads, self.device)
        tagger = TagGAN.from_pretrained(self.model, self.device)
        size = tagger.size if is_table(self.source) else None
        store = open_or_prepare(self.source, self.out / "store", size, recipe=tagger.recipe)
        if tagger.size is not None:
            store.check_size(tagger.size, "and the model was trained at")
        judge = load_classifier(self.judge, self.device) if self.judge is not None else None
        run = self.model if (self.model / "metrics.jsonl").is_file() else None
        report = evaluate_tagger(
            tagger,
            store,
            self.out,
            split=self.split,
            judge=judge,
            run=run,
            native=self.native,
            cases=self.cases,
            ig_steps=self.ig_steps,
        )
        Console().print(report.headline().to_rich())
        say(f"report: {report.page}")


@dataclass
class Demo:
    """Make phantom films, train classifier and TagGAN on their labels, judge against first peers, write the page."""

    out: Path = Path("runs/demo")
    """Folder for everything."""
    seed: int = 0
    """Of films, networks and training."""
    workers: int = 2
    """Processes that render, and trainings at once."""

    def run(self) -> None:
        from rich.console import Console

        from counterscan.bench.demo import demo
        from counterscan.cli.tables import say

        report, minutes = demo(self.out, self.seed, self.workers, say)
        Console().print(report.headline().to_rich())
        say(f"report: {report.page} ({minutes:.1f} minutes)")


COMMANDS = {
    "train": Lazy("Train classifier and TagGAN on a prepared store.", _train_command),
    "run": Run,
    "evaluate": Evaluate,
    "demo": Demo,
}
