"""An explainer on held-out patients: its rivals on the same classifier, every figure, one page."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from counterscan.bench.evaluation import Kept, Part
from counterscan.bench.explain_classifier import (
    agreement_on_negatives,
    called_positive,
    device_of,
    oracle_reading,
    without,
)
from counterscan.bench.explain_peers import Peers, explain_peers
from counterscan.bench.explain_stability import randomisation_test, stability_of
from counterscan.bench.explain_tables import ExplainerEvaluation, headline
from counterscan.bench.explaining import Extractor, Probe, Progress, evaluate_explainers, identity
from counterscan.bench.subjects import image_names, patient_names, study_batch
from counterscan.counterpart import Counterpart, Query
from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.medxgan import MedXGAN
from counterscan.medxgan.published import PublishedMedXGAN
from counterscan.metrics.intervals import RESAMPLES
from counterscan.metrics.realism import InDomainFeatures
from counterscan.report.cases import Case, Picks, pick_cases
from counterscan.report.files import safe_name
from counterscan.report.page import write_report
from counterscan.report.strips import strip
from counterscan.report.tables import Cell, Table
from counterscan.training import read_metrics
from counterscan.training.checkpoint import weights_digest

LIMITS = (
    "Explanations speak of one classifier, right or wrong; a lesion mask shows where the disease is, not what the "
    "classifier went by. Localisation and faithfulness are two things.",
    "A flip by the explained classifier alone can be an adversarial one: read it with the oracle's.",
    "Intervals are over patients of this set; they say nothing about other hospitals, devices or classifiers.",
)
QUICK_NOTE = "Quick: rivals with few samples, masks and steps, and few probes of each map; not for comparison."
QUICK_PROBE = Probe(steps=5, patches=10, draws=2, sigmas=(0.05,))
RIVALS = ("Grad-CAM", "IG, black", "Latent Shift")  # whose maps are shown beside ours


@dataclass(frozen=True)
class ExplainReport:
    """What ``evaluate_explainer`` found.

    Attributes:
        evaluations: by finding.
        page: the HTML file.
        notes: what was left out, and why.
    """

    evaluations: dict[str, ExplainerEvaluation]
    page: Path
    notes: tuple[str, ...] = ()

    def headlines(self) -> list[Table]:
        """One small table per finding, for a terminal."""
        return [headline(found) for found in self.evaluations.values()]

    def tables(self) -> list[Table]:
        """All tables, a finding's name in their titles."""
        return [
            replace(table, title=f"{finding}: {table.title}")
            for finding, found in self.evaluations.items()
            for table in found.tables()
        ]


