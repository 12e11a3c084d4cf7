"""Networks, objective and training of medXGAN as published; ``medxgan.published`` explains with the result.

f is the frozen classifier's logit of one finding, p = sigmoid f; z1 ~ N(0, I) is anatomy, z2 is 0 for what f calls
negative and ~ N(0, I) for what it calls positive.

    L_D = BCE(D(x), 1) + BCE(D(G(z1, z2)), 0)                        positives and negatives alike
    L_G = BCE(D(G(z1, z2)), 1) + lambda_C * BCE(p(G(z1, z2)), y)     y, and with it z2: the calls of the real images

Everything is as in the authors' code, with one channel where it has three, but that the class term takes logits: the
code put the classifier's softmax through another one, see ``class_loss``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan import losses
from counterscan.classify.task import LabelledRows
from counterscan.errors import InputError
from counterscan.inputs import findings_of
from counterscan.medxgan.training import calls
from counterscan.training import Context, Task, TrainConfig, load_weights, seed_everything, train, uniform_sampler
from counterscan.training.checkpoint import weights_digest
from counterscan.training.config import plain

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore


@dataclass(frozen=True)
class LadderConfig:
    """Sizes of the networks; the defaults are the published ones for 64 px. ``LADDERS`` holds those for 128 px as well.

    Attributes:
        anatomy, pathology: numbers in z1 and z2.
        widths: channels of G before each of its n transposed convolutions, which make images of 2^(n + 2) px.
        critic_widths: channels of D's convolutions.
    """

    anatomy: int = 1000
    pathology: int = 100
    widths: tuple[int, ...] = (768, 384, 256, 192)
    critic_widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)

    def __post_init__(self) -> None:
        for name in ("widths", "critic_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(2 ** (len(self.widths) + 2))


LADDERS = {64: LadderConfig(), 128: LadderConfig(anatomy=100, pathology=10, widths=(768, 384, 256, 192, 64))}


class LadderGenerator(nn.Module):
    """G: a linear layer, transposed convolutions of kernel 5 and stride 2 with batch norm, a last one of kernel 8."""

    def __init__(self, config: LadderConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.anatomy + config.pathology, config.widths[0])
        stages: list[nn.Module] = []
        for before, width in itertools.pairwise(config.widths):
            stages += [nn.ConvTranspose2d(before, width, 5, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        last = nn.ConvTranspose2d(config.widths[-1], 1, 8, 2, bias=False)
        self.stages = nn.Sequential(*stages, last, nn.Tanh())
        self.apply(_start)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """(N, anatomy) and (N, pathology) to (N, 1, size, size) in [-1, 1]."""
        return self.stages(self.project(torch.cat([z1, z2], dim=1))[:, :, None, None])


class LadderCritic(nn.Module):
    """D: convolutions of kernel 3, every other one halving the sides, with batch norm and half of it dropped out."""

    def __init__(self, config: LadderConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        side = config.size
        for k, (before, width) in enumerate(itertools.pairwise((1, *config.critic_widths))):
            halving = k % 2 == 0
            side = (side - 1) // 2 + 1 if halving else side - 2
            stages.append(nn.Conv2d(before, width, 3, 2 if halving else 1, 1 if halving else 0, bias=False))
            stages += [nn.BatchNorm2d(width)] if k else []
            stages += [nn.LeakyReLU(0.2), nn.Dropout(0.5)]
        if side < 1:
            raise InputError(f"too many for images of {config.size} px", field="critic_widths")
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(config.critic_widths[-1] * side * side, 1)
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, size, size) to logits (N,) of being real."""
        return self.head(self.stages(x).flatten(1))[:, 0]


