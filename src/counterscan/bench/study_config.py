"""The frozen protocol of an augmentation study: what is compared with what, written down before anything is trained.

Everything that could be chosen after a look at the test set is a field here, and goes to ``study.yaml`` with a digest
of itself and of the splits. A study goes on only with the protocol that lies in its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

import counterscan
from counterscan.data.findings import canonical_name
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.tbsmgan.gate import GateConfig
from counterscan.text.views import VIEWS

Profile = Literal["quick", "paper", "full"]
Content = Literal[
    "real",
    "classic",
    "duplicate",
    "plain",
    "swap",
    "text+",
    "text-",
    "both",
    "ensemble",
    "random",
    "naive",
    "graft",
    "joint",
    "given",
]
Mode = Literal["mixed", "only", "pretrain"]
CONTENTS: tuple[Content, ...] = get_args(Content)
MODES: tuple[Mode, ...] = get_args(Mode)
PLAIN: tuple[Content, ...] = ("real", "classic")  # contents without anything added
UNMADE: tuple[Content, ...] = (*PLAIN, "duplicate", "graft", "given")  # contents that need no generator
GRAFTED: tuple[Content, ...] = ("graft", "joint")  # contents with lesions of other images
CONTROLS = ("shuffled", "inverted", "none")  # views that teach nothing, or the wrong thing
SPLITS = ("train", "val", "test")
_FILE = "study.yaml"
# The paper's, with controls it lacks.
_PAPER = (
    "duplicate",
    "plain",
    "swap",
    "text+",
    "text-",
    "both",
    "random",
    "plain:only",
    "both:only",
    "both:pretrain",
)
# ours - theirs, by arm; the first two are what the method is judged by.
_PAIRS = (
    ("both", "classic"),
    ("both", "duplicate"),
    ("both", "plain"),
    ("both", "random"),
    ("both:pretrain", "classic"),
    ("both:pretrain", "duplicate"),
    ("both:pretrain", "plain"),
    ("plain", "duplicate"),
    ("swap", "duplicate"),
    ("text+", "duplicate"),
    ("joint", "classic"),
    ("joint", "duplicate"),
    ("joint", "plain"),
    ("joint", "both"),
    ("joint", "graft"),
    ("graft", "classic"),
    ("graft", "duplicate"),
    ("graft", "plain"),
    ("graft", "both"),
    ("given", "classic"),
    ("given", "duplicate"),
    ("given", "both"),
    ("given", "joint"),
    ("given", "graft"),
    ("classic", "real"),
)


@dataclass(frozen=True)
class StudyConfig:
    """What a study does; the defaults are the profile ``quick``, others are ``paper`` and ``full``.

    Attributes:
        arms: "content" or "content:mode", of ``CONTENTS`` and ``MODES``; see ``bench.study_arms``.
        views: texts that the text-image model is trained on, one model each; all arms use the first, those whose images
            are made by text are repeated for the others.
        shares: parts of each batch that are synthetic; all arms use the first, mixed ones are repeated for the others.
        pairs: (ours, theirs) whose difference is tested, by arm, adjusted together; those of arms that are not trained
            are passed over.
        findings: which are learned and steered; all of the store when empty.
        blank: what an unmentioned finding is: absent ("zero"), or unknown ("ignore"). Uncertain labels are unknown.
        synthetic: images that each content is to have, for each sign.
        rarity: synthetic images of a finding are wanted in proportion to its prevalence ** -rarity.
        weight: of a synthetic image in the loss; a real one has 1.
        soft: the edited finding's target is what the verifiers give it, within [.05, .95], of a graft .95; else 0 or 1.
        others: of the findings that were not edited, "source" keeps the labels of what was edited, "agreed" makes those
            unknown that the verifiers contradict.
        seeds: runs of each arm; run r has the classifiers' seed r and the generator r mod ``generators``.
        generators: how many, each with a seed of its own.
        steps, batch_size, widths: of each arm's classifier, the same for all.
        flip: share of mirrored views in training arms and verifiers; 0 where sides matter, as in chests.
        auc_steps: steps of the AUC-margin stage that follows (DeepAUC); 0 for none.
        pretrain: of the arms "pretrain", the share of the steps that is spent on synthetic images first.
        preset, gan_steps, gan_batch: of the generator; steps 0 takes the preset's own.
        clip_steps, clip_batch: of each text-image model.
        verifiers, verifier_steps: classifiers that judge edits and watch the generator.
        method: how text moves a latent: "style", "learned", or for each body the better of both, by the gate.
        bodies: what is edited: "real", training images, which keep all of their texture but for the edit; or "new",
            samples of the generator.
        encoder_steps: of each generator's encoder, which finds latents of real images.
        tagger_steps, filler_steps: of the TagGAN whose lesions are put into other images, and of what says how their
            places look without them.
        tries: at most so many edits per image that is wanted.
        least: share of edits that must pass the gate on some bodies, or the finding is left alone: of edits that mostly
            fail, the verifiers' errors choose those that pass: hearts that were to grow passed in 31 % and were painted
            over. Of grafts: share in which the verifiers see the finding.
        psi: truncation of new bodies that are edited, and of plain samples.
        force: also steer to findings that the generator has not learnt or the text-image model hardly knows, trusting
            the gate.
        sure: of the gate: probability that every verifier must give what was asked for. Lower than the gate's own,
            because targets are soft: an edit of which the verifiers are half sure is labelled so.
        off: of the gate: mean change of the other findings that is too much.
        resamples: of the bootstrap over patients.
        cards: make a quality card of each synthetic set.
        seed: of everything else.

    Raises:
        InputError: a value is out of range; names the field.
    """

    arms: tuple[str, ...] = ("classic", "duplicate", "plain", "both", *GRAFTED)
    views: tuple[str, ...] = ("rules-v2",)
    shares: tuple[float, ...] = (0.5,)
    pairs: tuple[tuple[str, str], ...] = _PAIRS
    findings: tuple[str, ...] = ()
    blank: Literal["zero", "ignore"] = "zero"
    synthetic: int = 1200
    rarity: float = 0.5
    weight: float = 1.0
    soft: bool = True
    others: Literal["source", "agreed"] = "agreed"
    seeds: int = 5
    generators: int = 1
    steps: int = 1200
    batch_size: int = 32
    widths: tuple[int, ...] = (8, 16, 32, 64)
    flip: float = 0.0
    auc_steps: int = 0
    pretrain: float = 0.3
    preset: str = "cxr64-cpu"
    gan_steps: int = 3000
    gan_batch: int = 32
    clip_steps: int = 1200
    clip_batch: int = 96
    verifiers: int = 2
    verifier_steps: int = 500
    method: Literal["style", "learned", "best"] = "best"
    bodies: Literal["real", "new"] = "real"
    encoder_steps: int = 600
    tagger_steps: int = 600
    filler_steps: int = 600
    tries: float = 8.0
    least: float = 0.5
    psi: float = 0.7
    force: bool = False
    sure: float = 0.5
    off: float = 0.1
    resamples: int = 1000
    cards: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("arms", "views", "shares", "findings", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "findings", tuple(map(canonical_name, self.findings)))
        for arm in self.arms:
            content, _, mode = arm.partition(":")
            if content not in CONTENTS or (mode or "mixed") not in MODES or (content in PLAIN and mode):
                remedy = f"Name contents of {', '.join(CONTENTS)}, and a mode as in both:pretrain"
                raise InputError(f"no arm {arm!r}", field="arms", remedy=remedy)
        if len(set(self.arms)) != len(self.arms) or not self.arms:
            raise InputError("must be different ones, at least one", field="arms")
        object.__setattr__(self, "pairs", tuple((ours, theirs) for ours, theirs in self.pairs))
        for view in self.views:
            if view not in VIEWS:
                raise InputError(f"unknown text view {view!r}", field="views", remedy=f"There are: {', '.join(VIEWS)}")
        if not self.views or not self.shares or min(self.shares) <= 0 or max(self.shares) >= 1:
            raise InputError("give at least one view, and shares between 0 and 1", field="shares")
        counts = ("synthetic", "seeds", "generators", "steps", "verifiers", "verifier_steps", "clip_steps")
        for name in (*counts, "encoder_steps", "tagger_steps", "filler_steps"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        GateConfig(sure=self.sure, off=self.off)  # refuses what the gate would, before hours are spent
        if self.auc_steps < 0 or self.rarity < 0:
            raise InputError("must not be negative", field="auc_steps" if self.auc_steps < 0 else "rarity")
        for name in ("weight", "psi", "pretrain"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError("must be above 0 and at most 1", field=name)
        if not 0 <= self.flip <= 1:
            raise InputError("must be a probability", field="flip")
        if not 0 <= self.least < 1:
            raise InputError("must be at least 0 and below 1", field="least")
        if self.resamples < 2 or self.batch_size < 4 or self.tries < 1:
            raise InputError("resamples, batch_size and tries must be at least 2, 4 and 1", field="batch_size")
        for name, words in (
            ("others", ("source", "agreed")),
            ("method", ("style", "learned", "best")),
            ("bodies", ("real", "new")),
            ("blank", ("zero", "ignore")),
        ):
            if getattr(self, name) not in words:
                raise InputError(f"{getattr(self, name)!r} must be {' or '.join(words)}", field=name)

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """Pairs of arms that are trained."""
        return tuple((ours, theirs) for ours, theirs in self.pairs if {ours, theirs} <= set(self.arms))


def quick(**changes: Any) -> StudyConfig:
    """Do edits by text and grafts help? About 80 CPU minutes at 64 px: one view, one share, five seeds."""
    return replace(StudyConfig(), **changes)


def paper(**changes: Any) -> StudyConfig:
    """The arms of the paper's first table and their controls, a quarter of each batch synthetic at half weight, five
    short runs of each: about an hour of CPU time at 64 px."""
    arms = (*PLAIN, *_PAPER)
    short = StudyConfig(arms=arms, shares=(0.25,), synthetic=600, weight=0.5, steps=600, gan_steps=5000)
    return replace(short, **changes)


def full(**changes: Any) -> StudyConfig:
    """Every arm, view and share, three generators, more seeds and steps: more than three days of CPU time at 64 px."""
    wide = StudyConfig(
        arms=(
            *PLAIN,
            *_PAPER,
            *GRAFTED,
            "ensemble",
            "naive",
            "swap:only",
            "text+:only",
            "text-:only",
            "random:only",
            "naive:only",
            "ensemble:only",
            "plain:pretrain",
        ),
        pairs=(*_PAIRS, *(("ensemble", name) for name in ("classic", "duplicate", "plain", "random"))),
        views=("rules-v2", *(name for name in VIEWS if name != "rules-v2")),
        shares=(0.5, 0.25),
        synthetic=2000,
        seeds=9,
        generators=3,
        steps=1500,
        widths=(16, 32, 64, 96),
        auc_steps=200,
        gan_steps=12_000,
        encoder_steps=2000,
        clip_steps=1500,
        verifier_steps=1500,
        resamples=2000,
        cards=True,
    )
    return replace(wide, **changes)


PROFILES = {"quick": quick, "paper": paper, "full": full}


def check_store(store: PreparedStore, config: StudyConfig) -> tuple[str, ...]:
    """The findings of a study, each with both outcomes in each split; no patient is in two splits.

    Raises:
        InputError: a split is empty, a patient is in two, or a finding has one outcome only somewhere.
    """
    parts = store.parts(*SPLITS)
    findings = config.findings or store.findings
    if not findings:
        raise InputError("the images have no finding", field="findings", remedy="Give a table with finding columns")
    for name in findings:
        if name not in store.findings:
            remedy = f"There are: {', '.join(store.findings)}"
            raise InputError("the images have no such label", field=f"finding {name!r}", remedy=remedy)
        for split, part in zip(SPLITS, parts, strict=True):
            values = part.table.targets("ignore", config.blank)[:, store.findings.index(name)]
            present, absent = int((values == 1).sum()), int((values == 0).sum())
            if not present or not absent:
                raise InputError(
                    f"the split {split!r} holds {present} images with it and {absent} without; nothing can be learned "
                    "or measured",
                    field=f"finding {name!r}",
                    remedy="Add such images, split again by patient, or leave the finding out: --findings names the "
                    "others",
                )
    return findings


def splits_digest(store: PreparedStore) -> str:
    """SHA-256 of who is in which split, and of the images' names; names nobody."""
    frame = store.table.frame
    rows = sorted(
        zip(frame["split"].astype(str), frame["patient"].astype(str), frame["image"].astype(str), strict=True)
    )
    return hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()


