"""Which text and which loss to train a text-image model with: the question of TB-SMGAN's tables, on the chest phantom.

    python benchmarks/clip.py --out runs/clip

Tiny models from nothing on 4,000 films of 64 pixels with reports, three seeds of each arm: InfoNCE or soft targets, on
whole reports, rules-v1 texts (what is present) or rules-v2 texts (present and absent). Prompts' form chosen on
validation patients, figures from test patients, intervals over patients. Besides, whether the model tells left from
right, which steering needs. ``--steps 1500`` is the full profile, 2 minutes of one core a run; ``--ceiling`` trains the
project's classifier on the same labels for comparison. Rules' texts, and what each sentence states, come of the
phantom's truth, so that no error of a rule is measured along; ``--source reports`` reads the reports instead.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from counterscan.classify import ClassifyConfig, predict_logits, train_classifier
from counterscan.data.augment import AugmentConfig
from counterscan.data.phantom import FINDINGS, PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.splits import split_by_patient
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.files import write_json, write_text
from counterscan.metrics.classification import pr_auc, roc_auc
from counterscan.metrics.intervals import Interval, patient_draws, percentile_interval
from counterscan.text.clip import TrainableClip
from counterscan.text.clip_config import ClipConfig
from counterscan.text.clip_training import Pairs, embed_all, fit
from counterscan.text.prompts import PromptBank
from counterscan.text.stated import SentenceReader
from counterscan.text.views import corpus_view
from counterscan.text.zeroshot import judge, zero_shot_scores

NAMES = {name: "pulmonary nodule" if name == "Lung Lesion" else name.lower() for name in FINDINGS}
SIDED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Atelectasis", "Lung Lesion")
WORDS = {
    "Cardiomegaly": "cardiomegaly|cardiac|heart",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "effusion",
    "Lung Lesion": "nodule|mass",
}
DENIED = re.compile(
    r"^(there is no|no|negative for|the lungs show no)\b|\bnot enlarged|\bnormal\b|\bnormal limits|without"
)
WELL = re.compile(r"^no finding|lungs are clear|no acute cardiopulmonary|normal chest|no radiographic evidence")
UNSURE = re.compile(r"possible|cannot be excluded|may represent|questionable|suspected")


@dataclass
class ClipBenchmark:
    """See the module's text."""

    out: Path
    """Folder for data, runs and tables."""
    train: int = 4000
    """Films to train on; a quarter as many again to validate on, half as many to test on."""
    size: int = 64
    """Side of the films in pixels."""
    steps: int = 400
    """Steps of 96 pairs."""
    source: Literal["truth", "reports"] = "truth"
    """Where the rules' texts, and what each sentence states, come from."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and batches."""
    losses: tuple[str, ...] = ("info-nce", "soft")
    """Losses; "soft-sides" makes soft targets of findings and their sides."""
    views: tuple[str, ...] = ("report", "rules-v1", "rules-v2")
    """Texts."""
    ceiling: bool = False
    """Train the classifier on the same images and labels."""
    resamples: int = 1000
    """Bootstrap draws over patients."""

    def run(self) -> None:
        """Train, judge, print, write ``clip.json`` and ``clip.md``."""
        store = self._store()
        parts = dict(zip(("train", "val", "test"), store.parts("train", "val", "test"), strict=True))
        draws = patient_draws(parts["test"].patients.tolist(), self.resamples)
        rows: dict[str, dict[str, Any]] = {}
        for view in self.views:
            for loss in self.losses:
                found = [self._one(parts, view, loss, seed) for seed in self.seeds]
                rows[f"{view}, {loss}"] = _summary(found, parts["test"], draws)
                print(line(f"{view}, {loss}", rows[f"{view}, {loss}"]), flush=True)
        if self.ceiling:
            rows["classifier (ceiling)"] = self._ceiling(store, parts["test"], draws)
        self._write(rows)

    def _store(self) -> PreparedStore:
        folder, table = self.out / "phantom", self.out / "phantom" / "split.csv"
        if not table.exists():
            count = self.train * 7 // 4
            made = write_phantom(folder, count, PhantomConfig(size=self.size), 0, twins=False)
            split_by_patient(made, {"train": 4 / 7, "val": 1 / 7, "test": 2 / 7}, 0).write(table)
        prepare(StudyTable.read(table), self.out / "store", size=self.size, workers=1)
        return PreparedStore.open(self.out / "store")

    def _one(self, parts: dict[str, PreparedStore], view: str, loss: str, seed: int) -> dict[str, Any]:
        """Train one model and judge it."""
        sides = loss == "soft-sides"
        train, val, test = parts["train"], parts["val"], parts["test"]
        labels = present(train.labels)
        if sides:
            labels = torch.cat([labels, side_labels(train)], 1)
        config = ClipConfig(
            view=view, loss="info-nce" if loss == "info-nce" else "soft", steps=self.steps, seed=seed, tensorboard=False
        )
        folder = self.out / "runs" / f"{self.source}-{view}-{loss}-{self.steps}-{seed}"
        start = time.process_time()
        stated = said if self.source == "truth" else reader()
        pairs = Pairs(train, self._texts(train, view), labels, train.patients.tolist())
        model = fit(pairs, folder, config, label_sentence=partial(with_sides, stated) if sides else stated)
        minutes = (time.process_time() - start) / 60
        verdict = judge(model, val, present(val.labels), train.findings)
        verdict.save(folder / "zeroshot.json")
        bank = PromptBank.read()
        embeddings = embed_all(model, test)
        prompts = [bank.of(name, model) for name in train.findings]
        return {
            "scores": zero_shot_scores(model, embeddings, prompts, verdict.form),
            "form": verdict.form,
            "val": verdict.mean_auc,
            "known": verdict.known(),
            "sides": side_auc(model, embeddings, test),
            "minutes": minutes,
        }

    def _texts(self, store: PreparedStore, view: str) -> list[str]:
        reports = store.table.frame["report"].tolist()
        if view == "report":
            return reports
        return corpus_view(view, reports) if self.source == "reports" else told(attributes(store), view)

    def _ceiling(self, store: PreparedStore, test: PreparedStore, draws: Tensor) -> dict[str, Any]:
        config = ClassifyConfig(steps=1500, augment=AugmentConfig(flip=0.0), tensorboard=False)
        start = time.process_time()
        scores = predict_logits(train_classifier(store, self.out / "runs" / "classifier", config), test)
        minutes = (time.process_time() - start) / 60
        one = {"scores": scores, "form": "", "val": float("nan"), "known": (), "sides": {}, "minutes": minutes}
        row = _summary([one], test, draws)
        print(line("classifier (ceiling)", row), flush=True)
        return row

    def _write(self, rows: dict[str, dict[str, Any]]) -> None:
        pairs = [(f"{v}, soft", f"{v}, info-nce") for v in self.views]
        pairs += [(f"rules-v2, {k}", f"report, {k}") for k in self.losses]
        gaps = []
        for ours, theirs in pairs:
            if ours in rows and theirs in rows and ours != theirs:
                gap = percentile_interval(
                    rows[ours]["auc"].value - rows[theirs]["auc"].value, rows[ours]["drawn"] - rows[theirs]["drawn"]
                )
                gaps.append(f"{ours} - {theirs}: {gap:.3f}")
        head = ["arm", "mean AUC", "seeds", "mean AP", *FINDINGS, "left/right", "prompts", "CPU min"]
        body = [line(name, row) for name, row in rows.items()]
        text = "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body, "", *gaps, ""])
        print("\n" + text)
        write_text(self.out / "clip.md", text)
        plain = {k: {a: b for a, b in row.items() if a not in ("drawn", "auc")} for k, row in rows.items()}
        for name, row in rows.items():
            plain[name]["auc"] = [row["auc"].value, row["auc"].low, row["auc"].high]
        write_json(self.out / "clip.json", plain)