def evaluate_explainer(
    explainer: MedXGAN,
    store: PreparedStore,
    folder: str | Path,
    *,
    findings: Sequence[str] = (),
    split: str = "test",
    oracle: nn.Module | None = None,
    published: PublishedMedXGAN | None = None,
    inception: Extractor | None = None,
    rivals: Sequence[str] = (),
    slow: Sequence[str] = (),
    sample: int = 12,
    quick: bool = False,
    cases: int = 3,
    batch_size: int = 16,
    resamples: int = RESAMPLES,
    run: str | Path | None = None,
    title: str = "Why the classifier said so",
    progress: Progress | None = None,
) -> ExplainReport:
    """Judge an explainer and its rivals on the images that its classifier calls positive; write figures and the page.

    The same call goes on where an interrupted one stopped.

    Args:
        explainer: ours.
        store: prepared as the explainer was trained; its labels and masks judge, nothing is learned from them.
        folder: gets ``report.html`` and, for each finding, ``evaluation.json``, ``per_image.csv``, ``realism.json``.
        findings: which to explain; all that the classifier knows by default.
        split: whose images.
        oracle: classifier trained independently, for the oracle's flips and as space of KID and FID.
        published: see ``explain_peers``.
        inception: a further space: images (M, 1, H, W) in [-1, 1] to features (M, D).
        rivals: see ``explain_peers``.
        slow: rivals that are asked about the sample only and whose stability and randomisation are not measured.
        sample: images for what is slow: stability, randomisation, the published inversion.
        quick: see ``explain_peers``; also fewer probes.
        cases: shown of each kind: best, median, worst.
        batch_size: images per question.
        resamples: of the patient bootstrap.
        run: the run folder, for its learning curves.
        title: of the page.
        progress: called with (system, images done, images).

    Raises:
        InputError: images of another size, no image of the split, none that is called positive, or an oracle that is
            the explained classifier.
    """
    if explainer.size is not None:
        store.check_size(explainer.size, "the explainer works at")
    if sample < 1:
        raise InputError(f"{sample} must be at least 1", field="sample")
    folder, rows, notes = Path(folder), np.flatnonzero(store.split == split), list[str]()
    if not len(rows):
        raise InputError(f"no image is in the split {split!r}", path=store.folder, remedy="Name another split")
    features: dict[str, Extractor] = {} if inception is None else {"Inception": inception}
    if callable(getattr(oracle, "features", None)):
        features = {"in-domain": InDomainFeatures(oracle), **features}  # type: ignore[arg-type]
    chosen, probe = tuple(findings) or explainer.findings, QUICK_PROBE if quick else Probe()
    found, shown, rule, settings = dict[str, ExplainerEvaluation](), list[Case](), "", dict[str, Any]()
    for finding in chosen:
        oracle_reading(explainer.classifier, oracle, finding)  # refused before anything is trained
        try:
            ill, others = called_positive(explainer.classifier, store, rows, finding)
        except InputError as error:
            if len(chosen) == 1:
                raise
            notes.append(f"{finding} is left out: {error}.")
            continue
        place = folder / safe_name(finding.lower().replace(" ", "_"))
        peers = explain_peers(explainer, store, finding, quick=quick, folder=folder, published=published, rivals=rivals)
        trial = evaluate_explainers(
            peers.systems,
            store,
            np.r_[ill, others],
            finding,
            classifier=peers.classifier,
            oracle=oracle,
            negatives_rows=without(store, split, finding, peers.classifier),
            features=features,
            slow=[*peers.slow, *(name for name in slow if name in peers.systems)],
            sample=sample,
            probe=probe,
            batch_size=batch_size,
            resamples=resamples,
            folder=place,
            progress=progress,
        )
        agree = None if oracle is None else agreement_on_negatives(explainer.classifier, oracle, store, rows, finding)
        trial = replace(trial, notes=(QUICK_NOTE,) if quick else (), agreement=agree)
        peers = replace(peers, factories={name: f for name, f in peers.factories.items() if name not in slow})
        trial, more = _slow_figures(trial, peers, store, spaced(ill, sample), probe, place, progress)
        trial.save(place)
        found[finding], picks = trial, _picks(trial, cases)
        shown += _cases(explainer, peers, store, np.r_[ill, others], picks, trial)
        rule = picks.rule
        notes += [note for note in (*peers.notes, *more) if note not in notes]
        settings |= {name: identity(system)["settings"] for name, system in peers.systems.items()}
    if not found:
        problem = f"the classifier calls no image of the split {split!r} positive"
        raise InputError(problem, path=store.folder, remedy="Choose a split that has the findings")
    report = ExplainReport(found, folder / "report.html", tuple(notes))
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads(), "device": str(explainer.device)}
    write_report(
        report.page,
        title=title,
        intro=f"{len(rows)} images of the split {split!r}; what the classifier calls positive is explained. The "
        "explainer learned from the classifier's calls, not from labels or masks.",
        summary=[tile for finding, trial in found.items() for tile in _summary(finding, trial)],
        tables=report.tables(),
        cases=shown,
        selection=rule,
        curves=read_metrics(run) if run is not None else (),
        settings={
            "evaluation": {**machine, "batch_size": batch_size, "sample": sample, "probe": asdict(probe)},
            **settings,
        },
        limits=(*LIMITS, *notes),
    )
    return report


