"""What to ask a text-image model about a finding: banks of phrases that say it is there, that it is not, or that all is
well. Each class has its own negatives: "no No Finding" says nothing, which is how CheXzero's class of that name came to
an AUC of .07. Averaging over products of degree, site and name follows MedCLIP (Wang et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from counterscan.data.findings import canonical_name
from counterscan.errors import InputError

CAP = 24
_FIELDS = {"names", "degrees", "sites", "negatives"}
_SHIPPED = Path(__file__).with_name("prompts.yaml")


@dataclass(frozen=True)
class Prompts:
    """What is said of one finding.

    Attributes:
        finding: canonical name.
        positives: phrases that say it is there.
        negatives: phrases that say it is not.
        normal: phrases that say all is well.
    """

    finding: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    normal: tuple[str, ...]


class PromptBank:
    """Prompts per finding.

    Args:
        entries: finding -> "names", and if wanted "degrees", "sites", "negatives".
        normal: phrases that say all is well.
        cap: most positives of a finding.

    Raises:
        InputError: an entry without names, an unknown key, one phrase where a list is wanted, or no phrase for a normal
            image.
    """

    def __init__(
        self, entries: Mapping[str, Mapping[str, Sequence[str]]], normal: Sequence[str], cap: int = CAP
    ) -> None:
        if cap < 1:
            raise InputError("must be at least 1", field="cap")
        if not normal:
            raise InputError("is empty", field="normal", remedy="Give phrases such as 'no finding'")
        if not isinstance(entries, Mapping):
            raise InputError("names no findings", field="findings", remedy="Write an entry for each; see prompts.yaml")
        self.normal, self.cap = tuple(_listed(normal, "normal")), cap
        self._entries = {canonical_name(name): _checked(name, entry) for name, entry in entries.items()}

    @classmethod
    def read(cls, path: str | Path | None = None, cap: int = CAP) -> PromptBank:
        """A bank in YAML: ``normal`` and ``findings``, as in the shipped ``prompts.yaml``, which is the default.

        Raises:
            InputError: missing, or not of that form.
        """
        source = Path(path) if path is not None else _SHIPPED
        try:
            found = yaml.safe_load(source.read_text(encoding="utf-8"))
            entries, normal = found["findings"], found["normal"]
        except FileNotFoundError:
            raise InputError("no such file", path=source) from None
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            raise InputError(
                "is no prompt bank", path=source, remedy="Write YAML with 'normal' and 'findings' like prompts.yaml"
            ) from None
        try:
            return cls(entries, normal, cap)
        except InputError as error:
            raise InputError(error.problem, path=source, field=error.field, remedy=error.remedy) from None

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings that have an entry."""
        return tuple(self._entries)

    def of(self, finding: str, model: Any = None) -> Prompts:
        """The prompts of a finding; one without an entry is asked about by its name.

        Args:
            finding: by any name it is known by.
            model: leave out prompts with words that it cannot know (``model.unfamiliar``); where that leaves no
                negative, "normal" phrases stand in.

        Raises:
            InputError: the model knows none of the prompts.
        """
        name = canonical_name(finding)
        entry = self._entries.get(name) or {"names": [name.lower()], "negatives": [f"no {name.lower()}"]}
        options = [["", *entry.get(key, ())] for key in ("degrees", "sites")]
        phrases = [" ".join(filter(None, words)) for words in product(*options, entry["names"])]
        positives = spread_out(_known(phrases, model), self.cap)
        normal = _known(self.normal, model)
        negatives = _known(entry.get("negatives", ()), model) or normal
        if not positives or not negatives:
            raise InputError(
                f"the model knows the words of no {'positive' if not positives else 'negative'} prompt",
                field=f"finding {name!r}",
                remedy="Train it on reports that speak of the finding, or give a prompt bank in the reports' words",
            )
        return Prompts(name, tuple(positives), tuple(negatives), tuple(normal or negatives))


def spread_out(phrases: Sequence[str], most: int) -> list[str]:
    """At most so many of the distinct phrases, in their order, from all over the product.

    They are taken in steps of the golden section, which fall into step with no degree, site or name.
    """
    distinct = list(dict.fromkeys(phrases))
    count = len(distinct)
    if count <= most:
        return distinct
    stride = round(count * 0.618)
    while math.gcd(stride, count) > 1:
        stride += 1
    return [distinct[k] for k in sorted(k * stride % count for k in range(most))]


def _known(phrases: Sequence[str], model: Any) -> list[str]:
    unfamiliar = getattr(model, "unfamiliar", None)
    return [phrase for phrase in phrases if unfamiliar is None or not unfamiliar(phrase)]


def _checked(name: str, entry: Any) -> dict[str, list[str]]:
    if not isinstance(entry, Mapping) or set(entry) - _FIELDS or not entry.get("names"):
        raise InputError(
            f"must hold 'names' and may hold {', '.join(sorted(_FIELDS - {'names'}))}",
            field=f"prompts of {name!r}",
            remedy="See prompts.yaml",
        )
    return {key: _listed(values, f"prompts of {name!r}: {key}") for key, values in entry.items()}


def _listed(values: Any, field: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError("is no list", field=field, remedy=f"Write [{values}]")
    return [str(value) for value in values]
