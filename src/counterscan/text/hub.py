"""Text-image models that others trained, from a folder on this machine: CLIP, SigLIP, dual encoders, open_clip folders.

Nothing is downloaded unless asked, and no code from a model's folder is run. Images are resized and normalised as the
folder's own settings say, in a way that passes gradients, so that the models can steer.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import counterscan
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json, write_text
from counterscan.text.clip import SETTINGS, Part, TrainableClip, model_card
from counterscan.text.preprocessing import PREPARATION, Preprocessing, read_preprocessing

_KINDS = ("clip", "siglip", "vision-text-dual-encoder")
_OPEN_CLIP, _OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_LARGEST_SCALE = 100.0


class PretrainedTextImage(TrainableClip):
    """A model of transformers or open_clip behind the project's interface; ``load_pretrained`` makes it.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        prepare: what its images go through.
        kind: which family.
        length: longest text in tokens.
        name: see ``TextImageModel``.
        folder: where it was read.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        prepare: Preprocessing,
        kind: str,
        length: int,
        name: str,
        folder: Path,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.prepare = model, tokenizer, prepare
        self.kind, self.length, self.name, self.folder = kind, length, name, folder.resolve()
        self.own_bias = nn.Parameter(torch.tensor(-5.0))

    def encode_images(self, images: Tensor) -> Tensor:
        pixels = self.prepare(images)
        call: Any = self.model
        return (
            call.encode_image(pixels)
            if self.kind == "open_clip"
            else _features(call.get_image_features(pixel_values=pixels))
        )

    def encode_tokens(self, ids: Tensor) -> Tensor:
        call: Any = self.model
        there = ids >= 0
        if self.kind == "open_clip":
            return call.encode_text(ids)
        if self.kind == "siglip":
            # Trained on texts filled up to their full length, without a mask; its summary is the last place's.
            return _features(call.get_text_features(input_ids=ids))
        fill = self.tokenizer.pad_token_id
        return _features(call.get_text_features(input_ids=ids.where(there, fill), attention_mask=there.long()))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        if self.kind == "open_clip":
            return torch.as_tensor(self.tokenizer(list(texts)))
        padding = "max_length" if self.kind == "siglip" else "longest"
        made = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.length, return_tensors="pt"
        )
        if self.kind == "siglip":
            return made["input_ids"]
        return made["input_ids"].where(made["attention_mask"] > 0, -1)

    @property
    def scale(self) -> Tensor:
        return getattr(self.model, "logit_scale").exp().clamp_max(_LARGEST_SCALE).reshape(())  # noqa: B009

    @property
    def bias(self) -> Tensor:
        own = getattr(self.model, "logit_bias", None)
        return self.own_bias if own is None else own.reshape(())

    def parts(self) -> dict[Part, list[nn.Parameter]]:
        found: dict[Part, list[nn.Parameter]] = {"image": [], "text": [], "projection": [], "scale": [self.own_bias]}
        for name, parameter in self.model.named_parameters():
            found[_part(name)].append(parameter)
        return found

    def blocks(self) -> dict[Literal["image", "text"], list[nn.Module]]:
        image = _first(self.model, "vision_model", "visual")
        text = _first(self.model, "text_model", "text", "transformer")
        return {"image": _blocks(image), "text": _blocks(text)}

    def save(self, folder: str | Path) -> Path:
        """Write the model in its own library's format, card and, last, settings.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._copy_settings(folder)
            if self.kind == "open_clip":
                with atomic_write(folder / _OPEN_CLIP_WEIGHTS) as handle:
                    state = self.model.state_dict()
                    handle.write(safetensors.torch.save({k: v.detach().cpu().clone() for k, v in state.items()}))
            else:
                model: Any = self.model
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})",
                path=folder,
                remedy="Free space or choose another folder",
            ) from error
        settings = {
            "kind": "pretrained",
            "version": counterscan.__version__,
            "name": self.name,
            "bias": float(self.own_bias.detach()),
            "trained_on": self.trained_on,
        }
        write_text(folder / "README.md", model_card(self))
        write_json(folder / SETTINGS, settings)
        return folder

    def _copy_settings(self, folder: Path) -> None:
        """What the model's own library does not write again: how images are prepared; all of it of open_clip."""
        if folder.resolve() == self.folder:
            return
        for path in self.folder.iterdir():
            small = self.kind == "open_clip" and path.suffix in (".json", ".txt", ".model") and path.name != SETTINGS
            if small or path.name in PREPARATION:
                shutil.copyfile(path, folder / path.name)


