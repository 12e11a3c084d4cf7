from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.counterpart import CounterfactualPath, Counterpart, Provenance, Query
from counterscan.errors import InputError
from counterscan.png import DISCLAIMER
from counterscan.report import pictures
from counterscan.report.files import write_outputs
from counterscan.report.strips import strip, write_explanation

FINDINGS = ("Edema", "Lung Lesion")
P = (1.0, 0.75, 0.5, 0.25)  # of the finding that is asked for
SIDE = 128  # at which a strip shows pictures pixel for pixel
CELL = SIDE + 6


def explained(size: int = SIDE, **changes) -> Counterpart:
    """Four frames on a straight way; the finding is the second output."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, size, size, generator=generator) * 1.2 - 0.6
    delta = torch.zeros_like(image)
    delta[:, size // 4 : size // 2, size // 4 : size // 2] = 0.3
    strengths = torch.linspace(0, 1, len(P))
    facts = dict(
        image=image,
        evidence=delta.abs(),
        counterpart=image - delta,
        query=Query("Lung Lesion"),
        score_before=P[0],
        score_after=P[-1],
        path=CounterfactualPath(
            image - delta * strengths.view(-1, 1, 1, 1),
            strengths,
            torch.tensor([[0.125 * k, p] for k, p in enumerate(P)]),
        ),
        extras={
            "difference": delta,
            "lig": 0.5 * delta,
            "ig_negative": -delta,
            "reconstruction": 0.9 * image,
            "odd": delta.double(),
        },
        figures={"psnr": 31.25, "completeness_gap": math.nan},
        made_by=Provenance("medXGAN+", "0.1.0", checkpoint="abc", settings={"frames": 4, "worst": math.inf}),
    )
    return Counterpart(**(facts | changes))


def find(picture: np.ndarray, block: np.ndarray, left: int) -> int | None:
    """The row at which a block stands with its left border at ``left``; None when it does not."""
    block = np.repeat(block[..., None], 3, axis=2) if block.ndim == 2 else block
    height, width = block.shape[:2]
    columns = picture[:, left : left + width]
    if columns.shape[1] < width:
        return None
    rows = range(len(picture) - height + 1)
    return next((row for row in rows if np.array_equal(columns[row : row + height], block)), None)


def colours(picture: np.ndarray, row: int, left: int, height: int) -> np.ndarray:
    return picture[row : row + height, left : left + SIDE].reshape(-1, 3).astype(int)


def yellow(pixels: np.ndarray) -> bool:
    return bool(((pixels[:, 0] > 200) & (pixels[:, 1] > 160) & (pixels[:, 2] < 180)).any())


def test_frames_stand_left_to_right_whole_and_over_their_probabilities():
    answer = explained()
    picture = strip(answer, findings=FINDINGS)
    tops = [find(picture, pictures.grey(frame), 10 + CELL * k) for k, frame in enumerate(answer.path.frames)]
    assert tops[0] is not None
    assert len(set(tops)) == 1
    below = tops[0] + SIDE
    for k, p in enumerate(P):
        bar = picture[below + 6, 10 + CELL * k : 10 + CELL * k + SIDE].astype(int)
        warm, cool = (bar == (255, 155, 82)).all(axis=1).sum(), (bar == (98, 176, 255)).all(axis=1).sum()
        filled = round(p * SIDE)
        assert abs((warm if p >= 0.5 else cool) - filled) <= 1  # less the mark at one half
        assert (cool if p >= 0.5 else warm) == 0
        caption = colours(picture, below + 14, 10 + CELL * k, 32)
        assert (caption.min(axis=1) > 180).any()  # the number
        assert yellow(caption) == (k > 0)  # "synthetic", but not under the image


def test_maps_stand_below_with_scales_that_can_be_compared():
    answer = explained()
    picture = strip(answer, findings=FINDINGS)
    delta = answer.extras["difference"]
    shared = pictures.colour_scale([0.5 * delta, -delta])
    expected = [
        pictures.overlay(answer.image, delta, pictures.colour_scale([delta])),
        pictures.overlay(answer.image, 0.5 * delta, shared),
        pictures.overlay(answer.image, -delta, shared),
        pictures.grey(0.9 * answer.image),
    ]
    tops = [find(picture, block, 10 + CELL * k) for k, block in enumerate(expected)]
    assert tops[0] is not None
    assert len(set(tops)) == 1
    assert yellow(colours(picture, tops[0] + SIDE + 4, 10 + CELL * 3, 32))  # reconstructions are synthetic
    bare = strip(replace(answer, extras={}), findings=FINDINGS)
    assert find(bare, expected[0], 10) == tops[0]
    assert find(bare, expected[1], 10 + CELL) is None


def test_a_small_difference_stays_faint():
    answer = explained()
    small = answer.extras["difference"] / 100
    picture = strip(replace(answer, extras={"difference": small}), findings=FINDINGS)
    assert find(picture, pictures.overlay(answer.image, small, 0.05), 10) is not None


def test_a_path_from_a_reconstruction_has_the_image_before_it():
    answer = explained()
    moved = replace(answer, path=replace(answer.path, frames=answer.path.frames + 0.01))
    picture = strip(moved, findings=FINDINGS)
    assert picture.shape[1] == strip(answer, findings=FINDINGS).shape[1] + CELL
    top = find(picture, pictures.grey(answer.image), 10)
    assert top is not None
    assert find(picture, pictures.grey(moved.path.frames[0]), 10 + CELL) == top
    captions = [yellow(colours(picture, top + SIDE + 14, 10 + CELL * k, 32)) for k in range(5)]
    assert captions == [False, True, True, True, True]


@pytest.mark.parametrize(("size", "shown"), [(16, 128), (160, 160), (300, 224)])
def test_small_pictures_are_enlarged_and_large_ones_reduced(size: int, shown: int):
    assert strip(explained(size), findings=FINDINGS).shape[1] == 2 * 10 + 4 * shown + 3 * 6


def test_long_texts_are_wrapped_and_doubts_stand_out():
    answer = explained(16)
    plain = strip(answer, findings=FINDINGS)
    doubted = strip(
        replace(answer, verdict="not explainable: " + "the generator does not reach it " * 9), findings=FINDINGS
    )
    assert doubted.shape[1] == plain.shape[1]
    assert doubted.shape[0] > plain.shape[0]
    heading = slice(None, 50)
    assert yellow(doubted[heading].reshape(-1, 3).astype(int))
    assert not yellow(plain[heading].reshape(-1, 3).astype(int))


def test_files_are_named_like_the_other_outputs_and_say_that_they_are_synthetic(tmp_path: Path):
    answer = explained(16)
    others = write_outputs(tmp_path, "a/b", answer, formats=["png"])
    written = write_explanation(tmp_path, "a/b", answer, findings=FINDINGS)
    stem = others["overlay"].name.removesuffix("_overlay.png")
    endings = {"strip": "_strip.png", "path": "_path.gif", "maps": "_maps.npz", "explanation": "_explanation.json"}
    assert {kind: path.name for kind, path in written.items()} == {kind: stem + e for kind, e in endings.items()}
    assert {path.parent for path in written.values()} == {tmp_path}
    assert len(list(tmp_path.iterdir())) == len(others) + len(written)
    facts = Image.open(written["strip"]).text
    assert facts["Synthetic"] == "true"
    assert "without Lung Lesion" in facts["Description"]
    assert facts["Disclaimer"] == DISCLAIMER
    assert b"Synthetic: true" in Image.open(written["path"]).info["comment"]
    first = {kind: path.read_bytes() for kind, path in written.items()}
    again = write_explanation(tmp_path, "a/b", answer, findings=FINDINGS)
    assert first == {kind: path.read_bytes() for kind, path in again.items()}


def test_maps_are_exact_on_the_models_grid(tmp_path: Path):
    answer = explained(16)
    with np.load(write_explanation(tmp_path, "s", answer, findings=FINDINGS)["maps"], allow_pickle=False) as arrays:
        assert set(arrays) == {"frames", "about", *answer.extras}
        np.testing.assert_array_equal(arrays["frames"], answer.path.frames[:, 0].numpy())
        for name, values in answer.extras.items():
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], values[0].float().numpy())
        assert json.loads(str(arrays["about"]))["synthetic"] == "all frames but the first"


def refuse(name: str):
    raise AssertionError(f"{name} is no JSON")


def test_the_numbers_are_strict_json(tmp_path: Path):
    answer = explained(16)
    outputs = answer.path.outputs.clone()
    outputs[2, 0] = math.nan
    answer = replace(answer, path=replace(answer.path, outputs=outputs), verdict="not flipped: it stays")
    written = write_explanation(tmp_path, "s1", answer, findings=FINDINGS)
    told = json.loads(written["explanation"].read_text(encoding="utf-8"), parse_constant=refuse)
    assert told["id"] == "s1"
    assert told["verdict"] == "not flipped: it stays"
    assert told["query"] == {"finding": "Lung Lesion", "direction": "remove", "strength": 1.0, "text": None}
    assert told["scores"] == {"before": 1.0, "after": 0.25}
    assert told["strengths"] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)
    assert told["probabilities"] == {"Edema": [0, 0.125, None, 0.375], "Lung Lesion": list(P)}
    assert told["figures"] == {"psnr": 31.25, "completeness_gap": None}
    assert told["made_by"]["checkpoint"] == "abc"
    assert told["made_by"]["settings"] == {"frames": 4, "worst": None}
    assert told["disclaimer"] == DISCLAIMER
    whole = write_outputs(tmp_path, "s1", answer, formats=["npz"])
    with np.load(whole["npz"], allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]), parse_constant=refuse)
    assert about["figures"] == {"psnr": 31.25, "completeness_gap": None}


@pytest.mark.parametrize("kind", ["gif", "apng"])
def test_the_animation_goes_there_and_back(tmp_path: Path, kind: str):
    answer = explained(256)
    written = write_explanation(tmp_path, "s", answer, findings=FINDINGS, animation=kind)
    moving = Image.open(written["path"])
    assert written["path"].suffix == (".gif" if kind == "gif" else ".png")
    assert moving.n_frames == 6
    assert moving.info["loop"] == 0
    if kind == "apng":
        assert moving.text["Synthetic"] == "true"
    durations, panels = [], []
    for k, expected in enumerate((0, 1, 2, 3, 2, 1)):
        moving.seek(k)
        page = np.asarray(moving.convert("L"))
        np.testing.assert_array_equal(page[:256], pictures.grey(answer.path.frames[expected]))
        durations.append(moving.info["duration"])
        panels.append(page[256:])
    assert durations == [700, 120, 120, 700, 120, 120]
    assert np.array_equal(panels[1], panels[5])
    assert not np.array_equal(panels[0], panels[1])


def test_no_animation_when_none_is_wanted(tmp_path: Path):
    written = write_explanation(tmp_path, "s", explained(16), findings=FINDINGS, animation="none")
    assert set(written) == {"strip", "maps", "explanation"}


def test_what_cannot_be_written_is_named(tmp_path: Path):
    answer = explained(16)
    with pytest.raises(InputError, match="gives no path"):
        write_explanation(tmp_path, "s", replace(answer, path=None))
    with pytest.raises(InputError, match="2 outputs, 'Lung Lesion' among them"):
        write_explanation(tmp_path, "s", answer)
    with pytest.raises(InputError, match="Name every output"):
        write_explanation(tmp_path, "s", answer, findings=("Edema", "Fracture"))
    with pytest.raises(InputError, match="gif, apng, none"):
        write_explanation(tmp_path, "s", answer, findings=FINDINGS, animation="mp4")
    assert not list(tmp_path.iterdir())
    single = replace(answer, path=replace(answer.path, outputs=answer.path.outputs[:, 1:]))
    assert strip(single).shape == strip(answer, findings=FINDINGS).shape
