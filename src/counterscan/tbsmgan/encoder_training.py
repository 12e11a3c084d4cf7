"""From a generator and a prepared store to an encoder.

    L = L(G(E(x)), x) + prior mean e^2 + delta mean (e_i - e_0)^2 + latent mean (e - e*)^2,   e = (E(x) - m) / sd

on training images and samples of G; the last term, of the latents themselves, on samples alone, whose w is known. m and
sd are mean and standard deviation of w, the distance L is that of ``tbsmgan.inversion``. Sources: pSp (Richardson et
al. 2021) and e4e (Tov et al. 2021), without its latent discriminator, which ``prior`` and ``latent`` stand in for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.classify.task import LabelledRows
from counterscan.data.splits import spaced
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity, check_share
from counterscan.metrics.validity import psnr, ssim
from counterscan.nets.cnn import Classifier
from counterscan.nets.latent_encoder import LatentEncoder, LatentEncoderConfig
from counterscan.tbsmgan.generator import StyleGAN
from counterscan.tbsmgan.inversion import Likeness, LikenessConfig, RefineConfig
from counterscan.tbsmgan.inverter import Inverter, Limits
from counterscan.training import Context, Task, TrainConfig, load_weights, seed_everything, train
from counterscan.training.checkpoint import weights_digest
from counterscan.training.config import shaping

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore

_VALIDATED = 96
_BATCH = 32
_FARTHEST = 1.5  # rms of e where samples have 1


def _training() -> TrainConfig:
    return TrainConfig(
        steps=1000,
        batch_size=16,
        schedule="cosine",
        final_factor=0.03,
        warmup=50,
        grad_clip=5.0,
        ema_half_life=100,
        validate_every=250,
        checkpoint_every=250,
        sample_every=500,
    )


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that a run is made of.

    Attributes:
        training: the loop's settings; a batch holds as many samples of G besides.
        network: sizes of the encoder.
        likeness: the distance of images.
        refine: what the finished inverter does after the encoder's answer.
        prior, delta, latent: weights of the objective's other terms.
        rate: Adam's learning rate.
        trust: share of validation images whose inversion counts as good enough, and, where a classifier is given, which
            count as like the training images; what is worse than the rest of them gets a verdict that says so.

    Raises:
        InputError: a value is out of range; names the field.
    """

    training: TrainConfig = field(default_factory=_training)
    network: LatentEncoderConfig = field(default_factory=LatentEncoderConfig)
    likeness: LikenessConfig = field(default_factory=LikenessConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    prior: float = 2e-3
    delta: float = 2e-3
    latent: float = 0.02
    rate: float = 1e-3
    trust: float = 0.98

    def __post_init__(self) -> None:
        for name in ("prior", "delta", "latent"):
            if not getattr(self, name) >= 0:
                raise InputError("must not be negative", field=name)
        if not self.rate > 0:
            raise InputError("must be positive", field="rate")
        check_share(self.trust, "trust")


class EncoderTask(Task):
    """One training job: E, for a frozen G.

    Args:
        gan: the generator.
        config: settings.
        likeness: the distance of images.
        validation: (V, 1, S, S) images of other patients.
    """

    ema = ("encoder",)

    def __init__(self, gan: StyleGAN, config: EncoderConfig, likeness: Likeness, validation: Tensor) -> None:
        self.gan, self.config, self.likeness, self.validation = gan, config, likeness, validation
        self.plain = Likeness(likeness.config)
        network, generator = gan.generator.config, gan.generator
        encoder = LatentEncoder(config.network, network.size, generator.num_ws, network.w_dim)
        encoder.set_latents(generator.w_avg, generator.w_sd)
        self.modules = {"encoder": encoder}
        self.optimizers = {"encoder": torch.optim.Adam(encoder.parameters(), lr=config.rate, betas=(0.9, 0.99))}
        classifier = likeness.classifier
        self.frozen = {"generator": generator} | ({"classifier": classifier} if classifier is not None else {})

    def step(self, ctx: Context, batch: dict[str, Tensor]) -> Mapping[str, Tensor | float]:
        """One update on images and as many samples."""
        w, real, generator = self.config, batch["image"], self.gan.generator
        encoder = self.modules["encoder"]
        assert isinstance(encoder, LatentEncoder)
        with torch.no_grad():
            z = torch.randn(len(real), generator.config.z_dim).to(ctx.device)
            drawn = self.gan.draw_labels(len(real), int(torch.randint(2**31, ())))
            known = generator.map(z, drawn.to(ctx.device) if self.gan.findings else None)
            x = torch.cat([real, generator.synthesize(known, noise="random").clamp(-1, 1)])
        with ctx.autocast():
            ws = ctx.compile(encoder)(x).float()
        again = generator.synthesize(ws, noise="const")
        e = encoder.standardised(ws)
        # Features only of images: samples have their latents to agree in, and features cost as much as all the rest.
        count = len(real)
        apart = torch.cat([self.likeness(again[:count], x[:count]), self.plain(again[count:], x[count:])])
        terms = {
            "image": apart.mean(),
            "prior": w.prior * e.square().mean(),
            "delta": w.delta * (e[:, 1:] - e[:, :1]).square().mean(),
            "latent": w.latent * (e[count:] - encoder.standardised(known)).square().mean(),
        }
        ctx.update("encoder", torch.stack(list(terms.values())).sum())
        told = {name: value.detach() for name, value in terms.items()}
        return told | {"image_real": apart[:count].detach().mean()}

    def validate(self, ctx: Context) -> Mapping[str, float]:
        """PSNR and SSIM of what comes back of validation images."""
        again = self._again(ctx, self.validation)
        return {"psnr": float(psnr(self.validation, again).mean()), "ssim": float(ssim(self.validation, again).mean())}

    def criterion(self, metrics: Mapping[str, float]) -> float | None:
        return metrics.get("psnr")

    @torch.no_grad()
    def images(self, ctx: Context) -> Mapping[str, Tensor]:
        """Validation images above what comes back of them."""
        few = self.validation[:8]
        return {"inversions": torch.stack([few, self._again(ctx, few)])}

    @torch.no_grad()
    def _again(self, ctx: Context, x: Tensor) -> Tensor:
        encoder = ctx.averaged("encoder")
        with evaluating(encoder):
            parts = [self.gan.synthesize(encoder(part.to(ctx.device))) for part in x.split(_BATCH)]
        return torch.cat(parts).float().clamp(-1, 1).cpu()


def train_encoder(
    gan: StyleGAN,
    store: PreparedStore,
    folder: str | Path,
    config: EncoderConfig | None = None,
    *,
    classifier: nn.Module | None = None,
) -> Inverter:
    """Train E on the split "train", set limits on "val", save to ``folder/encoder``. Called again it goes on.

    Args:
        gan: the generator, which is not changed.
        store: images prepared as the generator's were; labels are not used.
        folder: the run folder.
        config: settings.
        classifier: of the same images, whose features images should agree in, and in which strangers are told; None
            leaves features out.

    Raises:
        InputError: a split is empty, a patient is in both, images of another size, or validation patients whom the
            generator learned from.
    """
    config, folder = config or EncoderConfig(), Path(folder)
    store.check_size(gan.size, "the generator makes")
    learn, val = store.parts("train", "val")
    if gan.patients.hashes:
        gan.refuse_patients(val.patients.tolist())
    likeness = Likeness(config.likeness, classifier.requires_grad_(False) if classifier is not None else None)
    rows = spaced(np.arange(len(val)), _VALIDATED)
    held = val.images(rows)
    seed_everything(config.training.seed)
    task = EncoderTask(gan, config, likeness, held)
    settings = {
        "kind": "stylegan-encoder",
        "generator": weights_digest(gan.generator),
        "content": store.content,
        "division": store.division,
        "encoder": shaping(config, "refine", "trust"),
    }
    images = LabelledRows(learn, np.zeros((len(learn), 0), dtype=np.float32))
    train(task, images, config.training, folder, settings=settings)
    encoder = LatentEncoder(config.network, gan.size, gan.generator.num_ws, gan.generator.config.w_dim)
    load_weights(folder, {"encoder": encoder}, "best")
    inverter = Inverter(gan, encoder, likeness, config.refine)
    found = inverter.invert(held, dataclasses.replace(config.refine, steps=0))
    inverter.limits = Limits(
        psnr=float(found.psnr.quantile(1 - config.trust)) - 1.0,
        distance=max(_FARTHEST, 1.5 * float(found.distance.quantile(config.trust))),
    )
    if isinstance(likeness.classifier, Classifier):
        inverter.familiarity = Familiarity.fit([likeness.classifier], learn, val, config.trust)
    inverter.save_pretrained(folder / "encoder")
    return inverter
