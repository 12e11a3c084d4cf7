"""Is steering real? Findings, sides and degrees asked for in words, judged by classifiers that never saw the CLIP.

    python benchmarks/steering.py --gan runs/gan --clip runs/clip/runs/rules-v2-soft-sides-500-0 --store runs/store \\
        --out runs/steering

On a phantom whose table says side and severity of every finding (``counterscan data phantom``). The gate's two
verifiers and the judge are trained on the store's training images with other seeds and widths; the judge also learns
sides and severity from the attributes. Bodies are new samples without the finding or, with ``--encoder``, films of the
split test, which neither generator nor encoder learned from, encoded in one pass. Written: ``steering.md``,
``steering.json``, one picture per finding and method, rows of strengths.

Each strength is tried on all bodies; "fitted" moves every body until the gate's verifiers see the finding; "best" keeps
for each body the method that they like best, as ``counterscan augment synthesize`` does.

Success: share of edits that the judge calls positive, of bodies that it calls negative. Off-target: mean |change| of
the other findings' probabilities; beside it that between the phantom's films and their twins, which a perfect edit has.
Accepted: share that the gate lets through. Failed rejected: share of the edits without success that the gate stops.
Accepted true: share of those it lets through that the judge calls positive.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor

from counterscan.classify import ClassifyConfig, load_classifier, predict_logits, train_classifier
from counterscan.cli.steer import zero_shot_of
from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import atomic_write, write_json, write_text
from counterscan.metrics.classification import roc_auc
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.png import png
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.acceptance import fit_best
from counterscan.tbsmgan.bodies import Inverted, Sampled, Supply
from counterscan.tbsmgan.edits import Edited, Editor, Origin, Prompt, RandomDirection
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.inverter import Inverter
from counterscan.tbsmgan.judgement import CRITERIA
from counterscan.tbsmgan.steering import BEST, Method, Steering
from counterscan.text.clip import load_clip
from counterscan.training import image_grid

Part = Literal["findings", "sides", "degrees"]
SIDED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Atelectasis", "Lung Lesion")
SEVERE = 0.6  # severity from which the judge calls a finding severe


@dataclass
class SteeringBenchmark:
    """See the module's text."""

    gan: Path
    """A generator: run or model folder."""
    clip: Path
    """A text-image model's folder."""
    store: Path
    """The phantom store that both were trained on."""
    out: Path
    """Folder for classifiers, tables and pictures."""
    encoder: Path | None = None
    """The generator's encoder: films of the split test are edited; default: new samples."""
    findings: tuple[str, ...] = ()
    """Which findings; default: all, with those marked that were not learnt."""
    methods: tuple[Method, ...] = ("style", "learned", "per-image", "label-swap")
    """Which methods, beside random directions as long as the style and the learned ones."""
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """Of directions, in standard deviations; label swap: parts of the whole swap."""
    count: int = 200
    """Bodies for each finding and method."""
    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    slow: int = 16
    """Bodies for the optimisation of single images."""
    psi: float = 0.7
    """Truncation of the bodies."""
    steps: int = 600
    """Length of the classifiers' training."""
    threads: int = 1
    """CPU threads."""
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Train, edit, judge, print, write."""
        torch.set_num_threads(self.threads)
        self.out.mkdir(parents=True, exist_ok=True)
        store, self._gan = PreparedStore.open(self.store), StyleGAN.from_pretrained(self.gan)
        self._supply = self._supply_of(store)
        self._judge, aucs = self._train_judge(store)
        widths = ((16, 32, 64, 96), (24, 48, 96))
        verifiers = [self._train(store, f"verifier-{k}", k, shape) for k, shape in enumerate(widths)]
        self._gate = Gate.calibrate(verifiers, store)
        model, cache = load_clip(self.clip), self.out / "cache"
        start = time.perf_counter()
        known = zero_shot_of(self.clip, model, store, cache)
        self._steering = Steering(self._gan, model, zero_shot=known, cache=cache)
        self._steering.editor("style")
        measuring = time.perf_counter() - start
        asked: Sequence[str] = self.findings or self._gan.findings
        for finding in asked if "findings" in self.parts else ():
            self._finding(finding)
        sided = [finding for finding in asked if finding in SIDED and "sides" in self.parts]
        sides = [row for finding in sided for row in self._sides(finding)]
        degrees = [self._degree(finding) for finding in asked if "degrees" in self.parts]
        changes = self._true_changes(store)
        self._write(aucs, known, changes, sides, degrees, {"measuring channels, s": measuring, **self._speed()})

    def _train(
        self, store: PreparedStore, name: str, seed: int, widths: tuple[int, ...], findings: Sequence[str] = ()
    ) -> Classifier:
        folder = self.out / name
        if not (folder / "calibration.json").is_file():
            config = ClassifyConfig(
                ClassifierConfig(widths=widths),
                AugmentConfig(flip=0.0),
                findings=tuple(findings),
                steps=self.steps,
                seed=seed,
                tensorboard=False,
            )
            train_classifier(store, folder, config)
        return load_classifier(folder)

    def _train_judge(self, store: PreparedStore) -> tuple[Classifier, dict[str, float]]:
        """A classifier of findings, their sides and whether they are severe; and its AUC on test patients."""
        wide = with_attributes(store)
        judge = self._train(wide, "judge", 100, (24, 48, 96))
        test = wide.subset(wide.split == "test")
        areas = roc_auc(predict_logits(judge, test), torch.from_numpy(test.labels))
        return judge, dict(zip(judge.findings, areas.tolist(), strict=True))

    def _true_changes(self, store: PreparedStore) -> dict[str, float]:
        """What a perfect edit changes: finding -> the judge's off-target change between test films that have it alone
        and their twins without it."""
        test = store.subset(store.split == "test")
        alone, changes = test.labels.sum(axis=1) == 1, {}
        for at, name in enumerate(store.findings):
            rows = np.flatnonzero(alone & (test.labels[:, at] == 1))
            changes[name] = self._off_target(self._judged(test.twins(rows)), self._judged(test.images(rows)), name)
        return changes

    def _off_target(self, before: Tensor, after: Tensor, finding: str) -> float:
        """Mean |change| of the judge's probabilities (N, C) of the generator's other findings."""
        others = [k for k, n in enumerate(self._judge.findings) if n in self._gan.findings and n != finding]
        return float((after - before)[:, others].abs().mean())

    def _judged(self, images: Tensor) -> Tensor:
        """(N, C) probabilities of the judge."""
        with torch.no_grad():
            return torch.cat([self._judge.probabilities(self._judge(part)) for part in images.split(64)])

    def _supply_of(self, store: PreparedStore) -> Supply:
        if self.encoder is None:
            return Sampled(self._gan, self.psi, 7)
        encoder, (films,) = Inverter.from_pretrained(self.encoder, self._gan), store.parts("test")
        return Inverted.of(self._gan, encoder.encode, films, films.labels, films.findings, 7)

    def _bodies(self, finding: str, count: int) -> Origin:
        """Without the finding; of films there may be fewer."""
        bodies = self._supply(finding, 1, 0, count)
        if bodies is None:
            raise InputError("every test film has it", field=finding, remedy="Give a store with others")
        return bodies.origin

    def _finding(self, finding: str) -> None:
        arms: list[tuple[str, Editor, Sequence[float], int]] = []
        for method in self.methods:
            if method == "label-swap" and finding not in self._gan.findings:
                continue
            editor = self._steering.editor(method)
            prompt = self._steering.prompt(finding, method=method, force=True)
            strengths: Sequence[float] = self.strengths
            if method == "label-swap":
                strengths = [part * editor.usual(prompt) for part in (0.5, 1.0, 1.5)]
            if method == "per-image":
                strengths = [s for s in self.strengths if s in (2.0, 4.0)] or self.strengths[-1:]
            arms.append((method, editor, strengths, self.slow if method == "per-image" else self.count))
            if method in ("style", "learned"):
                arms.append((f"random, as {method}", RandomDirection(editor), self.strengths, self.count))
        for name, editor, strengths, count in arms:
            prompt, bodies = self._steering.prompt(finding, force=True), self._bodies(finding, count)
            frames = []
            for strength in strengths:
                edited = editor.edit(bodies, prompt, strength)
                self.rows.append({"finding": finding, "method": name, **self._figures(edited, prompt)})
                print(_line(self.rows[-1]), flush=True)
                frames.append(edited.after[:8])
            if not name.startswith("random"):
                frames.append(self._fitted_row(finding, name, [editor], prompt, bodies).after[:8])
            self._picture(f"{finding} {name}", [edited.before[:8], *frames])
        bodies = self._bodies(finding, self.count)
        fitted = self._fitted_row(finding, "best", self._editors("best"), prompt, bodies)
        self._picture(f"{finding} best", [fitted.before[:8], fitted.after[:8]])

    def _fitted_row(self, finding: str, name: str, editors: Sequence[Editor], prompt: Prompt, bodies: Origin) -> Edited:
        """Fitted edits, judged."""
        fitted = self._fitted(editors, prompt, bodies)
        self.rows.append({"finding": finding, "method": f"{name}, fitted", **self._figures(fitted, prompt)})
        print(_line(self.rows[-1]), flush=True)
        return fitted

    def _picture(self, name: str, rows: Sequence[Tensor]) -> None:
        with atomic_write(self.out / "pictures" / f"{name}.png".replace(" ", "_")) as handle:
            handle.write(png(image_grid(torch.stack(list(rows))), {"Synthetic": "true"}))

    def _editors(self, method: str) -> list[Editor]:
        return [self._steering.editor(one) for one in (BEST if method == "best" else (method,))]  # type: ignore[arg-type]

    def _fitted(self, editors: Sequence[Editor], prompt: Prompt, bodies: Origin) -> Edited:
        """Every body moved until the gate's verifiers see the finding; the judge is not asked."""
        parts = fit_best(editors, prompt, self._gate, bodies)
        order = torch.cat([part.rows for part in parts]).argsort()
        before, after = (torch.cat([getattr(p.edited, x) for p in parts])[order] for x in ("before", "after"))
        mean = float(np.average([p.edited.strength for p in parts], weights=[len(p.rows) for p in parts]))
        return Edited(before, after, bodies, None, None, prompt, mean, "fitted", 0)

    def _figures(self, edited: Edited, prompt: Prompt) -> dict[str, Any]:
        before, after = self._judged(edited.before), self._judged(edited.after)
        at = self._judge.findings.index(prompt.finding)
        could = before[:, at] < 0.5
        success = (after[:, at] >= 0.5) & could
        verdict = self._gate.judge(edited.before, edited.after, prompt.finding)
        failed, kept = could & ~success, verdict.accepted
        return {
            "strength": edited.strength,
            "success": _share(success, could),
            "p": float(after[:, at].mean()),
            "off-target": self._off_target(before, after, prompt.finding),
            "accepted": float(kept.double().mean()),
            "off-target, accepted": self._off_target(before[kept], after[kept], prompt.finding),
            "failed rejected": _share(failed & ~kept, failed),
            "accepted true": _share(success & kept, kept & could),
            "n": int(could.sum()),
            **{f"passes {n}": float(x) for n, x in zip(CRITERIA, verdict.passed.double().mean(0), strict=True)},
        }

    def _sides(self, finding: str) -> list[dict[str, Any]]:
        """Left and right, in words: on which side does the judge see the finding?"""
        rows = []
        for method in ("style", "learned", "label-swap", "best"):
            for side, other in (("left", "right"), ("right", "left")):
                prompt = self._steering.prompt(f"{side} {finding.lower()}", force=True)
                bodies = self._bodies(finding, self.count)
                after = self._judged(self._fitted(self._editors(method), prompt, bodies).after)
                own, mirrored, there = (
                    after[:, self._judge.findings.index(name)]
                    for name in (f"{finding} {side}", f"{finding} {other}", finding)
                )
                rows.append(
                    {
                        "finding": finding,
                        "method": method,
                        "asked": side,
                        "finding there": float((there >= 0.5).double().mean()),
                        "on that side": float((own > mirrored).double().mean()),
                        "there and on that side alone": float(((own >= 0.5) & (mirrored < 0.5)).double().mean()),
                    }
                )
        return rows

    def _degree(self, finding: str) -> dict[str, Any]:
        """Stronger with strength; and more severe, in fitted edits, when the text says so."""
        row: dict[str, Any] = {"finding": finding}
        bodies, at = self._bodies(finding, self.count), self._judge.findings.index(finding)
        for method in ("style", "learned"):
            editor, plain = self._steering.editor(method), self._steering.prompt(finding, force=True)
            seen = torch.stack([self._judged(editor.edit(bodies, plain, s).after)[:, at] for s in (0.5, 1, 2, 3, 4)])
            row[f"{method}: p rises with strength"] = float((seen[1:] >= seen[:-1] - 1e-3).double().mean())
            row |= self._words(finding, method, bodies)
        return row | self._words(finding, "best", bodies)

    def _words(self, finding: str, method: str, bodies: Origin) -> dict[str, str]:
        """The judge's P(severe) where the text says how much."""
        severe, told = self._judge.findings.index(f"{finding} severe"), dict[str, str]()
        for word in ("mild", "moderate", "severe"):
            prompt = self._steering.prompt(f"{word} {finding.lower()}", force=True)
            fitted = self._fitted(self._editors(method), prompt, bodies)
            told[word] = f"{float(self._judged(fitted.after)[:, severe].mean()):.2f}"
        return {f"{method}: P(severe), {' / '.join(told)} asked": " / ".join(told.values())}

    def _speed(self) -> dict[str, float]:
        """Seconds of a new prompt on a cached generator, and of 1,000 edited images, judged or not."""
        fresh = Steering(self._gan, self._steering.model, zero_shot=self._steering.zero_shot, cache=self.out / "cache")
        fresh.prompt("Edema", force=True)  # rules for reports are read once per process
        bodies = Sampled(self._gan, self.psi, 7)(self._gan.findings[0], 1, 0, 1000).origin
        start = time.perf_counter()
        prompt = fresh.prompt("moderate bilateral pulmonary edema", force=True)
        editor = fresh.editor("style")
        editor.move(bodies, prompt)
        new = time.perf_counter() - start
        start = time.perf_counter()
        edited = editor.edit(bodies, prompt, 3.0)
        editing = time.perf_counter() - start
        self._gate.judge(edited.before, edited.after, prompt.finding)
        whole = time.perf_counter() - start
        return {"new prompt, s": new, "1,000 edits, s": editing, "1,000 edits with the gate, s": whole}

    def _write(
        self,
        aucs: dict[str, float],
        known: Any,
        changes: dict[str, float],
        sides: list[dict[str, Any]],
        degrees: list[dict[str, Any]],
        seconds: dict[str, float],
    ) -> None:
        models = [
            {
                "finding": name,
                "learnt": self._gan.learned.get(name, False),
                "consistency AUC": self._gan.figures.get(f"consistency/{name}", math.nan),
                "zero-shot AUC": known.auc.get(name, math.nan) if known is not None else math.nan,
                "judge's AUC": aucs[name],
                "judge's AUC of the side": aucs.get(f"{name} left", math.nan),
                "off-target of true pairs": changes[name],
            }
            for name in self._gan.findings
        ]
        real = [row for row in self.rows if not row["method"].startswith("random")]
        groups = {
            name: [row for row in real if row["finding"] == name] for name in dict.fromkeys(r["finding"] for r in real)
        }
        groups |= {"all": real, "all, fitted": [row for row in real if row["method"].endswith("fitted")]}
        stopped = [{"edits of": name, **_stopped(rows)} for name, rows in groups.items()]
        parts = {
            "Models": models,
            "Findings": self.rows,
            "Failed edits": stopped,
            "Sides": sides,
            "Degrees": degrees,
            "Seconds": [seconds],
        }
        text = "\n\n".join(f"## {title}\n\n{_table(rows)}" for title, rows in parts.items() if rows)
        print("\n" + text)
        write_text(self.out / "steering.md", text + "\n")
        limits = {"gate": vars(self._gate.limits)}
        write_json(self.out / "steering.json", {k.lower(): v for k, v in parts.items()} | limits)


