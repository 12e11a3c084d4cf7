from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterscan.counterpart import Query, StudyBatch
from counterscan.errors import InputError
from counterscan.files import write_text
from counterscan.systems import load_system
from counterscan.taggan import MapGenerator, NetworkConfig, TagGAN


def saved(folder: Path) -> TagGAN:
    tagger = TagGAN([MapGenerator(NetworkConfig(base=4, levels=2), 1)], ("Edema",), size=16)
    tagger.save_pretrained(folder)
    return tagger


def test_a_saved_tagger_is_found_by_its_settings(tmp_path: Path) -> None:
    saved(tmp_path)
    answers = load_system(tmp_path).counterparts(StudyBatch(torch.zeros(2, 1, 16, 16)), Query("Edema"))
    assert [answer.made_by.system for answer in answers] == ["TagGAN"] * 2


def test_a_run_folder_says_its_kind(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    write_text(tmp_path / "config.yaml", "system:\n  kind: taggan\n")
    assert isinstance(load_system(tmp_path), TagGAN)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("system:\n  kind: medxgan\n", "'medxgan' is no system"),
        ("system: {}\n", "does not say which system"),
        ("- [\n", "does not say which system"),
        (None, "no such file"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        write_text(tmp_path / "config.yaml", text)
    with pytest.raises(InputError, match=problem):
        load_system(tmp_path)
