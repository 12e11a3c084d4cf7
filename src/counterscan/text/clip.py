"""Text-image models: images and texts as unit vectors that are near each other when one tells of the other."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import counterscan
from counterscan.care import evaluating
from counterscan.errors import InputError
from counterscan.files import read_json, write_json, write_text
from counterscan.nets.text_image import TinyClip, TinyClipConfig, bounded_scale
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.text.tokenizer import ReportTokenizer, words
from counterscan.training.checkpoint import weights_digest

SETTINGS, WEIGHTS, TOKENIZER = "clip.json", "clip.safetensors", "tokenizer.json"
Part = Literal["image", "text", "projection", "scale"]
_TEXTS_AT_ONCE = 256
_LITTLE = 3


class TextImageModel(Protocol):
    """What steering, prompts and zero-shot scores ask of a model.

    Attributes:
        name: says which model, and what it was trained on.
    """

    name: str

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, d) of length 1, differentiable in the images."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, d) of length 1, without gradients."""
        ...

    @property
    def logit_scale(self) -> float:
        """tau: logits are tau * cos."""
        ...

    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder, which ``load_clip`` reads."""
        ...


class TrainableClip(nn.Module, abc.ABC):
    """A text-image model that can be trained: what tiny and pretrained ones share.

    Attributes:
        name: see ``TextImageModel``.
        trained_on: what the training images were: "images" (number), "patients" (number), "patients_digest" (SHA-256 of
            their sorted names: the same exactly for the same patients), "content" (hash of the store), "view" (of the
            reports), "findings"; empty when it was not trained here.
    """

    name: str

    def __init__(self) -> None:
        super().__init__()
        self.trained_on: dict[str, Any] = {}

    @abc.abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, d) of any length."""

    @abc.abstractmethod
    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (N, L), -1 after the end, to (N, d) of any length."""

    @abc.abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """N texts to ids (N, L) int64 on the CPU, -1 after the end."""

    @property
    @abc.abstractmethod
    def scale(self) -> Tensor:
        """() tau, with gradients."""

    @property
    @abc.abstractmethod
    def bias(self) -> Tensor:
        """() of the sigmoid loss, with gradients."""

    @abc.abstractmethod
    def parts(self) -> dict[Part, list[nn.Parameter]]:
        """The parameters, for learning rates: towers, projections into the joint space, scale and bias."""

    @abc.abstractmethod
    def blocks(self) -> dict[Literal["image", "text"], list[nn.Module]]:
        """Each tower's parts from input to output, for freezing the first of them."""

    @abc.abstractmethod
    def save(self, folder: str | Path) -> Path:
        """Write the model to a folder; see ``load_clip``."""

    @property
    def logit_scale(self) -> float:
        """tau: logits are tau * cos."""
        return float(self.scale.detach())

    def unfamiliar(self, text: str) -> list[str]:
        """Words the model cannot know; none where that cannot be told."""
        return []

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, d) of length 1, float32, differentiable in the images.

        Raises:
            InputError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 1:
            raise InputError(
                f"expected images (N, 1, H, W), got {tuple(images.shape)}",
                field="images",
                remedy="Give one grey channel in [-1, 1]",
            )
        with evaluating(self):
            return F.normalize(self.encode_images(images).float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, d) of length 1, float32, on the model's device.

        Raises:
            InputError: a single string instead of several, no text, an empty one, or one of whose longer words the
                model knows none.
        """
        if isinstance(texts, str):
            raise InputError("is one string", field="texts", remedy="Give a list of texts")
        if not texts:
            raise InputError("is empty", field="texts", remedy="Give at least one text")
        for text in texts:
            self._check(text)
        with evaluating(self):
            parts = [
                self.encode_tokens(self.tokenize(texts[k : k + _TEXTS_AT_ONCE]).to(self.device))
                for k in range(0, len(texts), _TEXTS_AT_ONCE)
            ]
        return F.normalize(torch.cat(parts).float(), dim=1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _check(self, text: str) -> None:
        if not any(sign.isalnum() for sign in text):
            raise InputError(f"{text!r} says nothing", field="texts", remedy="Give words, such as 'pleural effusion'")
        # "in the" is in every report: what a prompt is about stands in its longer words.
        long = {word for word in words(text) if len(word) > _LITTLE}
        if long and long <= set(self.unfamiliar(text)):
            raise InputError(
                f"the model knows no word of {text!r}",
                field="texts",
                remedy="Write as the training reports do, in their language, such as 'pleural effusion'",
            )


class TinyTextImage(TrainableClip):
    """A small CLIP trained from nothing on one's own images and reports.

    Args:
        tokenizer: fitted on the training reports.
        config: its shape.
        name: see ``TextImageModel``.
    """

    def __init__(
        self, tokenizer: ReportTokenizer, config: TinyClipConfig | None = None, name: str = "tiny CLIP"
    ) -> None:
        super().__init__()
        self.tokenizer, self.name = tokenizer, name
        self.net = TinyClip(config or TinyClipConfig(), len(tokenizer))

    def encode_images(self, images: Tensor) -> Tensor:
        return self.net.image(images)

    def encode_tokens(self, ids: Tensor) -> Tensor:
        return self.net.text(ids)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer.encode(texts, self.net.config.text_length)

    def unfamiliar(self, text: str) -> list[str]:
        """Words of a text that the training reports do not use."""
        return self.tokenizer.unfamiliar(text)

    @property
    def scale(self) -> Tensor:
        return bounded_scale(self.net.log_scale)

    @property
    def bias(self) -> Tensor:
        return self.net.bias

    def parts(self) -> dict[Part, list[nn.Parameter]]:
        image, text = self.net.image, self.net.text
        projections = [*image[-1].parameters(), *text.head.parameters()]
        known = {id(p) for p in projections}
        return {
            "image": [p for p in image.parameters() if id(p) not in known],
            "text": [p for p in text.parameters() if id(p) not in known],
            "projection": projections,
            "scale": [self.net.log_scale, self.net.bias],
        }

    def blocks(self) -> dict[Literal["image", "text"], list[nn.Module]]:
        return {
            "image": [layer for layer in self.net.image if isinstance(layer, nn.Conv2d | nn.GroupNorm)],
            "text": [self.net.text.tokens, *self.net.text.layers.layers.children(), self.net.text.norm],
        }

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer, weights, card and, last, settings.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        self.tokenizer.save(folder / TOKENIZER)
        write_tensors(folder / WEIGHTS, self.net.state_dict())
        settings = {
            "kind": "tiny",
            "version": counterscan.__version__,
            "name": self.name,
            "config": dataclasses.asdict(self.net.config),
            "trained_on": self.trained_on,
        }
        write_text(folder / "README.md", model_card(self))
        write_json(folder / SETTINGS, settings)
        return folder


def load_clip(folder: str | Path, device: str = "cpu") -> TrainableClip:
    """A model that ``save`` wrote, frozen and in evaluation mode; nothing is downloaded.

    Args:
        folder: of the model, or the run folder of ``text.clip_training.fit``.
        device: where it goes.

    Raises:
        InputError: no model there, or a damaged one.
    """
    folder = model_folder(
        Path(folder),
        SETTINGS,
        "Give the folder of a trained text-image model; for a pretrained one of others use load_pretrained",
    )
    settings = read_json(folder / SETTINGS)
    with reading(folder):
        if settings["kind"] == "pretrained":
            from counterscan.text.hub import load_saved

            model: TrainableClip = load_saved(folder, settings)
        else:
            model = TinyTextImage(
                ReportTokenizer.load(folder / TOKENIZER), TinyClipConfig(**settings["config"]), settings["name"]
            )
            model.net.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        model.trained_on = dict(settings["trained_on"])
    return model.to(device).eval().requires_grad_(False)


def model_card(model: TrainableClip) -> str:
    """Markdown."""
    seen = model.trained_on
    about = "\n".join(f"* {key}: {value}" for key, value in seen.items()) or "* not trained by counterscan"
    return f"""# {model.name}

Images and texts as unit vectors of one space (counterscan {counterscan.__version__}, weights
{weights_digest(model)[:16]}). Input: one-channel images in [-1, 1].

Trained on:

{about}

How well it tells findings apart is measured per finding on validation images; what it tells apart badly must not be
steered by it.

**Research use only. Not a medical device.**
"""