def _slow_figures(
    trial: ExplainerEvaluation,
    peers: Peers,
    store: PreparedStore,
    rows: np.ndarray,
    probe: Probe,
    folder: Path,
    progress: Progress | None,
) -> tuple[ExplainerEvaluation, list[str]]:
    """Stability and randomisation on a sample, system by system, and notes on what could not be done."""
    finding, notes = trial.evaluation.finding, list[str]()
    kept = Kept(
        folder,
        {
            "probe": asdict(probe),
            "store": [store.content, store.size],
            "sample": image_names(store, rows),
            "classifier": weights_digest(peers.classifier),
            "explainer": identity(next(iter(peers.systems.values()))),
        },
    )

    def stable(name: str) -> Part:
        device = device_of(peers.classifier)
        return Part(stability_of({name: peers.systems[name]}, store, rows, finding, probe=probe, device=device))

    def randomised(name: str) -> Part:
        return Part(randomisation_test({name: peers.factories[name]}, peers.classifier, store, rows, finding))

    for kind, measure in (("stability", stable), ("randomised", randomised)):
        frames = []
        for number, name in enumerate(peers.factories):
            try:
                part = kept.part(f"{kind} {name}", identity(peers.systems[name]), partial(measure, name))
            except InputError as error:  # a classifier without layers of its own cannot be randomised
                notes.append(f"{name}, {kind}: left out, {error}.")
                continue
            frames.append(part.frame)
            if progress is not None:
                progress(f"{kind}: {name}", number + 1, len(peers.factories))
        if frames:
            trial = trial.joined(pd.concat(frames, ignore_index=True))
    return trial, notes


def _summary(finding: str, found: ExplainerEvaluation) -> list[tuple[str, Cell]]:
    shown = (
        ("flip rate", "flip"),
        ("oracle flips", "oracle_flip"),
        ("pixel AP", "ap"),
        ("seconds per image", "seconds"),
    )
    own = found.evaluation.own
    tiles = [(f"{finding}: {words}", found.evaluation.interval(own, figure)) for words, figure in shown]
    return [(words, interval) for words, interval in tiles if np.isfinite(interval.value)]


def _picks(found: ExplainerEvaluation, count: int) -> Picks:
    """By how well the lesion is found where that can be judged, else by how far the probability falls."""
    evaluation = found.evaluation
    ap = evaluation.values(evaluation.own, "ap")[0]
    if bool(torch.isfinite(ap).any()):
        return pick_cases(ap, count, "pixel AP")
    return pick_cases(evaluation.values(evaluation.own, "drop")[0], count, "the fall of the probability")


def _cases(
    explainer: MedXGAN, peers: Peers, store: PreparedStore, rows: np.ndarray, picks: Picks, found: ExplainerEvaluation
) -> list[Case]:
    """The way of each case as a strip, ours and some rivals' maps beside."""
    finding, own, chosen = found.evaluation.finding, found.evaluation.own, picks.grouped()
    at = rows[[number for _, number in chosen]]
    batch = study_batch(store, at, patient_names(store, at)).to(device_of(peers.classifier))
    shown = [own, *(name for name in RIVALS if name in peers.systems)]
    answers = {name: list(map(_on_cpu, peers.systems[name].counterparts(batch, Query(finding)))) for name in shown}
    truth = store.masks(at, finding if store.mask_findings else None)
    figures = {name: found.evaluation.values(own, name)[0] for name in ("ap", "oracle_flip")}
    names, cases = image_names(store, at), []
    for i, (group, number) in enumerate(chosen):
        ours = answers[own][i]
        words = [f"AP {float(figures['ap'][number]):.2f}"] if bool(figures["ap"][number].isfinite()) else []
        judged = float(figures["oracle_flip"][number])
        words += [] if np.isnan(judged) else ["the oracle agrees" if judged else "the oracle still calls it positive"]
        cases.append(
            Case(
                label=names[i],
                counterpart=ours,
                truth=truth[i] if store.mask_known[at[i]] else None,
                caption=", ".join(words),
                group=f"{finding}: {group.lower()}",
                others=[answers[name][i] for name in shown[1:]],
                strip=strip(ours, name=names[i], findings=explainer.findings),
            )
        )
    return cases


def _on_cpu(answer: Counterpart) -> Counterpart:
    healed = None if answer.counterpart is None else answer.counterpart.cpu()
    return replace(answer, image=answer.image.cpu(), evidence=answer.evidence.cpu(), counterpart=healed)
