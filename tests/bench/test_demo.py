from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from counterscan.bench import demo as module
from counterscan.nets.cnn import ClassifierConfig
from counterscan.taggan import NetworkConfig


def test_the_demo_goes_from_nothing_to_a_page_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.demo_config(0)
    tiny = replace(
        real,
        training=replace(real.training, steps=4, batch_size=8, validate_every=2),
        networks=NetworkConfig(base=4, levels=2, critic_base=4, critic_stages=2, back_base=4, back_levels=2),
        classifier=replace(real.classifier, steps=4, batch_size=8, model=ClassifierConfig(widths=(4, 8))),
    )
    monkeypatch.setattr(module, "COUNT", 40)
    monkeypatch.setattr(module, "SIZE", 32)
    monkeypatch.setattr(module, "demo_config", lambda seed: tiny)
    said: list[str] = []
    report, _ = module.demo(tmp_path, 0, 1, said.append)
    assert set(report.evaluations) == set(module.FINDINGS)
    assert report.sensitivity is not None
    assert report.headline().rows[0][0] == "TagGAN"
    page = report.page.read_text(encoding="utf-8")
    assert "Class sensitivity" in page
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    module.demo(tmp_path, 0, 1, said.append)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    assert sum("rendering" in line for line in said) == 1