def present(labels: np.ndarray) -> Tensor:
    """Labels of the phantom as they are: every finding is known."""
    return torch.from_numpy(labels).float()


def attributes(store: PreparedStore) -> list[list[dict[str, Any]]]:
    """Side, zone and severity of each finding of each row."""
    return [json.loads(value) for value in store.table.frame["attributes"]]


def told(studies: list[list[dict[str, Any]]], view: str) -> list[str]:
    """What rules without fault would make of the reports: the phantom's truth in set phrases."""
    made = []
    for cases in studies:
        there = {case["finding"]: f"{phrase(case)}." for case in cases}
        if view == "rules-v1":
            made.append(" ".join(there.values()) or "No finding.")
        else:
            made.append(" ".join(there.get(name, f"No {NAMES[name]}.") for name in FINDINGS))
    return made


def phrase(case: dict[str, Any]) -> str:
    """ "mild left basal pleural effusion"."""
    grade = "mild" if case["severity"] < 0.4 else "moderate" if case["severity"] < 0.72 else "severe"
    return " ".join(filter(None, (grade, case["side"], case["zone"], NAMES[case["finding"]])))


@cache
def said(sentence: str) -> tuple[float, ...]:
    """What a sentence of the phantom's closed language states of each finding; hedged ones state nothing."""
    low = sentence.lower()
    if WELL.search(low):
        # Clear lungs say nothing of the heart.
        return tuple(float("nan") if "lungs" in low and name == "Cardiomegaly" else 0.0 for name in FINDINGS)
    if UNSURE.search(low):
        return (float("nan"),) * len(FINDINGS)
    value = 0.0 if DENIED.search(low) else 1.0
    # "sharp without pleural effusion" denies, "pleural effusion with blunting" states.
    return tuple(value if re.search(WORDS[name], low) else float("nan") for name in FINDINGS)


