from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json
from counterscan.tbsmgan.acceptance import MASKS
from counterscan.tbsmgan.bodies import Inverted, Sampled
from counterscan.tbsmgan.edits import LabelSwap, Move, Origin, Prompt, parse
from counterscan.tbsmgan.edits.prompt import ReportReader
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.tbsmgan.synthesis import SynthesisConfig, SynthesisReport, passing, synthesize
from tests.tbsmgan.linear import BANK, FINDINGS, BlockVerifier, LinearText, blocks_of, encoded, linear_gan, store

PROMPTS = {name: parse(name, BANK, ReportReader(), LinearText()) for name in FINDINGS}
CONFIG = SynthesisConfig(batch=16, psi=0.5, strength=2.0)


@pytest.fixture(scope="module")
def gate() -> Gate:
    made = Gate.calibrate([BlockVerifier()], store())  # type: ignore[list-item]
    made.limits = replace(made.limits, shape=1.9, change=0.2, copy=0.0)
    return made


def made(
    folder: Path, gate: Gate, wanted: dict[str, int], config: SynthesisConfig = CONFIG, **more: object
) -> SynthesisReport:
    gan = linear_gan()
    return synthesize(gan, [LabelSwap(gan)], gate, PROMPTS, wanted, folder, config, **more)  # type: ignore[arg-type]


