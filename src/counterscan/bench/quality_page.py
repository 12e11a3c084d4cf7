"""A quality card as one self-contained page: verdicts with their rules, figures, near copies beside the training images
that they resemble, and grids of real and synthetic images."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.bench.quality_card import QualityCard
from counterscan.png import png
from counterscan.report import pictures
from counterscan.report.page import write_report

LIMITS = (
    "A set can pass every test here and still lack what matters for a purpose: look at the images.",
    "Features and judge come from classifiers; what these do not see, no figure shows. Findings that they do not know "
    "are named above and not judged.",
    "No near copy found is no proof of privacy: parts of images, or what a person has, can be learned by heart too.",
    "Intervals and p-values take patients, and synthetic images, as independent; images edited from one source are not,"
    " unless their table gives them one patient.",
    "This page shows real images: keep it as private as these.",
)
_SIDE, _CELL, _GAP = 240, 96, 2
_STYLE = (
    ".grid img{max-width:100%;height:auto;display:block;border-radius:.35rem}"
    ".grid{max-width:none;margin:0 0 .9rem}.pair{max-width:34rem}"
)
_FACTS = {"Synthetic": "true", "Description": "Synthetic image"}


@dataclass(frozen=True)
class Picture:
    """One image of a pair.

    Attributes:
        image: (1, H, W) in [-1, 1].
        caption: shown beneath; names nobody.
        synthetic: marked as such, on the page and in the picture's data.
    """

    image: Tensor
    caption: str
    synthetic: bool


def write_quality_page(
    path: str | Path,
    card: QualityCard,
    *,
    pairs: Sequence[tuple[Picture, Picture, str]] = (),
    grids: Sequence[tuple[str, Tensor, bool]] = (),
    title: str = "Quality of the synthetic images",
    sections: Mapping[str, tuple[str, str]] | None = None,
    notes: Sequence[str] = (),
    style: str = "",
) -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        card: see ``bench.quality.audit_images``.
        pairs: synthetic image, nearest training image, and what is said of the two; the most suspicious first.
        grids: heading, images (n, 1, H, W) in [-1, 1], and whether they are synthetic.
        title: of the page.
        sections, style: further ones after the card's, see ``report.page.write_report``.
        notes: what to say first of its limits.

    Returns:
        ``path``.

    Raises:
        InputError: the file cannot be written.
    """
    counts = ", ".join(f"{count:,} {name}" for name, count in card.counts.items())
    left_out = [f"{s.name}: {text}" for s in card.sections for text in s.left_out]
    rules = "".join(
        f"<article><p class='caption'><b>{_safe(s.name)}: {_safe(s.verdict)}</b></p>"
        f'<p class="note">{_safe(s.said)}.</p><p class="note">Rule. {_safe(s.rule)}</p></article>'
        for s in card.sections
        if s.rule
    )
    shown = {
        "Rules": ("rules", rules),
        "Near copies": ("copies", "".join(_pair(*pair) for pair in pairs)),
        "Images": ("images", "".join(_grid(*grid) for grid in grids)),
        **(sections or {}),
    }
    return write_report(
        path,
        title=title,
        intro=f"{counts}. Every figure stands beside that of held-out real images.",
        summary=[(section.name, section.verdict) for section in card.sections],
        tables=card.tables(),
        settings={"limits": asdict(card.limits), **card.settings},
        limits=(*notes, *card.notes, *left_out, *LIMITS),
        sections=shown,
        style=_STYLE + style,
    )


def _pair(made: Picture, real: Picture, words: str) -> str:
    tiles = "".join(
        _figure(pictures.resized(pictures.grey(one.image), _SIDE), one.caption, one.synthetic) for one in (made, real)
    )
    return (
        f'<article class="pair"><p class="caption"><span>{_safe(words)}</span></p>'
        f'<div class="tiles-row">{tiles}</div></article>'
    )


def _grid(name: str, images: Tensor, synthetic: bool) -> str:
    """Images in rows of eight or sixteen, at one scale."""
    scale = _CELL / max(images.shape[-2:])
    cells = F.interpolate(images.float(), scale_factor=scale, mode="bilinear", antialias=scale < 1)
    columns = min(16, len(cells)) if len(cells) > 8 else 8
    rows = -(-len(cells) // columns)
    blank = torch.full((rows * columns - len(cells), *cells.shape[1:]), -1.0)
    height, width = cells.shape[-2:]
    sheet = F.pad(torch.cat([cells, blank]), (0, _GAP, 0, _GAP), value=-1.0)[:, 0]
    sheet = sheet.view(rows, columns, height + _GAP, width + _GAP).transpose(1, 2).reshape(rows * (height + _GAP), -1)
    return f"<h3>{_safe(name)}</h3>" + _figure(pictures.grey(sheet), "", synthetic, kind="grid", name=name)


def _figure(picture: np.ndarray, caption: str, synthetic: bool, kind: str = "", name: str = "") -> str:
    data = base64.b64encode(png(picture, _FACTS if synthetic else None)).decode("ascii")
    badge = '<b class="badge">synthetic</b>' if synthetic else ""
    height, width = picture.shape[:2]
    below = f"<figcaption>{_safe(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}"><div class="frame"><img alt="{_safe(caption or name)}" width="{width}" '
        f'height="{height}" src="data:image/png;base64,{data}">{badge}</div>{below}</figure>'
    )


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
