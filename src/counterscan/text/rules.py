"""Rules as data: the YAML files beside this module, and those a hospital adds.

A file is a mapping of sections (``findings``, ``ignore``, ``structures``, ``states``, ``assertions``, ``modifiers``,
``grammar``), each a list of entries with an ``id`` and ``phrases``. ``remove: [id, ...]`` switches off earlier entries.
Phrases are regular expressions without capturing groups, matched on lower-case text at word boundaries; a blank in a
phrase stands for blanks or hyphens. The comments in the packaged files say what the other keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from counterscan.data.findings import CANONICAL, NO_FINDING, canonical_name
from counterscan.errors import InputError

OTHER = "Other"
STATUSES = ("present", "absent", "uncertain")
EFFECTS = ("doubt", "negated", "uncertain", "dropped", "suggests")
ROLES = ("break", "stop", "verb", "shown", "seen", "and", "or", "place", "relative")
PACKAGED = Path(__file__).parent / "rules"
_FILES = ("findings", "ignore", "structures", "assertions", "modifiers", "grammar")


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One entry of a rule file; what does not apply to its kind keeps its default.

    Attributes:
        kind: the section it stands in, without the plural s ("finding", "ignore", "structure", "state", ...).
        id: unique over all files.
        phrases: regular expressions as written.
        findings: canonical names it speaks of.
        status: what a bare mention means.
        states: of a structure: state -> (status or "none", weak).

    The others are the keys of the file, which its comments explain.
    """

    kind: str
    id: str
    phrases: tuple[str, ...]
    findings: tuple[str, ...] = ()
    status: str = "present"
    subtype: str = ""
    weak: bool = False
    only_absent: bool = False
    sign: bool = False
    unsided: bool = False
    also: tuple[str, ...] = ()
    states: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    state: str = ""
    effect: str = ""
    forward: bool = True
    verbal: bool = False
    role: str = ""
    laterality: str = ""
    anatomy: str = ""
    severity: float = 0.0
    degree: str = ""
    pattern: str = ""
    course: str = ""
    count: int = 0
    size: bool = False
    restricts: bool = False


_TEXT, _FLAG, _NUMBER = (str,), (bool,), (int, float)
_COMMON: dict[str, tuple[type, ...]] = {"id": _TEXT, "phrases": (list,)}
_KEYS: Mapping[str, dict[str, tuple[type, ...]]] = {
    "findings": {
        "finding": _TEXT,
        "findings": (list,),
        "status": _TEXT,
        "subtype": _TEXT,
        "weak": _FLAG,
        "only_absent": _FLAG,
        "sign": _FLAG,
        "unsided": _FLAG,
        "also": (list,),
    },
    "ignore": {},
    "structures": {
        "finding": _TEXT,
        "findings": (list,),
        "states": (dict,),
        "subtype": _TEXT,
        "anatomy": _TEXT,
        "unsided": _FLAG,
    },
    "states": {},
    "assertions": {"effect": _TEXT, "direction": _TEXT, "verbal": _FLAG, "course": _TEXT, "state": _TEXT},
    "modifiers": {
        "laterality": _TEXT,
        "anatomy": _TEXT,
        "severity": _NUMBER,
        "degree": _TEXT,
        "pattern": _TEXT,
        "course": _TEXT,
        "count": (int,),
        "size": _FLAG,
        "restricts": _FLAG,
        "state": _TEXT,
        "verbal": _FLAG,
    },
    "grammar": {"role": _TEXT},
}
_CHOICES = {
    "status": STATUSES,
    "effect": EFFECTS,
    "direction": ("forward", "backward"),
    "role": ROLES,
    "laterality": ("left", "right", "bilateral"),
}
_REQUIRED = {"assertions": ("effect", "direction"), "grammar": ("role",), "structures": ("states",)}


def load_rules(paths: Sequence[str | Path] = ()) -> tuple[Rule, ...]:
    """The packaged rules and those of further files, in order.

    Args:
        paths: YAML files that add entries, or switch off earlier ones with ``remove``.

    Raises:
        InputError: naming file, entry and remedy: not YAML, unknown section, key, finding or state, a phrase that is no
            regular expression, captures or matches nothing, an id used twice, an id to remove that is not there.
    """
    rules = dict(_packaged())
    for path in paths:
        for rule in _read(Path(path), rules):
            rules[rule.id] = rule
        _check_states(Path(path), rules)
    return tuple(rules.values())


def _check_states(path: Path, rules: Mapping[str, Rule]) -> None:
    """Every state that a structure speaks of must be said by some phrase."""
    said = {rule.state for rule in rules.values() if rule.state}
    for rule in rules.values():
        for state in rule.states:
            if state not in said:
                remedy = f"States are {', '.join(sorted(said))}; add others under states"
                where = f"structures entry {rule.id!r}"
                raise InputError(f"no state is called {state!r}", path=path, field=where, remedy=remedy)


@cache
def _packaged() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for name in _FILES:
        for rule in _read(PACKAGED / f"{name}.yaml", rules):
            rules[rule.id] = rule
    return rules


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        InputError: no such file, not YAML, not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", path=path, field="rules") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        remedy = "Quote phrases with single quotes, as in phrases: ['white ?out']"
        raise InputError(f"is not readable YAML ({problem})", path=path, field="rules", remedy=remedy) from None
    if not isinstance(content, dict) or not content:
        raise InputError(
            "holds no sections", path=path, field="rules", remedy=f"Sections are {', '.join(_KEYS)} and remove"
        )
    return content


