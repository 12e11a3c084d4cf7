"""The page as a reader's browser gets it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from counterscan.metrics.intervals import Interval
from counterscan.report.cases import Case
from counterscan.report.page import write_report
from counterscan.report.tables import Table
from tests.report.answers import answer, attribution

VOID = {"meta", "img", "path", "circle", "polyline"}
EVIL = "<script>alert('x')</script>&\""


class Reader(HTMLParser):
    """Checks that tags close, and collects images, text and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.images, self.addresses, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@dataclass
class Config:
    steps: int = 5
    path: str = EVIL


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[:, 3:8, 3:8] = True
    cases = [
        Case("s1", answer(), truth, f"AP 0.9 {EVIL}", "Best", [attribution()]),
        Case("s2", answer(verdict="still positive", mask=None), None, "", "Worst"),
        Case(EVIL, attribution(), ~truth & False, "", "Worst"),
    ]
    table = Table("Maps " + EVIL, ["Method", "AP"], [["TagGAN", Interval(0.78, 0.75, 0.81)], [EVIL, 0.2]], chart="AP")
    path = write_report(
        tmp_path_factory.mktemp("page") / "report.html",
        title="Run " + EVIL,
        intro=EVIL,
        summary=[("AP", Interval(0.78, 0.75, 0.81)), (EVIL, EVIL)],
        tables=[table],
        cases=cases,
        selection="By rank. " + EVIL,
        curves=[{"step": 1, EVIL: 1.0}, {"step": 2, EVIL: 2.0}],
        settings={"train": Config(), EVIL: [1, 2]},
        limits=[EVIL],
    )
    return path.read_text()


def test_is_sound_and_self_contained(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in reader.addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert "alert('x')" in " ".join(reader.words)  # shown as text


def test_says_what_it_must(page):
    assert page.count("Research use only. Not a medical device.") >= 2
    assert page.count('class="badge">synthetic') == 2
    for words in ("TagGAN", "0.78 <span>[0.75, 0.81]</span>", "still positive", "Best", "Worst", "train.steps"):
        assert words in page
    assert page.count("<h3>Worst</h3>") == 1


def test_pictures_are_labelled_pngs(page):
    reader = Reader()
    reader.feed(page)
    assert len(reader.images) == (4 + 1) + 3 + 3
    synthetic = 0
    for image in reader.images:
        assert image["alt"]
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert picture.size == (int(image["width"]), int(image["height"])) == (320, 320)
        synthetic += picture.text.get("Synthetic") == "true"
    assert synthetic == 2


def test_an_empty_report_has_no_empty_sections(tmp_path):
    text = write_report(tmp_path / "r.html", title="Nothing").read_text()
    assert "<section" not in text
    assert not re.search(r"<h2>", text)