def protocol(config: StudyConfig, store: PreparedStore, models: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is written: settings, data and splits as plain values, with a digest of all of it.

    Args:
        config, store: the study's.
        models: what else its models depend on: settings that no profile has, digests of those made elsewhere.
    """
    findings = check_store(store, config)
    labels = store.table.targets("ignore", config.blank)[:, [store.findings.index(name) for name in findings]]
    data: dict[str, Any] = {
        "size": store.size,
        "content": store.content,
        "splits": splits_digest(store),
        "findings": list(findings),
        "labels": hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest(),
        "images": {name: int((store.split == name).sum()) for name in SPLITS},
        "positives": {
            split: {name: int((labels[store.split == split, k] == 1).sum()) for k, name in enumerate(findings)}
            for split in SPLITS
        },
    }
    told: dict[str, Any] = {
        "version": counterscan.__version__,
        "study": {**asdict(config), "pairs": config.compared},
        "data": data,
    }
    told["models"] = dict(models or {})
    told = json.loads(json.dumps(told, default=str))
    return {**told, "digest": _digest(told)}


def freeze(
    config: StudyConfig, store: PreparedStore, folder: Path, models: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the protocol, or make sure that it is the one in the folder.

    Returns:
        The protocol.

    Raises:
        InputError: the folder holds another protocol, or one that was edited; or see ``check_store``.
    """
    ours, path = protocol(config, store, models), folder / _FILE
    if not path.is_file():
        write_text(path, yaml.safe_dump(ours, sort_keys=False, allow_unicode=True))
        return ours
    theirs = read_protocol(folder)
    if theirs["digest"] != ours["digest"]:
        raise InputError(
            f"the study in this folder has another protocol: {_differences(theirs, ours)}",
            path=path,
            remedy="Go on with the same settings and data, or choose another folder; a protocol is not changed after "
            "its study has begun",
        )
    return theirs


def read_protocol(folder: Path) -> dict[str, Any]:
    """The protocol of a folder.

    Raises:
        InputError: there is none, or it is not what was written.
    """
    path = folder / _FILE
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        digest = found.pop("digest")
    except FileNotFoundError:
        raise InputError("no study is here", path=path, remedy="Start one: counterscan augment study") from None
    except (yaml.YAMLError, KeyError, AttributeError, UnicodeDecodeError):
        raise InputError("is no protocol", path=path, remedy="Restore it, or choose another folder") from None
    if _digest(found) != digest:
        raise InputError(
            "was edited after it was frozen",
            path=path,
            remedy="Restore it, or choose another folder for a study with other settings",
        )
    return {**found, "digest": digest}


def config_of(told: dict[str, Any]) -> StudyConfig:
    """The settings in a protocol."""
    known = {option.name for option in fields(StudyConfig)}
    values = {name: value for name, value in told["study"].items() if name in known}
    values["pairs"] = tuple((ours, theirs) for ours, theirs in values["pairs"])
    return StudyConfig(**values)


def _digest(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    found = [
        f"{part}.{name}" if part else name
        for part in ("study", "data", "models", "")
        for name in ({**theirs.get(part, {}), **ours.get(part, {})} if part else ("version",))
        if (theirs.get(part, {}) if part else theirs).get(name) != (ours.get(part, {}) if part else ours).get(name)
    ]
    return ", ".join(found) + (" differ" if len(found) > 1 else " differs")
