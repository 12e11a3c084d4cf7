"""A run folder to its system, ready to answer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from counterscan.counterpart import System
from counterscan.errors import InputError, line_of
from counterscan.files import read_json, write_json
from counterscan.inputs import check_device

if TYPE_CHECKING:
    from torch import nn

    from counterscan.classify import AdapterConfig
    from counterscan.medxgan import MedXGAN

RECORD = "classifier.json"
_SETTINGS = {"taggan": "taggan.json", "medxgan": "medxgan.json"}


def load_system(folder: str | Path, device: str = "cpu") -> System:
    """Load whatever a folder holds.

    Args:
        folder: a run folder, whose ``config.yaml`` says its kind, or one written by ``save_pretrained``.
        device: where to compute.

    Raises:
        InputError: no run there, an unknown kind, or a damaged one.
    """
    folder = Path(folder)
    kind = _kind(folder)
    if kind == "taggan":
        from counterscan.taggan import TagGAN

        return TagGAN.from_pretrained(folder, device)
    if kind == "medxgan":
        return load_explainer(folder, device)
    raise InputError(
        f"{kind!r} is no system that answers with counterparts",
        path=folder / "config.yaml",
        field="system.kind",
        remedy=f"Systems are: {', '.join(_SETTINGS)}",
    )


def _kind(folder: Path) -> Any:
    path = folder / "config.yaml"
    if not path.is_file():
        for kind, settings in _SETTINGS.items():
            if (folder / settings).is_file():
                return kind
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["system"]["kind"]
    except FileNotFoundError:
        raise InputError(
            "no such file", path=path, remedy="Name a run folder, or one written by save_pretrained"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise InputError("does not say which system it is of", path=path, field="system.kind") from None


@dataclasses.dataclass(frozen=True)
class ClassifierRecord:
    """How the classifier of a run was named, kept in the run folder's ``classifier.json``.

    Loading one of the form ``module:function`` runs that function, as naming it on a command line does: do not load run
    folders of people whose programs you would not run.

    Attributes:
        spec: see ``classify.load_external``; paths are absolute.
        findings: names of its outputs.
        adapter: values of ``AdapterConfig``.
        digest: of its weights; "" when unknown.
        folder: the current folder when it was named; "" where that does not matter.
        kept: whether the model folder holds a copy, as of the project's own classifiers.
    """

    spec: str
    findings: tuple[str, ...]
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""
    folder: str = ""
    kept: bool = False

    @classmethod
    def of(cls, classifier: nn.Module, spec: str, adapter: AdapterConfig) -> ClassifierRecord:
        """What to remember of a classifier that ``load_external(spec, ..., adapter)`` has just given."""
        from counterscan.nets.cnn import Classifier

        contract: Any = classifier
        path = Path(spec).expanduser()
        found = path.exists()
        return cls(
            spec=str(path.resolve()) if found else spec,
            findings=tuple(contract.findings),
            adapter=dataclasses.asdict(adapter),
            digest=contract.digest,
            folder="" if found else os.getcwd(),
            kept=isinstance(classifier, Classifier),
        )

    @classmethod
    def read(cls, folder: str | Path) -> ClassifierRecord | None:
        """The record of a run folder or of the model folder in it; None when there is none.

        Raises:
            InputError: it is damaged.
        """
        folder = Path(folder).resolve()
        places = [folder, folder.parent] if folder.name == "model" else [folder]
        path = next((place / RECORD for place in places if (place / RECORD).is_file()), None)
        if path is None:
            return None
        try:
            values = read_json(path)
            return cls(**{**values, "findings": tuple(values["findings"])})
        except (KeyError, TypeError):
            raise InputError("does not name a classifier", path=path, remedy="Restore it from where it came") from None

    def write(self, folder: str | Path) -> None:
        """Write ``classifier.json``."""
        write_json(Path(folder) / RECORD, dataclasses.asdict(self))

    def load(self, device: str = "cpu") -> nn.Module:
        """The classifier again, found from where it was named.

        Raises:
            InputError: see ``classify.load_external``.
        """
        from counterscan.classify import AdapterConfig, load_external

        try:
            config = AdapterConfig(**self.adapter)
        except TypeError:
            raise InputError("holds unknown settings", field="adapter", remedy="Load it as it was trained") from None
        named_in = Path(self.folder) if self.folder else None
        # Also for what the function itself opens, such as weights beside its module.
        there = contextlib.chdir(named_in) if named_in is not None and named_in.is_dir() else contextlib.nullcontext()
        with there:
            return load_external(self.spec, self.findings, config, device)


def load_explainer(
    folder: str | Path, device: str = "cpu", *, classifier: str | None = None, adapter: Mapping[str, Any] | None = None
) -> MedXGAN:
    """An explainer with the classifier it explains: the copy kept with the model, or the one that the run recorded.

    Args:
        folder: a run folder of ``counterscan explain train``, or the model folder in it.
        device: where to compute.
        classifier: where that classifier is now, as in ``classify.load_external``; default: as recorded.
        adapter: settings of ``classify.AdapterConfig`` in place of those that are recorded, by name.

    Raises:
        InputError: no explainer is there, or its classifier is missing, another one, or fails on images.
    """
    from counterscan.medxgan import MedXGAN

    record = ClassifierRecord.read(folder)
    check_device(device)
    if classifier is None and not adapter and (record is None or record.kept):
        return MedXGAN.from_pretrained(folder, device=device)
    if classifier is None and record is None:
        raise InputError("nothing says which classifier to adapt", path=folder, field="classifier", remedy="Name it")
    if record is None:
        record = ClassifierRecord("", _findings(Path(folder)))
    if classifier is not None:
        record = dataclasses.replace(record, spec=classifier, folder="")
    if adapter:
        record = dataclasses.replace(record, adapter={**record.adapter, **adapter})
    try:
        given = record.load(device)
    except InputError as error:
        if classifier is not None or adapter:
            raise
        raise InputError(
            f"the classifier cannot be loaded as recorded ({error})",
            path=Path(folder),
            field="classifier",
            remedy="Say where it is now, as in --classifier SPEC",
        ) from error
    explainer = MedXGAN.from_pretrained(folder, given, device)
    _try(explainer)
    return explainer


def _findings(folder: Path) -> tuple[str, ...]:
    name = _SETTINGS["medxgan"]
    path = next((f / name for f in (folder, folder / "model") if (f / name).is_file()), folder / name)
    return tuple(read_json(path)["findings"])


def _try(explainer: MedXGAN) -> None:
    """One grey image, so that a classifier which is adapted wrongly fails here and not in the middle of the work."""
    import torch

    if explainer.size is None:
        return
    grey = torch.zeros(1, 1, explainer.size, explainer.size, device=explainer.device)
    try:
        with torch.no_grad():
            explainer.classifier(grey)
    except InputError:
        raise
    except Exception as error:
        said = line_of(error, -1)  # above it TorchScript prints its code
        raise InputError(
            f"the classifier fails on {explainer.size} px images ({said})",
            field="classifier",
            remedy="Give the same adapter settings as in training",
        ) from error
