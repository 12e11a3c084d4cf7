"""TagGAN's objective and its training step. Reads top to bottom as

    L_D = hinge(D_N(n), D_N(y))
    L_G = w_adv  * -D_N(y)                      the healed image looks real and healthy
        + w_cls  * -log(1 - f_c(y + noise))     a frozen classifier sees the finding no more
        + w_keep * CE(f_o(y), f_o(x))           ... and the other findings as before
        + lam * |M(x)| + 2 lam * |M(n)|         change little, and nothing on normals; lam = 0.001 H W
        + w_idem * |M(y)|                       nothing is left to take away
        + w_cyc  * |x - x^| + w_back * -D_A(x^) late in training: healthy and back (bGAN)

x are images with finding c, n images without it, other labels arbitrary; uncertain labels are in neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from counterscan import losses
from counterscan.counterpart import StudyBatch
from counterscan.data.augment import AugmentConfig, augment
from counterscan.taggan.model import AbnormalGenerator, ConditionalCritic, MapGenerator, NetworkConfig
from counterscan.training import Context, Task


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective. docs/benchmarks.md has the table of what each term buys.

    Attributes:
        lam: weight of |M| on images with the finding, as a multiple of 0.001 H W, which balances a per-pixel penalty
            against a critic or classifier that looks at the whole image.
        normal: weight of |M| on images without it, relative to lam.
        adversarial: of the critic of healed images.
        classifier: of the frozen classifier (mean over several).
        keep: of the other findings staying as they are; several findings only.
        idempotence: of the map of the healed image.
        cycle, back: of the regenerated image and of its critic.
        cycle_from: share of training after which bGAN joins; before, y is not yet healed and there is nothing to learn.
        hide: sigma of noise on y before critics, classifier and bGAN, so that nothing can be hidden in fine texture.
        rate_generator, rate_critic: Adam's learning rates.
    """

    lam: float = 1.0
    normal: float = 2.0
    adversarial: float = 0.1
    classifier: float = 0.5
    keep: float = 0.5
    idempotence: float = 0.0
    cycle: float = 0.5
    back: float = 0.05
    cycle_from: float = 0.7
    hide: float = 0.05
    rate_generator: float = 5e-4
    rate_critic: float = 4e-4
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(noise=0.0))