def _start(module: nn.Module) -> None:
    """Weights from N(0, 0.02), those of norms from N(1, 0.02); linear layers as torch has them."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def class_loss(logits: Tensor, wanted: Tensor, double_softmax: bool = False) -> Tensor:
    """Cross-entropy of the classifier's call on generated images, a mean.

    Args:
        logits: f, (N,).
        wanted: y, (N,) of 0 and 1.
        double_softmax: the public code's loss, log(1 + exp((1 - 2 y)(2 p - 1))): p goes through a softmax once more.
            It lies between 0.3133 and 1.3133 and is flat where f is sure, 277 times flatter than it should be for a
            positive with f = -6: where the class term is needed most.
    """
    if double_softmax:
        return F.softplus((1 - 2 * wanted) * (2 * logits.sigmoid() - 1)).mean()
    return F.binary_cross_entropy_with_logits(logits, wanted)


@dataclass(frozen=True)
class PublishedObjective:
    """The objective.

    Attributes:
        lambda_c: weight of the class term. The public code has 2 for brains and 1 for chests, with ``double_softmax``;
            its gradient for an undecided image is then that of the proper loss with 1 and with 0.5.
        double_softmax: see ``class_loss``.
        rate: of Adam for both networks, with betas (0.5, 0.999).
    """

    lambda_c: float = 1.0
    double_softmax: bool = False
    rate: float = 2e-4


class PublishedTask(Task):
    """One training job; batches hold "image" (N, 1, size, size) and "target" (N, 1), the classifier's calls.

    Args:
        networks, objective: settings.
        classifier: frozen; (N, 1, H, W) to logits (N, C).
        column: the finding's.
    """

    def __init__(
        self, networks: LadderConfig, objective: PublishedObjective, classifier: nn.Module, column: int
    ) -> None:
        self.networks, self.objective, self.classifier, self.column = networks, objective, classifier, column
        self.frozen = {"classifier": classifier}
        self.modules = {"generator": LadderGenerator(networks), "critic": LadderCritic(networks)}
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), objective.rate, betas=(0.5, 0.999))
            for name, module in self.modules.items()
        }

    def _fakes(self, positive: Tensor) -> Tensor:
        """Images of new codes for calls (N,) of 0 and 1."""
        z1 = torch.randn(len(positive), self.networks.anatomy, device=positive.device)
        z2 = torch.randn(len(positive), self.networks.pathology, device=positive.device) * positive[:, None]
        return self.modules["generator"](z1, z2)

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update of D and one of G."""
        x, y, critic = batch["image"], batch["target"][:, 0], self.modules["critic"]
        with ctx.autocast():
            with torch.no_grad():
                fakes = self._fakes(torch.randint(0, 2, y.shape, device=y.device).to(y))
            ctx.update("critic", losses.logistic_critic(critic(x).float(), critic(fakes).float()))
            fakes = self._fakes(y)
            real = losses.logistic_generator(critic(fakes).float())
            logits = self.classifier(fakes)[:, self.column].float()
            called = class_loss(logits, y, self.objective.double_softmax)
        ctx.update("generator", real + self.objective.lambda_c * called)
        return {"real": real.detach(), "class": called.detach()}

    @torch.no_grad()
    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Share of samples, half of them of either kind, that the classifier calls what they were to be."""
        positive = torch.arange(64, device=ctx.device).remainder(2).float()
        called = self.classifier(self._fakes(positive))[:, self.column] >= 0
        return {"agreement": float((called == (positive == 1)).float().mean())}

    @torch.no_grad()
    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Rows: bodies with z2 = 0, and with two draws of it."""
        n, sizes = 8, self.networks
        z1, z2 = torch.randn(n, sizes.anatomy, device=ctx.device), torch.randn(2, sizes.pathology, device=ctx.device)
        rows = [torch.zeros_like(z2[0]), *z2]
        return {"samples": torch.stack([self.modules["generator"](z1, row.expand(n, -1)) for row in rows])}


def column_of(classifier: nn.Module, finding: int | str | None) -> int:
    """Column of a classifier's finding, given by name or column; None for that of a classifier with one only.

    Raises:
        InputError: the classifier does not say its findings, does not know this one, or has several and none is named.
    """
    findings = findings_of(classifier)
    if finding is None and len(findings) == 1:
        return 0
    if isinstance(finding, int) and 0 <= finding < len(findings):
        return finding
    if not isinstance(finding, str) or finding not in findings:
        raise InputError(
            "name the one to explain" if finding is None else f"the classifier does not know {finding!r}",
            field="finding",
            remedy=f"It knows {', '.join(findings)}",
        )
    return findings.index(finding)


def train_generator(
    store: PreparedStore,
    classifier: nn.Module,
    column: int,
    folder: Path,
    config: TrainConfig,
    networks: LadderConfig | None,
    objective: PublishedObjective,
) -> tuple[LadderGenerator, str]:
    """G, and the digest of its weights; see ``PublishedMedXGAN.fit``."""
    finding = findings_of(classifier)[column]
    (learn,) = store.parts("train")
    networks = networks or LADDERS.get(store.size)
    if networks is None or networks.size != store.size:
        sizes = " or ".join(map(str, LADDERS if networks is None else [networks.size]))
        raise InputError(
            f"images of {store.size} px do not fit the networks",
            path=store.folder,
            field="size",
            remedy=f"Prepare images of {sizes} px, or set networks",
        )
    called = np.ascontiguousarray(calls(classifier, learn)[:, [column]])
    if len(np.unique(called)) < 2:
        raise InputError(
            f"the classifier calls every training image {'positive' if called[0, 0] else 'negative'} for it",
            path=store.folder,
            field=finding,
            remedy="Explaining needs both; check the classifier's pixel range, size and output, or add images",
        )
    seed_everything(config.seed)
    task = PublishedTask(networks, objective, classifier, column)
    settings = {
        "kind": "medxgan_published",
        "finding": finding,
        "classifier": weights_digest(classifier),
        "content": store.content,
        "division": store.division,
        "networks": plain(networks),
        "objective": plain(objective),
    }
    sampler = uniform_sampler(len(learn), config.batch_size, config.seed)
    train(task, LabelledRows(learn, called), config, folder, sampler=sampler, settings=settings)
    generator = task.modules["generator"]
    assert isinstance(generator, LadderGenerator)
    return generator, load_weights(folder, {"generator": generator}, "last")["digest"]
