"""``counterscan classify``: train the classifier that the other verbs share, and judge it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterscan.cli.inputs import is_table
from counterscan.cli.machine import use
from counterscan.cli.main import Lazy
from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore

_SOURCE = "A folder made by `counterscan data prepare`, or a study table (CSV, Parquet), which is then prepared first."

_OBJECTIVE = (
    "bce: cross-entropy. auc: cross-entropy, then the AUC-margin loss with PESG from those weights; see --auc-steps, "
    "--auc-rate and the flags after them."
)


def open_or_prepare(
    source: Path, folder: Path, size: int | None, workers: int = 2, recipe: IntensityRecipe | None = None
) -> PreparedStore:
    """A prepared store, or a study table prepared into ``folder`` (once; again only what changed).

    Raises:
        InputError: a table without ``size``, or a store of another size than asked for.
    """
    from counterscan.data.prepare import prepare
    from counterscan.data.store import PreparedStore
    from counterscan.data.table import StudyTable

    if not is_table(source):
        store = PreparedStore.open(source)
        if size is not None and store.size != size:
            raise InputError(f"is prepared at {store.size} px, not {size}", path=source, field="--size")
        return store
    if size is None:
        remedy = f"Say --size 128, say, to prepare its images into {folder}"
        raise InputError("is a table, and no size was given", path=source, field="--size", remedy=remedy)
    report = prepare(StudyTable.read(source), folder, size=size, recipe=recipe, workers=workers)
    if report.bad:
        from counterscan.cli.tables import show_bad_file

        show_bad_file(folder / "bad.csv", report.bad, report.rows)
    return PreparedStore.open(folder)


def _train_command() -> type:
    """Its flags are the fields of ClassifyConfig and AUCConfig, which take torch to import."""
    from counterscan.classify import ClassifyConfig
    from counterscan.classify.deepauc import AUCConfig

    options: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("source", Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help=_SOURCE, metavar="STORE")]),
        ("out", Annotated[Path, tyro.conf.arg(help="Run folder; the same command goes on with an interrupted run.")]),
        ("size", Annotated[int | None, tyro.conf.arg(help="Side in pixels to prepare a table at.")], None),
        ("workers", Annotated[int, tyro.conf.arg(help="Decoding processes when a table is prepared.")], 2),
        ("strong", Annotated[bool, tyro.conf.arg(help="Strong views, for large networks (keeps --flip).")], False),
        ("objective", Annotated[Literal["bce", "auc"], tyro.conf.arg(help=_OBJECTIVE)], "bce"),
        ("config", ClassifyConfig, field(default_factory=ClassifyConfig)),
        ("auc", AUCConfig, field(default_factory=AUCConfig)),
    ]

    def run(self: Any) -> None:
        from counterscan.classify import train_classifier
        from counterscan.classify.deepauc import DeepAUCConfig, fit
        from counterscan.cli.tables import say
        from counterscan.data.augment import AugmentConfig

        config = self.config
        if self.objective == "bce" and self.auc != AUCConfig():
            changed = [f.name for f in fields(self.auc) if getattr(self.auc, f.name) != getattr(AUCConfig(), f.name)]
            option = "--" + changed[0].replace("_", "-")
            raise InputError("is of no use with --objective bce", field=option, remedy="Say --objective auc as well")
        if self.strong:
            config = replace(config, augment=AugmentConfig.strong(flip=config.augment.flip))
        store = open_or_prepare(self.source, self.out / "store", self.size, self.workers)
        if self.objective == "auc":
            classifier = fit(store, self.out, DeepAUCConfig(config, self.auc))
        else:
            classifier = train_classifier(store, self.out, config)
        say(f"{self.out}: {', '.join(classifier.findings)}; checkpoint {classifier.digest[:12]}")

    made = make_dataclass("Train", options, namespace={"run": run})
    made.__doc__ = "Train a classifier on the split train, calibrate it on val."
    return made


@dataclass
class Evaluate:
    """Discrimination and calibration on one split, with 95 % intervals over patients; writes metrics.json."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, or a folder written by save_pretrained."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """A folder made by `counterscan data prepare`, or a study table, which is then prepared as the model needs it."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which rows."""
    out: Path | None = None
    """Folder for metrics.json, and for the store if a table is given; default: the model's."""
    blank: Literal["zero", "ignore"] | None = None
    """Whether an unmentioned finding counts as absent or is skipped; default: as in training."""
    resamples: int = 2000
    """Bootstrap draws of patients."""
    threads: int = 1
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""

    def run(self) -> None:
        from counterscan.classify import evaluate_classifier, load_classifier
        from counterscan.cli.tables import say
        from counterscan.data.intensity import IntensityRecipe
        from counterscan.files import write_json

        use(self.threads, self.device)
        out = self.out or self.model
        classifier = load_classifier(self.model, self.device)
        known = classifier.trained_on
        recipe = IntensityRecipe.from_dict(known["recipe"]) if known.get("recipe") else None
        # Not where training prepared its own table, which may be another one.
        store = open_or_prepare(self.source, out / "store_evaluated", known.get("size"), recipe=recipe)
        rows = None if self.split == "all" else store.split == self.split
        found = evaluate_classifier(classifier, store, rows, blank=self.blank, resamples=self.resamples)
        write_json(out / "metrics.json", {"split": self.split, **found})
        _show(found, f"{self.split}: {found['images']:,} images of {found['patients']:,} patients")
        say(f"written to {out / 'metrics.json'}")


def _show(found: dict[str, Any], title: str) -> None:
    """The figures as a table that fits 80 columns, one row per finding."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("finding")
    for name in (
        "with\nwithout",
        "ROC-AUC\n95 %",
        "PR-AUC\n95 %",
        "ECE\nraw",
        "Brier\nraw",
        "sensitivity\nspecificity",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, row in found["findings"].items():
        curves = ("{:.3f}\n{:.3f}-{:.3f}".format(*row[key]) for key in ("roc_auc", "pr_auc"))
        pairs = (("ece", "ece_raw"), ("brier", "brier_raw"), ("sensitivity", "specificity"))
        numbers = (f"{row[above]:.3f}\n{row[below]:.3f}" for above, below in pairs)
        shown.add_row(name, f"{row['present']:,}\n{row['absent']:,}", *curves, *numbers)
    if len(found["findings"]) > 1:
        shown.add_row("mean", "", f"{found['mean_roc_auc']:.3f}", f"{found['mean_pr_auc']:.3f}")
    console = Console()
    console.print(title, highlight=False)
    console.print(shown)


COMMANDS = {
    "train": Lazy("Train a classifier on the split train, calibrate it on val.", _train_command),
    "evaluate": Evaluate,
}