def load_pretrained(
    source: str | Path, *, download: bool = False, device: str = "cpu", name: str | None = None
) -> PretrainedTextImage:
    """A text-image model that others trained.

    Args:
        source: a folder with a CLIP, SigLIP or VisionTextDualEncoder model of transformers, or an open_clip folder
            (BiomedCLIP is one); with ``download`` also a name on the Hugging Face hub.
        download: fetch what is not on this machine; without it the network is never asked.
        device: where it goes.
        name: what to call it; the folder's name by default.

    Raises:
        InputError: no such folder, one that holds no such model, a damaged one, one that brings its own code, or a
            library that is not installed.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not download:
            raise InputError(
                "no such folder, and nothing is downloaded unless asked",
                path=folder,
                remedy="Fetch the model once and give its folder, or allow the download",
            )
        folder = _fetch(str(source))
    with _offline(not download):
        model = _open_clip(folder) if (folder / _OPEN_CLIP).is_file() else _transformers(folder)
    model.name = name or folder.name
    return model.to(device).eval()


def load_saved(folder: Path, settings: dict[str, Any]) -> PretrainedTextImage:
    """What ``PretrainedTextImage.save`` wrote."""
    model = load_pretrained(folder, name=settings["name"])
    with torch.no_grad():
        model.own_bias.fill_(settings["bias"])
    return model


def _transformers(folder: Path) -> PretrainedTextImage:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"holds neither config.json nor {_OPEN_CLIP}",
            path=folder,
            remedy="Give the folder of a CLIP, SigLIP, VisionTextDualEncoder or open_clip model",
        )
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(config, dict) and "auto_map" in config:
        raise InputError(
            "the model needs code from its own folder, which is not run",
            path=folder,
            remedy="Give a CLIP, SigLIP, VisionTextDualEncoder or open_clip model",
        )
    if kind not in _KINDS:
        raise InputError(
            f"holds a model of the type {kind!r}, which is no CLIP",
            path=folder,
            field="model_type",
            remedy=f"Give one of the types {', '.join(_KINDS)}, or an open_clip folder",
        )
    library = _library("transformers", "transformers")
    classes = {"clip": "CLIPModel", "siglip": "SiglipModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
    try:
        model, report = getattr(library, classes[kind]).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises all sorts, from OSError to its own
        raise InputError(
            f"cannot be read ({' '.join(str(error).split())[:200]})",
            path=folder,
            remedy="Copy the whole folder again: config, weights, tokenizer, preprocessor_config.json",
        ) from None
    if missing := sorted(key for key in report["missing_keys"] if not key.endswith("position_ids")):
        raise InputError(
            f"{len(missing)} weights are missing, the first is {missing[0]}",
            path=folder,
            remedy="Give a folder with both towers' weights; a fine-tuned single tower is no CLIP",
        )
    text = getattr(model.config, "text_config", model.config)
    length = int(min(getattr(text, "max_position_embeddings", 77), getattr(tokenizer, "model_max_length", 77)))
    if kind != "siglip" and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    prepare = read_preprocessing(folder, int(model.config.vision_config.image_size))
    return PretrainedTextImage(model, tokenizer, prepare, kind, length, folder.name, folder)


def _open_clip(folder: Path) -> PretrainedTextImage:
    about = read_json(folder / _OPEN_CLIP)
    try:
        vision, text = about["model_cfg"]["vision_cfg"], about["model_cfg"]["text_cfg"]
        pixels = about.get("preprocess_cfg", {})
        size = vision["image_size"]
        size = int(size[0] if isinstance(size, list) else size)
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            "does not describe a CLIP", path=folder / _OPEN_CLIP, remedy="Give an open_clip folder such as BiomedCLIP's"
        ) from None
    library = _library("open_clip", "open_clip_torch")
    try:
        model = library.create_model(f"local-dir:{folder.resolve()}")
        tokenizer = library.get_tokenizer(f"local-dir:{folder.resolve()}")
    except Exception as error:  # as above
        raise InputError(
            f"cannot be read ({' '.join(str(error).split())[:200]})",
            path=folder,
            remedy="Copy the whole folder again; a text tower from the hub must lie in the local cache",
        ) from None
    prepare = Preprocessing(
        size,
        tuple(pixels.get("mean", (0.48145466, 0.4578275, 0.40821073))),
        tuple(pixels.get("std", (0.26862954, 0.26130258, 0.27577711))),
        pixels.get("interpolation", "bicubic"),
        pixels.get("resize_mode", "shortest") == "shortest",
    )
    length = int(text.get("context_length", 77))
    return PretrainedTextImage(model, tokenizer, prepare, "open_clip", length, folder.name, folder)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"this model needs {package}, which is not installed",
            field="model",
            remedy=f"pip install {package}, or train the tiny model, which needs nothing",
        ) from None


def _fetch(name: str) -> Path:
    hub = _library("huggingface_hub", "huggingface_hub")
    try:
        return Path(
            hub.snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"])
        )
    except Exception as error:  # network, name, permission: all the caller's to mend
        raise InputError(
            f"cannot be downloaded ({' '.join(str(error).split())[:200]})",
            field="model",
            remedy="Check the name and the network, or give a folder",
        ) from None


@contextlib.contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Keep the hub's client off the network, whether it was imported before or is imported inside."""
    if not wanted:
        yield
        return
    before = os.environ.get("HF_HUB_OFFLINE")
    constants: Any = sys.modules.get("huggingface_hub.constants")
    flag = getattr(constants, "HF_HUB_OFFLINE", None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if flag is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            # As the client itself reads the variable.
            asked = (before or "").upper() in ("1", "ON", "YES", "TRUE")
            constants.HF_HUB_OFFLINE = asked if flag is None else flag


def _features(answer: Any) -> Tensor:
    """The embedding: newer versions answer with an object whose ``pooler_output`` it is, older ones with the tensor."""
    return answer if isinstance(answer, Tensor) else answer.pooler_output


def _part(name: str) -> Part:
    if name in ("logit_scale", "logit_bias"):
        return "scale"
    last = name.split(".")
    if {"visual_projection", "text_projection", "proj"} & set(last[:2]) or name.startswith("text_model.head."):
        return "projection"
    return "image" if last[0] in ("vision_model", "visual") else "text"


def _first(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            return part
    raise InputError("has no tower that can be frozen", field="model", remedy="Fine-tune without freezing")


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """Embeddings and then the layers: the longest list of modules inside."""
    lists = [part for part in tower.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    layers = max(lists, key=len, default=None)
    embeddings = [part for name, part in tower.named_children() if "embed" in name]
    return [*embeddings, *(layers if layers is not None else [])]