@cache
def reader() -> SentenceReader:
    """The packaged rules, loaded once."""
    return SentenceReader(FINDINGS)


def with_sides(stated: Callable[[str], tuple[float, ...]], sentence: str) -> tuple[float, ...]:
    """What is stated, and for each finding whether it lies on the left and on the right."""
    base, low = stated(sentence), sentence.lower()
    sides = [float("left" in low or "bilateral" in low), float("right" in low or "bilateral" in low)]
    extra: list[float] = []
    for value in base:
        extra += sides if value == 1 and any(sides) else [value if value == 0 else float("nan")] * 2
    return (*base, *extra)


def side_labels(store: PreparedStore) -> Tensor:
    """(N, 2 C): left and right of each finding."""
    labels = torch.zeros(len(store), 2 * len(FINDINGS))
    for row, cases in enumerate(attributes(store)):
        for case in cases:
            at = 2 * FINDINGS.index(case["finding"])
            labels[row, at] = float(case["side"] in ("left", "bilateral"))
            labels[row, at + 1] = float(case["side"] in ("right", "bilateral"))
    return labels


def side_auc(model: TrainableClip, embeddings: Tensor, store: PreparedStore) -> dict[str, float]:
    """AUC of "left X" against "right X" among images with X on one side."""
    sides = [{c["finding"]: c["side"] for c in cases} for cases in attributes(store)]
    found = {}
    for name in SIDED:
        rows = [k for k, row in enumerate(sides) if row.get(name) in ("left", "right")]
        left, right = model.embed_texts([f"moderate {side} {NAMES[name]}" for side in ("left", "right")])
        truth = torch.tensor([float(sides[k][name] == "left") for k in rows])
        found[name] = float(roc_auc(embeddings[rows] @ (left - right).cpu(), truth))
    return found


def _summary(found: Sequence[dict[str, Any]], test: PreparedStore, draws: Tensor) -> dict[str, Any]:
    """One arm over its seeds; patients are drawn anew for the interval, seeds are not."""
    labels = present(test.labels)
    areas = torch.stack([roc_auc(one["scores"], labels) for one in found])
    drawn = torch.stack([roc_auc(one["scores"], labels, draws).mean(1) for one in found]).mean(0)
    sides = [list(one["sides"].values()) for one in found]
    return {
        "auc": percentile_interval(float(areas.mean()), drawn),
        "drawn": drawn,
        "seeds": areas.mean(1).tolist(),
        "ap": float(torch.stack([pr_auc(one["scores"], labels) for one in found]).mean()),
        "findings": dict(zip(test.findings, areas.mean(0).tolist(), strict=True)),
        "sides": float(np.mean(sides)),
        "forms": [one["form"] for one in found],
        "minutes": float(np.mean([one["minutes"] for one in found])),
    }


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    area: Interval = row["auc"]
    cells = [name, f"{area:.3f}", " ".join(f"{v:.3f}" for v in row["seeds"]), f"{row['ap']:.3f}"]
    cells += [f"{row['findings'][f]:.2f}" for f in FINDINGS]
    cells += [f"{row['sides']:.2f}", ", ".join(dict.fromkeys(row["forms"])), f"{row['minutes']:.1f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    tyro.cli(ClipBenchmark).run()
