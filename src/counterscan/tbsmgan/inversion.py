"""From a real image to the latents that a generator makes it from, by descent on ws and noise maps.

    ws, n <- argmin  L(G(ws, n), x) + prior mean u^2 + noise R(n),   ws = start + sd(w) u

    L(a, b) = pixel mean (a - b)^2 + scales mean_k mean |pool_k(a - b)| + features mean |f(a) - f(b)|^2

Steps of ws are in standard deviations of w, so that one rate serves every generator. Sources: the projector of Karras
et al. 2020 (appendix D; noise maps and their regulariser R), the feature distance of Zhang et al. 2018 without learned
weights. Where those take a network of photographs for f, this takes a classifier of the same kind of images, or none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.stylegan2 import Generator, Noise
from counterscan.tbsmgan.generator import StyleGAN

Noises = Mapping[str, Tensor]
_COARSEST = 8  # px of the coarsest scale that images and noise maps are compared at
_RAMP = 0.05  # share of the steps in which the rate rises
_PIXELS = 2**19  # of the images that one descent holds, so that memory is bounded
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class LikenessConfig:
    """Weights of the distance between two images.

    Attributes:
        pixel: of the mean square difference.
        scales: of the mean absolute difference, averaged over resolutions from full down to 8 px.
        features: of the difference of a classifier's features. On 64 px phantoms they leave PSNR as it is, take 2.6 to
            3.5 times as long, and bring the classifier's probabilities on image and reconstruction from 0.05 to 0.015
            apart on average.

    Raises:
        InputError: a negative weight, or none that counts.
    """

    pixel: float = 1.0
    scales: float = 1.0
    features: float = 0.1

    def __post_init__(self) -> None:
        for name in ("pixel", "scales", "features"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError("must be a number of at least 0", field=name)
        if self.pixel + self.scales <= 0:
            raise InputError("must be positive if scales is 0", field="pixel")


class Likeness:
    """How unlike images are, each for itself.

    Args:
        config: see ``LikenessConfig``.
        classifier: has ``features``, (N, 1, H, W) to (N, D, h, w); None leaves features out.

    Raises:
        InputError: the classifier has no such method.
    """

    def __init__(self, config: LikenessConfig | None = None, classifier: nn.Module | None = None) -> None:
        if classifier is not None and not callable(getattr(classifier, "features", None)):
            raise InputError("it has no method features", field="classifier", remedy="Give a counterscan classifier")
        self.config = config or LikenessConfig()
        self.classifier = classifier.eval() if classifier is not None and self.config.features > 0 else None

    def features(self, x: Tensor) -> Tensor | None:
        """(N, D, h, w) of unit length at every place; None without a classifier."""
        if self.classifier is None:
            return None
        return F.normalize(self.classifier.features(x).float(), dim=1)  # type: ignore[operator]

    def __call__(self, again: Tensor, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Distances (N,) of (N, 1, H, W) and (N, 1, H, W); ``features`` of x, if they are known already."""
        w, apart = self.config, again - x
        total = w.pixel * apart.flatten(1).square().mean(dim=1)
        if w.scales > 0:
            total = total + w.scales * torch.stack([p.abs().flatten(1).mean(dim=1) for p in _pyramid(apart)]).mean(0)
        if self.classifier is not None:
            wanted = self.features(x) if features is None else features
            seen = self.features(again)
            assert wanted is not None
            assert seen is not None
            total = total + w.features * (seen - wanted).square().sum(dim=1).flatten(1).mean(dim=1)
        return total


def _pyramid(x: Tensor) -> Iterator[Tensor]:
    """(N, C, H, W) at full, half, ... resolution, down to 8 px."""
    yield x
    while x.shape[-1] >= 2 * _COARSEST:
        x = F.avg_pool2d(x, 2)
        yield x


def noise_penalty(noise: Tensor) -> Tensor:
    """How far noise maps (N, H, W) are from white, (N,): squared correlation with themselves moved by one pixel, right
    and down, at every resolution down to 8 px (Karras et al. 2020, appendix D). About 2 / (H W) for white noise."""
    n, total = noise[:, None], noise.new_zeros(len(noise))
    while True:
        for axis in (-1, -2):
            total = total + (n * n.roll(1, dims=axis)).mean(dim=(1, 2, 3)).square()
        if n.shape[-1] <= _COARSEST:
            return total
        n = 2 * F.avg_pool2d(n, 2)  # white noise keeps its variance


class _Synthesis(nn.Module):
    def __init__(self, generator: Generator, noise: Noise) -> None:
        super().__init__()
        self.generator, self.noise = generator, noise

    def forward(self, ws: Tensor) -> Tensor:
        return self.generator.synthesize(ws, noise=self.noise)


def own_noise(generator: Generator) -> dict[str, Tensor]:
    """The generator's constant noise maps (H, W) by the name of their buffer."""
    return {name: b for name, b in generator.named_buffers() if name.endswith("noise_const")}


def render(generator: Generator, ws: Tensor, noises: Noises | None = None) -> Tensor:
    """Images of ws with noise maps of their own.

    Args:
        generator: makes them.
        ws: (N, num_ws, w_dim).
        noises: (N, H, W) by the names of ``own_noise``; None for the generator's own.

    Returns:
        (N, 1, S, S), not clipped.

    Raises:
        InputError: a map that the generator has not, or of another shape.
    """
    if not noises:
        return generator.synthesize(ws, noise="const")
    known = own_noise(generator)
    for name, maps in noises.items():
        if name not in known or maps.shape != (len(ws), *known[name].shape):
            raise InputError(f"no noise map {name} of shape {tuple(maps.shape)} is used", field="noises")
    replaced = {f"generator.{name}": maps for name, maps in noises.items()}
    return functional_call(_Synthesis(generator, "const"), replaced, (ws,))


