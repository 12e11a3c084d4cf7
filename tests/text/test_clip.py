from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterscan.errors import InputError
from counterscan.text.clip import TinyTextImage, load_clip
from counterscan.text.tokenizer import ReportTokenizer
from tests.text.clip_toys import SHAPE

TEXTS = ["no pleural effusion", "mild left edema", "right pleural effusion"] * 3


@pytest.fixture
def model() -> TinyTextImage:
    torch.manual_seed(0)
    return TinyTextImage(ReportTokenizer.fit(TEXTS), SHAPE, "toy")


def test_embeddings_have_length_one_and_images_pass_gradients(model: TinyTextImage) -> None:
    images = torch.rand(3, 1, 16, 16, requires_grad=True)
    image, text = model.embed_images(images), model.embed_texts(TEXTS[:2])
    assert image.shape == (3, 16)
    assert text.shape == (2, 16)
    for vectors in (image, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert not text.requires_grad
    (image @ text.T).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert model.logit_scale == pytest.approx(1 / 0.07)


def test_gradient_of_the_image_is_that_of_finite_differences(model: TinyTextImage) -> None:
    model.double()
    text = model.embed_texts(["mild edema"]).double()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    step = torch.randn_like(image)

    def score(x: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.normalize(model.encode_images(x), dim=1) * text).sum()

    (grad,) = torch.autograd.grad(score(image), image)
    with torch.no_grad():
        slope = (score(image + 1e-6 * step) - score(image - 1e-6 * step)) / 2e-6
    assert float((grad * step).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_many_texts_are_embedded_in_parts(model: TinyTextImage) -> None:
    texts = [TEXTS[k % 3] for k in range(600)]
    out = model.embed_texts(texts)
    torch.testing.assert_close(out[-3:], model.embed_texts(texts[-3:]), atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_answers_the_same(model: TinyTextImage, tmp_path: Path) -> None:
    model.trained_on = {"images": 9}
    model.save(tmp_path)
    again = load_clip(tmp_path)
    assert again.name == "toy"
    assert again.trained_on == {"images": 9}
    assert not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again.embed_texts(TEXTS[:3]), model.embed_texts(TEXTS[:3]))
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(again.embed_images(images), model.embed_images(images))
    assert "Not a medical device" in (tmp_path / "README.md").read_text()


def test_every_parameter_has_a_part(model: TinyTextImage) -> None:
    parts = [p for group in model.parts().values() for p in group]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len({id(p) for p in parts})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "at least one"),
        ("edema", "one string"),
        (["edema", "  .. "], "says nothing"),
        (["жёлтый зелёный"], "knows no word"),
        (["no quux the foobar"], "knows no word"),
    ],
)
def test_texts_that_say_nothing_are_refused(model: TinyTextImage, texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.embed_texts(texts)


def test_images_of_another_shape_are_refused(model: TinyTextImage) -> None:
    with pytest.raises(InputError, match="images"):
        model.embed_images(torch.zeros(1, 3, 16, 16))


def test_no_model_and_damaged_ones(model: TinyTextImage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no clip\.json"):
        load_clip(tmp_path)
    model.save(tmp_path / "m")
    (tmp_path / "m" / "clip.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match="damaged"):
        load_clip(tmp_path / "m")
