"""The extractor as a whole: labels, sections, refusals, traces, the phantom's reports."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable

import numpy as np
import pytest

from counterscan.data.findings import CHEXPERT
from counterscan.data.phantom import PhantomConfig, render
from counterscan.errors import InputError
from counterscan.text import Extractor
from counterscan.text.aggregate import label
from counterscan.text.normalise import normalise
from counterscan.text.sections import find_sections
from counterscan.text.sentences import find_sentences, unwrap

READ = Extractor()
REPORT = """EXAM: Chest, two views.
INDICATION: Rule out pneumonia.
FINDINGS: Stable cardiomegaly. Small left and large right pleural effusions. Patchy
opacity in the left lower lobe, likely atelectasis. No pneumothorax.
IMPRESSION:
1. Bilateral effusions
2. No edema"""


def test_labels_of_a_report():
    labels = READ(REPORT).labels
    assert list(labels) == list(CHEXPERT)
    known = {name: value for name, value in labels.items() if not math.isnan(value)}
    assert known == {
        "No Finding": 0,
        "Cardiomegaly": 1,
        "Lung Opacity": 1,
        "Edema": 0,
        "Atelectasis": -1,
        "Pneumothorax": 0,
        "Pleural Effusion": 1,
    }
    vector = READ(REPORT).vector()
    assert vector.shape == (14,)
    assert vector.dtype == np.float32
    assert vector[CHEXPERT.index("Atelectasis")] == -1
    assert READ.vectors([REPORT, None, ""]).shape == (3, 14)
    assert np.isnan(READ.vectors([None, ""])).all()
    assert READ.vectors([]).shape == (0, 14)


def test_spans_point_into_the_report_as_given():
    for finding in READ(REPORT).findings:
        assert REPORT[finding.start : finding.end] == finding.text
        for use in finding.rules:
            assert 0 <= use.start < use.end <= len(REPORT)
    small = READ("\u0130 \u201cSmall\u201d  pleural\u00a0effusion\u2014left.").findings[0]
    assert small.text == "pleural\u00a0effusion"


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  \n\t", "___ 12 / 5 .", "!?"])
def test_empty_reports(empty):
    read = READ(empty)
    assert read.refusal == "empty"
    assert not read.findings
    assert all(math.isnan(v) for v in read.labels.values())
    assert "empty" in read.explain()


@pytest.mark.parametrize(
    "text",
    [
        "Kein Pleuraerguss. Das Herz ist nicht vergrößert.",
        "No hay derrame pleural. La silueta cardiaca es normal.",
        "Pas d'épanchement pleural. Le cœur est de taille normale et les poumons sont clairs.",
        "Não há derrame pleural. Os pulmões estão sem consolidação, com área cardíaca normal.",
        "Плеврального выпота нет. Сердце не увеличено.",
        "胸部正位片未见异常",
    ],
)
def test_other_languages_are_refused(text):
    read = READ(text)
    assert read.refusal == "not English"
    assert all(math.isnan(v) for v in read.labels.values())


@pytest.mark.parametrize(
    "text",
    [
        "No effusion.",
        "Small L effusion, no ptx",
        "Non-displaced fx",
        "Dr. Der Hagopian: no effusion.",
        "NAD",
        "Ø effusion",
    ],
)
def test_short_english_is_read(text):
    assert READ(text).refusal == ""


def test_no_text_at_all_is_an_error():
    with pytest.raises(InputError, match="report: is int, not text"):
        READ(3)  # type: ignore[arg-type]


def test_nothing_known_is_not_no_finding():
    read = READ("Frontal view.")
    assert read.refusal == ""
    assert math.isnan(read.labels["No Finding"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Heart size is normal. Lungs are clear.", 1),
        ("Heart size is normal. Right PICC.", 1),
        ("Stable heart size. No effusion.", 1),
        ("Lungs are clear. Thoracic scoliosis.", 0),
        ("FINDINGS: Thoracic scoliosis. IMPRESSION: No adenopathy.", 0),
        ("Possible pneumonia.", -1),
        ("Possible pneumonia. Small effusion.", 0),
    ],
)
def test_no_finding(text, value):
    assert READ(text).labels["No Finding"] == value


def test_the_impression_overrules_the_findings_unless_told_otherwise():
    text = "FINDINGS: Possible small effusion. IMPRESSION: No effusion."
    assert READ(text).labels["Pleural Effusion"] == 0
    assert Extractor(impression_wins=False)(text).labels["Pleural Effusion"] == -1


def test_templates_give_way_to_statements():
    text = "FINDINGS: Small effusion. IMPRESSION: No acute cardiopulmonary process."
    assert READ(text).labels["Pleural Effusion"] == 1
    assert READ(text).labels["Edema"] == 0


def test_restricted_negations_do_not_deny_what_was_found():
    text = "FINDINGS: Prominent interstitial markings. Small effusion. IMPRESSION: No acute infiltrate. No {} effusion."
    assert READ(text.format("large")).labels["Lung Opacity"] == 1
    assert READ(text.format("large")).labels["Pleural Effusion"] == 1
    assert READ(text.format("pleural")).labels["Pleural Effusion"] == 0
    assert READ("No acute infiltrate.").labels["Lung Opacity"] == 0


def test_a_sign_follows_the_finding_it_is_named_with():
    assert READ("Possible edema with septal lines.").labels["Edema"] == -1
    assert READ("Septal lines.").labels["Edema"] == 1
    assert READ("Small effusion with blunting of the costophrenic angle.").labels["Pleural Effusion"] == 1


def test_closure_sets_parents():
    assert math.isnan(READ("Edema.").labels["Lung Opacity"])
    closed = Extractor(closure=True)
    assert closed("Edema.").labels["Lung Opacity"] == 1
    assert closed("Cardiomegaly.").labels["Enlarged Cardiomediastinum"] == 1
    assert "includes" in closed("Edema. No opacity.").explain()
    assert math.isnan(closed("Possible edema.").labels["Lung Opacity"])


def test_label_of_nothing():
    assert all(math.isnan(value) for value in label([]).values())


def test_json_holds_spans_and_rules():
    content = json.loads(READ("Small left effusion.").to_json())
    assert content["labels"]["Pleural Effusion"] == 1
    assert content["labels"]["Edema"] is None
    (finding,) = content["findings"]
    assert finding["span"] == [11, 19]
    assert [rule["id"] for rule in finding["rules"]] == ["effusion", "small", "left"]


def test_trace_names_rule_span_and_reason():
    trace = READ("HISTORY: edema. FINDINGS: No effusion. Pericardial line. The lungs are noted.").explain()
    assert "sections not read: indication" in trace
    assert 'status   26-28 "No"  rule negated' in trace
    assert 'mention  29-37 "effusion"  rule effusion' in trace
    assert "rule lungs: nothing is said of it" in trace
    assert "Pleural Effusion = 0 (absent at 29-37)" in trace


def test_sections_inline_and_on_lines():
    inline = normalise("FINAL REPORT INDICATION: cough. FINDINGS: Clear. IMPRESSION: Normal.")
    assert [s.name for s in find_sections(inline)] == ["body", "indication", "findings", "impression"]
    lines = normalise("HISTORY\ncough\nFINDINGS\nClear lungs\nIMPRESSION\nNormal")
    assert [s.name for s in find_sections(lines)] == ["indication", "findings", "impression"]
    assert [s.name for s in find_sections("no header here")] == ["body"]


def test_sentences_know_decimals_lists_and_wraps():
    def cut(text: str) -> list[str]:
        text = unwrap(text)
        return [text[a:b].strip() for a, b in find_sentences(text, 0, len(text))]

    assert cut("a 2.3 cm mass. no effusion.normal heart") == ["a 2.3 cm mass", "no effusion", "normal heart"]
    assert cut("1. no edema 2. mass\nin the lung") == ["no edema", "mass in the lung"]
    assert cut("- no edema\n- effusion") == ["- no edema", "- effusion"]
    assert cut("dr. smith saw edema; effusion") == ["dr. smith saw edema", "effusion"]


@pytest.mark.parametrize("hedge", [0.0, 1.0])
def test_phantom_reports_give_their_labels(hedge):
    config = PhantomConfig(size=32, prevalence=0.3, hedge=hedge, uncertain_labels=True)
    right = total = 0
    for index in range(80):
        study = render(config, 21, index)
        labels = READ(study.report).labels
        for name, truth in study.labels.items():
            if truth != 0 or not math.isnan(labels[name]):  # what is absent need not be mentioned
                total += 1
                right += labels[name] == truth
    assert total > 300
    assert right / total > 0.99


def test_phantom_sides():
    config = PhantomConfig(size=32, findings=("Pleural Effusion", "Pneumothorax"), prevalence=0.7, hedge=0)
    for index in range(40):
        study = render(config, 8, index)
        for case in study.cases:
            about = [f for f in READ(study.report).findings if f.name == case.finding and f.status == "present"]
            assert {f.laterality for f in about if f.laterality} == {case.side}, study.report


def test_speed():
    reports = [render(PhantomConfig(size=32, prevalence=0.3), 3, i).report for i in range(30)] * 4
    words = re.compile(r"\w+")

    def seconds(work: Callable[[str], object]) -> float:
        """CPU seconds of the fastest of three passes."""
        took = []
        for _ in range(3):
            began = time.process_time()
            for report in reports:
                work(report)
            took.append(time.process_time() - began)
        return min(took)

    reading = seconds(lambda report: READ(report).vector())
    listing = seconds(lambda report: [word.group().lower() for _ in range(20) for word in words.finditer(report)])
    assert reading < 8 * listing  # about 3; benchmarks/openi_reports.py measures the rate
