"""``counterscan data``: from files to a study table, splits and a prepared store."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterscan.cli.main import Lazy
from counterscan.errors import InputError

if TYPE_CHECKING:
    from counterscan.data.table import StudyTable

IMPORTABLE: Mapping[str, str] = {
    "chexpert": "CheXpert: train.csv, valid.csv",
    "mimic_cxr": "MIMIC-CXR-JPG with labels, split and reports",
    "nih_cxr14": "NIH ChestX-ray14 with boxes",
    "tbx11k": "TBX11K tuberculosis, COCO boxes",
    "covid_qu_ex": "COVID-QU-Ex with infection masks",
    "covid_radiography": "COVID-19 Radiography Database",
    "lgg_mri": "LGG-MRI (kaggle_3m), one of its three sequences",
    "busi": "BUSI breast ultrasound",
    "manifest": "a packed set with a manifest.csv",
}


@dataclass
class TableOptions:
    """Where the study table is and how its columns are called."""

    table: tyro.conf.Positional[Path]
    """CSV or Parquet: image, patient, split, one column per finding."""
    column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Rename: <study column>=<column of the file>, as in --column patient=group --column "Brain Tumor=label"."""
    finding: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A column that is a finding although no known set calls it so."""
    root: Path | None = None
    """Folder that relative image paths start from; default: the table's own."""

    def read(self, *, labelled: bool = True) -> StudyTable:
        """The table, validated."""
        from counterscan.data.table import StudyTable

        return StudyTable.read(
            self.table, parse_columns(self.column), findings=self.finding, root=self.root, labelled=labelled
        )


