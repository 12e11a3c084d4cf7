"""The report: what is on the film and what is not, in the words of a radiologist.

Every statement is true of the image. Present findings carry their side, zone and degree; mild ones may be hedged.
Absent ones are negated, alone or in groups, and some go unmentioned. Order, sections and wording vary with the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from counterscan.data.phantom.cases import Case
from counterscan.data.phantom.config import FINDINGS, PhantomConfig
from counterscan.data.phantom.view import Acquisition

NEGATED: dict[str, tuple[str, ...]] = {
    "Cardiomegaly": (
        "The heart size is normal.",
        "The cardiac silhouette is within normal limits.",
        "Cardiac size is normal.",
        "The heart is not enlarged.",
        "There is no cardiomegaly.",
    ),
    "Edema": (
        "There is no pulmonary edema.",
        "No evidence of pulmonary edema.",
        "No interstitial edema.",
        "There is no pulmonary vascular congestion or edema.",
    ),
    "Consolidation": (
        "There is no focal consolidation.",
        "No focal airspace consolidation is seen.",
        "No evidence of consolidation.",
        "The lungs show no consolidation.",
    ),
    "Atelectasis": (
        "No atelectasis.",
        "There is no evidence of atelectasis.",
        "No atelectasis or volume loss is seen.",
    ),
    "Pneumothorax": (
        "There is no pneumothorax.",
        "No pneumothorax is seen.",
        "No evidence of pneumothorax.",
        "Negative for pneumothorax.",
    ),
    "Pleural Effusion": (
        "There is no pleural effusion.",
        "No pleural effusion is identified.",
        "The costophrenic angles are sharp without pleural effusion.",
        "No evidence of pleural effusion.",
    ),
    "Lung Lesion": (
        "No suspicious pulmonary nodule or mass.",
        "No pulmonary nodule is seen.",
        "There is no lung mass or nodule.",
    ),
}
# Short names for lists such as "no consolidation, pneumothorax, or pleural effusion".
SHORT = {
    "Edema": "pulmonary edema",
    "Consolidation": "focal consolidation",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Lung Lesion": "pulmonary nodule",
}
ASIDES = (
    "The osseous structures are intact.",
    "No acute osseous abnormality.",
    "The visualized bony thorax is unremarkable.",
    "The trachea is midline.",
    "The upper abdomen is unremarkable.",
    "The aortic contour is unremarkable.",
)
HEDGES = (
    "possible {0}",
    "{0} cannot be excluded",
    "findings may represent {0}",
    "questionable {0}",
    "suspected {0}",
)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def place(rng: np.random.Generator, case: Case) -> str:
    """Where a lung finding lies, in words that hold on both sides ("right upper lobe", "left mid lung zone")."""
    words = {
        "upper": ("upper lobe", "upper lung zone", "upper lung"),
        "mid": ("mid lung zone", "mid lung"),
        "lower": ("lower lobe", "lung base", "lower lung zone"),
    }[case.zone]
    return f"{case.side} {_pick(rng, words)}"


def _cardiomegaly(rng: np.random.Generator, case: Case) -> str:
    ratio = f" with a cardiothoracic ratio of approximately {case.measures['ctr']:.2f}" if rng.random() < 0.25 else ""
    return _pick(
        rng,
        (
            f"{case.grade} cardiomegaly{ratio}",
            f"{case.grade} enlargement of the cardiac silhouette{ratio}",
            f"{case.grade} cardiac enlargement{ratio}",
        ),
    )


def _edema(rng: np.random.Generator, case: Case) -> str:
    where = {"perihilar": "bilateral perihilar", "basal": "bilateral basal predominant"}[case.zone]
    text = _pick(
        rng,
        (
            f"{case.grade} pulmonary edema with {where} opacities",
            f"{case.grade} interstitial pulmonary edema, {where}",
            f"{where} haziness and vascular congestion consistent with {case.grade} pulmonary edema",
        ),
    )
    return text + (" and septal lines" if "septal_lines" in case.measures and rng.random() < 0.5 else "")


def _consolidation(rng: np.random.Generator, case: Case) -> str:
    extent = {"mild": "patchy", "moderate": "moderate", "severe": "dense"}[case.grade]
    text = _pick(
        rng,
        (
            f"{extent} consolidation in the {place(rng, case)}",
            f"{extent} {place(rng, case)} consolidation",
            f"{extent} airspace consolidation within the {place(rng, case)}",
        ),
    )
    return text + (" with air bronchograms" if case.grade == "severe" and rng.random() < 0.6 else "")


def _atelectasis(rng: np.random.Generator, case: Case) -> str:
    if "shift_mm" in case.measures:
        return (
            f"{case.side} lower lobe collapse with atelectasis, volume loss and mild {case.side}ward mediastinal shift"
        )
    kind = _pick(rng, ("linear", "plate-like", "subsegmental", "discoid"))
    where = place(rng, case)
    return _pick(
        rng,
        (f"{case.grade} {kind} atelectasis in the {where}", f"{case.grade} {where} {kind} atelectasis"),
    )


def _lesion(rng: np.random.Generator, case: Case) -> str:
    size = int(case.measures["diameter_mm"])
    kind = "nodule" if size <= 30 else "mass"
    where = place(rng, case)
    measure = f"{size / 10:.1f} cm" if rng.random() < 0.5 else f"{size} mm"
    return _pick(
        rng,
        (
            f"{measure} {kind} in the {where}",
            f"{where} {kind} measuring approximately {measure}",
            f"{measure} {where} pulmonary {kind}",
        ),
    )


def _pneumothorax(rng: np.random.Generator, case: Case) -> str:
    degree = {"mild": "small", "moderate": "moderate", "severe": "large"}[case.grade]
    return _pick(
        rng,
        (
            f"{degree} {case.side} apical pneumothorax",
            f"{degree} {case.side} pneumothorax with visible pleural line at the apex",
            f"{degree} {case.side}-sided pneumothorax",
        ),
    )


def _effusion(rng: np.random.Generator, case: Case) -> str:
    degree = {"mild": "small", "moderate": "moderate", "severe": "large"}[case.grade]
    if case.side == "bilateral":
        return _pick(rng, (f"{degree} bilateral pleural effusions", f"bilateral pleural effusions, {degree} in size"))
    return _pick(
        rng,
        (
            f"{degree} {case.side} pleural effusion",
            f"{degree} {case.side} pleural effusion with blunting of the costophrenic angle",
            f"{degree} {case.side}-sided pleural effusion",
        ),
    )


STATED: dict[str, Callable[[np.random.Generator, Case], str]] = {
    "Cardiomegaly": _cardiomegaly,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Atelectasis": _atelectasis,
    "Lung Lesion": _lesion,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
}


def write_report(
    rng: np.random.Generator, cases: Sequence[Case], config: PhantomConfig, acquisition: Acquisition
) -> tuple[str, frozenset[str]]:
    """Write the report of a study.

    Args:
        rng: the wording's generator.
        cases: the findings present.
        config: ``hedge`` is the share of mild findings stated with uncertainty.
        acquisition: names the view.

    Returns:
        the text, and the findings it hedges.
    """
    hedged = frozenset(c.finding for c in cases if rng.random() < config.hedge and c.grade == "mild")
    phrases = {c.finding: STATED[c.finding](rng, c) for c in cases}
    stated = [_state(rng, phrases[c.finding], c.finding in hedged) for c in cases]
    blocks = stated + _absences(rng, {c.finding for c in cases})
    if rng.random() < 0.45:
        aside = _pick(rng, ASIDES)
        shifted = any("shift_mm" in c.measures for c in cases)
        blocks += [] if shifted and "midline" in aside else [aside]
    order = rng.permutation(len(blocks)) if rng.random() < 0.6 else range(len(blocks))
    body = " ".join(blocks[i] for i in order)
    view = _pick(
        rng, (f"{acquisition.projection} view of the chest.", f"Single {acquisition.projection} chest radiograph.", "")
    )
    style = rng.random()
    if style < 0.15:
        return " ".join(filter(None, (view, body))), hedged
    impression = _impression(rng, phrases, hedged)
    head = " ".join(filter(None, (view, body)))
    return f"FINDINGS: {head}\nIMPRESSION: {impression}", hedged


def _state(rng: np.random.Generator, phrase: str, hedge: bool) -> str:
    """One positive sentence."""
    if hedge:
        return _sentence(_pick(rng, HEDGES).format(phrase))
    verb = "are" if "effusions" in phrase else "is"
    article = ""
    if verb == "is" and any(word in phrase for word in ("effusion", "pneumothorax", "nodule", "mass")):
        article = "an " if phrase[:2] in ("8 ", "11", "18") else "a "
    form = _pick(rng, ("{0}", "there {1} {2}{0}", "{0} {1} seen", "{0} {1} present"))
    return _sentence(form.format(phrase, verb, article))


def _absences(rng: np.random.Generator, present: set[str]) -> list[str]:
    """Sentences that deny the absent findings: some in one list, some alone, some left out."""
    absent = [name for name in FINDINGS if name not in present]
    listed = [name for name in absent if name in SHORT and rng.random() < 0.5]
    alone = [name for name in absent if name not in listed and rng.random() < 0.8]
    sentences = [_pick(rng, NEGATED[name]) for name in alone]
    if len(listed) > 1:
        names = [SHORT[name] for name in listed]
        opening = _pick(rng, ("No", "There is no", "No evidence of", "Negative for"))
        sentences.append(f"{opening} {', '.join(names[:-1])}{',' if len(names) > 2 else ''} or {names[-1]}.")
    elif listed:
        sentences.append(_pick(rng, NEGATED[listed[0]]))
    if not present & (set(FINDINGS) - {"Cardiomegaly"}) and rng.random() < 0.5:
        sentences.insert(0, _pick(rng, ("The lungs are clear.", "The lungs are clear and well expanded.")))
    return sentences


def _impression(rng: np.random.Generator, phrases: dict[str, str], hedged: frozenset[str]) -> str:
    if not phrases:
        return _pick(
            rng,
            (
                "No acute cardiopulmonary abnormality.",
                "No acute cardiopulmonary process.",
                "Normal chest radiograph.",
                "No radiographic evidence of acute disease.",
            ),
        )
    lines = [f"possible {text}" if name in hedged else text for name, text in phrases.items()]
    if len(lines) == 1 or rng.random() < 0.5:
        return " ".join(_sentence(line) for line in lines)
    return " ".join(f"{i}. {_sentence(line)}" for i, line in enumerate(lines, 1))
