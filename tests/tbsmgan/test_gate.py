from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.tbsmgan.acceptance import Fitted, Tally, confined, fit_best, fit_strengths, share_accepted
from counterscan.tbsmgan.edits import Edited, LabelSwap, Move, Origin, Prompt, StyleConfig, StyleDirections, measure
from counterscan.tbsmgan.gate import Gate, GateConfig, Limits
from counterscan.tbsmgan.judgement import CRITERIA, Judgement
from tests.tbsmgan.linear import BANK, BlockVerifier, LinearText, linear_gan, painted, store, texts
from tests.tbsmgan.test_edits import EDEMA

HEALTHY = torch.tensor([[0.0, 0.0, 0.05, -0.05]])


@pytest.fixture(scope="module")
def gate() -> Gate:
    """With limits under which an edit of one block is within reach."""
    made = Gate.calibrate([BlockVerifier()], store())  # type: ignore[list-item]
    made.limits = replace(made.limits, shape=0.9, change=0.2)
    return made


def judged(gate: Gate, after: Tensor, before: Tensor = HEALTHY, finding: str = "Edema", **options: object) -> Judgement:
    return gate.judge(painted(before), painted(after), finding, **options)  # type: ignore[arg-type]


def failed(judgement: Judgement) -> set[str]:
    return {name for name, ok in zip(CRITERIA, judgement.passed[0].tolist(), strict=True) if not ok}


def test_a_good_edit_passes_all_five(gate: Gate) -> None:
    found = judged(gate, HEALTHY + torch.tensor([[0.4, 0, 0, 0]]))
    assert failed(found) == set()
    assert bool(found.accepted[0])
    assert float(found.before[0]) < 0.01
    assert float(found.after[0]) > 0.99
    assert found.probabilities.shape == (1, 2)
    assert float(found.change[0]) == pytest.approx(0.1, abs=1e-6)


def test_each_criterion_rejects_by_itself(gate: Gate) -> None:
    edit = HEALTHY + torch.tensor([[0.4, 0, 0, 0]])
    assert failed(judged(gate, HEALTHY + torch.tensor([[0.1, 0, 0, 0]]))) == {"target"}
    assert failed(judged(gate, edit + torch.tensor([[0, 0.3, 0, 0]]))) == {"off-target"}
    assert failed(judged(gate, edit, HEALTHY - torch.tensor([[0, 0, 0.3, 0.3]]))) == {"identity"}
    assert "realism" in failed(judged(gate, HEALTHY + torch.tensor([[0.4, 0, 0, 0.9]])))
    copied = gate.reference["thumbnails"].clone()
    near = painted(edit)
    from counterscan.metrics.memorisation import thumbnails

    gate.reference["thumbnails"] = torch.cat([copied, thumbnails(near)])
    try:
        assert failed(judged(gate, edit)) == {"new"}
        own = torch.tensor([len(copied)])
        assert failed(judged(gate, edit, own=own)) == set()  # an edit may be like its own source
        assert failed(judged(gate, edit, own=torch.tensor([-1]))) == {"new"}
    finally:
        gate.reference["thumbnails"] = copied


def test_the_finding_must_come_or_go_beyond_doubt() -> None:
    gate = Gate([BlockVerifier()], Limits(2, 2, 1e9, -1, ""), _reference())  # type: ignore[list-item]

    def at(p: float) -> Tensor:
        return torch.tensor([[0.2 + float(torch.logit(torch.tensor(p))) / 50, 0.0, 0, 0]])

    def passes(start: float, end: float, sign: int) -> bool:
        return bool(judged(gate, at(end), at(start), sign=sign).reached[0])

    assert passes(0.45, 0.85, 1)
    assert not passes(0.05, 0.75, 1)
    assert not passes(0.55, 0.95, 1)  # it was there already
    assert passes(0.55, 0.15, -1)
    assert not passes(0.95, 0.25, -1)
    assert not passes(0.45, 0.05, -1)  # it was never there
    assert not passes(0.2, 0.9, -1)


def test_every_verifier_must_see_it() -> None:
    doubting = BlockVerifier()
    doubting.slope.data.mul_(0.1)
    gate = Gate([BlockVerifier(), doubting], Limits(2, 2, 1e9, -1, ""), _reference())  # type: ignore[list-item]
    after = HEALTHY + torch.tensor([[0.4, 0, 0, 0]])
    found = judged(gate, after)
    assert float(found.after[0]) > 0.8  # on average
    assert float(gate.opinions(painted(after))[:, 0, 0].min()) < 0.8
    assert not bool(found.reached[0])


def test_what_is_known_of_the_bodies_is_not_asked_again(gate: Gate) -> None:
    before, after = painted(HEALTHY), painted(HEALTHY + torch.tensor([[0.4, 0, 0, 0]]))
    told = gate.judge(before, after, "Edema", known=gate.opinions(before))
    assert torch.equal(told.off_target, gate.judge(before, after, "Edema").off_target)
    lied = gate.judge(before, after, "Edema", known=torch.full((1, 1, 2), 0.9))
    assert not bool(lied.reached[0])