@dataclass(frozen=True)
class RefineConfig:
    """Descent on the latents of images.

    Attributes:
        steps: of Adam; 0 leaves the start.
        rate: its highest learning rate, in standard deviations of w; it rises over the first 5 % of the steps and falls
            to 0 along a cosine.
        prior: weight of the mean square of u, so that latents stay where edits mean what they mean elsewhere.
        noise: whether noise maps are found too. They take up texture and detail, which edits then leave alone (1.2 dB
            on 64 px phantoms after 200 steps).
        noise_rate: Adam's rate for them.
        noise_penalty: weight of ``noise_penalty``, or they would take up the image.

    Raises:
        InputError: a value is out of range.
    """

    steps: int = 200
    rate: float = 0.2
    prior: float = 1e-3
    noise: bool = False
    noise_rate: float = 0.1
    noise_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError("must not be negative", field="steps")
        for name in ("rate", "noise_rate"):
            if not getattr(self, name) > 0:
                raise InputError("must be positive", field=name)
        for name in ("prior", "noise_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError("must be a number of at least 0", field=name)


@dataclass(frozen=True)
class Latents:
    """What images are made from.

    Attributes:
        ws: (N, num_ws, w_dim).
        noises: (N, H, W) by the names of ``own_noise``; empty for the generator's own.
    """

    ws: Tensor
    noises: Noises


def refine(
    gan: StyleGAN,
    x: Tensor,
    start: Tensor,
    config: RefineConfig | None = None,
    likeness: Likeness | None = None,
) -> Latents:
    """Move latents so that the generator's images come nearer to given ones, each for itself.

    A batch gives what its images give one by one, but for rounding; many images are worked on in parts.

    Args:
        gan: the generator.
        x: (N, 1, S, S) in [-1, 1].
        start: (N, num_ws, w_dim), from an encoder, or the mean w.
        config: see ``RefineConfig``.
        likeness: the distance; the default without features.

    Returns:
        Latents on the generator's device, without gradients.

    Raises:
        InputError: images or ws of another shape, or values that are not finite.
    """
    config, likeness = config or RefineConfig(), likeness or Likeness()
    check_images(gan, x)
    expected = (len(x), gan.generator.num_ws, gan.generator.config.w_dim)
    if tuple(start.shape) != expected:
        raise InputError(f"expected ws {expected}, got {tuple(start.shape)}", field="start")
    at_once = max(1, _PIXELS // gan.size**2)
    parts = [
        _descend(gan, part.to(gan.device), begin.detach().to(gan.device).float(), config, likeness)
        for part, begin in zip(x.split(at_once), start.split(at_once), strict=True)
    ]
    noises = {name: torch.cat([part.noises[name] for part in parts]) for name in parts[0].noises}
    return Latents(torch.cat([part.ws for part in parts]), noises)


def check_images(gan: StyleGAN, x: Tensor) -> None:
    """Raise InputError unless x holds images (N, 1, S, S), N >= 1, of finite values in [-1, 1]."""
    if x.ndim != 4 or not len(x) or x.shape[1:] != (1, gan.size, gan.size):
        raise InputError(
            f"expected images (N, 1, {gan.size}, {gan.size}), got {tuple(x.shape)}",
            field="images",
            remedy="Prepare them at the generator's size",
        )
    if not bool(torch.isfinite(x).all()) or float(x.abs().max()) > 1 + 1e-4:
        raise InputError("values must be finite and lie in [-1, 1]", field="images")


def _descend(gan: StyleGAN, x: Tensor, start: Tensor, config: RefineConfig, likeness: Likeness) -> Latents:
    generator = gan.generator
    spread = generator.w_sd.clamp_min(_LEAST_SPREAD)
    u = torch.zeros_like(start).requires_grad_()
    maps = {name: b.expand(len(x), -1, -1).clone() for name, b in own_noise(generator).items()} if config.noise else {}
    groups: list[dict[str, object]] = [{"params": [u], "lr": config.rate}]
    if maps:
        groups.append({"params": [n.requires_grad_() for n in maps.values()], "lr": config.noise_rate})
    adam = torch.optim.Adam(groups, betas=(0.9, 0.999))
    course = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, config.steps))
    with torch.no_grad():
        wanted = likeness.features(x)
    with torch.enable_grad():
        for _ in range(config.steps):
            again = render(generator, start + spread * u, maps)
            loss = likeness(again, x, wanted) + config.prior * u.square().mean(dim=(1, 2))
            for noise in maps.values():
                loss = loss + config.noise_penalty * noise_penalty(noise)
            adam.zero_grad(set_to_none=True)
            loss.sum().backward(inputs=[u, *maps.values()])
            adam.step()
            course.step()
            with torch.no_grad():  # the network expects noise of mean 0 and variance 1
                for noise in maps.values():
                    noise.sub_(noise.mean(dim=(1, 2), keepdim=True))
                    noise.mul_(noise.square().mean(dim=(1, 2), keepdim=True).clamp_min(1e-8).rsqrt())
    return Latents((start + spread * u).detach(), {name: noise.detach() for name, noise in maps.items()})


def _rate(step: int, steps: int) -> float:
    done = step / max(1, steps)
    return min(1.0, (step + 1) / max(1.0, _RAMP * steps)) * (1 + math.cos(math.pi * done)) / 2