def parse_columns(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("patient=group",)`` to ``{"patient": "group"}``.

    Raises:
        InputError: a pair without "=".
    """
    columns = {}
    for pair in pairs:
        target, separator, source = pair.partition("=")
        if not separator or not target.strip() or not source.strip():
            remedy = "Write --column <study column>=<column of the file>, as in --column patient=group"
            raise InputError(f"{pair!r} is no renaming", field="--column", remedy=remedy)
        columns[target.strip()] = source.strip()
    return columns


@dataclass
class Check(TableOptions):
    """Validate a study table and count what it holds."""

    decode: bool = False
    """Read every image too, and list those that cannot be read (exit code 1 if there are any)."""
    unlabelled: bool = False
    """Do not ask for labels of both classes."""

    def run(self) -> int:
        from counterscan.cli.tables import show_bad, show_table

        table = self.read(labelled=not self.unlabelled)
        table.validate(check_files=not self.decode, labelled=not self.unlabelled, path=self.table)
        show_table(table, str(self.table))
        return show_bad(_unreadable(table), len(table)) if self.decode else 0


def _unreadable(table: StudyTable) -> list[tuple[int, str, str]]:
    """(spreadsheet row, image, reason) of images that cannot be read."""
    from rich.console import Console
    from rich.progress import track

    from counterscan.data.readers import read_image

    bad = []
    for row in track(range(len(table)), "reading", transient=True, console=Console(stderr=True)):
        try:
            read_image(table.image_path(row), frame=table.frame_number(row))
        except Exception as error:  # decoders of broken files raise anything, and this command is there to list it
            bad.append((row + 2, table.frame["image"].iloc[row], " ".join(str(error).split())))
    return bad


@dataclass
class Split(TableOptions):
    """Make splits by patient, balanced over findings."""

    out: Path = field(kw_only=True)
    """The table with its new split column (CSV or Parquet)."""
    train: float = 0.7
    """Share of the patients for training."""
    val: float = 0.1
    """Share that validates."""
    test: float = 0.2
    """Share that tests."""
    folds: int = 0
    """Instead: add a column "fold" 0..k-1, in which each patient is tested; splits are left alone."""
    seed: int = 0
    """Another seed deals another hand."""

    def run(self) -> None:
        from dataclasses import replace

        from counterscan.cli.tables import show_table
        from counterscan.data.splits import folds, split_by_patient

        # The split that is there is about to be replaced, and may well be why this command is run.
        table = self.read(labelled=False) if self.folds else self._read_without_split()
        if self.folds:
            of = {name: k for k, (_, _, test) in enumerate(folds(table, self.folds, self.seed)) for name in test}
            table = replace(table, frame=table.frame.assign(fold=table.frame["patient"].map(of)))
        else:
            table = split_by_patient(table, {"train": self.train, "val": self.val, "test": self.test}, self.seed)
        table.write(self.out)
        show_table(table, str(self.out))

    def _read_without_split(self) -> StudyTable:
        from counterscan.data.table import StudyTable, read_frame

        frame = read_frame(self.table)
        frame = frame.drop(columns=[name for name in frame.columns if str(name).strip().lower() == "split"])
        table = StudyTable.from_frame(
            frame,
            self.root if self.root is not None else self.table.parent,
            columns={k: v for k, v in parse_columns(self.column).items() if k != "split"},
            findings=self.finding,
            path=self.table,
        )
        table.validate(labelled=False, path=self.table)
        return table


@dataclass
class Prepare(TableOptions):
    """Decode a table's images once into a store; go on where an interrupted run stopped."""

    out: Path = field(kw_only=True)
    """Folder of the store."""
    size: int = 128
    """Side of the square grid in pixels; images are letterboxed into it."""
    workers: int = 2
    """Decoding processes."""
    dtype: Literal["uint8", "uint16"] = "uint8"
    """uint16 keeps more than 256 steps of grey."""
    retry_bad: bool = False
    """Try rows again that could not be decoded before."""

    def run(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from counterscan.cli.tables import say, show_bad_file
        from counterscan.data.prepare import prepare

        table = self.read(labelled=False)
        columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task("preparing", total=len(table))
            report = prepare(
                table,
                self.out,
                size=self.size,
                workers=self.workers,
                dtype=self.dtype,
                retry_bad=self.retry_bad,
                progress=lambda done, _: bar.update(task, completed=done),
            )
        say(
            f"{report.out}: {report.good:,} images at {self.size} px ({report.decoded:,} decoded now, "
            f"{report.reused:,} reused, {report.masks:,} with a mask) in {report.seconds:.1f} s"
        )
        show_bad_file(report.out / "bad.csv", report.bad, report.rows)


@dataclass
class Phantom:
    """Render a phantom data set: chest films with known lesions, reports and true healthy twins."""

    out: tyro.conf.Positional[Path]
    """Folder for images, masks, twins and table.csv."""
    count: int = 1000
    """Number of images."""
    size: int = 128
    """Side in pixels."""
    seed: int = 0
    """Images depend on settings, seed and index alone."""
    prevalence: float = 0.15
    """Share of images with each finding."""
    images_per_patient: int = 1
    """Films of each body."""
    uncertain_labels: bool = False
    """Label findings that the report only suspects -1 instead of 1."""
    shortcut: str | None = None
    """A finding that a corner tag goes with: a planted shortcut."""
    workers: int = 2
    """Rendering processes."""

    def run(self) -> None:
        from counterscan.cli.tables import show_table
        from counterscan.data.phantom import PhantomConfig, write_phantom

        config = PhantomConfig(
            size=self.size,
            prevalence=self.prevalence,
            images_per_patient=self.images_per_patient,
            uncertain_labels=self.uncertain_labels,
            shortcut=self.shortcut,
        )
        show_table(write_phantom(self.out, self.count, config, self.seed, workers=self.workers), str(self.out))


def _import_commands() -> dict[str, Lazy]:
    """One command per importer."""
    return {name: Lazy(text, partial(_import_command, name)) for name, text in IMPORTABLE.items()}


def _import_command(name: str) -> type:
    """A command whose options are the importer's keyword arguments."""
    from counterscan.data.importers import IMPORTERS

    function = IMPORTERS[name]
    # eval_str: the importers postpone the evaluation of their annotations.
    parameters = dict(inspect.signature(function, eval_str=True).parameters)
    parameters.pop("root")
    has_derived = parameters.pop("derived", None) is not None
    about = _argument_help(function.__doc__ or "")
    options = [
        (key, Annotated[value.annotation, tyro.conf.arg(help=about.get(key, ""))], field(default=value.default))
        for key, value in parameters.items()
    ]

    def run(self: Any) -> None:
        from counterscan.cli.tables import show_table

        chosen = {key: getattr(self, key) for key in parameters}
        if has_derived:
            chosen["derived"] = self.out.parent / f"{self.out.stem}_files"
        table = function(self.root, **chosen)
        table.write(self.out)
        show_table(table, str(self.out))

    made = make_dataclass(
        f"Import_{name}",
        [
            ("root", Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help=about.get("root", ""))]),
            ("out", Annotated[Path, tyro.conf.arg(help="The study table to write (CSV or Parquet).")]),
            *options,
        ],
        namespace={"run": run},
    )
    made.__doc__ = inspect.getdoc(function)
    return made


def _argument_help(doc: str) -> dict[str, str]:
    """Argument -> text of a docstring's Args section."""
    lines = inspect.cleandoc(doc).split("\n")
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif line.strip() and name:
            found[name] += " " + line.strip()
    return found


COMMANDS = {
    "check": Check,
    "import": Lazy("Make a study table of a published set.", _import_commands),
    "prepare": Prepare,
    "phantom": Phantom,
    "split": Split,
}