def test_studies_are_written_until_enough_passed(gate: Gate, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = made(tmp_path, gate, {"edema": 20, "Pleural Effusion": 5}, progress=lambda *now: seen.append(now))
    assert report.accepted == report.wanted == {"Edema": 20, "Pleural Effusion": 5}
    assert not report.short
    assert seen[-1] == ("Pleural Effusion", 5, 5)
    table = StudyTable.read(report.table)
    table.validate(check_files=True)
    assert len(table) == 25
    assert set(table.frame["split"]) == {"train"}
    assert table.frame["patient"].nunique() == 25
    assert (table.frame["synthetic"] == "1").all()
    for row in range(20):
        values = table.frame.iloc[row]
        assert values["edited"] == "Edema"
        assert values["Edema"] == 1.0
        assert 0.05 <= float(values["soft:Edema"]) <= 0.95
        assert values["soft:Pleural Effusion"] == "" or np.isnan(float(values["soft:Pleural Effusion"]))
        picture = Image.open(table.image_path(row))
        assert picture.text["Synthetic"] == "true"  # type: ignore[attr-defined]
        assert picture.text["Method"] == "label swap"  # type: ignore[attr-defined]
        # What the label says is in the pixels: the gate saw to it.
        image = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float()[None, None]
        assert float(blocks_of(image)[0, 0]) > 0.2
    rates = report.tally.table()
    assert rates[0]["finding"] == "Edema (+)"
    assert rates[0]["tried"] >= rates[0]["accepted"] >= 20


def test_other_bits_keep_the_sources_values(gate: Gate, tmp_path: Path) -> None:
    report = made(tmp_path, gate, {"Edema": 30})
    table, gan = StudyTable.read(report.table), linear_gan()
    bodies = Sampled(gan, 0.5)("Edema", 1, 0, 16)
    assert not bodies.labels[:, 0].any()
    own = {patient: labels for patient, labels in zip(bodies.patients, bodies.labels, strict=True)}
    both = [
        (own[p], e) for p, e in zip(table.frame["patient"], table.frame["Pleural Effusion"], strict=True) if p in own
    ]
    assert both
    assert all(float(labels[1]) == effusion for labels, effusion in both)
    assert {effusion for _, effusion in both} <= {0.0, 1.0}


def test_findings_that_were_not_learnt_are_never_asked_for() -> None:
    bodies = Sampled(linear_gan(learned={"Edema": True, "Pleural Effusion": False}))("Edema", 1, 0, 200)
    assert not bodies.labels.any()
    away = Sampled(linear_gan(learned={"Edema": True}))("Edema", -1, 0, 50)
    assert bool((away.labels[:, 0] == 1).all())


def test_taking_a_finding_out_gives_labels_without_it(gate: Gate, tmp_path: Path) -> None:
    report = made(tmp_path, gate, {"Edema": 8}, replace(CONFIG, sign=-1))
    table = StudyTable.read(report.table, labelled=False)
    assert set(table.frame["Edema"]) == {0.0}
    assert float(table.frame["soft:Edema"].astype(float).max()) < 0.5
    assert report.strengths == {"Edema": -2.0}
    assert report.tally.table()[0]["finding"] == "Edema (-)"


def test_a_spent_budget_is_told(gate: Gate, tmp_path: Path) -> None:
    report = made(tmp_path, gate, {"Edema": 20}, replace(CONFIG, strength=0.01, tries=2.0))
    assert report.accepted == {"Edema": 0}
    assert report.short["Edema"] == "the budget of 40 tries is spent; 0.0% of the edits passed the gate"
    assert report.tally.table()[0]["tried"] == 40
    assert read_json(tmp_path / "synthesis.json")["short"]["Edema"]


class _Interrupted(Exception):
    pass


def test_an_interrupted_request_goes_on_and_gives_the_same(gate: Gate, tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", gate, {"Edema": 20, "Pleural Effusion": 10})

    def stop(finding: str, done: int, wanted: int) -> None:
        raise _Interrupted

    with pytest.raises(_Interrupted):
        made(tmp_path / "parts", gate, {"Edema": 20, "Pleural Effusion": 10}, progress=stop)
    (tmp_path / "parts" / "images" / "edit-000029.png").write_bytes(b"half")  # written before a crash, not counted
    parts = made(tmp_path / "parts", gate, {"Edema": 20, "Pleural Effusion": 10})
    assert parts.table.read_text() == whole.table.read_text()
    assert parts.tally.table() == whole.tally.table()
    for number in range(30):
        name = f"images/edit-{number:06d}.png"
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    before = parts.table.stat().st_mtime_ns
    again = made(tmp_path / "parts", gate, {"Edema": 20, "Pleural Effusion": 10})
    assert again.accepted == whole.accepted
    assert again.table.stat().st_mtime_ns >= before
    with pytest.raises(InputError, match="another request"):
        made(tmp_path / "parts", gate, {"Edema": 21})


def test_edited_real_images_stay_their_patients(gate: Gate, tmp_path: Path) -> None:
    gan, data = linear_gan(), store()
    train = data.subset(data.split == "train")
    supply = Inverted(gan, encoded, train, torch.from_numpy(train.labels))
    config = replace(CONFIG, tries=100.0)
    limited = Gate(gate.verifiers, replace(gate.limits, copy=0.02), gate.reference)
    report = synthesize(gan, [LabelSwap(gan)], limited, PROMPTS, {"Edema": 500}, tmp_path, config, supply=supply)
    lacking = int((train.labels[:, 0] == 0).sum())
    assert report.short["Edema"] == f"all {lacking} images that could be edited were tried"
    table = StudyTable.read(report.table, labelled=False)
    assert 0 < len(table) <= lacking
    assert set(table.frame["patient"]) <= set(train.patients)
    source = dict(zip(train.patients, train.labels[:, 1], strict=True))
    assert [source[p] for p in table.frame["patient"]] == table.frame["Pleural Effusion"].tolist()


def test_a_budget_that_cuts_a_batch_edits_no_image_twice(gate: Gate, tmp_path: Path) -> None:
    gan, data = linear_gan(), store()
    train = data.subset(data.split == "train")
    asked: list[int] = []
    supply = Inverted(gan, encoded, train, torch.from_numpy(train.labels))

    class Watched(Gate):
        def judge(self, *given: object, own: torch.Tensor | None = None, **more: object) -> object:
            assert own is not None
            asked.extend(own.tolist())
            return super().judge(*given, own=own, **more)  # type: ignore[arg-type]

    strict = Watched(gate.verifiers, replace(gate.limits, copy=10.0), gate.reference)  # nothing passes
    config = replace(CONFIG, tries=2.5)  # of 10 wanted: 16 and then 9
    report = synthesize(gan, [LabelSwap(gan)], strict, PROMPTS, {"Edema": 10}, tmp_path, config, supply=supply)
    assert "the budget of 25 tries is spent" in report.short["Edema"]
    times = Counter(asked)  # once whole, once with each mask
    assert len(times) == 25
    assert set(times.values()) == {1 + len(MASKS)}


def test_strengths_are_chosen_where_none_is_given(gate: Gate, tmp_path: Path) -> None:
    report = made(tmp_path, gate, {"Edema": 5}, replace(CONFIG, strength=None))
    assert report.strengths["Edema"] > 0
    assert report.accepted == {"Edema": 5}


def test_what_cannot_be_met_is_refused(gate: Gate, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is wanted"):
        made(tmp_path, gate, {})
    with pytest.raises(InputError, match="nothing is wanted"):
        made(tmp_path, gate, {"Edema": 0})
    with pytest.raises(InputError, match="no prompt"):
        made(tmp_path, gate, {"Fracture": 1})
    for field, value in (("sign", 0), ("strength", -1.0), ("tries", 0.5), ("batch", 0), ("psi", 0.0)):
        with pytest.raises(InputError, match=field):
            SynthesisConfig(**{field: value})  # type: ignore[arg-type]


def test_an_editor_that_breaks_the_image_gets_nothing_through(gate: Gate, tmp_path: Path) -> None:
    class Vandal(LabelSwap):
        def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
            return Move(w=10 * torch.ones_like(latents.w))

    gan: StyleGAN = linear_gan()
    report = synthesize(gan, [Vandal(gan)], gate, PROMPTS, {"Edema": 4}, tmp_path, CONFIG)
    assert report.accepted == {"Edema": 0}
    row = report.tally.table()[0]
    assert row["target"] > 0.9
    assert row["identity"] == 0.0


def test_what_one_method_cannot_do_another_does(gate: Gate, tmp_path: Path) -> None:
    gan = linear_gan()
    methods, supply = [OnlyEdema(gan), LabelSwap(gan)], Sampled(gan, 0.5, 0)
    alone, both = (passing(editors, gate, PROMPTS, supply) for editors in (methods[:1], methods))
    assert alone["Pleural Effusion"] == 0 < both["Pleural Effusion"]
    assert both["Edema"] >= alone["Edema"] > 0
    report = synthesize(gan, methods, gate, PROMPTS, {"Edema": 2, "Pleural Effusion": 2}, tmp_path, CONFIG)
    assert report.methods == {"Edema": "only edema", "Pleural Effusion": "label swap"}
    assert set(report.strengths) == {"Edema", "Pleural Effusion"}
    with pytest.raises(InputError, match="none is given"):
        synthesize(gan, [], gate, PROMPTS, {"Edema": 2}, tmp_path / "none", CONFIG)


class OnlyEdema(LabelSwap):
    """Label swap that does nothing for other findings."""

    name = "only edema"

    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        move = super().move(latents, prompt, strength)
        return move if prompt.finding == "Edema" or move.w is None else Move(w=move.w * 0, usual=move.usual)


def test_methods_are_compared_knowing_which_images_the_bodies_are(gate: Gate) -> None:
    gan, data = linear_gan(), store()
    train = data.subset(data.split == "train")
    supply = Inverted(gan, encoded, train, torch.from_numpy(train.labels))
    asked: list[int] = []

    class Watched(Gate):
        def judge(self, *given: object, own: torch.Tensor | None = None, **more: object) -> object:
            assert own is not None
            asked.extend(own.tolist())
            return super().judge(*given, own=own, **more)  # type: ignore[arg-type]

    watched = Watched(gate.verifiers, gate.limits, gate.reference)
    passing([LabelSwap(gan)], watched, {"Edema": PROMPTS["Edema"]}, supply)
    bodies = supply("Edema", 1, 0, 48)
    assert bodies is not None
    assert set(asked) == set(bodies.rows.tolist())  # type: ignore[union-attr]