def test_findings_that_were_asked_for_too_may_change(gate: Gate) -> None:
    edit = HEALTHY + torch.tensor([[0.4, 0.3, 0, 0]])
    assert "off-target" in failed(judged(gate, edit))
    assert "off-target" not in failed(judged(gate, edit, also=("effusion",)))


def test_limits_come_from_real_images() -> None:
    alone = Gate.calibrate([BlockVerifier()], store())  # type: ignore[list-item]
    twice = Gate.calibrate([BlockVerifier()], store(images_per_patient=2))  # type: ignore[list-item]
    assert alone.limits.variation == "images of two patients"
    assert twice.limits.variation == "images of one patient"
    assert alone.limits.change < twice.limits.change  # images of one patient have other findings here
    held = store().subset(store().split == "val")
    features = held.images()
    share = float((alone.distance(features) <= alone.limits.realism).double().mean())
    assert 0.97 < share < 1.0
    assert alone.reference["thumbnails"].shape == (int((store().split == "train").sum()), 64)


def test_calibration_refuses_what_it_cannot_judge_by() -> None:
    with pytest.raises(InputError, match="none is given"):
        Gate.calibrate([], store())
    with pytest.raises(InputError, match="text-image model cannot judge"):
        Gate.calibrate([LinearText()], store())  # type: ignore[list-item]
    with pytest.raises(InputError, match="no calibrated probabilities"):
        Gate.calibrate([torch.nn.Identity()], store())  # type: ignore[list-item]
    other = BlockVerifier()
    other.findings = ("Edema",)  # type: ignore[assignment]
    with pytest.raises(InputError, match="different findings"):
        Gate.calibrate([BlockVerifier(), other], store())  # type: ignore[list-item]
    foreign, known = BlockVerifier(), store()
    foreign.trained_on, known.content = {"content": "a"}, "b"
    with pytest.raises(InputError, match="another store"):
        Gate.calibrate([foreign], known)  # type: ignore[list-item]
    with pytest.raises(InputError, match="validation patients"):
        Gate.calibrate([BlockVerifier()], store(40))  # type: ignore[list-item]
    with pytest.raises(InputError, match="off"):
        GateConfig(off=0.0)


def test_verifiers_are_averaged() -> None:
    blind = BlockVerifier()
    blind.slope.data.zero_()
    gate = Gate([BlockVerifier(), blind], Limits(2, 2, 1e9, -1, ""), _reference())  # type: ignore[list-item]
    found = judged(gate, HEALTHY + torch.tensor([[0.4, 0, 0, 0]]))
    assert float(found.after[0]) == pytest.approx(0.75, abs=1e-3)


def test_bad_pairs_are_refused(gate: Gate) -> None:
    with pytest.raises(InputError, match="do not know 'Fracture'"):
        judged(gate, HEALTHY, finding="Fracture")
    with pytest.raises(InputError, match="no pairs"):
        gate.judge(painted(HEALTHY), painted(HEALTHY.repeat(2, 1)), "Edema")


def test_a_gate_is_saved_for_its_verifiers(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path)
    again = Gate.load(tmp_path, gate.verifiers)
    assert again.limits == gate.limits
    assert again.config == gate.config
    edit = HEALTHY + torch.tensor([[0.4, 0, 0, 0]])
    assert torch.equal(judged(again, edit).realism, judged(gate, edit).realism)
    other = BlockVerifier()
    other.slope.data.fill_(1.0)
    with pytest.raises(InputError, match="other verifiers"):
        Gate.load(tmp_path, [other])  # type: ignore[list-item]
    (tmp_path / "gate.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        Gate.load(tmp_path, gate.verifiers)


def test_rates_add_up(gate: Gate) -> None:
    tally = Tally()
    tally.add(judged(gate, HEALTHY + torch.tensor([[0.4, 0, 0, 0]])))
    tally.add(judged(gate, HEALTHY + torch.tensor([[0.4, 0.3, 0, 0]])))
    tally.add(judged(gate, HEALTHY, sign=-1))
    first, second = tally.table()
    assert (first["finding"], first["tried"], first["accepted"], first["rate"]) == ("Edema (+)", 2, 1, 0.5)
    assert (first["target"], first["off-target"], first["new"]) == (1.0, 0.5, 1.0)
    assert first["mean |off-target|"] == pytest.approx(0.5, abs=0.02)
    assert (second["finding"], second["rate"], second["target"]) == ("Edema (-)", 0.0, 0.0)
    assert Tally(dict(tally.counts)).table() == tally.table()


@pytest.mark.parametrize(("severity", "further"), [(None, 1), (1.0, 0), (2.0, 1), (2.5, 1), (3.0, 3)])
def test_bodies_move_until_it_is_seen_and_as_far_beyond_as_asked(
    gate: Gate, severity: float | None, further: int
) -> None:
    gan = linear_gan()
    config = StyleConfig(images=8, channels=1, usual=4.0)
    editor = StyleDirections(gan, texts(), measure(gan, LinearText(), config), config)  # type: ignore[arg-type]
    origin = Origin.sample(gan, torch.zeros(40, 2), psi=0.3)
    ladder = (0.1, 1.0, 2.0, 2.2, 2.4, 30.0)
    prompt = replace(EDEMA, severity=severity)
    assert prompt.further == further
    parts = list(fit_strengths(editor, prompt, gate, origin, ladder))
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(40))  # each body once
    seen = {s: gate.judge(*pair_of(editor, origin, s), "Edema") for s in ladder}
    for part in parts:
        assert len(part.edited) == len(part.judged.passed) == len(part.rows)
        for row in part.rows.tolist():
            enough = [s for s in ladder if bool(seen[s].reached[row])]
            if not enough:
                assert part.edited.strength == ladder[-1]
                continue
            start = ladder.index(enough[0])
            wanted = enough[0]
            for beyond in ladder[start + 1 : start + 1 + further]:
                if not bool(seen[beyond].accepted[row]):
                    break
                wanted = beyond
            assert part.edited.strength == wanted
    assert {0.1, 30.0} - {part.edited.strength for part in parts}  # neither all at once nor all at the end
    share = share_accepted(parts)
    assert share == sum(int(part.judged.accepted.sum()) for part in parts) / 40 > 0.1
    at_one = editor.edit(origin, EDEMA, 1.0)
    assert share >= float(gate.judge(at_one.before, at_one.after, "Edema").accepted.double().mean())
    away = list(fit_strengths(LabelSwap(gan), EDEMA, gate, origin, (1.0,), sign=-1))
    assert [part.edited.strength for part in away] == [-1.0]
    for bad in ((0.0,), ()):
        with pytest.raises(InputError, match="positive"):
            next(fit_strengths(editor, EDEMA, gate, origin, bad))
    assert BANK.findings


