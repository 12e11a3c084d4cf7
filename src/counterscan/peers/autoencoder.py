"""The plain autoencoder that Latent Shift moves in when no other is at hand: its network and its training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from torch import Tensor, nn

from counterscan.data.augment import AugmentConfig, augment
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.metrics.validity import psnr
from counterscan.nets.latent import ResBlock
from counterscan.training import (
    Context,
    Task,
    TrainConfig,
    TrainResult,
    load_weights,
    seed_everything,
    train,
    uniform_sampler,
)
from counterscan.training.config import plain
from counterscan.training.precision import Precision

# What changes the machine or the display, not what is learned.
_LOOP = ("steps", "batch_size", "seed", "threads", "device", "precision", "tensorboard")


@dataclass(frozen=True)
class AutoencoderShape:
    """Shape of an autoencoder; the defaults make 4 x 4 codes of 64 numbers of a 64 px image, 16 x 16 at 256 px.

    Attributes:
        base: channels at full resolution, doubled at every halving up to four times as many.
        halvings: how often the sides are halved; image sides must be multiples of 2^halvings.
        codes: channels of the code. 3 halvings and 32 channels reconstruct finer texture from twice the numbers.

    Raises:
        InputError: a value is out of range; names the field.
    """

    base: int = 16
    halvings: int = 4
    codes: int = 64

    def __post_init__(self) -> None:
        for name in ("base", "halvings", "codes"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)


class ConvAutoencoder(nn.Module):
    """Strided convolutions down to a grid of codes and back up, with a residual block at each resolution but the full.

    Attributes:
        shape: see ``AutoencoderShape``.
        digest: of the checkpoint the weights come from, "" when there is none.
    """

    def __init__(self, shape: AutoencoderShape | None = None) -> None:
        super().__init__()
        self.shape, self.digest = shape or AutoencoderShape(), ""
        widths = [self.shape.base * min(2**level, 4) for level in range(self.shape.halvings + 1)]
        down: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(self.shape.codes, widths[-1], 3, padding=1)]
        for fine, coarse in itertools.pairwise(widths):
            down += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), ResBlock(coarse, coarse)]
        for coarse, fine in itertools.pairwise(widths[::-1]):
            up += [ResBlock(coarse, coarse), nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1)]
        self.encoder = nn.Sequential(
            *down,
            nn.GroupNorm(math.gcd(8, widths[-1]), widths[-1]),
            nn.SiLU(),
            nn.Conv2d(widths[-1], self.shape.codes, 1),
        )
        self.decoder = nn.Sequential(
            *up, nn.GroupNorm(math.gcd(8, widths[0]), widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 1, 3, padding=1)
        )

    def encode(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) in [-1, 1] to (N, codes, H / 2^halvings, W / 2^halvings).

        Raises:
            InputError: H or W is no multiple of 2^halvings.
        """
        multiple = 2**self.shape.halvings
        if x.shape[-1] % multiple or x.shape[-2] % multiple:
            raise InputError(
                f"images of {x.shape[-2]} x {x.shape[-1]} do not halve {self.shape.halvings} times",
                field="size",
                remedy=f"Prepare images whose sides are multiples of {multiple}",
            )
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Codes to (N, 1, H, W), unbounded: a squashed output would take the slope from what is nearly black."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, decode(encode(x))."""
        return self.decode(self.encode(x))


