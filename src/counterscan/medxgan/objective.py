"""medXGAN+'s objective and its training step. f is the frozen classifier, p = sigmoid f its probabilities, c a finding.

    (z1, z2) = E(x),  x^ = G(z1, z2),  y_a = G(z1, a z2),  v_b = G(z1, b z2') with the z2' of an image called positive

    L_D = logistic(D(x | p(x)), D(y_a | p with a p_c), D(v_b | p with b p_c')) + gamma/2 R1, lazy
    L_G = w_rec   * |x - x^|, and of their gradients        the image again
        + w_match * huber(f(x^), f(x))                      ... as the classifier sees it
        + w_cls   * BCE(f_c(y_a + noise, moved), a p_c(x))  every strength means what it says; half of all a are 0:
                                                            without z2 the finding is gone
        + w_cls   * BCE(f_c(v_b + noise, moved), b p_c')    z2 brings it into a body that lacks it
        + w_keep  * CE(f_o, f_o(x)) of y_a and v_b          other findings stay
        + w_sp    * |x^ - y_a| + w_tv * TV(x^ - y_a)        change little, in one piece
        + w_lat   * |E(v_b) - (z1, b z2')|^2                a code means the same when it is read again
        + w_neg   * (1 - p_c(x)) |z2|^2                     what the classifier calls negative has no pathology
        + w_prior * |z|^2
        + w_adv   * mean softplus(-D) of y_a and v_b        0 by default: then there is no D

The published objective trains z2 = 0 and |z2| ~ sqrt(dim) only, so that the way between is never supervised, has no
reconstruction and inverts by thousands of steps per image; see ``medxgan.published``. Noise and small moves on the
classifier's input keep G from answering with textures that only this classifier reacts to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan import losses
from counterscan.counterpart import StudyBatch
from counterscan.data.augment import AugmentConfig, augment, shift_together
from counterscan.medxgan.model import Code, MedXGANNetworks, NetworkConfig
from counterscan.nets.critic import ResidualCritic
from counterscan.training import Context, Task

_SURE = 0.98  # targets of the classifier stay this far from certainty, so that no logit is pushed without end


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective, named as in the module's text.

    Attributes:
        rec, match, cls, keep, sparsity, tv, lat, neg, prior, adv: see there.
        gamma: of R1, applied every ``r1_every`` steps; these and ``rate_critic`` are the critic's, for ``adv`` > 0.
        noise: sigma of the noise on the classifier's and critic's input.
        move: shift of the classifier's input, as a share of the width.
        rate, rate_critic: Adam's learning rates.
        augment: random views of the training images.
    """

    rec: float = 10.0
    match: float = 0.2
    cls: float = 1.0
    keep: float = 0.5
    sparsity: float = 5.0
    tv: float = 0.5
    lat: float = 0.2
    neg: float = 0.5
    prior: float = 1e-3
    adv: float = 0.0
    gamma: float = 0.03
    r1_every: int = 8
    noise: float = 0.05
    move: float = 0.03
    rate: float = 1e-3
    rate_critic: float = 1e-3
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(noise=0.0))