def test_edits_are_confined_to_where_they_change_most(gate: Gate) -> None:
    blocks = HEALTHY + torch.tensor([[0.4, 0.19, 0, 0], [0.4, 0, 0, 0], [0.16, 0.19, 0, 0]])  # P of effusion .4, 0, .4
    before, after = painted(HEALTHY.expand(3, 4)), painted(blocks)
    edited = Edited(before, after, Origin(torch.zeros(3, 2, 4)), None, None, EDEMA, 1.0, "by hand", 1)
    whole = gate.judge(before, after, "Edema")
    assert whole.accepted.tolist() == [False, True, False]
    part = confined(Fitted(torch.arange(3), edited, whole), EDEMA, gate)
    assert part.judged.accepted.tolist() == [True, True, False]  # the third does not reach its target
    assert float(part.judged.off_target[0]) < gate.config.off < float(whole.off_target[0])
    again = gate.judge(before, part.edited.after, "Edema")
    for name in ("passed", "off_target", "after", "shape", "probabilities"):
        assert torch.equal(getattr(part.judged, name), getattr(again, name))
    assert torch.equal(part.edited.after[1], after[1])
    strong = torch.zeros(1, 8, 8, dtype=torch.bool)
    strong[:, :4, :4] = True
    assert torch.equal(part.edited.after[0][strong], after[0][strong])
    assert torch.equal(part.edited.after[0][:, :, 6:], before[0][:, :, 6:])


def test_each_body_goes_by_the_editor_that_suits_it(gate: Gate) -> None:
    gan, asked = linear_gan(), list[int]()

    class Half(LabelSwap):
        """Moves only the bodies whose z begins below 0."""

        name = "half"

        def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
            asked.append(len(latents))
            move = super().move(latents, prompt, strength)
            assert move.w is not None
            if latents.z is None or len(latents) == 1:
                return move
            return replace(move, w=move.w * (latents.z[:, :1, None] < 0))

    origin = Origin.sample(gan, torch.zeros(40, 2), psi=0.3)
    assert origin.z is not None
    half, whole = Half(gan), LabelSwap(gan)
    parts = fit_best([half, whole], EDEMA, gate, origin)
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(40))  # each body once
    for part in parts:
        able = origin.z[part.rows, 0] < 0
        assert bool(able.all()) if part.edited.method == "half" else not bool((able & part.judged.accepted).all())
    assert {part.edited.method for part in parts} == {"half", "label swap"}
    both, one = share_accepted(parts), share_accepted(fit_best([half], EDEMA, gate, origin))
    assert both > one > 0
    asked.clear()
    fit_best([whole, half], EDEMA, gate, origin)
    assert max(asked, default=0) < 40  # those that the first did well are not asked about again
    with pytest.raises(InputError, match="none is given"):
        fit_best([], EDEMA, gate, origin)


def pair_of(editor: StyleDirections, origin: Origin, strength: float) -> tuple[Tensor, Tensor]:
    edited = editor.edit(origin, EDEMA, strength)
    return edited.before, edited.after


def _reference() -> dict[str, Tensor]:
    return {"mean": torch.zeros(4), "whitening": torch.eye(4), "thumbnails": torch.ones(3, 64) / 8}
