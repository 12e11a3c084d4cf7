from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.grafts import FEWEST, Grafting, opacity, with_opacity, write_grafts
from counterscan.tbsmgan.judgement import Judgement, Sign
from tests.tbsmgan.linear import (
    FINDINGS,
    BlockFiller,
    BlockTagger,
    BlockVerifier,
    block_regions,
    blocks_of,
    store,
)


@pytest.fixture(scope="module")
def images() -> PreparedStore:
    return store()


@pytest.fixture
def grafting(images: PreparedStore) -> Callable[..., Grafting]:
    def make(blind: bool = False, labels: np.ndarray | None = None, seed: int = 0, flips: bool = False) -> Grafting:
        gate = Gate.calibrate([BlockVerifier()], images)  # type: ignore[list-item]
        gate.limits = replace(gate.limits, shape=1.9, change=0.3, copy=0.0)
        (train,) = images.parts("train")
        known = train.labels if labels is None else labels
        parts = BlockTagger(flips), block_regions(known), BlockFiller(blind)
        return Grafting(*parts, train, known, gate, seed)  # type: ignore[arg-type]

    return make


def test_lesions_are_put_into_bodies_that_lack_them(grafting: Callable[..., Grafting]) -> None:
    makes = grafting()
    found = makes.make("Edema", 1, 20, tries=8)
    assert len(found) == 20
    bodies, lesions = makes.images.images(found.rows), makes.images.images(found.lesions)
    assert (makes.labels[found.rows, 0] == 0).all()
    assert (makes.labels[found.lesions, 0] == 1).all()
    change = found.images - bodies
    assert change[..., :4, 4:].abs().max() == change[..., 4:, :].abs().max() == 0  # the rest of the body, bit for bit
    inside = (..., slice(None, 4), slice(None, 4))
    put = with_opacity(bodies, opacity(lesions, torch.zeros_like(lesions)))  # under the lesions lies 0
    assert torch.equal(found.images[inside], put[inside])
    assert (blocks_of(change)[:, 0] > 0.05).all()
    assert ((found.seen > 0.5).float().mean()) > 0.5
    rates = makes.tally.table()
    assert {row["finding"] for row in rates} == {"Edema (+)", "Edema (-)"}


def test_lesions_change_sides_where_sides_look_alike(grafting: Callable[..., Grafting]) -> None:
    makes = grafting(flips=True)
    makes.gate.judge = everything_passes  # type: ignore[method-assign]
    found = makes.make("Edema", 1, 60, tries=8)
    change = blocks_of(found.images - makes.images.images(found.rows))
    left, right = (change[:, k].abs() > 1e-3 for k in (0, 1))
    assert (left ^ right).all()
    assert 15 < left.sum() < 45


def test_a_lesion_gets_a_body_that_is_like_its_own_there(grafting: Callable[..., Grafting]) -> None:
    makes = grafting()
    makes.gate.judge = everything_passes  # type: ignore[method-assign]
    found = makes.make("Edema", 1, 60, tries=8)
    able = makes.images.images(np.flatnonzero(makes.labels[:, 0] == 0))
    chosen, other = (blocks_of(x)[:, 0].abs().mean() for x in (makes.images.images(found.rows), able))
    assert chosen < 0.3 * other  # under the lesions lies 0


def everything_passes(
    before: Tensor, after: Tensor, finding: str, sign: Sign = 1, own: Tensor | None = None
) -> Judgement:
    """Of a gate."""
    size = len(after)
    number = torch.full((size,), 0.9 if sign > 0 else 0.1)
    return Judgement(
        finding, sign, torch.ones(size, 5, dtype=torch.bool), 1 - number, number, *[number * 0] * 5, number[:, None]
    )


def test_lesions_are_taken_out_of_their_own_images_once(grafting: Callable[..., Grafting]) -> None:
    makes = grafting()
    found = makes.make("Pleural Effusion", -1, 10_000, tries=1)
    assert len(set(found.rows.tolist())) == len(found) > 20
    assert (found.rows == found.lesions).all()
    assert (makes.labels[found.rows, 1] == 1).all()
    assert (blocks_of(found.images)[:, 1] < 0.05).all()
    assert (found.seen < 0.2).all()
    assert len(makes.make("Pleural Effusion", -1, 3, tries=1)) == 3