class TagGANTask(Task):
    """One training job.

    Args:
        networks, objective: settings.
        findings: canonical names, in the order of the label columns.
        classifiers: frozen, logits (N, C) for the same findings; the class term.
        groups: what the sampler's group numbers mean, (finding column, label) each.
        watch: validation images whose map and healed image are drawn into samples/.
        selection: gives the label-only figures of a generator; see ``taggan.selection``.
    """

    ema = ("map",)

    def __init__(
        self,
        networks: NetworkConfig,
        objective: ObjectiveConfig,
        findings: tuple[str, ...],
        classifiers: Sequence[nn.Module],
        groups: Sequence[tuple[int, int]],
        watch: StudyBatch | None = None,
        selection: Any = None,
    ) -> None:
        count = len(findings)
        self.objective, self.findings, self.watch, self.selection = objective, findings, watch, selection
        self.groups = torch.tensor(groups)  # (K, 2)
        self.modules = {
            "map": MapGenerator(networks, count),
            "back": AbnormalGenerator(networks, count),
            "critic_normal": ConditionalCritic(networks, count),
            "critic_abnormal": ConditionalCritic(networks, count),
        }
        adam = partial(torch.optim.Adam, betas=(0.0, 0.9))
        self.optimizers = {
            "generators": adam(
                [*self.modules["map"].parameters(), *self.modules["back"].parameters()], objective.rate_generator
            ),
            "critic_normal": adam(self.modules["critic_normal"].parameters(), objective.rate_critic),
            "critic_abnormal": adam(self.modules["critic_abnormal"].parameters(), objective.rate_critic),
        }
        self.classifiers = list(classifiers)
        self.frozen = {f"classifier_{k}": module for k, module in enumerate(classifiers)}

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update of the critic(s) and one of the generator(s)."""
        w = self.objective
        column, label = self.groups.to(ctx.device)[batch["group"]].T
        images, _ = augment(batch["image"], None, w.augment)
        ill = label == 1
        x, c, others = images[ill], column[ill], batch["target"][ill]
        n, c_n, others_n = images[~ill], column[~ill], batch["target"][~ill]
        late = ctx.step >= w.cycle_from * ctx.config.steps and w.cycle + w.back > 0

        with ctx.autocast():
            maps = ctx.compile(self.modules["map"])(images, column)
            m, m_n = maps[ill].float(), maps[~ill].float()
            y = x - m
            seen = y + w.hide * torch.randn_like(y)
            x_back = self.modules["back"](seen, m.detach(), c).float() if late else None

            if w.adversarial > 0:
                critic = self.modules["critic_normal"]
                ctx.update("critic_normal", self._critic_loss(critic, (n, c_n, others_n), (seen.detach(), c, others)))
            if x_back is not None and w.back > 0:
                critic = self.modules["critic_abnormal"]
                ctx.update("critic_abnormal", self._critic_loss(critic, (x, c, others), (x_back.detach(), c, others)))

            terms = self._generator_terms(x, c, others, y, seen, m, m_n)
            if x_back is not None:
                terms["cycle"] = w.cycle * (x - x_back).abs().mean()
                if w.back > 0:
                    fake = self.modules["critic_abnormal"](x_back, c, others)
                    terms["back"] = w.back * losses.hinge_generator(fake.float())
        ctx.update("generators", torch.stack(list(terms.values())).sum())
        means = {"abs_m_ill": m.detach().abs().mean(), "abs_m_normal": m_n.detach().abs().mean()}
        return {**{name: term.detach() for name, term in terms.items()}, **means}

    @staticmethod
    def _critic_loss(
        critic: nn.Module, real: tuple[Tensor, Tensor, Tensor], fake: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        both = critic(*(torch.cat(pair) for pair in zip(real, fake, strict=True))).float()
        return losses.hinge_critic(both[: len(real[0])], both[len(real[0]) :])

    def _generator_terms(
        self, x: Tensor, c: Tensor, others: Tensor, y: Tensor, seen: Tensor, m: Tensor, m_n: Tensor
    ) -> dict[str, Tensor]:
        """The weighted terms of L_G that fGAN alone answers for."""
        w = self.objective
        lam = w.lam * 0.001 * x.shape[-1] * x.shape[-2]
        terms = {"sparsity": lam * losses.magnitude(m), "normal": lam * w.normal * losses.magnitude(m_n)}
        if w.adversarial > 0:
            fake = self.modules["critic_normal"](seen, c, others)
            terms["adversarial"] = w.adversarial * losses.hinge_generator(fake.float())
        if w.classifier > 0 and self.classifiers:
            rows, share = torch.arange(len(c), device=c.device), 1 / len(self.classifiers)
            edited = torch.ones(len(c), len(self.findings), device=c.device).scatter_(1, c[:, None], 0.0)
            gone, kept = [], []
            for classifier in self.classifiers:
                logits = classifier(seen).float()
                gone.append(share * losses.absence(logits[rows, c]))
                if len(self.findings) > 1 and w.keep > 0:
                    with torch.no_grad():
                        before = classifier(x).float()
                    kept.append(share * losses.unchanged(logits, before, edited))
            terms["classifier"] = w.classifier * torch.stack(gone).sum()
            if kept:
                terms["keep"] = w.keep * torch.stack(kept).sum()
        if w.idempotence > 0:
            terms["idempotence"] = w.idempotence * lam * losses.magnitude(self.modules["map"](y, c).float())
        return terms

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Label-only figures of the averaged generator."""
        return self.selection(ctx.averaged("map"), self.classifiers) if self.selection is not None else {}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        """See ``taggan.selection``."""
        return metrics.get("criterion")

    @torch.no_grad()
    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Rows: image, healed image, map."""
        if self.watch is None:
            return {}
        x = self.watch.images.to(ctx.device)
        grids = {}
        for column, finding in enumerate(self.findings):
            m = ctx.averaged("map")(x, torch.full((len(x),), column, device=ctx.device)).float()
            grids[finding] = torch.stack([x, (x - m).clamp(-1, 1), (2 * m).clamp(-1, 1)])
        return grids
