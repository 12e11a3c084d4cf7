from __future__ import annotations

import math

import pytest
import torch

from counterscan.errors import InputError
from counterscan.text.statements import Statements, split_list, split_sentences
from tests.text.clip_toys import said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("FINDINGS: A 3.2 cm mass. No effusion.", ["A 3.2 cm mass.", "No effusion."]),
        ("IMPRESSION: 1. Mild edema. 2. Effusion.", ["Mild edema.", "Effusion."]),
        ("Clear lungs\nNo edema", ["Clear lungs", "No edema"]),
        ("No edema. No edema.", ["No edema."]),
        (" . \n", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert split_sentences(text) == parts


def test_rows_sentences_and_their_spread() -> None:
    found = Statements.of(["No edema. Mild left edema.", "No edema.", "No edema. No pleural effusion."], said)
    assert found.sentences[:3] == ["No edema.", "Mild left edema.", "No pleural effusion."]
    assert found.spread[:3].tolist() == [3, 1, 1]
    assert found.of_row.tolist() == [[0, 1], [0, -1], [0, 2]]
    assert [found.sentences[k] for k in found.whole] == [
        "No edema. Mild left edema.",
        "No edema.",
        "No edema. No pleural effusion.",
    ]
    assert found.labels is not None
    # A whole text states what its sentences state, and present wins.
    assert found.labels[found.whole[0]].tolist()[0] == 1
    assert math.isnan(found.labels[found.whole[0]].tolist()[1])
    assert found.labels[found.whole[2]].tolist() == [0, 0]


def test_drawing_prefers_rare_sentences_and_only_the_rows_own() -> None:
    texts = ["No edema. Mild left edema."] + ["No edema."] * 99
    found = Statements.of(texts)
    torch.manual_seed(0)
    rows = torch.zeros(4000, dtype=torch.int64)
    even = (found.draw(rows, 0.0, 0.0) == 1).float().mean()
    rare = (found.draw(rows, 0.0, 0.5) == 1).float().mean()
    assert float(even) == pytest.approx(0.5, abs=0.03)
    assert float(rare) == pytest.approx(10 / 11, abs=0.03)  # weights 1 and 1 / sqrt(100)
    assert found.draw(torch.arange(1, 100), 0.0, 0.5).unique().tolist() == [0]
    assert torch.equal(found.draw(rows[:5], 1.0, 0.5), found.whole[rows[:5]])


def test_whole_texts_need_not_be_kept() -> None:
    found = Statements.of(["No edema. Mild left edema.", "No edema."], said, keep_whole=False)
    assert found.sentences == ["No edema.", "Mild left edema."]
    assert found.whole.tolist() == [-1, 0]
    assert found.labels is not None
    assert len(found.labels) == 2


def test_lists_are_parted_at_commas_and_reports_are_not() -> None:
    assert split_list("3.2 cm mass in the left base, no edema, no edema") == [
        "3.2 cm mass in the left base",
        "no edema",
    ]
    text = "No edema, effusion, or mass."
    assert Statements.of([text]).sentences == [text]
    assert Statements.of(["mild edema, no effusion"], listed=True).sentences[:2] == ["mild edema", "no effusion"]


def test_unequal_labels_are_refused() -> None:
    with pytest.raises(InputError, match="label_sentence"):
        Statements.of(["a b. c"], lambda s: [0.0] * len(s))
