"""What the arms of a study add to real images: each content made once per generator and text view, with its labels.

====================  ====================================================================  =========================
content               images                                                                labels
====================  ====================================================================  =========================
duplicate             real training images again, as many with and without each finding as  their own
                      "joint" has, or "both" or "graft" without it
plain                 samples of the generator, as many                                     the condition
swap                  the same bodies under another condition, through the gate             source, edit as verified
text+                 bodies without a finding moved towards its text, through the gate     source, edit as verified
text-                 bodies with it moved away from its text, through the gate             source, edit as verified
both                  text+ and text-                                                       theirs
ensemble              "both" of all views that are no controls                              theirs
random                placebo: moved as far as text+ in a random direction; the gate asks   source
                      for body, realism and novelty only
naive                 as text+, not judged by anyone                                        the prompt's, as published
graft                 bodies without a finding given a lesion of another image that TagGAN  source, with the lesion's
                      located, if the rest of the body stayed; as many given, by the same
                      means, what lies there in an image without the finding
joint                 "both" and "graft"                                                    theirs
given                 images made elsewhere, all of them                                    their own
====================  ====================================================================  =========================
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from counterscan.bench.study_config import CONTROLS, Content, StudyConfig
from counterscan.bench.study_models import Study, fit_lesions, load_bodies, load_gate, load_generator, load_steering
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json
from counterscan.tbsmgan.acceptance import Tally
from counterscan.tbsmgan.edits import Editor, LabelSwap, Prompt, RandomDirection, parse
from counterscan.tbsmgan.edits.prompt import ReportReader
from counterscan.tbsmgan.export import quantised
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.tbsmgan.grafts import LESION_PATIENT, Grafting
from counterscan.tbsmgan.judgement import CRITERIA, Sign
from counterscan.tbsmgan.steering import Method, Steering
from counterscan.tbsmgan.synthesis import MOST, SOFT_PREFIX, SynthesisConfig, passing, synthesize
from counterscan.text.prompts import PromptBank

TEXTUAL: tuple[Content, ...] = ("text+", "text-", "both", "ensemble", "joint", "random", "naive")  # one for each view
PARTS: dict[Content, tuple[Content, ...]] = {"both": ("text+", "text-"), "joint": ("text+", "text-", "graft")}
UNIONS: tuple[Content, ...] = (*PARTS, "ensemble")  # of others; nothing of their own is made
FIRST: tuple[Content, ...] = ("swap", "text+", "text-")  # the others are counted after them
_ABOUT = "about.json"
_BATCH = 64
_BODY = [CRITERIA.index(name) for name in ("identity", "realism", "new")]


@dataclass(frozen=True)
class Made:
    """Images of one content.

    Attributes:
        images: (N, S, S) uint8.
        targets: (N, C) float32 in [0, 1], NaN for unknown; columns as the study's findings.
        edited: (N,) which finding each was made for, its place among the study's.
        sign: (N,) 1 with it, -1 without, 0 where nothing is known of what it was made for.
        about: how it was made: "refused", "short", "strengths", "rates", "cpu_seconds".
    """

    images: np.ndarray
    targets: np.ndarray
    edited: np.ndarray
    sign: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def counts(self, sign: Sign, findings: int) -> np.ndarray:
        """(C,) images made for each finding."""
        return np.bincount(self.edited[self.sign == sign], minlength=findings)

    def store(self, findings: Sequence[str]) -> PreparedStore:
        """As a store in memory, each image its own patient, hard labels."""
        labels = np.where(np.isnan(self.targets), np.nan, (self.targets > 0.5).astype(np.float32))
        return PreparedStore.from_arrays(self.images, labels=labels, findings=findings, split="train")


def wanted(targets: np.ndarray, findings: Sequence[str], config: StudyConfig) -> dict[str, int]:
    """Images wanted by finding: ``config.synthetic`` in all, more of the rarer ones.

    Args:
        targets: (N, C) of the training images; NaN is unknown.
        findings: C names.
        config: the study's.
    """
    shares = np.nanmean(targets, axis=0) ** -config.rarity
    counts = np.maximum(1, np.rint(config.synthetic * shares / shares.sum())).astype(int)
    return dict(zip(findings, counts.tolist(), strict=True))


def _wanted(study: Study) -> dict[str, int]:
    return wanted(study.targets("train"), study.findings, study.config)


def folder_of(study: Study, content: Content, view: str, number: int) -> Path:
    """Where a content is kept."""
    place = study.out / "contents" / f"generator-{number}"
    name = {"text+": "text-plus", "text-": "text-minus"}.get(content, content)
    return place / view / name if content in TEXTUAL else place / name


def load(study: Study, content: Content, view: str, number: int) -> Made:
    """A content that was made, or several together.

    Raises:
        InputError: it was not made.
    """
    if content in PARTS:
        return _joined([load(study, c, view, number) for c in PARTS[content]])
    if content == "ensemble":
        views = [v for v in study.config.views if v not in CONTROLS]
        return _joined([load(study, "both", v, number) for v in views])
    folder = folder_of(study, content, view, number)
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("images", "targets", "edited", "sign")}
    return Made(**arrays, about=read_json(folder / _ABOUT))


def _joined(parts: Sequence[Made]) -> Made:
    arrays = {
        name: np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "targets", "edited", "sign")
    }
    return Made(**arrays, about={})


def make(study: Study, content: Content, view: str, number: int) -> None:
    """Make a content unless it is there; an interrupted one goes on where edits are judged one by one, and starts anew
    else."""
    folder = folder_of(study, content, view, number)
    if (folder / _ABOUT).is_file():
        return
    began = time.process_time()
    makers = {
        "duplicate": _duplicate,
        "plain": _plain,
        "random": _moved,
        "naive": _moved,
        "graft": _graft,
        "given": _given,
    }
    made = makers.get(content, _gated)(study, content, view, number)
    for name in ("images", "targets", "edited", "sign"):
        with atomic_write(folder / f"{name}.npy") as handle:
            np.save(handle, getattr(made, name))
    write_json(folder / _ABOUT, made.about | {"cpu_seconds": time.process_time() - began})


def _gated(study: Study, content: Content, view: str, number: int) -> Made:
    """Edits that passed the gate."""
    gate = load_gate(study)
    sign: Sign = -1 if content == "text-" else 1
    steering = None if content == "swap" else load_steering(study, view, number)
    gan = load_generator(study, number) if steering is None else steering.gan
    prompts, refused = _prompts(study, gan, steering, view)
    if not prompts:
        return _nothing(study, {"refused": refused})
    methods: list[Editor] = [LabelSwap(gan)]
    if steering is not None:
        names: list[Method] = ["learned", "style"] if study.config.method == "best" else [study.config.method]
        methods = [steering.editor(name) for name in names]
    supply = load_bodies(study, gan, number, _seed(study, number))
    settings = SynthesisConfig(sign, None, study.config.tries, _BATCH, study.config.psi, _seed(study, number))
    shares = passing(methods, gate, prompts, supply, settings)
    least = 0.0 if view in CONTROLS else study.config.least
    refused |= {name: f"{share:.0%} of the edits pass the gate" for name, share in shares.items() if share < least}
    asked = {name: count for name, count in _wanted(study).items() if name in prompts and name not in refused}
    if not asked:
        return _nothing(study, {"refused": refused, "passing": shares})
    folder = folder_of(study, content, view, number) / "synthesis"
    report = synthesize(gan, methods, gate, prompts, asked, folder, settings, supply=supply)
    about = {
        "refused": refused,
        "short": report.short,
        "strengths": report.strengths,
        "rates": report.tally.table(),
        "wanted": asked,
        "passing": shares,
        "methods": report.methods,
    }
    frame = pd.read_csv(report.table, keep_default_na=False)
    if not len(frame):
        return _nothing(study, about)
    images = np.stack([np.asarray(Image.open(io.BytesIO((folder / n).read_bytes()))) for n in frame["image"]])
    columns = [frame[_column(frame, name)] for name in study.findings]
    targets = np.stack([pd.to_numeric(c, errors="coerce").to_numpy(np.float32) for c in columns], axis=1)
    edited = np.array([study.findings.index(name) for name in frame["edited"]])
    rows = np.arange(len(frame))
    if study.config.soft:
        soft = [frame.at[k, f"{SOFT_PREFIX}{name}"] for k, name in enumerate(frame["edited"])]
        targets[rows, edited] = np.array(soft, dtype=np.float32)
    targets = _agreed(study, gate, images, targets, edited)
    return Made(images, targets, edited, np.full(len(frame), sign), about)


def _column(frame: pd.DataFrame, name: str) -> str:
    return name if name in frame else f"finding:{name}"


def _prompts(
    study: Study, gan: StyleGAN, steering: Steering | None, view: str
) -> tuple[dict[str, Prompt], dict[str, str]]:
    """What can be asked for; and why the rest cannot."""
    force = study.config.force or view in CONTROLS
    prompts, refused = {}, {}
    bank, reader = PromptBank.read(), ReportReader()
    for name in study.findings:
        try:
            if steering is not None:
                prompts[name] = steering.prompt(name, force=force)
            elif force or gan.learned.get(name, False):
                prompts[name] = parse(name, bank, reader)
            else:
                refused[name] = "the generator has not learnt it"
        except InputError as error:
            refused[name] = error.problem
    return prompts, refused


def _agreed(study: Study, gate: Gate, images: np.ndarray, targets: np.ndarray, edited: np.ndarray | None) -> np.ndarray:
    """Labels that were not edited are unknown where the verifiers contradict them."""
    if study.config.others == "source":
        return targets
    seen = gate.probabilities(_tensor(images)).numpy()
    kept = np.abs(seen - targets) <= 0.5
    if edited is not None:
        kept[np.arange(len(edited)), edited] = True
    return np.where(kept, targets, np.nan).astype(np.float32)


def _duplicate(study: Study, content: Content, view: str, number: int) -> Made:
    train, labels = study.part("train"), study.targets("train")
    dice = np.random.default_rng(_seed(study, number))
    rows: list[np.ndarray] = []
    edited: list[int] = []
    signs: list[int] = []
    for sign, counts in _reference(study, number).items():
        for k, count in enumerate(counts):
            pool = np.flatnonzero(labels[:, k] == (1 if sign > 0 else 0))
            rows.append(dice.choice(pool, count))
            edited += [k] * int(count)
            signs += [sign] * int(count)
    chosen = np.concatenate(rows)
    return Made(_pixels_of(train, chosen), labels[chosen].astype(np.float32), np.array(edited), np.array(signs), {})


def _plain(study: Study, content: Content, view: str, number: int) -> Made:
    gan = load_generator(study, number)
    images, targets = [], []
    edited: list[int] = []
    signs: list[int] = []
    columns = [gan.findings.index(name) for name in study.findings]
    for sign, counts in _reference(study, number).items():
        for k, count in enumerate(map(int, counts)):
            if count:
                seed = int.from_bytes(hashlib.sha256(f"{_seed(study, number)} {k} {sign}".encode()).digest()[:6], "big")
                asked = gan.draw_labels(count, seed).clone()
                asked[:, columns[k]] = float(sign > 0)
                images.append(_pixels(gan.sample(labels=asked, psi=study.config.psi, seed=seed)))
                targets.append(asked[:, columns].numpy())
                edited += [k] * count
                signs += [sign] * count
    return Made(np.concatenate(images), np.concatenate(targets), np.array(edited), np.array(signs), {})


def _reference(study: Study, number: int) -> dict[Sign, np.ndarray]:
    """Numbers by sign and finding that count-matched contents have: those of what the study is about, the union of most
    arms, so that no arm wins by the balance of what it adds; or what was wanted where nothing of it was made."""
    view, size = study.config.views[0], len(study.findings)
    arms = {arm.partition(":")[0] for arm in study.config.arms}
    ours: Content = "joint" if "joint" in arms else "both"
    if "graft" in arms and not arms & {"joint", *TEXTUAL}:
        ours = "graft"
    parts = PARTS.get(ours, (ours,))
    if all((folder_of(study, c, view, number) / _ABOUT).is_file() for c in parts):
        made = load(study, ours, view, number)
        if len(made):
            return {1: made.counts(1, size), -1: made.counts(-1, size)}
    counts = np.array(list(_wanted(study).values()))
    return {1: counts, -1: counts}


def _moved(study: Study, content: Content, view: str, number: int) -> Made:
    """As many as text+, moved as far: by the text and unjudged ("naive"), or in a random direction."""
    gate, steering = load_gate(study), load_steering(study, view, number)
    like = load(study, "text+", view, number)
    supply = load_bodies(study, steering.gan, number, _seed(study, number))
    columns = [steering.gan.findings.index(name) for name in study.findings]
    counts, tally = like.counts(1, len(study.findings)), Tally()
    images, targets, edited = [], [], list[int]()
    for k, (name, count) in enumerate(zip(study.findings, counts.tolist(), strict=True)):
        if not count:
            continue
        made, turn, budget = 0, 0, study.config.tries * count + _BATCH
        prompt = steering.prompt(name, force=True)
        own = steering.editor(like.about["methods"][name])
        editor = own if content == "naive" else RandomDirection(own, _seed(study, number))
        while made < count and turn * _BATCH < budget:
            bodies = supply(name, 1, turn, _BATCH)
            if bodies is None:
                break
            moved = editor.edit(bodies.origin, prompt, like.about["strengths"][name], told=False)
            labels = bodies.labels[:, columns].clone()
            keep = torch.ones(len(moved), dtype=torch.bool)
            if content == "naive":
                labels[:, k] = 1.0
            else:
                judged = gate.judge(moved.before, moved.after, name, own=bodies.rows)
                tally.add(judged)
                keep = judged.passed[:, _BODY].all(1)
            chosen = torch.nonzero(keep)[: count - made, 0]
            images.append(_pixels(moved.after[chosen]))
            targets.append(labels[chosen].numpy())
            made, turn = made + len(chosen), turn + 1
            edited += [k] * len(chosen)
    about = {"rates": tally.table(), "strengths": like.about.get("strengths", {})}
    if not edited:
        return _nothing(study, about)
    joined = np.concatenate(images)
    found = np.concatenate(targets).astype(np.float32)
    if content == "random":
        found = _agreed(study, gate, joined, found, None)
    return Made(joined, found, np.array(edited), np.ones(len(edited), dtype=int), about)


def _graft(study: Study, content: Content, view: str, number: int) -> Made:
    gate, labels, least = load_gate(study), study.targets("train"), study.config.least
    grafting = Grafting(*fit_lesions(study), study.part("train"), labels, gate, _seed(study, number), least)
    made, refused = [_nothing(study, {})], dict[str, str]()
    for k, (name, count) in enumerate(_wanted(study).items()):
        if (share := grafting.share(name)) < least:
            refused[name] = f"the verifiers see it in {share:.0%} of its grafts"
            continue
        found = grafting.make(name, 1, count, study.config.tries)
        for part, sign in ((found, 1), (grafting.controls(name, len(found)), -1)):
            targets = labels[part.rows].astype(np.float32)
            if sign > 0:
                # Not what the verifiers give it: a lesion that they miss is one to learn from.
                targets[:, k] = MOST if study.config.soft else 1.0
            size = len(part)
            made.append(Made(_pixels(part.images), targets, np.full(size, k), np.full(size, sign), {}))
    joined = _joined(made)
    return replace(
        joined,
        targets=_agreed(study, gate, joined.images, joined.targets, joined.edited),
        about={"rates": grafting.tally.table(), "wanted": _wanted(study), "refused": refused},
    )


def given_images(study: Study) -> PreparedStore:
    """The images made elsewhere, which fit the study.

    Raises:
        InputError: there are none, they are of another size or lack a finding, or one of them is of a patient of the
            validation or test images.
    """
    given = study.given
    if given is None:
        raise InputError("no images are given", field="arm 'given'", remedy="Name them: --images table.csv")
    if given.size != study.store.size:
        raise InputError(f"they are of {given.size} px, the study's of {study.store.size}", field="given")
    for name in study.findings:
        if name not in given.findings:
            raise InputError(
                "the given images have no such label",
                field=f"finding {name!r}",
                remedy="Give a table of synthetic images with these columns",
            )
    of = set(given.patients.tolist()) | set(given.table.frame.get(LESION_PATIENT, pd.Series(dtype=str)).astype(str))
    held = set(study.held_patients()) & of
    if held:
        raise InputError(
            f"{len(held)} of their patients are among those of the validation and test images",
            field="given",
            remedy="Make them from patients of the split train alone",
        )
    return given


def _given(study: Study, content: Content, view: str, number: int) -> Made:
    """Soft labels of `augment synthesize` count as those of edits here do."""
    given = given_images(study)
    columns = [given.findings.index(name) for name in study.findings]
    targets = given.table.targets("ignore", study.config.blank)[:, columns].astype(np.float32)
    if study.config.soft:
        for k, name in enumerate(study.findings):
            if f"{SOFT_PREFIX}{name}" in given.table.frame:
                soft = pd.to_numeric(given.table.frame[f"{SOFT_PREFIX}{name}"], errors="coerce").to_numpy(np.float32)
                targets[:, k] = np.where(np.isnan(soft), targets[:, k], soft)
    unknown = np.zeros(len(given), dtype=int)
    return Made(_pixels_of(given, np.arange(len(given))), targets, unknown, unknown, {})


def _nothing(study: Study, about: Mapping[str, Any]) -> Made:
    size, none = study.store.size, np.zeros(0, dtype=int)
    empty = np.zeros((0, len(study.findings)), np.float32)
    return Made(np.zeros((0, size, size), np.uint8), empty, none, none, dict(about))


def _seed(study: Study, number: int) -> int:
    return 1000 * study.config.seed + number


def _pixels(images: Tensor) -> np.ndarray:
    """(N, 1, S, S) in [-1, 1] to (N, S, S) uint8, as stores hold them."""
    blank = np.zeros((0, *images.shape[-2:]), np.uint8)
    return np.stack([quantised(image, 8) for image in images]) if len(images) else blank


def _pixels_of(store: PreparedStore, rows: np.ndarray) -> np.ndarray:
    """The same of rows of a store, in parts of bounded memory."""
    return np.concatenate([_pixels(store.images(rows[k : k + 256])) for k in range(0, len(rows), 256)])


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 127.5 - 1
