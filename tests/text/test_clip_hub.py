from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.errors import InputError
from counterscan.text import hub
from counterscan.text.clip import load_clip
from counterscan.text.clip_config import ClipConfig
from counterscan.text.clip_training import Pairs, fit
from counterscan.text.contrastive import info_nce
from counterscan.text.hub import load_pretrained
from counterscan.text.preprocessing import Preprocessing, read_preprocessing
from tests.text.clip_toys import QUICK, films, labels_of

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "no", "mild", "left", "right", "edema", "pleural", "effusion", "."]
TEXTS = ["no edema", "mild left pleural effusion"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 12}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PREPROCESSOR = {"size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def _tokenizer(library: Any, folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    library.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def _model(library: Any, kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "clip":
        config = library.CLIPConfig(text_config={**TEXT, **IDS}, vision_config=VISION, projection_dim=8)
        return library.CLIPModel(config)
    if kind == "siglip":
        return library.SiglipModel(library.SiglipConfig(text_config={**TEXT, **IDS}, vision_config=VISION))
    config = library.VisionTextDualEncoderConfig.from_vision_text_configs(
        library.ViTConfig(**VISION), library.BertConfig(**TEXT), projection_dim=8
    )
    return library.VisionTextDualEncoderModel(config)


@pytest.fixture(scope="module", params=["clip", "siglip", "vision-text-dual-encoder"])
def folder(request: pytest.FixtureRequest, library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    _model(library, request.param).eval().save_pretrained(path)
    _tokenizer(library, path)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return path


def test_embeddings_are_the_librarys_own(folder: Path, library: Any) -> None:
    model = load_pretrained(folder)
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    mean, std = (torch.tensor(PREPROCESSOR[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    pixels = ((images + 1) / 2 - mean) / std
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    padding: dict[str, Any] = {"padding": True}
    if model.kind == "siglip":
        padding = {"padding": "max_length", "max_length": 12}
    tokens = tokenizer(TEXTS, return_tensors="pt", **padding)
    call: dict[str, Any] = {"input_ids": tokens["input_ids"], "pixel_values": pixels}
    if model.kind != "siglip":
        call["attention_mask"] = tokens["attention_mask"]
    with torch.no_grad():
        theirs = model.model.eval()(**call)
        ours, texts = model.embed_images(images), model.embed_texts(TEXTS)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs.image_embeds, dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts, torch.nn.functional.normalize(theirs.text_embeds, dim=1), atol=1e-5, rtol=1e-4)


def test_a_text_does_not_depend_on_its_neighbours(folder: Path) -> None:
    model = load_pretrained(folder)
    torch.testing.assert_close(model.embed_texts(TEXTS)[:1], model.embed_texts(TEXTS[:1]), atol=1e-5, rtol=1e-4)
    assert model.embed_texts(["edema " * 50]).shape[0] == 1


def test_gradients_reach_an_image_of_another_size(folder: Path) -> None:
    model = load_pretrained(folder)
    images = torch.rand(1, 1, 24, 20).requires_grad_()
    (model.embed_images(images) @ model.embed_texts(TEXTS).T)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_every_parameter_has_one_part_and_towers_have_blocks(folder: Path) -> None:
    model = load_pretrained(folder)
    parts = model.parts()
    assert {id(p) for g in parts.values() for p in g} == {id(p) for p in model.parameters()}
    assert min(len(parts["image"]), len(parts["text"])) > 10
    assert 1 <= len(parts["projection"]) <= 2
    assert all(len(blocks) == 3 for blocks in model.blocks().values())  # embeddings and two layers


def test_fine_tuning_keeps_the_frozen_half_and_saves_what_loads(folder: Path, tmp_path: Path) -> None:
    store, texts = films(32)
    model = load_pretrained(folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = model.blocks()["image"][0]
    changes = {"precision": "fp32", "tensorboard": False, "augment": QUICK.augment}
    config = ClipConfig.fine_tuning(32, epochs=2, batch_size=16, rate_image=1e-2, **changes)
    tuned = fit(Pairs(store, texts, labels_of(store)), tmp_path, config, model=model, name="tuned")
    frozen = {id(p) for p in first.parameters()}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert not any(id(p) in frozen for name, p in model.named_parameters() if name in moved)
    again = load_clip(tmp_path)
    assert again.name == "tuned"
    assert again.trained_on["images"] == 32
    assert torch.equal(again.embed_texts(TEXTS), tuned.embed_texts(TEXTS))
    assert torch.equal(again.embed_images(store.images(slice(0, 2))), tuned.embed_images(store.images(slice(0, 2))))


def test_info_nce_is_transformers_loss(library: Any) -> None:
    module = pytest.importorskip("transformers.models.clip.modeling_clip")
    theirs = getattr(module, "clip_loss", None) or module.image_text_contrastive_loss
    logits = torch.randn(5, 5)
    torch.testing.assert_close(info_nce(logits), theirs(logits.T))


def test_what_is_no_clip_is_refused(library: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is downloaded unless asked"):
        load_pretrained(tmp_path / "openai" / "clip-vit-base-patch32")
    with pytest.raises(InputError, match=r"neither config\.json nor"):
        load_pretrained(tmp_path)
    library.BertModel(library.BertConfig(**TEXT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="'bert', which is no CLIP"):
        load_pretrained(tmp_path / "bert")
    (tmp_path / "config.json").write_text('{"model_type": "clip", "auto_map": {}}')
    with pytest.raises(InputError, match="code from its own folder"):
        load_pretrained(tmp_path)


def test_a_model_without_one_towers_weights_is_refused(library: Any, tmp_path: Path) -> None:
    """The library itself would fill them with random numbers and a warning."""
    model = _model(library, "clip")
    model.save_pretrained(tmp_path)
    _tokenizer(library, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    from safetensors.torch import load_file, save_file

    kept = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("text_model")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="weights are missing"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_pretrained(tmp_path)


def test_without_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr(hub.importlib, "import_module", absent)
    with pytest.raises(InputError, match="pip install transformers"):
        load_pretrained(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(
        '{"model_cfg": {"vision_cfg": {"image_size": 224}, "text_cfg": {}}}'
    )
    with pytest.raises(InputError, match="pip install open_clip_torch"):
        load_pretrained(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe a CLIP"):
        load_pretrained(tmp_path)


class FakeOpenClip(torch.nn.Module):
    """The shape of an open_clip model with a text tower of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 4))
        self.text = torch.nn.Embedding(10, 4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text(ids).mean(1)


def test_open_clip_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Library:
        @staticmethod
        def create_model(name: str) -> FakeOpenClip:
            asked.append(name)
            assert os.environ["HF_HUB_OFFLINE"] == "1"
            torch.manual_seed(0)
            return FakeOpenClip()

        @staticmethod
        def get_tokenizer(name: str) -> Any:
            return lambda texts: torch.tensor([[len(text) % 10, 0, 0] for text in texts])

    about = {
        "model_cfg": {"vision_cfg": {"image_size": 4}, "text_cfg": {"context_length": 3}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    monkeypatch.setattr(hub, "_library", lambda module, package: Library)
    before = os.environ.get("HF_HUB_OFFLINE")
    model = load_pretrained(tmp_path)
    assert os.environ.get("HF_HUB_OFFLINE") == before
    assert asked == [f"local-dir:{tmp_path}"]
    assert model.prepare == Preprocessing(4, (0.5,) * 3, (0.25,) * 3, "bicubic", False)
    assert model.embed_images(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert model.embed_texts(["edema"]).shape == (1, 4)
    assert model.logit_scale == pytest.approx(np.exp(2.0))
    saved = model.save(tmp_path / "saved")
    assert (saved / "open_clip_model.safetensors").is_file()
    assert (saved / "open_clip_config.json").is_file()


def test_resizing_is_pillows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 30), dtype=np.uint8)
    x = torch.from_numpy(pixels).float().view(1, 1, 40, 30) / 127.5 - 1
    for mode, number in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        ours = Preprocessing(16, (0.0,), (1.0,), mode)(x)[0, 0] * 255
        theirs = torch.from_numpy(np.array(Image.fromarray(pixels).resize((16, 16), number))).float()
        assert float((ours - theirs).abs().max()) < 1.5  # Pillow rounds between its two passes
    cropped = Preprocessing(16, (0.0,), (1.0,), "bilinear", crop=True)(x)
    assert cropped.shape == (1, 1, 16, 16)
    whole = Preprocessing(16, (0.5,) * 3, (0.25,) * 3)(torch.full((1, 1, 16, 16), 1.0))
    torch.testing.assert_close(whole, torch.full((1, 3, 16, 16), 2.0))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"size": 16, "do_center_crop": True, "crop_size": 14, "resample": 2}, (14, "bilinear", True)),
        ({"size": {"shortest_edge": 20}}, (20, "bicubic", False)),
        ({"image_processor": {"size": {"height": 12, "width": 12}, "resample": 0}}, (12, "nearest", False)),
    ],
)
def test_preprocessing_settings(written: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    name = "processor_config.json" if "image_processor" in written else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(written))
    found = read_preprocessing(tmp_path, 99)
    assert (found.size, found.mode, found.crop) == expected
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path, 99)
