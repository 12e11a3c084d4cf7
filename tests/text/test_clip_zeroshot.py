from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.metrics.classification import roc_auc
from counterscan.text.prompts import PromptBank, Prompts
from counterscan.text.zeroshot import ZeroShot, judge, prompt_direction, zero_shot_scores

BANK = PromptBank(
    {
        "Edema": {"names": ["edema"], "negatives": ["no edema"]},
        "Fracture": {"names": ["fracture"], "negatives": ["no fracture"]},
    },
    ["no finding"],
)
VECTORS = {
    "edema": (1.0, 0.0, 0.0),
    "no edema": (-1.0, 0.0, 0.0),
    "fracture": (0.0, 0.6, 0.8),
    "no fracture": (0.0, -0.6, 0.8),
    "no finding": (0.0, 0.0, 1.0),
}


class Planar:
    """An image's first three pixels, brought to length 1, are its embedding."""

    name, logit_scale = "planar", 10.0

    def embed_images(self, images: Tensor) -> Tensor:
        return F.normalize(images.flatten(1)[:, :3], dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([VECTORS[text] for text in texts])

    def save(self, folder: str | Path) -> Path:
        raise NotImplementedError


def picture(*rows: Sequence[float]) -> Tensor:
    out = torch.zeros(len(rows), 1, 2, 2)
    out.view(len(rows), 4)[:, :3] = torch.tensor(rows)
    return out


def test_scores_by_hand() -> None:
    prompts = [Prompts("Edema", ("edema", "fracture"), ("no edema",), ("no finding",))]
    embeddings = torch.tensor([[0.6, 0.8, 0.0]])
    positive = (0.6 + 0.48) / 2
    expected = {"present": positive, "contrast": positive + 0.6, "normal": positive}
    for form, value in expected.items():
        score = zero_shot_scores(Planar(), embeddings, prompts, form)  # type: ignore[arg-type]
        assert float(score) == pytest.approx(10 * value)
    with pytest.raises(InputError, match="form"):
        prompt_direction(Planar(), prompts[0], "both")  # type: ignore[arg-type]


def test_judge_measures_and_chooses_the_best_form() -> None:
    torch.manual_seed(0)
    images = picture(*torch.randn(200, 3).tolist())
    unit = Planar().embed_images(images)
    labels = torch.stack([(unit[:, 0] > 0).float(), (unit[:, 1] > 0.1).float()], 1)
    found = judge(Planar(), images, labels, ["Edema", "Fracture"], BANK)
    assert found.auc["Edema"] == 1.0
    assert found.form == "contrast"
    assert found.mean_auc == pytest.approx(found.forms["contrast"])
    assert found.forms["contrast"] > found.forms["present"]
    score = unit @ (torch.tensor(VECTORS["fracture"]) - torch.tensor(VECTORS["no fracture"]))
    assert found.auc["Fracture"] == pytest.approx(float(roc_auc(score, labels[:, 1])))
    assert found.positives["Edema"] == int(labels[:, 0].sum())


def test_forms_matter_where_no_is_not_understood() -> None:
    class Deaf(Planar):
        def embed_texts(self, texts: Sequence[str]) -> Tensor:
            return super().embed_texts([t if t == "no finding" else t.removeprefix("no ") for t in texts])

    images = picture((1.0, 0, 0.1), (1.0, 0, 0.2), (0.1, 0, 1.0), (0.2, 0, 1.0))
    found = judge(Deaf(), images, torch.tensor([[1.0], [1], [0], [0]]), ["Edema"], BANK)
    assert found.forms["contrast"] == 0.5
    assert found.form != "contrast"
    assert found.auc["Edema"] == 1.0


def record(**auc: float) -> ZeroShot:
    return ZeroShot("m", "contrast", auc, auc, dict.fromkeys(auc, 9), dict.fromkeys(auc, 9), {"contrast": 0.7})


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    found = record(Edema=0.9, Fracture=0.6, Hernia=math.nan)
    found.require_known("oedema")
    assert found.known() == ("Edema",)
    with pytest.raises(InputError, match=r"0\.60.*9 validation.*below 0\.75.*choose of what it knows: Edema"):
        found.require_known("Fracture")
    found.require_known("Fracture", least=0.55)
    found.require_known("Fracture", force=True)
    with pytest.raises(InputError, match="could not be judged"):
        found.require_known("Hernia", force=True)
    with pytest.raises(InputError, match="not judged on it"):
        found.require_known("Pneumonia", force=True)
    found.save(tmp_path / "z.json")
    again = ZeroShot.load(tmp_path / "z.json")
    assert again.auc["Fracture"] == 0.6
    assert math.isnan(again.auc["Hernia"])
    (tmp_path / "z.json").write_text('{"model": "m"}')
    with pytest.raises(InputError, match="no zero-shot record"):
        ZeroShot.load(tmp_path / "z.json")


def test_a_class_without_positives_is_not_judged() -> None:
    images = picture((1.0, 0, 0), (-1.0, 0, 0))
    found = judge(Planar(), images, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), ["Edema", "Fracture"], BANK)
    assert math.isnan(found.auc["Fracture"])
    assert found.mean_auc == 1.0
    with pytest.raises(InputError, match="0 validation images have it"):
        found.require_known("Fracture")


def test_bad_input() -> None:
    with pytest.raises(InputError, match="no validation images"):
        judge(Planar(), torch.zeros(0, 1, 2, 2), torch.zeros(0, 1), ["Edema"], BANK)
    with pytest.raises(InputError, match="labels"):
        judge(Planar(), picture((1, 0, 0)), torch.zeros(1, 2), ["Edema"], BANK)


def test_each_prompt_is_embedded_once() -> None:
    asked = list[str]()

    class Counting(Planar):
        def embed_texts(self, texts: Sequence[str]) -> Tensor:
            asked.extend(texts)
            return super().embed_texts(texts)

    images = picture((1.0, 0, 0.1), (0.1, 0, 1.0))
    judge(Counting(), images, torch.tensor([[1.0, 1.0], [0.0, 0.0]]), ["Edema", "Fracture"], BANK)
    assert sorted(asked) == sorted(VECTORS)