@dataclass(frozen=True)
class AutoencoderConfig:
    """How an autoencoder is trained: AdamW, the rate rising and then falling to zero along a cosine, weights averaged.

    Attributes:
        shape: the network.
        augment: random views.
        edges: weight of the gradient-difference term beside |x - x^|_1; see ``reconstruction_loss``.
        rate: AdamW's peak learning rate.
        decay: its weight decay.
        warmup: share of the steps in which the rate rises.
        ema_half_life: of the averaged weights, in steps.
        steps: length of training in batches.
        batch_size: images per step.
        seed: of weights, batches and views.
        precision: "auto" computes in bfloat16 where that is fast; see ``training.precision``.
        threads: CPU threads; 0 leaves torch's choice.
        device: "auto" takes the GPU when there is one.
        tensorboard: write event files.

    Raises:
        InputError: a value is out of range; names the field.
    """

    shape: AutoencoderShape = field(default_factory=AutoencoderShape)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(noise=0.0))
    edges: float = 0.25
    rate: float = 2e-3
    decay: float = 0.01
    warmup: float = 0.05
    ema_half_life: float = 100.0
    steps: int = 2000
    batch_size: int = 32
    seed: int = 0
    precision: Precision = "auto"
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise InputError("must be positive", field="rate")
        for name in ("edges", "decay"):
            if not getattr(self, name) >= 0:
                raise InputError("must not be negative", field=name)
        if not 0 <= self.warmup < 1:
            raise InputError("must be at least 0 and below 1", field="warmup")

    def training(self) -> TrainConfig:
        """Settings of the loop."""
        return TrainConfig(
            **{name: getattr(self, name) for name in _LOOP},
            channels_last=True,
            schedule="cosine",
            warmup=round(self.warmup * self.steps),
            grad_clip=1.0,
            ema_half_life=self.ema_half_life,
            validate_every=max(50, self.steps // 10),
            sample_every=max(50, self.steps // 4),
            keep=1,
        )

    def system(self) -> dict[str, Any]:
        """What is learned and how, for the run's config.yaml."""
        return {"kind": "autoencoder", **{k: v for k, v in plain(self).items() if k not in _LOOP}}


def reconstruction_loss(reconstruction: Tensor, x: Tensor, edges: float = 0.25) -> Tensor:
    """mean |r| + edges (mean |r(i, j + 1) - r(i, j)| + mean |r(i + 1, j) - r(i, j)|), r = x^ - x.

    The second part asks for the image's own edges, which |r| alone lets blur (Mathieu et al. 2016, here signed).

    Args:
        reconstruction: (N, 1, H, W).
        x: likewise.
        edges: its weight.
    """
    r = reconstruction.float() - x
    return r.abs().mean() + edges * (r.diff(dim=-1).abs().mean() + r.diff(dim=-2).abs().mean())


class AutoencoderTask(Task):
    """Trains one autoencoder.

    Args:
        autoencoder: to be trained.
        config: see ``AutoencoderConfig``.
        watch: rows to show, and to validate on where ``held``.
        held: whether these rows are held out from training.
    """

    ema = ("autoencoder",)

    def __init__(
        self, autoencoder: ConvAutoencoder, config: AutoencoderConfig, watch: PreparedStore, held: bool
    ) -> None:
        self.config, self.watch, self.held = config, watch, held
        self.modules = {"autoencoder": autoencoder}
        # Norms and biases are few and set scale or level; decay is for the other weights.
        weights = [p for p in autoencoder.parameters() if p.ndim > 1]
        others = [p for p in autoencoder.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": config.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizers = {"autoencoder": torch.optim.AdamW(groups, lr=config.rate)}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update on random views."""
        views, _ = augment(batch["image"], None, self.config.augment)
        views = views.clamp(-1, 1)
        with ctx.autocast():
            reconstruction = ctx.compile(self.modules["autoencoder"])(views)
        ctx.update("autoencoder", reconstruction_loss(reconstruction, views, self.config.edges))
        return {}

    @torch.no_grad()
    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Mean |x - x^| and mean PSNR (dB) of held-out rows by the averaged weights."""
        if not self.held:
            return {}
        errors = []
        for start in range(0, len(self.watch), 64):
            x = self.watch.images(slice(start, start + 64)).to(ctx.device)
            again = ctx.averaged("autoencoder")(x).clamp(-1, 1)
            errors.append(torch.stack([(again - x).abs().mean(dim=(1, 2, 3)).double(), psnr(x, again)]).cpu())
        absolute, reached = torch.cat(errors, dim=1)
        return {"l1": float(absolute.mean()), "psnr": float(reached.mean())}

    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Images over their reconstructions."""
        x = self.watch.images(slice(0, 8)).to(ctx.device)
        return {"reconstructions": torch.stack([x, ctx.averaged("autoencoder")(x).clamp(-1, 1)])}

    def card(self, result: TrainResult) -> str:
        """The model card."""
        shape, weights = self.config.shape, sum(p.numel() for p in self.modules["autoencoder"].parameters())
        lines = [
            "# Autoencoder",
            "",
            "For research. Not a medical device. It learned to reconstruct images, with and without findings.",
            "",
            f"* network: {weights:,} weights, {shape.halvings} halvings, {shape.codes} channels of codes",
            f"* trained for {result.step:,} steps of {self.config.batch_size}, seed {self.config.seed}",
            *(f"* last validation, {name}: {value:.3f}" for name, value in result.metrics.items()),
            "",
        ]
        return "\n".join(lines)


class _Images:
    """Rows of a store as the loop reads them."""

    def __init__(self, store: PreparedStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Any) -> dict[str, Tensor]:
        return {"image": self.store.images(indices)}


def train_autoencoder(
    store: PreparedStore, folder: str | Path, config: AutoencoderConfig | None = None
) -> ConvAutoencoder:
    """Train on the rows whose split is "train", watch those of "val"; the same call goes on where one stopped.

    Args:
        store: prepared images with splits; labels are not used.
        folder: the run folder; gets config.yaml, metrics.jsonl, checkpoints/, samples/ and README.md.
        config: see ``AutoencoderConfig``.

    Returns:
        The trained autoencoder, as ``load_autoencoder`` gives it; a finished run is only loaded.

    Raises:
        InputError: no training rows, sides that do not halve, or a folder that holds another run.
    """
    config = config or AutoencoderConfig()
    rows, val = (store.subset(store.split == split) for split in ("train", "val"))
    if not len(rows):
        raise InputError(
            'no image is in the split "train"',
            field="column 'split'",
            remedy="Make splits with 'counterscan data split' and prepare the images again",
        )
    seed_everything(config.seed)
    autoencoder = ConvAutoencoder(config.shape)
    with torch.no_grad():
        autoencoder(torch.zeros(1, 1, store.size, store.size))  # sizes that do not fit are refused here
    task = AutoencoderTask(autoencoder, config, val if len(val) else rows, held=bool(len(val)))
    data = {"size": store.size, "content": store.content}
    train(
        task,
        _Images(rows),
        config.training(),
        folder,
        sampler=uniform_sampler(len(rows), config.batch_size, config.seed),
        settings={**config.system(), "data": data},
    )
    return load_autoencoder(folder, device=str(next(autoencoder.parameters()).device))


def load_autoencoder(folder: str | Path, device: str = "cpu", which: str | int = "last") -> ConvAutoencoder:
    """A trained autoencoder with its averaged weights, frozen and in evaluation mode.

    Args:
        folder: a run folder.
        device: where it goes.
        which: "last", or a step.

    Raises:
        InputError: the folder holds no autoencoder, or its settings are unknown to this version.
        DamagedCheckpoint: the weights are not what was written.
    """
    path = Path(folder) / "config.yaml"
    remedy = "Name a folder that train_autoencoder made"
    try:
        system = yaml.safe_load(path.read_text(encoding="utf-8"))["system"]
        if system["kind"] != "autoencoder":
            raise KeyError
        values = dict(system["shape"])
    except FileNotFoundError:
        raise InputError("no such file", path=path, remedy=remedy) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise InputError("does not describe an autoencoder", path=path, remedy=remedy) from None
    if unknown := sorted(values.keys() - get_type_hints(AutoencoderShape).keys()):
        raise InputError(
            f"unknown settings {unknown}",
            path=path,
            field="system.shape",
            remedy="Load it with the version of counterscan that trained it",
        )
    autoencoder = ConvAutoencoder(AutoencoderShape(**values))
    autoencoder.digest = load_weights(folder, {"autoencoder": autoencoder}, which)["digest"]
    return autoencoder.to(device).eval().requires_grad_(False)