def test_the_same_seed_makes_the_same_images(grafting: Callable[..., Grafting]) -> None:
    first, again, other = (grafting(seed=seed).make("Edema", 1, 9, tries=8) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()


def test_what_cannot_be_taken_out_is_not_put_in(grafting: Callable[..., Grafting]) -> None:
    makes = grafting(blind=True)
    assert len(makes.make("Edema", 1, 5, tries=8)) == len(makes.make("Edema", -1, 5, tries=8)) == 0
    assert [row["finding"] for row in makes.tally.table()] == ["Edema (-)"]  # nothing was tried


def test_few_lesions_are_too_few(grafting: Callable[..., Grafting], images: PreparedStore) -> None:
    labels = images.parts("train")[0].labels.copy()
    ill = np.flatnonzero(labels[:, 0] == 1)
    labels[ill[FEWEST - 1 :], 0] = np.nan  # unknown: neither ill nor healthy
    makes = grafting(labels=labels)
    assert len(makes.make("Edema", 1, 5, tries=8)) == 0
    assert len(makes.make("Edema", -1, 5, tries=8)) > 0


def test_tries_bound_the_work(grafting: Callable[..., Grafting]) -> None:
    makes = grafting()
    makes.gate.limits = replace(makes.gate.limits, shape=-1.0)  # nothing passes
    assert len(makes.make("Edema", 1, 10, tries=3)) == 0
    assert len(makes.make("Edema", 1, 100, tries=1)) == 0
    assert [row["tried"] for row in makes.tally.table() if row["finding"] == "Edema (+)"] == [100]


def test_a_study_table_with_truthful_labels_is_written(grafting: Callable[..., Grafting], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = write_grafts(
        grafting(), {"edema": 12, "Pleural Effusion": 7}, tmp_path, healed=True, progress=lambda *now: seen.append(now)
    )
    assert made == {
        name: {"graft": n, "control": n, "healed": n} for name, n in (("Edema", 12), ("Pleural Effusion", 7))
    }
    assert seen == [("Edema", 12, 12), ("Pleural Effusion", 7, 7)]
    table = StudyTable.read(tmp_path / "table.csv")
    table.validate(check_files=True)
    assert len(table) == 57
    train = set(grafting().images.patients)
    for at in range(len(table)):
        row, picture = table.frame.iloc[at], Image.open(table.image_path(at))
        assert {row["patient"], row["lesion_patient"]} <= train
        assert picture.text["Synthetic"] == "true"  # type: ignore[attr-defined]
        assert picture.text["Method"] == f"{row['method']}: {row['edited']}"  # type: ignore[attr-defined]
        assert row[row["edited"]] == float(row["method"] == "graft")
        assert row["method"] != "healed" or float(row["seen"]) < 0.2
        assert f"soft:{row['edited']}" not in row
        pixels = torch.from_numpy(np.asarray(picture) / 127.5 - 1).float()[None, None]
        if row["method"] == "healed":
            assert float(blocks_of(pixels)[0, FINDINGS.index(row["edited"])]) < 0.1
    assert read_json(tmp_path / "grafts.json")["made"] == made
    stamp = (tmp_path / "table.csv").stat().st_mtime_ns
    assert write_grafts(grafting(), {"Edema": 12, "Pleural Effusion": 7}, tmp_path, healed=True) == made
    assert (tmp_path / "table.csv").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another request"):
        write_grafts(grafting(), {"Edema": 13}, tmp_path)


def test_healed_images_are_written_where_asked_for_and_nothing_made_is_an_empty_table(
    grafting: Callable[..., Grafting], tmp_path: Path
) -> None:
    assert write_grafts(grafting(), {"Edema": 3}, tmp_path / "a") == {"Edema": {"graft": 3, "control": 3}}
    made = write_grafts(grafting(blind=True), {"Edema": 3}, tmp_path / "b", healed=True)
    assert made == {"Edema": {"graft": 0, "control": 0, "healed": 0}}
    assert (tmp_path / "b" / "table.csv").read_text().strip() == "image,patient,split,mask_kind"


def test_what_cannot_be_done_is_said(grafting: Callable[..., Grafting], images: PreparedStore, tmp_path: Path) -> None:
    makes = grafting()
    with pytest.raises(InputError, match="does not know 'Fracture'"):
        makes.make("Fracture", 1, 1, tries=1)
    with pytest.raises(InputError, match="nothing is wanted"):
        write_grafts(makes, {}, tmp_path)
    none = grafting(labels=np.zeros((len(makes.images), 2)))
    with pytest.raises(InputError, match="no training image has it"):
        none.make("Edema", 1, 1, tries=1)
    tagger, large = BlockTagger(), BlockTagger()
    large.size = 16  # type: ignore[misc]
    rest = makes.regions, makes.filler, makes.images, makes.labels, makes.gate
    with pytest.raises(InputError, match="16 px"):
        Grafting(large, *rest)  # type: ignore[arg-type]
    tagger.findings = ("Edema", "Mass")  # type: ignore[assignment]
    with pytest.raises(InputError, match="verifiers do not know 'Mass'"):
        Grafting(tagger, *rest)  # type: ignore[arg-type]


def test_controls_are_made_as_grafts_are_without_the_finding(grafting: Callable[..., Grafting]) -> None:
    makes = grafting()
    found = makes.controls("Edema", 20)
    assert len(found) == 20
    assert (makes.labels[found.rows, 0] == 0).all()
    assert (makes.labels[found.lesions, 0] == 0).all()
    bodies, others = makes.images.images(found.rows), makes.images.images(found.lesions)
    inside = (..., slice(None, 4), slice(None, 4))
    put = with_opacity(bodies, opacity(others, torch.zeros_like(others)))
    assert torch.equal(found.images[inside], put[inside])
    assert (found.images - bodies)[..., 4:, :].abs().max() == 0
    assert (found.seen < 0.5).float().mean() > 0.5
    assert not makes.tally.counts
    assert torch.equal(grafting().controls("Edema", 20).images, found.images)
    everyone = grafting(labels=np.ones((len(makes.images), 2)))
    assert len(everyone.controls("Edema", 5)) == 0


def test_a_lesion_that_the_verifiers_miss_is_kept_and_mostly_missed_ones_are_not(
    grafting: Callable[..., Grafting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterscan.tbsmgan.grafts._CANDIDATES", 1)  # bodies as they come, dark ones too
    whole = grafting().make("Edema", 1, 60, tries=8)
    assert (whole.seen < 0.5).any()
    bodies = grafting().images.images(whole.rows)
    assert (whole.images - bodies).abs().amax((1, 2, 3)).min() > 0.01
    strict = grafting()
    assert 0.5 < strict.share("Edema") < 1
    strict.least = 1.0
    assert len(strict.make("Edema", 1, 60, tries=8)) == 0
    assert len(strict.make("Edema", -1, 60, tries=8)) > 0


def test_a_lesion_shows_as_far_as_the_other_body_lets_it() -> None:
    healthy = torch.tensor([-0.6, 0.2, 0.9]).view(3, 1, 1, 1)
    bright, dark = torch.tensor([0.4, 0.9, 0.95]).view(3, 1, 1, 1), torch.tensor([-0.9, 0.0, 0.5]).view(3, 1, 1, 1)
    for ill in (bright, dark, healthy):
        assert with_opacity(healthy, opacity(ill, healthy)) == pytest.approx(ill.numpy(), abs=1e-6)
    assert (opacity(healthy, healthy) == 0).all()
    alpha = opacity(bright[:1], healthy[:1])
    lung, heart = (with_opacity(torch.full((1, 1, 1, 1), x), alpha).item() - x for x in (-0.6, 0.8))
    assert lung == pytest.approx(1.0)
    assert 0 < heart < 0.15


def test_an_interrupted_request_goes_on(grafting: Callable[..., Grafting], tmp_path: Path) -> None:
    wanted = {"Edema": 6, "Pleural Effusion": 4}

    def interrupt(finding: str, made: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_grafts(grafting(), wanted, tmp_path / "broken", progress=interrupt)
    assert len(StudyTable.read(tmp_path / "broken" / "table.csv", labelled=False)) == 12
    resumed, whole = grafting(), grafting()
    assert write_grafts(resumed, wanted, tmp_path / "broken") == write_grafts(whole, wanted, tmp_path / "whole")
    assert resumed.tally.table() == whole.tally.table()
    first, second = ((tmp_path / name / "table.csv").read_text() for name in ("broken", "whole"))
    assert first == second


def test_unknown_labels_stay_blank(grafting: Callable[..., Grafting], images: PreparedStore, tmp_path: Path) -> None:
    labels = images.parts("train")[0].labels.copy()
    labels[:, 1] = np.nan
    write_grafts(grafting(labels=labels), {"Edema": 3}, tmp_path)
    frame = StudyTable.read(tmp_path / "table.csv", labelled=False).frame
    assert frame["Edema"].tolist() == [1.0] * 3 + [0.0] * 3
    assert "Pleural Effusion" not in frame or frame["Pleural Effusion"].isna().all()


def test_a_batch_that_was_looked_at_is_not_judged_again(grafting: Callable[..., Grafting]) -> None:
    looked, plain = grafting(), grafting()
    share = looked.share("Edema")
    first = looked.make("Edema", 1, 40, tries=8)
    assert torch.equal(first.images, plain.make("Edema", 1, 40, tries=8).images)
    assert looked.tally.table() == plain.tally.table()
    (row,) = (row for row in looked.tally.table() if row["finding"] == "Edema (+)")
    assert row["tried"] > 0
    assert share == pytest.approx(row["rate"], abs=0.2)
