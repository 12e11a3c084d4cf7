"""Run an augmentation study from a frozen protocol: models, synthetic images, arms, report; interruptible anywhere.

What depends on nothing else runs side by side in worker processes of one thread each. Every part leaves a file when it
is done, so that the same command goes on where one stopped, and comes to the same result.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterscan.bench import study_content
from counterscan.bench.quality import QualityConfig, audit_images
from counterscan.bench.study_arms import Arm, arms_of, scores_path, train_arm
from counterscan.bench.study_config import GRAFTED, PLAIN, UNMADE, Content, StudyConfig, freeze
from counterscan.bench.study_content import FIRST, TEXTUAL, UNIONS
from counterscan.bench.study_models import (
    Study,
    fit_encoder,
    fit_generator,
    fit_lesions,
    fit_text_model,
    fit_verifier,
    load_gate,
    load_generator,
    load_steering,
)
from counterscan.bench.study_report import StudyReport, write_report
from counterscan.bench.workers import end_with_parent
from counterscan.classify import ClassifyConfig
from counterscan.data.augment import AugmentConfig
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.tbsmgan import GANConfig, StyleGAN
from counterscan.tbsmgan.edits.base import digest_of
from counterscan.tbsmgan.gate import check_validation
from counterscan.text.clip import load_clip
from counterscan.training.config import plain

Say = Callable[[str], None]
_TIMES = "times.json"
_MOVED: tuple[Content, ...] = ("random", "naive")


@dataclass(frozen=True)
class Job:
    """A part of a study.

    Attributes:
        part: what its time is counted under.
        what: in words.
        function: takes the study and ``arguments``; a string that it returns says why it could not be done.
    """

    part: str
    what: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_study(
    store: PreparedStore,
    out: str | Path,
    config: StudyConfig | None = None,
    *,
    workers: int = 2,
    gan: GANConfig | None = None,
    clip_settings: Mapping[str, Any] | None = None,
    generator: str | Path | None = None,
    clip: str | Path | None = None,
    given: PreparedStore | None = None,
    say: Say = print,
) -> StudyReport:
    """Do a study, or go on with one.

    Args:
        store: prepared images with labels in the splits train, val and test; reports for what is steered by text.
        out: the study's folder; ``study.yaml`` in it is the protocol.
        config: see ``StudyConfig``; the profile "quick" by default.
        workers: processes, one thread each; 1 does everything in this one. The result does not depend on it.
        gan: settings of the generators' networks, for sizes that no preset has.
        clip_settings: fields of ``ClipConfig`` that are to differ.
        generator, clip: folders of a generator and a text-image model that were trained on this very split train.
        given: synthetic images made elsewhere, for the arm "given".
        say: told what is being done.

    Returns:
        The report, which also lies in the folder: ``report.html``, ``study.json``, ``tables.md``.

    Raises:
        InputError: another protocol in the folder, a finding without positives in a split, a leak, no reports where
            text is to steer.
    """
    config, out = config or StudyConfig(), Path(out)
    models = {
        "gan": plain(gan) if gan is not None else None,
        "clip": dict(clip_settings or {}),
        "generator": StyleGAN.from_pretrained(generator).checkpoint if generator is not None else None,
        "text-image model": digest_of(load_clip(clip)) if clip is not None else None,
        "given": given.content if given is not None else None,
    }
    told = freeze(config, store, out, {name: value for name, value in models.items() if value})
    study = Study(
        store,
        config,
        out,
        gan,
        Path(generator) if generator is not None else None,
        Path(clip) if clip is not None else None,
        dict(clip_settings or {}),
        given,
    )
    arms = arms_of(config)
    runner = _Runner(study, workers, say)
    _check_text(study, arms)
    if any(_needs(arms)):
        check_validation(study.part("val"))
    if any(arm.content == "given" for arm in arms):
        study_content.given_images(study)  # what does not fit shows before anything is spent
    if generator is not None:
        load_generator(study, 0)  # a leak shows before anything is spent
    for stage in _stages(study, arms):
        runner.do(stage)
    if config.cards:
        _cards(study, runner)
    began = time.process_time()
    say("report")
    report = write_report(study, told, arms, runner.left_out, runner.minutes())
    runner.spent("report", time.process_time() - began)
    return report


def _stages(study: Study, arms: Sequence[Arm]) -> list[list[Job]]:
    """Jobs that may run side by side, in order."""
    config = study.config
    contents = [a.content for a in arms if a.content not in PLAIN]
    generated, grafted = _needs(arms)
    numbers = range(config.generators)
    # An ensemble of views needs them all.
    views = config.views if any(c in TEXTUAL for c in contents) else ()
    runs = [(arm, number) for number in range(config.seeds) for arm in arms]
    plain_runs = [_run(study, arm, n) for arm, n in runs if arm.content in PLAIN]
    stages: list[list[Job]] = []
    if generated or grafted:
        stages.append([Job("verifiers", f"verifier {k}", fit_verifier, (k,)) for k in range(config.verifiers)])
        stages.append([Job("gate", "gate", load_gate, ())])
    models = [Job("generator", f"generator {n}", fit_generator, (n,)) for n in numbers if generated]
    models += [Job("lesions", "tagger and filler", fit_lesions, ()) for _ in range(grafted)]
    models += [Job("text-image model", f"text-image model, {view}", fit_text_model, (view,)) for view in views]
    stages.append([*models, *plain_runs])
    first = [c for c in FIRST if _needed(c, contents)]
    if first and config.bodies == "real":
        stages.append([Job("encoder", f"encoder {n}", fit_encoder, (n,)) for n in numbers])
    if views:
        stages.append([Job("steering", f"{v}, generator {n}", load_steering, (v, n)) for n in numbers for v in views])
    if grafted:
        first.append("graft")
    then = [c for c in dict.fromkeys(contents) if c not in (*FIRST, *UNIONS, "graft")]
    for chosen in (first, then):
        stages.append(
            [
                Job(
                    "synthesis",
                    f"{content} {view if content in TEXTUAL else ''}, generator {n}",
                    study_content.make,
                    (content, view, n),
                )
                for n in numbers
                for content in chosen
                for view in (config.views if content in TEXTUAL else config.views[:1])
            ]
        )
    stages.append([_run(study, arm, n) for arm, n in runs if arm.content not in PLAIN])
    return [stage for stage in stages if stage]


def _needed(content: Content, contents: Sequence[Content]) -> bool:
    unions = set(UNIONS) & set(contents)
    return (
        content in contents
        or (content in TEXTUAL and bool(unions))
        or (content == "text+" and bool(set(_MOVED) & set(contents)))
    )


def _run(study: Study, arm: Arm, number: int) -> Job:
    return Job("arms", f"arm {arm.name}, run {number + 1} of {study.config.seeds}", train_arm, (arm, number))


class _Runner:
    """Does jobs, in this process or in workers, and counts their CPU time."""

    def __init__(self, study: Study, workers: int, say: Say) -> None:
        if workers < 1:
            raise InputError("must be at least 1", field="workers")
        self.study, self.workers, self.say = study, workers, say
        self.left_out: dict[str, str] = {}
        path = study.out / _TIMES
        self.times: dict[str, float] = read_json(path) if path.is_file() else {}

    def do(self, jobs: Sequence[Job]) -> None:
        """All of a stage; those that are done take no time."""
        jobs = [job for job in jobs if not self._is_done(job)]
        if self.workers == 1 or len(jobs) < 2:
            for job in jobs:
                self._note(job, *_timed(self.study, job))
            return
        # Waiting threads that spin cost more than the work on a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self.workers, len(jobs)), context, _start, (self.study,)) as pool:
            waiting = {pool.submit(_work, job): job for job in jobs}
            try:
                for future in as_completed(waiting):
                    self._note(waiting[future], *future.result())
            except BrokenProcessPool:
                remedy = "Give fewer workers, or more memory; the same command goes on"
                raise InputError("a worker died, perhaps for want of memory", field="workers", remedy=remedy) from None
            finally:
                pool.shutdown(cancel_futures=True)

    def _is_done(self, job: Job) -> bool:
        if job.function is not train_arm:
            return False
        return scores_path(self.study, *job.arguments).is_file()

    def _note(self, job: Job, reason: str, seconds: float) -> None:
        if reason:
            self.left_out[job.arguments[0].name] = reason
        self.say(f"{job.what}: {reason or 'done'}, {seconds:.0f} s of CPU time")
        self.spent(job.part, seconds)

    def spent(self, part: str, seconds: float) -> None:
        """Add to the record."""
        self.times[part] = self.times.get(part, 0.0) + seconds
        write_json(self.study.out / _TIMES, self.times)

    def minutes(self) -> dict[str, float]:
        """CPU minutes of each part, over all calls; "total" last."""
        found = {part: seconds / 60 for part, seconds in self.times.items()}
        return {**found, "total": sum(found.values())}


_STUDY: list[Study] = []


def _start(study: Study) -> None:
    """Of a worker process."""
    end_with_parent()
    torch.set_num_threads(1)
    _STUDY[:] = [study]


def _work(job: Job) -> tuple[str, float]:
    return _timed(_STUDY[0], job)


def _timed(study: Study, job: Job) -> tuple[str, float]:
    began, threads = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = job.function(study, *job.arguments)
        # Models are returned, too; they lie in the study's folder, and stay in this process.
        return (found if isinstance(found, str) else ""), time.process_time() - began
    finally:
        torch.set_num_threads(threads)


def _needs(arms: Sequence[Arm]) -> tuple[bool, bool]:
    """Whether a generator is needed, and whether lesions of other images are; verifiers judge what either makes."""
    contents = {arm.content for arm in arms}
    return not contents <= set(UNMADE), not contents.isdisjoint(GRAFTED)


def _check_text(study: Study, arms: Sequence[Arm]) -> None:
    """Before hours are spent: text arms need reports."""
    if any(arm.content in TEXTUAL for arm in arms) and "report" not in study.store.table.frame:
        raise InputError(
            "the table has no reports, and text is to steer",
            field="column 'report'",
            remedy="Add the column; or name arms that do without text: classic duplicate plain graft",
        )


def _cards(study: Study, runner: _Runner) -> None:
    """Quality cards of what the arms were given, by a judge that no other part has seen."""
    config = study.config
    contents = {c: None for c in ("plain", "swap", "both", "random") if any(a.content == c for a in arms_of(config))}
    settings = QualityConfig(
        classifier=ClassifyConfig(
            steps=config.verifier_steps,
            seed=8_000 + config.seed,
            findings=study.findings,
            augment=AugmentConfig(flip=config.flip),
            tensorboard=False,
        ),
        resamples=min(config.resamples, 500),
    )
    for content in contents:
        folder = study.out / "cards" / content
        made = study_content.load(study, content, config.views[0], 0)  # type: ignore[arg-type]
        if (folder / "card.json").is_file() or len(made) < 40:
            continue
        began = time.process_time()
        runner.say(f"quality card of {content}")
        audit_images(made.store(study.findings), study.store, folder, settings, title=f"Quality of {content}")
        runner.spent("cards", time.process_time() - began)
