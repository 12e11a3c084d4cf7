"""Rendering: from (config, seed, index) to a film, its healthy twin, masks, labels and report."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from counterscan.data.phantom.anatomy import Body, sample_body
from counterscan.data.phantom.cases import Case, sample_cases
from counterscan.data.phantom.config import PhantomConfig
from counterscan.data.phantom.detector import display, expose, metered, quanta, tone
from counterscan.data.phantom.effects import change_of
from counterscan.data.phantom.marks import stamp_marks
from counterscan.data.phantom.projection import Array
from counterscan.data.phantom.prose import write_report
from counterscan.data.phantom.thorax import Change, Thorax
from counterscan.data.phantom.view import Acquisition, Frame, sample_acquisition

VISIBLE = 0.02  # a change of grey (0 to 1, before noise) this large belongs to the lesion mask ...
VISIBLE_SHARE = 0.25  # ... or this share of the finding's largest change, for faint ones
_BODY, _ACQUISITION, _CASES, _SHORTCUT, _PROSE = range(5)


@dataclass(frozen=True)
class PhantomStudy:
    """One study.

    Attributes:
        image: (H, W) float32 in [-1, 1] on 256 levels, larger = brighter = denser.
        twin: the same body, acquisition and quanta without any finding; identical to ``image`` when there is none.
            Carries the same markers and, if planted, the same shortcut tag.
        masks: finding -> (H, W) bool, where that finding alone changes the film visibly; positives only.
        labels: finding -> 0 or 1 (-1 for hedged ones when the config asks for it), every finding of the config.
        cases: what is there, with side, zone and severity.
        report: findings and impression.
        patient: pseudonymous patient number.
        acquisition: how the film was taken.
        tagged: whether it carries the planted shortcut.
    """

    image: Array
    twin: Array
    masks: dict[str, NDArray[np.bool_]]
    labels: dict[str, int]
    cases: tuple[Case, ...]
    report: str
    patient: int
    acquisition: Acquisition
    tagged: bool

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) union of the masks of all findings."""
        return np.any(list(self.masks.values()), 0) if self.masks else np.zeros(self.image.shape, bool)


@lru_cache(maxsize=8)
def _body(seed: int, patient: int) -> Body:
    return sample_body(np.random.default_rng([seed, _BODY, patient]))


def render(config: PhantomConfig, seed: int, index: int, *, without: Collection[str] = ()) -> PhantomStudy:
    """Render one study; the same arguments always give the same arrays.

    Args:
        config: the data set.
        seed: the data set's seed, >= 0.
        index: which study, >= 0; ``index // images_per_patient`` is the patient.
        without: findings to leave out of the body: the true counterpart for removing some of several findings. The tag
            of a shortcut stays, as it is on the film and not in the body.
    """
    patient = index // config.images_per_patient
    body = _body(seed, patient)
    acquisition = sample_acquisition(np.random.default_rng([seed, _ACQUISITION, index]), body.scale, config.portable)
    drawn = sample_cases(np.random.default_rng([seed, _CASES, index]), config)
    tagged = _is_tagged(config, seed, index, {case.finding for case in drawn})
    cases = tuple(case for case in drawn if case.finding not in without)
    thorax = Thorax(body, Frame(acquisition, config.size))
    healthy = thorax.attenuation()
    noise = quanta(acquisition, config.size)
    masks: dict[str, NDArray[np.bool_]] = {}
    level = metered(healthy)
    films = [_film(healthy, thorax.frame, level, noise)]
    if cases:
        changes = [change_of(thorax, case) for case in cases]
        alone = [thorax.attenuation(change) for change in changes]
        grey = tone(healthy, acquisition, level)
        for case, attenuation in zip(cases, alone, strict=True):
            masks[case.finding] = visible_change(tone(attenuation, acquisition, level), grey)
        together = alone[0] if len(cases) == 1 else thorax.attenuation(_sum(changes))
        films.append(_film(together, thorax.frame, level, noise))
    present = {case.finding for case in cases}
    for film in films:
        stamp_marks(film, thorax.frame, tagged=tagged)
    prose = np.random.default_rng([seed, _PROSE, index])
    report, hedged = write_report(prose, cases, config, acquisition) if config.text else ("", frozenset())
    labels = {name: int(name in present) for name in config.findings}
    if config.uncertain_labels:
        labels.update(dict.fromkeys(hedged, -1))
    return PhantomStudy(films[-1], films[0], masks, labels, cases, report, patient, acquisition, tagged)


def render_batch(config: PhantomConfig, seed: int, indices: Iterable[int]) -> list[PhantomStudy]:
    """Render several studies; each equals ``render`` of its index."""
    return [render(config, seed, int(index)) for index in indices]


def visible_change(grey: Array, healthy_grey: Array) -> NDArray[np.bool_]:
    """Where a finding changes the film visibly.

    Args:
        grey: (H, W) 0 to 1, the line integrals with the finding on the display curve, free of noise and scatter: one
            millimetre of water shows in the lung and drowns in the abdomen.
        healthy_grey: the same without it.
    """
    change = np.abs(grey - healthy_grey)
    return change > min(VISIBLE, VISIBLE_SHARE * float(change.max()))


def _film(attenuation: Array, frame: Frame, level: float, noise: Array) -> Array:
    return display(expose(attenuation, frame, noise), frame.acquisition, level)


def _sum(changes: list[Change]) -> Change:
    total = changes[0]
    for change in changes[1:]:
        total = total.plus(change)
    return total


def _is_tagged(config: PhantomConfig, seed: int, index: int, present: set[str]) -> bool:
    if config.shortcut is None:
        return False
    rate = config.shortcut_rate if config.shortcut in present else config.shortcut_leak
    return bool(np.random.default_rng([seed, _SHORTCUT, index]).random() < rate)