def with_attributes(store: PreparedStore) -> PreparedStore:
    """The store with a column for each side of a finding, and for whether it is severe.

    Raises:
        InputError: the table has no attributes; it is no phantom's.
    """
    frame = store.table.frame
    if "attributes" not in frame:
        raise InputError("the table has no attributes", field="store", remedy="Give a store of the phantom")
    cases = [{case["finding"]: case for case in json.loads(value)} for value in frame["attributes"]]
    columns: dict[str, Any] = {}
    for finding in store.findings:
        for side in ("left", "right") if finding in SIDED else ():
            columns[f"{finding} {side}"] = [float(c.get(finding, {}).get("side") in (side, "bilateral")) for c in cases]
        columns[f"{finding} severe"] = [float(c.get(finding, {}).get("severity", 0.0) >= SEVERE) for c in cases]
    wide = frame.drop(columns=["mask_kind"]).assign(**columns)
    table = StudyTable.from_frame(wide, store.table.root, findings=[*store.findings, *columns])
    pixels = np.concatenate(
        [
            (store.images(slice(at, at + 256))[:, 0].numpy() * 127.5 + 127.5).round().astype(np.uint8)
            for at in range(0, len(store), 256)
        ]
    )
    return PreparedStore.from_arrays(pixels, table)


def _share(these: Tensor, of: Tensor) -> float:
    return float(these.sum() / of.sum()) if bool(of.any()) else math.nan


def _stopped(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Edits that failed in all these rows, and the share of them that the gate stops."""
    failed = [round(row["n"] * (1 - row["success"])) for row in rows]
    stopped = sum(n * row["failed rejected"] for n, row in zip(failed, rows, strict=True) if n)
    return {"failed": sum(failed), "rejected": stopped / sum(failed) if any(failed) else math.nan}


def _line(row: dict[str, Any]) -> str:
    figures = " ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float))
    return f"{row['finding']}, {row['method']}: {figures}"


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    frame = pd.DataFrame(rows)
    shown = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in frame.to_numpy().tolist()]
    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns), *(" | ".join(row) for row in shown)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    tyro.cli(SteeringBenchmark).run()