class MedXGANTask(Task):
    """One training job.

    Args:
        networks, objective: settings.
        findings: canonical names, one per column of the classifier.
        classifier: frozen; (N, 1, H, W) to logits (N, C).
        groups: what the sampler's group numbers mean, (finding column, called present) each.
        watch: validation images whose counterparts are drawn into samples/.
        figures: networks and classifier to validation figures by name; none by default.
    """

    ema = ("networks",)

    def __init__(
        self,
        networks: NetworkConfig,
        objective: ObjectiveConfig,
        findings: tuple[str, ...],
        classifier: nn.Module,
        groups: list[tuple[int, int]],
        watch: StudyBatch | None = None,
        figures: Callable[[nn.Module, nn.Module], Mapping[str, float]] | None = None,
    ) -> None:
        self.objective, self.findings, self.watch, self.figures = objective, findings, watch, figures
        self.groups = torch.tensor(groups)  # (K, 2)
        self.classifier = classifier
        self.frozen = {"classifier": classifier}
        self.modules: dict[str, nn.Module] = {"networks": MedXGANNetworks(networks, len(findings))}
        if objective.adv > 0:
            critic = ResidualCritic(networks.critic_base, networks.critic_stages, labels=len(findings))
            self.modules["critic"] = critic
        rates = {"networks": (objective.rate, (0.5, 0.99)), "critic": (objective.rate_critic, (0.0, 0.99))}
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), rates[name][0], betas=rates[name][1])
            for name, module in self.modules.items()
        }

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update of the critic, where there is one, and one of encoder and generator."""
        w, networks = self.objective, self.modules["networks"]
        assert isinstance(networks, MedXGANNetworks)
        columns, called = self.groups.to(ctx.device)[batch["group"]].T
        x, _ = augment(batch["image"], None, w.augment)
        n, rows = len(x), torch.arange(len(x), device=ctx.device)
        with ctx.autocast():
            with torch.no_grad():
                before = self.classifier(x).float()
            p = before.sigmoid()
            p_c = p[rows, columns]

            code = networks.encode(x)
            donors = self._donors(columns, called == 1)
            half = torch.rand(n, device=ctx.device) < 0.5
            a = torch.where(half, 0.0, torch.rand(n, device=ctx.device))
            b = torch.rand(n, device=ctx.device).sqrt()
            lent = b[:, None, None, None] * code.z2[donors, columns]  # (N, pathology, h, w)
            codes = [code, code.scaled(a, columns), code.with_block(lent, columns)]
            z1, z2 = torch.cat([c.z1 for c in codes]), torch.cat([c.z2 for c in codes])
            again, less, given = networks.generate(Code(z1, z2)).float().split(n)

            wanted = torch.cat([a * p_c, b * p_c[donors]])
            both, rows_both, columns_both = torch.cat([p, p]), torch.arange(2 * n, device=ctx.device), columns.repeat(2)
            meant = both.index_put((rows_both, columns_both), wanted)
            edited = torch.cat([less, given])
            if w.adv > 0:
                ctx.update("critic", self._critic_loss(ctx, x, p, edited.detach(), meant))

            logits = self.classifier(self._judged(torch.cat([again, edited]))).float()
            asked = logits[n:][rows_both, columns_both]
            change = again - less
            terms = {
                "rec": w.rec * (losses.magnitude(x - again) + 0.5 * losses.gradient_difference(x, again)),
                "match": w.match * F.huber_loss(logits[:n], before),
                "cls": w.cls * 2 * F.binary_cross_entropy_with_logits(asked, wanted.clamp(1 - _SURE, _SURE)),
                "sparsity": w.sparsity * losses.magnitude(change),
                "tv": w.tv * losses.total_variation(change),
                "prior": w.prior * (code.z1.float().square().mean() + code.z2.float().square().mean()),
                "neg": w.neg * ((1 - p_c) * code.z2[rows, columns].float().square().mean(dim=(1, 2, 3))).mean(),
            }
            if len(self.findings) > 1 and w.keep > 0:
                others = 1 - F.one_hot(columns_both, len(self.findings)).float()
                terms["keep"] = w.keep * losses.unchanged(logits[n:], torch.cat([before, before]), others)
            if w.lat > 0:
                read, truth = networks.encode(given), codes[2].detach()
                terms["lat"] = w.lat * (F.mse_loss(read.z1, truth.z1) + F.mse_loss(read.z2, truth.z2)).float()
            if w.adv > 0:
                realness = self.modules["critic"](self._noisy(edited), 2 * meant - 1).float()
                terms["adv"] = w.adv * losses.logistic_generator(realness)
        ctx.update("networks", torch.stack(list(terms.values())).sum())
        return {name: term.detach() for name, term in terms.items()}

    def _critic_loss(self, ctx: Context, x: Tensor, p: Tensor, made: Tensor, meant: Tensor) -> Tensor:
        """The logistic loss on real images and made ones, each with the probabilities it stands for; lazy R1."""
        critic, n = self.modules["critic"], len(x)
        images = self._noisy(torch.cat([x, made]))
        realness = critic(images, 2 * torch.cat([p, meant]) - 1).float()
        loss = losses.logistic_critic(realness[:n], realness[n:])
        if every := ctx.lazy(self.objective.r1_every):
            with ctx.autocast(False):
                r1 = losses.r1_penalty(lambda view: critic(view, 2 * p - 1), images[:n])
            loss = loss + every * self.objective.gamma / 2 * r1
        return loss

    @staticmethod
    def _donors(columns: Tensor, positive: Tensor) -> Tensor:
        """(N,) for each image another one whose z2 block is lent to it: the next image called positive for the same
        finding, itself when there is none."""
        n = len(columns)
        rows = torch.arange(n, device=columns.device)
        fits = positive[None, :] & (columns[None, :] == columns[:, None]) & (rows[None, :] != rows[:, None])
        distance = (rows[None, :] - rows[:, None]) % n
        nearest = torch.where(fits, distance, n).argmin(dim=1)
        return torch.where(fits.any(dim=1), nearest, rows)

    def _noisy(self, images: Tensor) -> Tensor:
        return images + self.objective.noise * torch.randn_like(images)

    def _judged(self, images: Tensor) -> Tensor:
        """What the classifier is shown: noise, and a shift that is the same for the whole batch."""
        return self._noisy(shift_together(images, self.objective.move))

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """Figures of the averaged networks that need no pixel labels."""
        return {} if self.figures is None else self.figures(ctx.averaged("networks"), self.classifier)

    @torch.no_grad()
    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Rows: image, reconstruction, negative counterpart, their difference."""
        if self.watch is None:
            return {}
        x, networks = self.watch.images.to(ctx.device), ctx.averaged("networks")
        assert isinstance(networks, MedXGANNetworks)
        code, grids = networks.encode(x), {}
        again = networks.generate(code).float()
        for column, finding in enumerate(self.findings):
            healed = networks.generate(code.scaled(0.0, column)).float()
            grids[finding] = torch.stack([x, again, healed, 2 * (again - healed)]).clamp(-1, 1)
        return grids
