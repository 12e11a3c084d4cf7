"""What lies under a lesion: regions of an image filled from what surrounds them.

    F(x, m)          the pixels of a region m, from the rest of the image alone
    x_0 = x + e (F(x, m) - x)          e: m with soft edges

TagGAN's map says where a finding is, but need not take out more than its classifier sees: of the phantom's
consolidations that is less than half. F is learned from training images without the finding, under regions in which
other images have it; what it then finds under a lesion is what a body without one has there, and x - x_0 is the whole
lesion with its own texture. No pixel label is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.care import evaluating, smooth
from counterscan.classify.task import LabelledRows
from counterscan.data.splits import spaced
from counterscan.errors import InputError
from counterscan.files import read_json, write_json
from counterscan.nets.unet import UNet
from counterscan.pretrained import model_folder, reading, write_tensors
from counterscan.training import Context, Task, TrainConfig, load_weights, seed_everything, train
from counterscan.training.config import plain

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore
    from counterscan.taggan.tagger import TagGAN

SETTINGS, WEIGHTS = "filler.json", "filler.safetensors"
_BATCH = 64
_MOST = 512  # regions of a finding
_VALIDATED = 256
# Shares of the image's width: maps are weak at a lesion's rim, and a region that is too large costs less than a rest.
_BLUR, _GROW, _EDGE = 0.05, 0.05, 1 / 64
_SHARE = 0.25  # of the blurred map's maximum


@dataclass(frozen=True)
class Regions:
    """Where findings are.

    Attributes:
        rows: (R,) of which image.
        columns: (R,) of which finding, its place among the labels.
        masks: (R, 1, S, S) bool.
    """

    rows: np.ndarray
    columns: np.ndarray
    masks: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, column: int) -> Regions:
        """Those of one finding."""
        own = self.columns == column
        return Regions(self.rows[own], self.columns[own], self.masks[torch.from_numpy(own)])


def region_of(maps: Tensor) -> Tensor:
    """Maps (N, 1, S, S), signed, to regions (N, 1, S, S) bool: where the blurred map is strong, and a rim around it."""
    strength = smooth(maps, _BLUR).abs()
    strong = strength > _SHARE * strength.amax(dim=(1, 2, 3), keepdim=True)
    reach = max(1, round(_GROW * maps.shape[-1]))
    return F.max_pool2d(strong.float(), 2 * reach + 1, stride=1, padding=reach) > 0


def locate(tagger: TagGAN, images: PreparedStore, labels: np.ndarray) -> Regions:
    """Regions of every finding in the images that have it, at most 512 of each, spread over the rows.

    Args:
        tagger: gives the maps.
        images: N of the tagger's size.
        labels: (N, C) of 1, 0 and NaN, columns as the tagger's findings.
    """
    rows, columns, masks = [], [], [torch.zeros(0, 1, images.size, images.size, dtype=torch.bool)]
    for column, name in enumerate(tagger.findings):
        ill = spaced(np.flatnonzero(labels[:, column] == 1), _MOST)
        for part in np.split(ill, range(_BATCH, len(ill), _BATCH)):
            if len(part):
                masks.append(region_of(tagger.maps(images.images(part), name)[0].cpu()) & images.valid(part))
        rows.append(ill)
        columns.append(np.full(len(ill), column))
    return Regions(np.concatenate(rows), np.concatenate(columns), torch.cat(masks))


def _training() -> TrainConfig:
    return TrainConfig(
        steps=600,
        batch_size=32,
        schedule="cosine",
        final_factor=0.03,
        warmup=30,
        grad_clip=5.0,
        ema_half_life=50,
        validate_every=200,
        checkpoint_every=200,
        sample_every=0,
    )


@dataclass(frozen=True)
class FillerConfig:
    """Settings.

    Attributes:
        training: the loop's.
        base: channels of the U-Net at full resolution.
        rate: AdamW's learning rate.
        shift: regions are moved by up to this share of the width, and mirrored half of the time.

    Raises:
        InputError: a value is out of range; names the field.
    """

    training: TrainConfig = field(default_factory=_training)
    base: int = 16
    rate: float = 2e-3
    shift: float = 0.08

    def __post_init__(self) -> None:
        if self.base < 1:
            raise InputError("must be at least 1", field="base")
        if not self.rate > 0:
            raise InputError("must be positive", field="rate")
        if not 0 <= self.shift < 0.5:
            raise InputError("must be at least 0 and below one half", field="shift")


class Filler:
    """F of the module.

    Args:
        net: takes (N, 2, S, S), the image without the region and the region.
        size: side of the images it learned from.
        steps: how long it learned.
    """

    def __init__(self, net: UNet, size: int, steps: int = 0) -> None:
        self.net, self.size, self.steps = net.eval().requires_grad_(False), size, steps

    @torch.no_grad()
    def fill(self, images: Tensor, regions: Tensor) -> Tensor:
        """x_0 of the module.

        Args:
            images: (N, 1, S, S) in [-1, 1].
            regions: (N, 1, S, S) bool.

        Returns:
            (N, 1, S, S) in [-1, 1]; equal to the images outside of the regions.

        Raises:
            InputError: images of another size.
        """
        if images.shape[-1] != self.size or images.shape != regions.shape:
            raise InputError(f"{tuple(images.shape)} where images of {self.size} px are needed", field="images")
        with evaluating(self.net):
            parts = zip(images.split(_BATCH), regions.split(_BATCH), strict=True)
            filled = torch.cat([_guess(self.net, x, m.float()) for x, m in parts]) if len(images) else images
        edges = smooth(regions.float(), _EDGE) * regions
        return (images + edges * (filled - images)).clamp(-1, 1)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Weights and settings; the settings last, so that a folder with them is whole."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS, self.net.state_dict())
        write_json(folder / SETTINGS, {"size": self.size, "base": self.net.head.in_channels, "steps": self.steps})
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Filler:
        """Raises InputError when there is none, or a damaged one."""
        folder = model_folder(Path(folder), SETTINGS, "Run the same command again to finish it")
        with reading(folder):
            settings = read_json(folder / SETTINGS)
            net = UNet(2, settings["base"])
            net.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
            return cls(net, settings["size"], settings["steps"])


def _guess(net: torch.nn.Module, x: Tensor, m: Tensor) -> Tensor:
    return net(torch.cat([x * (1 - m), m], dim=1)).float()


class FillerTask(Task):
    """One training job: F, on images that lack the finding of the region that is hidden.

    Args:
        config: settings.
        regions: to hide.
        validation: images (V, 1, S, S) of other patients, and the regions (V, 1, S, S) bool to hide in them.
    """

    ema = ("filler",)

    def __init__(self, config: FillerConfig, regions: Regions, validation: tuple[Tensor, Tensor]) -> None:
        self.config, self.regions, self.validation = config, regions, validation
        self.columns = torch.from_numpy(regions.columns)
        net = UNet(2, config.base)
        self.modules = {"filler": net}
        self.optimizers = {"filler": torch.optim.AdamW(net.parameters(), lr=config.rate, weight_decay=1e-4)}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update: mean squared error within the regions."""
        x, labels = batch["image"], batch["target"]
        drawn = torch.randint(len(self.regions), (len(x),))
        free = labels.cpu()[torch.arange(len(x)), self.columns[drawn]] == 0
        m = self._moved(self.regions.masks[drawn].float() * free.float().view(-1, 1, 1, 1)).to(x.device)
        with ctx.autocast():
            guess = _guess(ctx.compile(self.modules["filler"]), x, m)
        loss = ((guess - x).square() * m).sum() / m.sum().clamp_min(1)
        ctx.update("filler", loss)
        return {"rmse": loss.detach().sqrt()}

    def _moved(self, masks: Tensor) -> Tensor:
        """Each region elsewhere, some of them mirrored."""
        reach = round(self.config.shift * masks.shape[-1])
        size, padded = masks.shape[-1], F.pad(masks, (reach,) * 4)
        at = torch.randint(2 * reach + 1, (len(masks), 2)).tolist()
        moved = torch.stack([p[:, i : i + size, j : j + size] for p, (i, j) in zip(padded, at, strict=True)])
        turned = torch.rand(len(masks)) < 0.5
        return torch.where(turned.view(-1, 1, 1, 1), moved.flip(-1), moved)

    @torch.no_grad()
    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Root mean squared error within the regions; nothing where every validation image has every finding."""
        x, m = self.validation
        if not len(x):
            return {}
        net = ctx.averaged("filler")
        with evaluating(net):
            parts = zip(x.split(_BATCH), m.float().split(_BATCH), strict=True)
            guess = torch.cat([_guess(net, a.to(ctx.device), b.to(ctx.device)).cpu() for a, b in parts])
        return {"rmse": float(((guess - x).square() * m).sum().div(m.sum().clamp_min(1)).sqrt())}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        return -metrics["rmse"] if "rmse" in metrics else None


def fit_filler(
    train_on: PreparedStore,
    labels: np.ndarray,
    validate_on: PreparedStore,
    validation_labels: np.ndarray,
    regions: Regions,
    folder: str | Path,
    config: FillerConfig | None = None,
) -> Filler:
    """Train F, save it to ``folder/model``. Called again it goes on, also to more steps, or loads what is done.

    Args:
        train_on, labels: training images with (N, C) of 1, 0 and NaN, columns as the regions'.
        validate_on, validation_labels: the same of other patients.
        regions: of the training images, by ``locate``.
        folder: the run folder.
        config: settings.

    Raises:
        InputError: no region, or a run of other settings in the folder.
    """
    config, folder = config or FillerConfig(), Path(folder)
    if not len(regions):
        raise InputError("no training image has a finding", field="labels", remedy="Give images with findings")
    if (folder / "model" / SETTINGS).is_file():
        filler = Filler.from_pretrained(folder)
        if filler.steps == config.training.steps:
            return filler
    seed_everything(config.training.seed)
    task = FillerTask(config, regions, _held(validate_on, validation_labels, regions))
    own = {name: value for name, value in asdict(config).items() if name != "training"}
    settings = {"kind": "filler", "content": train_on.content, "filler": plain(own)}
    train(task, LabelledRows(train_on, labels.astype(np.float32)), config.training, folder, settings=settings)
    net = UNet(2, config.base)
    load_weights(folder, {"filler": net}, "best")
    filler = Filler(net, train_on.size, config.training.steps)
    filler.save_pretrained(folder / "model")
    return filler


def _held(store: PreparedStore, labels: np.ndarray, regions: Regions) -> tuple[Tensor, Tensor]:
    """Validation images with a region each whose finding they lack."""
    rows = spaced(np.arange(len(store)), _VALIDATED)
    chosen = np.arange(len(rows)) % len(regions)
    free = labels[rows, regions.columns[chosen]] == 0
    return store.images(rows[free]), regions.masks[torch.from_numpy(chosen[free])]
