"""Pictures that show what a generator has learned, and what truncation costs: ways between images, mixed styles, psi.

Pictures are (R, C, 1, S, S) in [-1, 1], R rows of C images, as ``training.image_grid`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.errors import InputError
from counterscan.metrics.classification import mean_over_classes, roc_auc
from counterscan.metrics.realism import features_of, fid, kid_of_all, precision_recall_density_coverage
from counterscan.tbsmgan.generator import PSI, StyleGAN

PSIS = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
_BATCH = 64
_BALLS = 5


def findings_grid(gan: StyleGAN, columns: int = 8, psi: float = PSI, seed: int = 0) -> tuple[Tensor, tuple[str, ...]]:
    """The same latents in every row: without any finding, then with each; and the rows' names.

    Rows that differ from the first by the finding and nothing else are what an editor hopes for.
    """
    _positive(columns=columns)
    conditions = torch.eye(len(gan.findings) + 1)[:, 1:]
    rows = [gan.sample(labels=c.expand(columns, -1), psi=psi, seed=seed) for c in conditions]
    return torch.stack(rows), ("none of them", *gan.findings) if gan.findings else ("samples",)


def interpolation_grid(
    gan: StyleGAN,
    rows: int = 4,
    columns: int = 8,
    *,
    labels: Tensor | None = None,
    psi: float = PSI,
    seed: int = 0,
) -> Tensor:
    """Straight ways in W, from one sample to another in each row, both ends included.

    A generator that knows images by heart jumps on the way; one that has learned what they have in common does not.

    Args:
        gan: makes them.
        rows: ways.
        columns: steps, at least 2.
        labels: (2 rows, K) of the ends, first all starts; None draws them as ``sample`` does.
        psi: truncation of the ends.
        seed: of the ends.

    Raises:
        InputError: too few rows or columns, or labels of another shape.
    """
    _positive(rows=rows, columns=columns - 1)
    start, end = _ws(gan, 2 * rows, labels, psi, seed).chunk(2)
    share = torch.linspace(0, 1, columns, device=gan.device).view(1, -1, 1, 1)
    ways = start[:, None] + share * (end - start)[:, None]
    return _images(gan, ways.flatten(0, 1)).unflatten(0, (rows, columns))


def mixing_grid(
    gan: StyleGAN,
    rows: int = 4,
    columns: int = 6,
    *,
    cut: int | None = None,
    labels: Tensor | None = None,
    psi: float = PSI,
    seed: int = 0,
) -> Tensor:
    """Style mixing: coarse layers of the image at the row's start, fine layers of that at the column's head.

    Args:
        gan: makes them.
        rows, columns: sources of coarse and of fine styles.
        cut: how many ws are coarse, 1 to num_ws - 1; None takes half.
        labels: (rows + columns, K) of the sources, rows' first; None draws them as ``sample`` does.
        psi: truncation of the sources.
        seed: of the sources.

    Returns:
        (rows + 1, columns + 1, 1, S, S); the first row and column hold the sources, the corner is black.

    Raises:
        InputError: too few rows or columns, a cut out of range, or labels of another shape.
    """
    _positive(rows=rows, columns=columns)
    layers = gan.generator.num_ws
    cut = layers // 2 if cut is None else cut
    if not 1 <= cut < layers:
        raise InputError(f"{cut} must lie in 1 to {layers - 1}", field="cut")
    ws = _ws(gan, rows + columns, labels, psi, seed)
    coarse = ws[:rows, None].expand(-1, columns, -1, -1).flatten(0, 1)
    fine = ws[None, rows:].expand(rows, -1, -1, -1).flatten(0, 1)
    mixed = _images(gan, gan.generator.mix(coarse, fine, cut)).unflatten(0, (rows, columns))
    sources = _images(gan, ws)
    corner = torch.full_like(sources[:1], -1.0)
    top = torch.cat([corner, sources[rows:]])[None]
    return torch.cat([top, torch.cat([sources[:rows, None], mixed], dim=1)])


def truncation_grid(
    gan: StyleGAN,
    psis: Sequence[float] = PSIS,
    columns: int = 8,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The same latents at each psi, one row each; (columns, K) ``labels`` are drawn as ``sample`` does when None."""
    _positive(columns=columns, psis=len(psis))
    labels = gan.draw_labels(columns, seed) if labels is None else labels
    return torch.stack([gan.sample(labels=labels, psi=psi, seed=seed) for psi in psis])


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError("too few", field=name)


