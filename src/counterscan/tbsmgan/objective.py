"""The generator's objective and its training step. T are random views, c the findings of a real image x.

    L_D = softplus(-D(T x | c)) + softplus(D(T G(z, c) | c))         logistic, the default
        + w_find * BCE(findings_D(T x), c)                           what the label says, where it says something
    L_G = softplus(-D(T G(z, c) | c))
        + w_find * BCE(findings_D(T G(z, c)), c)                     the asked findings show
    now and then, as updates of their own
    R1  = gamma/2 * E |grad_x D(T x | c)|^2
    PL  = w_path * E (|J^T y| - a)^2,  y ~ N(0, I / pixels)          steps in w change images evenly; optional

    relativistic: L_D = softplus(-(D(T x | c) - D(T G(z, c) | c))), L_G the mirror image, and R1 at fakes too (R2)

Sources: Karras et al. 2020 (StyleGAN2; ADA), Mescheder et al. 2018 (R1), Odena et al. 2017 (findings in D), Huang et
al. 2024 (the relativistic loss with R1 and R2). Fakes are asked for the labels of the real images of the batch, so that
both sides of D see the same mixture of findings; what a label leaves open is asked for at its frequency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan import losses
from counterscan.errors import InputError
from counterscan.nets.ada import AdaptiveConfig, AdaptiveP, ViewConfig, ramped_p, random_views
from counterscan.nets.discriminator import Discriminator
from counterscan.nets.stylegan2 import Generator, StyleGANConfig
from counterscan.tbsmgan.monitors import Monitors
from counterscan.training import Context, Task, lazy_adam
from counterscan.training.distributed import all_reduce_mean

_PATH_MEMORY = 0.01  # share of the newest lengths in their running mean
_GAMMA_RAISED = 4.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective.

    Attributes:
        loss: "logistic", or "relativistic" for fewer lost modes at 1.65 times the cost per image (it was behind at an
            equal CPU budget).
        gamma: of R1 (and R2); None chooses by ``default_gamma``.
        r1_every: steps between two applications, each ``r1_every`` times as strong; None is 16, and 4 relativistic.
        path: weight of the path length penalty, 2 in StyleGAN2; 0 for none. It makes w smoother to edit.
        path_every: steps between two applications, on half the batch.
        find: weight of each finding in D, 0 for none. It brings the asked findings out earlier: on the chest phantom
            with seven findings, effusions had a consistency AUC of .92 after 96,000 images with 0.3, and .76 with a
            seventh of it.
        mixing: share of steps whose images take their styles from two z, changed at a random layer.
        augment: "adaptive" (ADA), "ramp" (p rises to ``ramp`` and stays) or "none"; r_t means nothing for a
            relativistic loss, which takes "ramp" for "adaptive".
        ramp: highest p of "ramp".
        rate: Adam's learning rate.
        views, adaptive: see ``nets.ada``.

    Raises:
        InputError: a value is out of range; names the field.
    """

    loss: Literal["logistic", "relativistic"] = "logistic"
    gamma: float | None = None
    r1_every: int | None = None
    path: float = 0.0
    path_every: int = 4
    find: float = 0.3
    mixing: float = 0.0
    augment: Literal["adaptive", "ramp", "none"] = "adaptive"
    ramp: float = 0.3
    rate: float = 2.5e-3
    views: ViewConfig = field(default_factory=ViewConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self) -> None:
        for name, choices in (("loss", ("logistic", "relativistic")), ("augment", ("adaptive", "ramp", "none"))):
            if getattr(self, name) not in choices:
                raise InputError(f"{getattr(self, name)!r} must be one of {', '.join(choices)}", field=name)
        for name in ("path", "find", "gamma"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError("must be a number of at least 0", field=name)
        for name in ("mixing", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError("must be between 0 and 1", field=name)
        for name in ("r1_every", "path_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name)
        if not self.rate > 0:
            raise InputError("must be positive", field="rate")

    @property
    def relativistic(self) -> bool:
        return self.loss == "relativistic"

    @property
    def adapts(self) -> bool:
        """Whether p follows the discriminator."""
        return self.augment == "adaptive" and not self.relativistic

    @property
    def penalty_every(self) -> int:
        """``r1_every`` with its default."""
        return self.r1_every or (4 if self.relativistic else 16)


def default_gamma(size: int, batch_size: int, loss: str = "logistic") -> float:
    """A gamma to start from.

    * logistic: 4 x 0.0002 size^2 / batch_size. 0.0002 size^2 / batch_size is StyleGAN2-ADA's rule for its "auto"
      settings, found on RGB photographs; its hand-tuned 256 px settings have 1 where the rule gives 0.2, and small grey
      phantoms at 64 px and batch 32 learned best with 0.1 where it gives 0.026: hence the 4.
    * relativistic: (size / 64)^2, between the published 64 px and 256 px settings, which differ by more than that.

    Raise it when D is sure of everything and images stop changing; lower it when images stay blurred.
    """
    if loss == "relativistic":
        return (size / 64) ** 2
    return _GAMMA_RAISED * 0.0002 * size**2 / batch_size


def finding_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, summed over findings; logits and labels (N, K), and what is NaN counts as nothing.

    The mean is over all N images, not over the known labels, so that averages over processes are exact.
    """
    known = ~labels.isnan()
    terms = F.binary_cross_entropy_with_logits(logits.float(), torch.where(known, labels, 0.5), reduction="none")
    return (terms * known).sum(dim=1).mean()


class GANTask(Task):
    """One training job.

    Args:
        network: sizes of both networks; ``labels`` is K.
        objective: settings.
        batch_size: images per step over all processes, for gamma.
        frequency: (K,) how often each finding is present: what is asked for where a label is unknown.
        monitors: gives the validation figures of a generator; None for none.
        watch: (R, K) labels whose samples are drawn into samples/, one row each; None when unconditional.

    Attributes:
        gamma: the weight of R1 that is used.
        adaptive: p and r_t.
    """

    ema = ("generator",)

    def __init__(
        self,
        network: StyleGANConfig,
        objective: ObjectiveConfig,
        batch_size: int,
        frequency: Tensor,
        monitors: Monitors | None = None,
        watch: Tensor | None = None,
    ) -> None:
        self.network, self.objective, self.monitors, self.watch = network, objective, monitors, watch
        self.frequency = frequency.float()
        generator, discriminator = Generator(network), Discriminator(network)
        self.modules = {"generator": generator, "discriminator": discriminator}
        betas = (0.0, 0.99)
        lazily = lazy_adam(objective.rate, betas, objective.path_every)
        self.optimizers = {
            "generator": torch.optim.Adam(
                generator.parameters(), **(lazily if objective.path > 0 else {"lr": objective.rate, "betas": betas})
            ),
            "discriminator": torch.optim.Adam(
                discriminator.parameters(), **lazy_adam(objective.rate, betas, objective.penalty_every)
            ),
        }
        chosen = default_gamma(network.size, batch_size, objective.loss)
        self.gamma = chosen if objective.gamma is None else objective.gamma
        self.adaptive = AdaptiveP(objective.adaptive)
        self._path_mean = 0.0

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update of D, one of G, and the lazy penalties that are due."""
        w, x = self.objective, batch["image"]
        labels = batch["target"].float() if self.network.labels else None
        c = self.asked(labels) if labels is not None else None
        p, generator = self._p(ctx), self.modules["generator"]
        critic = ctx.compile(self.modules["discriminator"])
        assert isinstance(generator, Generator)

        with ctx.autocast():
            fake = self._generate(generator, c, len(x), x.device)
            real_out = critic(self._view(x, p), c)
            fake_out = critic(self._view(fake.detach(), p), c)
            on_real, on_fake = real_out.logits.float(), fake_out.logits.float()
        terms = {"d": self._d_loss(on_real, on_fake)}
        if labels is not None and real_out.findings is not None and w.find > 0:
            terms["d_find"] = w.find * finding_loss(real_out.findings, labels)
        ctx.update("discriminator", torch.stack(list(terms.values())).sum())
        if every := ctx.lazy(w.penalty_every):
            terms["r1"] = self._penalty(ctx, x, fake.detach(), c, p)
            ctx.update("discriminator", every * terms["r1"])

        with ctx.autocast():
            out = critic(self._view(fake, p), c)
            opposite = critic(self._view(x, p), c).logits.float().detach() if w.relativistic else None
        made = {"g": self._g_loss(out.logits.float(), opposite)}
        if c is not None and out.findings is not None and w.find > 0:
            made["g_find"] = w.find * finding_loss(out.findings, c)
        ctx.update("generator", torch.stack(list(made.values())).sum())
        if w.path > 0 and (every := ctx.lazy(w.path_every)):
            made["path"] = w.path * self._path_length(ctx, generator, c, len(x), x.device)
            ctx.update("generator", every * made["path"])

        if w.adapts:
            self.adaptive.update(on_real, lambda sums: all_reduce_mean(sums, ctx.world) * ctx.world.size)
        told = {name: value.detach() for name, value in (terms | made).items()}
        sides = {"d_real": on_real.detach().mean(), "d_fake": on_fake.detach().mean()}
        return told | sides | {"p": p} | ({} if math.isnan(self.adaptive.r_t) else {"r_t": self.adaptive.r_t})

    def asked(self, labels: Tensor) -> Tensor:
        """Conditions (N, K) in [0, 1] from labels (N, K): a finding's frequency where its label is NaN."""
        return torch.where(labels.isnan(), self.frequency.to(labels.device), labels)

    def _p(self, ctx: Context) -> float:
        w = self.objective
        if w.adapts:
            return self.adaptive.p
        return 0.0 if w.augment == "none" else ramped_p(ctx.step / ctx.config.steps, w.ramp)

    def _view(self, images: Tensor, p: float) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return random_views(images.float(), p, self.objective.views)

    def _generate(self, generator: Generator, c: Tensor | None, count: int, device: torch.device) -> Tensor:
        """(N, 1, H, W); the mean of w is kept up on the way."""
        ws = generator.map(torch.randn(count, self.network.z_dim, device=device), c)
        generator.update_w_avg(ws.detach())
        if self.objective.mixing > 0 and float(torch.rand(())) < self.objective.mixing:
            other = generator.map(torch.randn(count, self.network.z_dim, device=device), c)
            ws = generator.mix(ws, other, int(torch.randint(1, ws.shape[1], ())))
        return generator.synthesize(ws, noise="random").float()

    def _d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean() if self.objective.relativistic else losses.logistic_critic(real, fake)

    def _g_loss(self, fake: Tensor, real: Tensor | None) -> Tensor:
        return losses.logistic_generator(fake) if real is None else F.softplus(real - fake).mean()

    def _penalty(self, ctx: Context, x: Tensor, fake: Tensor, c: Tensor | None, p: float) -> Tensor:
        """gamma / 2 R1, and R2 when relativistic, through the views and in float32."""
        critic = self.modules["discriminator"]

        def at(images: Tensor) -> Tensor:
            return losses.r1_penalty(lambda view: critic(self._view(view, p), c).logits, images)

        with ctx.autocast(False):
            total = at(x) + at(fake) if self.objective.relativistic else at(x)
        return self._gamma(ctx) / 2 * total

    def _gamma(self, ctx: Context) -> float:
        """Constant, or from gamma to a tenth of it along a cosine as the relativistic loss was published with."""
        if not self.objective.relativistic:
            return self.gamma
        return self.gamma * (0.1 + 0.9 * (1 + math.cos(math.pi * ctx.step / ctx.config.steps)) / 2)

    def _path_length(
        self, ctx: Context, generator: Generator, c: Tensor | None, count: int, device: torch.device
    ) -> Tensor:
        """E (|J^T y| - a)^2 on half the batch, with a the running mean of |J^T y| over all processes."""
        half = max(1, count // 2)
        with ctx.autocast(False):
            ws = generator.map(
                torch.randn(half, self.network.z_dim, device=device), c[:half] if c is not None else None
            )
            images = generator.synthesize(ws, noise="random")
            y = torch.randn_like(images) / math.sqrt(images.shape[-1] * images.shape[-2])
            (slope,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
        lengths = slope.square().sum(dim=2).mean(dim=1).sqrt()
        mean = float(all_reduce_mean(lengths.detach().mean(), ctx.world))
        self._path_mean += _PATH_MEMORY * (mean - self._path_mean)
        return (lengths - self._path_mean).square().mean()

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Figures of the averaged generator, and where the discriminator stands."""
        if self.monitors is None:
            return {}
        generator = ctx.averaged("generator")
        assert isinstance(generator, Generator)
        stand = {} if math.isnan(self.adaptive.r_t) else {"r_t": self.adaptive.r_t}
        return self.monitors(generator) | stand | {"p": self._p(ctx)}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """See ``Monitors.criterion``."""
        return self.monitors.criterion(metrics) if self.monitors is not None else None

    @torch.no_grad()
    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """The same eight z in every row, one row per condition."""
        generator = ctx.averaged("generator")
        assert isinstance(generator, Generator)
        z = torch.randn(8, self.network.z_dim, generator=torch.Generator().manual_seed(0)).to(ctx.device)
        if self.watch is None:
            return {"samples": generator(z, None, psi=0.7).float()}
        rows = [generator(z, c.to(ctx.device).expand(len(z), -1), psi=0.7).float() for c in self.watch]
        return {"samples": torch.stack(rows)}

    def state_dict(self) -> dict[str, Any]:
        return {"adaptive": self.adaptive.state_dict(), "path_mean": self._path_mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adaptive.load_state_dict(state["adaptive"])
        self._path_mean = state["path_mean"]
