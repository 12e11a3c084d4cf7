from __future__ import annotations

from pathlib import Path

import pytest

from counterscan.data.findings import CHEXPERT
from counterscan.errors import InputError
from counterscan.text.prompts import PromptBank, spread_out


class Reader:
    """Knows some words."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)

    def unfamiliar(self, text: str) -> list[str]:
        return [word for word in text.lower().split() if word not in self.known]


def test_shipped_bank_has_every_chexpert_class_with_its_own_negatives() -> None:
    bank = PromptBank.read()
    assert set(CHEXPERT) <= set(bank.findings)
    for name in CHEXPERT:
        prompts = bank.of(name)
        assert 1 <= len(prompts.positives) <= 24
        assert len(set(prompts.positives)) == len(prompts.positives)
        assert prompts.negatives
        assert not set(prompts.positives) & set(prompts.negatives)
    assert not any("no no" in phrase for phrase in bank.of("No Finding").negatives)


def test_positives_are_products_with_parts_left_out() -> None:
    bank = PromptBank({"Edema": {"names": ["edema"], "degrees": ["mild"], "sites": ["left", "right"]}}, ["no finding"])
    assert bank.of("oedema").positives == (
        "edema",
        "left edema",
        "right edema",
        "mild edema",
        "mild left edema",
        "mild right edema",
    )
    assert bank.of("Edema").negatives == ("no finding",)


def test_cap_keeps_every_degree_and_site() -> None:
    positives = PromptBank.read(cap=12).of("Pleural Effusion").positives
    assert len(positives) == 12
    for word in ("left", "right", "bilateral", "small", "large"):
        assert any(word in phrase for phrase in positives)
    assert spread_out(["a", "a", "b", "c", "d"], 2) == ["a", "d"]  # steps of 3 round 4
    assert spread_out(["a", "b", "a"], 2) == ["a", "b"]


def test_a_finding_without_an_entry_is_asked_by_its_name() -> None:
    prompts = PromptBank.read().of("Scoliosis")
    assert prompts.positives == ("scoliosis",)
    assert prompts.negatives == ("no scoliosis",)


def test_prompts_whose_words_the_model_cannot_know_are_left_out() -> None:
    bank = PromptBank.read()
    prompts = bank.of("Pleural Effusion", Reader("pleural", "effusion", "small", "left", "no", "finding"))
    assert set(prompts.positives) == {
        "pleural effusion",
        "left pleural effusion",
        "small pleural effusion",
        "small left pleural effusion",
    }
    assert prompts.negatives == ("no pleural effusion",)
    assert prompts.normal == ("no finding",)
    # One that never read "no ..." gets what is said of normal images instead.
    assert bank.of("Edema", Reader("edema", "normal", "chest", "radiograph")).negatives == ("normal chest radiograph",)
    with pytest.raises(InputError, match="no positive prompt"):
        bank.of("Edema", Reader("ödem"))


def test_bad_banks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        PromptBank.read(tmp_path / "none.yaml")
    (tmp_path / "bank.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="no prompt bank"):
        PromptBank.read(tmp_path / "bank.yaml")
    with pytest.raises(InputError, match="prompts of 'Edema'"):
        PromptBank({"Edema": {"sites": ["left"]}}, ["no finding"])
    with pytest.raises(InputError, match="normal"):
        PromptBank({}, [])
    with pytest.raises(InputError, match="cap"):
        PromptBank({}, ["no finding"], cap=0)


def test_a_scalar_where_a_list_is_wanted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.yaml"
    for text, told in (
        (
            "normal: [no finding]\nfindings:\n  Edema:\n    names: edema\n",
            r"prompts of 'Edema': names: is no list.*\[edema\]",
        ),
        ("normal: no finding\nfindings:\n  Edema:\n    names: [edema]\n", r"normal: is no list.*\[no finding\]"),
        ("normal: [no finding]\nfindings: Edema\n", "findings: names no findings"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=rf"bank\.yaml: {told}"):
            PromptBank.read(path)