@torch.no_grad()
def _ws(gan: StyleGAN, count: int, labels: Tensor | None, psi: float, seed: int) -> Tensor:
    """The ws of what ``sample`` would make."""
    labels = gan.draw_labels(count, seed) if labels is None else labels.float().cpu()
    if labels.shape != (count, len(gan.findings)):
        raise InputError(f"expected ({count}, {len(gan.findings)}), got {tuple(labels.shape)}", field="labels")
    z = torch.randn(count, gan.generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    return gan.map(z.to(gan.device), labels.to(gan.device) if gan.findings else None, psi)


@torch.no_grad()
def _images(gan: StyleGAN, ws: Tensor) -> Tensor:
    return torch.cat([gan.synthesize(part).float().clamp(-1, 1).cpu() for part in ws.split(_BATCH)])


@dataclass(frozen=True)
class TruncationPoint:
    """Samples at one psi against real images.

    Attributes:
        psi: truncation.
        fid, kid: in the extractor's features; KID is the estimate from all images.
        precision, recall: shares of samples within real images' balls, and the other way round.
        consistency: mean AUC of the asked findings; NaN without findings or classifier.
    """

    psi: float
    fid: float
    kid: float
    precision: float
    recall: float
    consistency: float


def truncation_curve(
    gan: StyleGAN,
    real: Tensor,
    extractor: Callable[[Tensor], Tensor],
    psis: Sequence[float] = PSIS,
    *,
    samples: int = 1000,
    classifier: nn.Module | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
) -> list[TruncationPoint]:
    """What truncation buys and costs: fidelity and label truth against variety, the same latents at every psi.

    Args:
        gan: the generator.
        real: (N, D) features of real images, N > 5.
        extractor: images (M, 1, S, S) to (M, D), on the generator's device.
        psis: values of psi.
        samples: at each of them, > 5.
        classifier: gives logits, with ``findings``; None leaves consistency out.
        labels: (samples, K) that are asked for; None draws them as ``sample`` does.
        seed: of latents and labels.

    Raises:
        InputError: too few samples or real images.
    """
    _positive(psis=len(psis), samples=samples - _BALLS)
    labels = gan.draw_labels(samples, seed) if labels is None else labels
    points = []
    for psi in psis:
        made = gan.sample(labels=labels, psi=psi, seed=seed)
        features = features_of(extractor, made.to(gan.device), _BATCH).cpu()
        cover = precision_recall_density_coverage(real, features, _BALLS)
        aucs = consistency(gan, classifier, made, labels) if classifier is not None else torch.zeros(0)
        points.append(
            TruncationPoint(
                psi=psi,
                fid=fid(real, features),
                kid=kid_of_all(real, features),
                precision=float(cover.precision.mean()),
                recall=float(cover.recall.mean()),
                consistency=mean_over_classes(aucs) if len(aucs) else float("nan"),
            )
        )
    return points


def consistency(gan: StyleGAN, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """AUC (F,) of the asked findings that the classifier knows, in the generator's order; NaN where all ask alike.

    Args:
        gan: made them.
        classifier: (M, 1, S, S) to logits, with ``findings``.
        images: (N, 1, S, S).
        labels: (N, K) asked for; above one half counts as asked.
    """
    known, logits = shared_logits(gan, classifier, images)
    columns = [gan.findings.index(name) for name in known]
    return roc_auc(logits, (labels[:, columns] > 0.5).float())


@torch.no_grad()
def shared_logits(gan: StyleGAN, classifier: nn.Module, images: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Findings that both know, in the generator's order, and the classifier's logits (N, F) for them."""
    names: list[str] = list(classifier.findings)  # type: ignore[arg-type]
    known = tuple(name for name in gan.findings if name in names)
    device = next((t.device for t in (*classifier.parameters(), *classifier.buffers())), torch.device("cpu"))
    with evaluating(classifier):
        logits = torch.cat([classifier(part.to(device)).float().cpu() for part in images.split(_BATCH)])
    return known, logits[:, [names.index(name) for name in known]]
