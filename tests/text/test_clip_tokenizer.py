from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterscan.errors import InputError
from counterscan.text.tokenizer import ReportTokenizer, words

REPORTS = ["No pleural effusion.", "Small left pleural effusion, 32 mm.", "No pneumothorax.", "no Effusion"] * 3


def test_words_are_lower_case_with_single_digits_and_signs() -> None:
    assert words("A 3.2cm Mass, no_new") == ["a", "3", ".", "2", "cm", "mass", ",", "no", "_", "new"]


def test_common_words_become_one_token_and_rare_ones_are_spelt() -> None:
    tokenizer = ReportTokenizer.fit(REPORTS)
    assert tokenizer.tokens("No pleural effusion.") == ["no", "pleural", "effusion", "."]
    pieces = tokenizer.tokens("effusions")
    assert len(pieces) > 1
    assert "".join(piece.removeprefix("##") for piece in pieces) == "effusions"


def test_merges_join_the_most_frequent_pair_first() -> None:
    # By number of texts: "ab" stands in four, "bc" in three.
    tokenizer = ReportTokenizer.fit(["ab"] * 1 + ["abc"] * 3, least=1)
    assert tokenizer.merges == [("a", "##b"), ("ab", "##c")]
    assert ReportTokenizer.fit(["ab"] * 1 + ["abc"] * 3, size=6, least=1).merges == [("a", "##b")]


def test_encoding_starts_pads_and_cuts() -> None:
    tokenizer = ReportTokenizer.fit(REPORTS)
    ids = tokenizer.encode(["no effusion", "no"], 8)
    assert ids.shape == (2, 3)
    assert ids[1].tolist() == [1, ids[0, 1], -1]
    assert tokenizer.encode(["no " * 50], 8).shape == (1, 8)
    assert tokenizer.encode(["no жёлтый"], 16)[0].tolist().count(0) == 6


def test_what_few_reports_say_leaves_no_trace(tmp_path: Path) -> None:
    tokenizer = ReportTokenizer.fit([*["no effusion"] * 10, "Zbigniew Quirke no effusion"], least=3)
    tokenizer.save(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text().lower()
    assert "zbig" not in text
    assert "quir" not in text
    assert tokenizer.unfamiliar("no Quirke effusion 3") == ["quirke"]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    tokenizer = ReportTokenizer.fit(REPORTS)
    tokenizer.save(tmp_path / "t.json")
    again = ReportTokenizer.load(tmp_path / "t.json")
    texts = ["Small pleural effusions", "nonsense zzz"]
    assert torch.equal(again.encode(texts, 32), tokenizer.encode(texts, 32))
    assert again.known == tokenizer.known


def test_refuses_no_words_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no word"):
        ReportTokenizer.fit(["", " "])
    (tmp_path / "t.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match="is not a tokenizer"):
        ReportTokenizer.load(tmp_path / "t.json")
