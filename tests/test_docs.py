"""What the documents promise exists: commands, files, settings."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from counterscan.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for verb, command in re.findall(
        r"(?:counterscan|cli\.main)\s+(data|classify|tag|explain|augment)\s+([a-z]+)", text
    ):
        assert command in importlib.import_module(VERBS[verb][0]).COMMANDS, f"{verb} {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_and_sources_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (path.parent / target).exists(), target
    for target in re.findall(r"`([a-z_]+/[a-z_]+(?:/[a-z_]+)?\.py)`", text):
        assert (ROOT / "src" / "counterscan" / target).exists() or (ROOT / target).exists(), target


def test_settings_in_the_tag_document_exist() -> None:
    from dataclasses import fields

    from counterscan.taggan import NetworkConfig, ObjectiveConfig, TagGANConfig

    text = (ROOT / "docs" / "tag.md").read_text(encoding="utf-8")
    known = {field.name for config in (NetworkConfig, ObjectiveConfig, TagGANConfig) for field in fields(config)}
    for group, name in re.findall(r"`(networks|objective)\.([a-z_]+)`", text):
        assert name in known, f"{group}.{name}"


def test_python_in_the_documents_parses_and_imports() -> None:
    for path in DOCUMENTS:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            compile(block, str(path), "exec")
            for line in re.findall(r"^from counterscan.*$", block, re.M):
                exec(line, {})