def _read(path: Path, earlier: dict[str, Rule]) -> list[Rule]:
    """Rules of a file; ``remove`` takes entries out of ``earlier``."""
    content = read_yaml(path)
    removed = content.pop("remove", None) or []
    if not isinstance(removed, list):
        raise InputError("is not a list", path=path, field="remove", remedy="Write remove: [id, ...]")
    for name in removed:
        if name not in earlier:
            raise InputError(f"no rule {name!r} to remove", path=path, field="remove", remedy="Check the id")
        del earlier[name]
    found: list[Rule] = []
    taken = set(earlier)
    for section, entries in content.items():
        if section not in _KEYS:
            remedy = f"Sections are {', '.join(_KEYS)} and remove"
            raise InputError("unknown section", path=path, field=str(section), remedy=remedy)
        if not isinstance(entries, list):
            raise InputError("is not a list of entries", path=path, field=section, remedy="Write - {id: ..., ...}")
        for number, entry in enumerate(entries, 1):
            rule = _rule(path, section, number, entry)
            if rule.id in taken:
                remedy = f"Choose another id, or switch the other one off with remove: [{rule.id}]"
                raise InputError(
                    "this id is used twice", path=path, field=f"{section} entry {rule.id!r}", remedy=remedy
                )
            taken.add(rule.id)
            found.append(rule)
    return found


def _rule(path: Path, section: str, number: int, entry: Any) -> Rule:
    """One entry, checked."""
    where = f"{section} entry {number}"

    def wrong(problem: str, remedy: str) -> InputError:
        return InputError(problem, path=path, field=where, remedy=remedy)

    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"].strip():
        raise wrong("has no id", "Give every entry an id of its own")
    where = f"{section} entry {entry['id']!r}"
    allowed = _COMMON | _KEYS[section]
    for key, value in entry.items():
        if key not in allowed:
            raise wrong(f"unknown key {key!r}", f"Keys are {', '.join(allowed)}")
        right = isinstance(value, allowed[key]) and not (isinstance(value, bool) and bool not in allowed[key])
        if not right or (key in _CHOICES and value not in _CHOICES[key]):
            meant = _CHOICES.get(key, [kind.__name__ for kind in allowed[key]])
            raise wrong(f"{key} is {value!r}", f"It must be {' or '.join(meant)}")
    for key in _REQUIRED.get(section, ()):
        if key not in entry:
            raise wrong(f"has no {key}", f"Add {key}: ...")
    _check_phrases(entry.get("phrases"), wrong)
    values = {key: value for key, value in entry.items() if key not in ("finding", "findings", "direction", "states")}
    values["phrases"] = tuple(entry["phrases"])
    if section in ("findings", "structures"):
        names = entry.get("findings") or [entry.get("finding")]
        values["findings"] = tuple(_finding(name, wrong) for name in names)
    if "also" in entry:
        values["also"] = tuple(_finding(name, wrong) for name in entry["also"])
    if "states" in entry:
        values["states"] = {str(name): _state(str(meaning), wrong) for name, meaning in entry["states"].items()}
    if section == "states":
        values["state"] = entry["id"]
    if entry.get("direction") == "backward":
        values["forward"] = False
    kind = section if section in ("ignore", "grammar") else section.removesuffix("s")
    return Rule(kind=kind, **values)


def _finding(name: Any, wrong: Any) -> str:
    known = canonical_name(name) if isinstance(name, str) else ""
    if (known not in CANONICAL and known != OTHER) or known == NO_FINDING:
        listed = ", ".join(n for n in CANONICAL if n != NO_FINDING)
        raise wrong(f"unknown finding {name!r}", f"Findings are {listed}, {OTHER}")
    return known


def _state(meaning: str, wrong: Any) -> tuple[str, bool]:
    weak = meaning.startswith("weak ")
    status = meaning.removeprefix("weak ")
    if status not in (*STATUSES, "none"):
        raise wrong(f"a state means {meaning!r}", "It must be present, absent, uncertain or none, or weak before these")
    return status, weak


def _check_phrases(phrases: Any, wrong: Any) -> None:
    if not isinstance(phrases, list) or not phrases or not all(isinstance(p, str) and p for p in phrases):
        raise wrong("has no phrases", "Give a list of regular expressions, as in phrases: ['effusions?']")
    for phrase in phrases:
        if re.search(r"(?<!\\)[A-Z]", phrase):
            raise wrong(f"{phrase!r} has capitals", "Text is in lower case when it is matched; write it so")
        try:
            compiled = re.compile(f"(?:{spaced(phrase)})")
        except (re.error, RecursionError, OverflowError) as error:
            raise wrong(
                f"{phrase!r} is no regular expression ({error})", "Mend it, or escape with a backslash"
            ) from None
        if compiled.groups:
            raise wrong(f"{phrase!r} captures a group", "Write (?:...) instead of (...)")
        if compiled.match(""):
            raise wrong(f"{phrase!r} matches nothing at all", "Some letter must be required")


def spaced(phrase: str) -> str:
    """A phrase as it is compiled: its blanks match runs of blanks and hyphens (a blank before ``*`` stays one)."""
    return re.sub(r" (?![*+{])(\??)", lambda m: "[ -]?" if m[1] else "[ -]+", phrase)
