"""Global directions in the S space (StyleCLIP, Patashnik et al. 2021, section 6).

    dI_c = unit(mean over images of unit(e(G(s; s_c = mu_c + k sd_c)) - e(G(s; s_c = mu_c - k sd_c))))
    R_c  = dI_c . dt, 0 outside of the largest m and below beta
    s'_c = s_c + strength sd_c R_c / max |R|

What every channel does to an embedding is measured once for a generator and a text-image model and kept on disk. A new
prompt is then one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from counterscan.errors import InputError
from counterscan.pretrained import write_tensors
from counterscan.tbsmgan.edits.base import Editor, Move, Origin, digest_of, embedded, images_of, unit
from counterscan.tbsmgan.edits.prompt import Prompt, TextDirections, TextImage
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.training.checkpoint import digest as tensors_digest

_DRAWS = 2048  # of w, for the mean and the deviation of each channel
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StyleConfig:
    """How channels are measured and chosen.

    Attributes:
        images: bodies that each channel is tried on.
        reach: k, standard deviations either way.
        channels: m, how many are moved; 10 to 40 at 64 px.
        beta: least |R|.
        usual: strength of an edit that is asked for without one.
        seed: of the bodies.

    Raises:
        InputError: a value is out of range; names the field.
    """

    images: int = 48
    reach: float = 4.0
    channels: int = 40
    beta: float = 0.0
    usual: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "channels"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        for name in ("reach", "usual"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError("must be positive", field=name)
        if not 0 <= self.beta < 1:
            raise InputError("must be at least 0 and below 1", field="beta")


@dataclass(frozen=True)
class Channels:
    """What the channels of the layers that make features do; those that make the image directly are left out.

    Attributes:
        responses: (C, d) of length 1, change of the embedding as a channel rises.
        deviations: (C,) standard deviation of the channel.
    """

    responses: Tensor
    deviations: Tensor


def measure(
    gan: StyleGAN, model: TextImage, config: StyleConfig | None = None, progress: Progress | None = None
) -> Channels:
    """Try every channel; C x images x 2 images are made.

    Args:
        gan: the generator.
        model: the text-image model.
        config: see ``StyleConfig``.
        progress: called with channels done and channels in all.
    """
    config = config or StyleConfig()
    with torch.no_grad():
        styles = gan.styles(Origin.sample(gan, gan.draw_labels(_DRAWS, config.seed), psi=1.0, seed=config.seed).w)
        bodies = [s[: config.images] for s in styles]
        responses, deviations = [], []
        total, chosen = sum(styles[at].shape[1] for at in feature_layers(gan)), feature_layers(gan)
        for at in chosen:
            means, spreads = styles[at].mean(0), styles[at].std(0)
            for channel in range(styles[at].shape[1]):
                ends = []
                for sign in (1, -1):
                    moved = bodies[at].clone()
                    moved[:, channel] = means[channel] + sign * config.reach * spreads[channel]
                    ends.append(embedded(model, images_of(gan, styles=[*bodies[:at], moved, *bodies[at + 1 :]])))
                responses.append(unit(unit(ends[0] - ends[1]).mean(0)))
                if progress is not None:
                    progress(len(responses), total)
            deviations.append(spreads)
    return Channels(torch.stack(responses), torch.cat(deviations))


def feature_layers(gan: StyleGAN) -> list[int]:
    """Places in ``styles`` of the layers that make features."""
    return [at for at, layer in enumerate(gan.generator.style_layers) if not layer.is_to_gray]


def cached(
    folder: Path | None,
    gan: StyleGAN,
    model: TextImage,
    config: StyleConfig | None = None,
    progress: Progress | None = None,
) -> Channels:
    """What ``measure`` finds, from a file of the folder that names generator, model and settings; written if missing.

    Raises:
        InputError: the file is damaged or cannot be written.
    """
    config = config or StyleConfig()
    if folder is None:
        return measure(gan, model, config, progress)
    measured = {name: value for name, value in asdict(config).items() if name in ("images", "reach", "seed")}
    weights = tensors_digest({name: x.detach().cpu() for name, x in gan.generator.state_dict().items()}, measured)
    path = folder / f"channels-{weights[:16]}-{digest_of(model)}.safetensors"
    if path.is_file():
        try:
            found = safetensors.torch.load_file(path, device=str(gan.device))
            return Channels(found["responses"], found["deviations"])
        except (KeyError, SafetensorError):
            raise InputError("is damaged", path=path, remedy="Delete it; it is measured again") from None
    channels = measure(gan, model, config, progress)
    write_tensors(path, {"responses": channels.responses, "deviations": channels.deviations})
    return channels


class StyleDirections(Editor):
    """See the module.

    Args:
        gan, texts: see ``Editor``.
        channels: of ``measure`` or ``cached``.
        config: see ``StyleConfig``.
    """

    name = "style"

    def __init__(
        self, gan: StyleGAN, texts: TextDirections, channels: Channels, config: StyleConfig | None = None
    ) -> None:
        super().__init__(gan, texts)
        self.asked, self.channels, self.config = texts, channels, config or StyleConfig()
        widths = [gan.generator.style_layers[at].width for at in feature_layers(gan)]
        if len(channels.responses) != sum(widths):
            raise InputError(
                f"{len(channels.responses)} channels for a generator with {sum(widths)}",
                field="channels",
                remedy="Measure them again for this generator",
            )
        self._widths = widths

    def relevance(self, prompt: Prompt) -> Tensor:
        """(C,) R_c of all channels."""
        return self.channels.responses @ self.asked.of(prompt).to(self.channels.responses)

    def move(self, latents: Origin, prompt: Prompt, strength: float | None = None) -> Move:
        """The chosen channels; the same for all starts.

        Raises:
            InputError: no channel reaches beta.
        """
        relevance = self.relevance(prompt)
        size = relevance.abs()
        kept = torch.zeros_like(size, dtype=torch.bool)
        kept[size.topk(min(self.config.channels, len(size))).indices] = True
        kept &= (size >= self.config.beta) & (size > 0)
        if not bool(kept.any()):
            raise InputError(
                f"no channel moves towards {prompt.text!r} (largest relevance {float(size.max()):.3f})",
                field="beta",
                remedy="Lower it",
            )
        steps = torch.where(kept, self.channels.deviations * relevance / size.max(), 0.0)
        parts = iter(steps.split(self._widths))
        chosen = set(feature_layers(self.gan))
        layers = self.gan.generator.style_layers
        zero = [steps.new_zeros(layer.width) for layer in layers]
        styles = [(next(parts) if at in chosen else zero[at])[None] for at in range(len(layers))]
        return Move(styles=styles, usual=self.config.usual, touched=int(kept.sum()))
