"""The way from an image to its counterpart: a strip and an animation to look at, maps and numbers to compute with."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from counterscan.counterpart import CounterfactualPath, Counterpart
from counterscan.errors import InputError
from counterscan.files import atomic_write, write_json
from counterscan.png import DISCLAIMER, png
from counterscan.report import pictures
from counterscan.report.files import finite, safe_name

Animation = Literal["gif", "apng", "none"]
ANIMATIONS: tuple[Animation, ...] = ("gif", "apng", "none")
# Attributions that are shown when an answer has them; both are in logits, so they share one colour scale.
ATTRIBUTIONS = {"lig": "latent IG", "ig_negative": "IG from counterpart"}
# Differences smaller than this, of a grey range of 2, do not get full colour: noise must not look like a finding.
LEAST_SCALE = 0.05

_PAPER, _INK, _SOFT, _MARK, _RULE = (17, 20, 23), (231, 234, 237), (154, 165, 175), (255, 217, 138), (60, 68, 76)
_ABOVE, _BELOW = (255, 155, 82), (98, 176, 255)
_MARGIN, _GAP, _LINE, _BAR = 10, 6, 15, 8
# Pictures' least and largest side; smaller ones are enlarged, larger ones reduced.
_SIDES, _ANIMATED_SIDES = (128, 224), (224, 448)
_STEP_MS, _HOLD_MS = 120, 700


def write_explanation(
    folder: str | Path,
    name: str,
    counterpart: Counterpart,
    *,
    findings: Sequence[str] = (),
    animation: Animation = "gif",
) -> dict[str, Path]:
    """Write the way from an image to its counterpart, beside what ``report.files.write_outputs`` writes.

    ========================== ===================================================================================
    ``<name>_strip.png``       frames with the classifier's probabilities, then the maps; see ``strip``
    ``<name>_path.gif``        to the counterpart and back, without end; ``<name>_path.png`` for APNG
    ``<name>_maps.npz``        "frames" (K, H, W) and each extra (H, W), float32, on the model's grid; ``about``,
                               JSON text
    ``<name>_explanation.json``  verdict, query, scores, strengths, probabilities along the way, figures; numbers that
                               are not finite are null
    ========================== ===================================================================================

    Pictures of synthetic frames say so in their metadata, and beside the image, never inside it.

    Args:
        folder: made when missing.
        name: of the image, without patient data; see ``report.files.safe_name``.
        counterpart: an answer with a path.
        findings: names of the path's C outputs; may be left out when there is one.
        animation: kind of the animation.

    Returns:
        {"strip": path, ...} of what was written.

    Raises:
        InputError: no path, outputs that are not named, an unknown kind, or a file that cannot be written.
    """
    if animation not in ANIMATIONS:
        raise InputError(f"{animation!r} must be one of {', '.join(ANIMATIONS)}", field="animation")
    shown = _Shown.of(counterpart, findings)
    base = Path(folder) / safe_name(name)
    facts = pictures.synthetic_facts(counterpart)
    about = _about(name, shown)
    written: dict[str, Path] = {}

    def put(kind: str, ending: str, content: bytes) -> None:
        written[kind] = base.with_name(base.name + ending)
        with atomic_write(written[kind]) as handle:
            handle.write(content)

    put("strip", "_strip.png", png(_strip(shown, name), facts))
    if animation != "none":
        put("path", "_path.gif" if animation == "gif" else "_path.png", _animation(shown, animation, facts))
    planes = {"frames": shown.path.frames, **counterpart.extras}
    arrays: dict[str, Any] = {
        kind: plane.detach().cpu().float().squeeze(-3).numpy() for kind, plane in planes.items()
    } | {"about": np.array(json.dumps(about))}
    written["maps"] = base.with_name(base.name + "_maps.npz")
    with atomic_write(written["maps"]) as handle:
        np.savez_compressed(handle, **arrays)
    written["explanation"] = base.with_name(base.name + "_explanation.json")
    write_json(written["explanation"], about)
    return written


def strip(counterpart: Counterpart, *, name: str = "", findings: Sequence[str] = ()) -> np.ndarray:
    """One picture of an explanation.

    Above, the path's frames from the image to the counterpart, each with the classifier's probability of the finding as
    a bar (orange from one half, blue below) and the strength. Below, the signed difference over the image, the
    attributions "lig" and "ig_negative" and the "reconstruction" where the answer has them.

    Args:
        counterpart: an answer with a path.
        name: pseudonymous name of the image, for the heading.
        findings: see ``write_explanation``.

    Returns:
        uint8 (H', W', 3).

    Raises:
        InputError: no path, or outputs that are not named.
    """
    return _strip(_Shown.of(counterpart, findings), name)


@dataclass(frozen=True)
class _Shown:
    """An answer that has a path, and what its outputs are called."""

    answer: Counterpart
    path: CounterfactualPath  # on the CPU
    findings: tuple[str, ...]
    probabilities: list[float]  # of the finding asked for, one per frame
    from_image: bool  # whether the first frame is the image itself, not its reconstruction

    @classmethod
    def of(cls, answer: Counterpart, findings: Sequence[str]) -> _Shown:
        if answer.path is None:
            raise InputError(f"{answer.made_by.system} gives no path from image to counterpart", field="path")
        path = CounterfactualPath(
            *(x.detach().cpu().float() for x in (answer.path.frames, answer.path.strengths, answer.path.outputs))
        )
        count, asked = path.outputs.shape[1], answer.query.finding
        names = tuple(findings) or ((asked,) if count == 1 else ())
        if len(names) != count or asked not in names:
            raise InputError(
                f"the classifier has {count} outputs, {asked!r} among them; named are {', '.join(names) or 'none'}",
                field="findings",
                remedy="Name every output, in order",
            )
        chosen = path.outputs[:, names.index(asked)].tolist()
        return cls(answer, path, names, chosen, torch.equal(path.frames[0], answer.image.detach().cpu().float()))


def _about(name: str, shown: _Shown) -> dict[str, Any]:
    answer, path = shown.answer, shown.path
    query, made_by = answer.query, answer.made_by
    facts = {
        "id": name,
        "verdict": answer.verdict,
        "query": {
            "finding": query.finding,
            "direction": query.direction,
            "strength": query.strength,
            "text": query.text,
        },
        "scores": {"before": answer.score_before, "after": answer.score_after},
        "strengths": path.strengths.tolist(),
        "probabilities": {finding: path.outputs[:, c].tolist() for c, finding in enumerate(shown.findings)},
        "figures": answer.figures,
        "made_by": {
            "system": made_by.system,
            "version": made_by.version,
            "checkpoint": made_by.checkpoint,
            "settings": made_by.settings,
        },
        "synthetic": "all frames" if not shown.from_image else "all frames but the first",
        "disclaimer": DISCLAIMER,
    }
    plain: dict[str, Any] = json.loads(json.dumps(finite(facts), default=str), parse_float=lambda x: _rounded(float(x)))
    return plain


def _rounded(value: float) -> float:
    """Seven digits, as many as float32 has."""
    return float(f"{value:.7g}")


@dataclass(frozen=True)
class _Cell:
    """A picture of the strip with the lines under it, each (left, right, colour of the left)."""

    picture: np.ndarray  # uint8 (H, W) or (H, W, 3)
    lines: list[tuple[str, str, tuple[int, int, int]]]
    probability: float | None = None  # draws a bar


def _strip(shown: _Shown, name: str) -> np.ndarray:
    answer = shown.answer
    rows = [_frames(shown), _maps(shown)]
    width = 2 * _MARGIN + max(sum(cell.picture.shape[1] + _GAP for cell in row) - _GAP for row in rows)
    inner = width - 2 * _MARGIN
    removing = answer.query.direction == "remove"
    heading = f"{answer.query.finding}: from the image to the same body {'without' if removing else 'with'} it"
    who = ", ".join(part for part in (name, answer.made_by.system) if part)
    trusted = answer.trusted
    figures = ",  ".join(f"{kind.replace('_', ' ')} = {value:.3g}" for kind, value in answer.figures.items())
    legend = (
        "Orange to red: the image is brighter than its counterpart, or more like the finding to the classifier; blue: "
        f"darker, or less. Pictures marked synthetic were made by a program. {DISCLAIMER}"
    )
    blocks: list[_Text | list[_Cell]] = [
        *_wrapped(heading, inner, 15, _INK),
        *_wrapped(who, inner, 11, _SOFT),
        *_wrapped(f"verdict: {answer.verdict}", inner, 11, _SOFT if trusted else _MARK),
        *rows,
        *_wrapped(figures, inner, 11, _SOFT),
        *_wrapped(legend, inner, 11, _SOFT),
    ]
    canvas = Image.new("RGB", (width, 2 * _MARGIN + sum(map(_height, blocks))), _PAPER)
    draw, top = ImageDraw.Draw(canvas), _MARGIN
    for block in blocks:
        if isinstance(block, list):
            left = _MARGIN
            for cell in block:
                canvas.paste(Image.fromarray(cell.picture), (left, top))
                _caption(draw, cell, left, top + cell.picture.shape[0] + 4)
                left += cell.picture.shape[1] + _GAP
        else:
            draw.text((_MARGIN, top), block.text, fill=block.colour, font=_font(block.size))
        top += _height(block)
    return np.asarray(canvas)


def _frames(shown: _Shown) -> list[_Cell]:
    """Image first: the first frame, or a cell before it where the path starts from a reconstruction."""
    frames = [_frame(shown, k, _SIDES) for k in range(len(shown.path.frames))]
    if shown.from_image:
        return frames
    return [_Cell(_grey(shown.answer.image), [("image", "", _INK)], shown.answer.score_before), *frames]


def _frame(shown: _Shown, k: int, sides: tuple[int, int]) -> _Cell:
    label, colour = ("image", _INK) if k == 0 and shown.from_image else ("synthetic", _MARK)
    line = (label, f"strength {float(shown.path.strengths[k]):.2g}", colour)
    return _Cell(_grey(shown.path.frames[k], sides), [line], shown.probabilities[k])


def _maps(shown: _Shown) -> list[_Cell]:
    answer, extras = shown.answer, shown.answer.extras
    difference = extras.get("difference", answer.image.cpu() - shown.path.frames[-1])
    cells = [_laid(answer, difference, "difference", max(pictures.colour_scale([difference]), LEAST_SCALE))]
    attributions = {label: extras[name] for name, label in ATTRIBUTIONS.items() if name in extras}
    scale = pictures.colour_scale(list(attributions.values()))
    cells += [_laid(answer, values, label, scale) for label, values in attributions.items()]
    if "reconstruction" in extras:
        lines = [("reconstruction", "", _INK), ("synthetic", "", _MARK)]
        cells.append(_Cell(_grey(extras["reconstruction"]), lines))
    return cells


def _laid(answer: Counterpart, values: Tensor, label: str, scale: float) -> _Cell:
    picture = pictures.overlay(answer.image, values, scale)
    return _Cell(_sized(picture), [(label, "", _INK), ("full colour at", f"{scale:.2g}", _SOFT)])


def _grey(image: Tensor, sides: tuple[int, int] = _SIDES) -> np.ndarray:
    return _sized(pictures.grey(image), sides)


def _sized(picture: np.ndarray, sides: tuple[int, int] = _SIDES) -> np.ndarray:
    least, most = sides
    return pictures.resized(picture, min(max(*picture.shape[:2], least), most))


def _caption(draw: ImageDraw.ImageDraw, cell: _Cell, left: int, top: int) -> None:
    """Bar and probability, then the lines."""
    width, lines = cell.picture.shape[1], list(cell.lines)
    if cell.probability is not None:
        p = cell.probability
        if math.isfinite(p):
            colour = _ABOVE if p >= 0.5 else _BELOW
            draw.rectangle((left, top, left + width - 1, top + _BAR - 1), fill=_RULE)
            if (filled := round(min(max(p, 0.0), 1.0) * width)) > 0:
                draw.rectangle((left, top, left + filled - 1, top + _BAR - 1), fill=colour)
            draw.line((left + width // 2, top - 1, left + width // 2, top + _BAR), fill=_INK)  # where the call changes
        top += _BAR + 2
        (label, strength, colour_of_label), *rest = lines
        lines = [(f"p = {p:.2f}", strength, _INK), (label, "", colour_of_label), *rest]
    for text, right, colour in lines:
        draw.text((left, top), text, fill=colour, font=_font(11))
        draw.text((left + width, top), right, fill=_SOFT, font=_font(11), anchor="ra")
        top += _LINE


@dataclass(frozen=True)
class _Text:
    text: str
    size: int
    colour: tuple[int, int, int]


def _wrapped(text: str, width: int, size: int, colour: tuple[int, int, int]) -> list[_Text]:
    """Lines of at most ``width`` pixels, cut between words."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_Text(line, size, colour) for line in lines if line]


def _height(block: _Text | list[_Cell]) -> int:
    if isinstance(block, _Text):
        return block.size + 5
    return max(
        cell.picture.shape[0] + 12 + _LINE * len(cell.lines) + (0 if cell.probability is None else _BAR + 2 + _LINE)
        for cell in block
    )


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _animation(shown: _Shown, kind: Animation, facts: Mapping[str, str]) -> bytes:
    """There and back, without end; the panel with caption and bar is below the image, so that its pixels stay whole."""
    there = [_still(shown, k) for k in range(len(shown.path.frames))]
    pages = [*there, *there[-2:0:-1]]
    held = (0, len(there) - 1)
    options: dict[str, Any] = {
        "save_all": True,
        "append_images": pages[1:],
        "duration": [_HOLD_MS if k in held else _STEP_MS for k in range(len(pages))],
        "loop": 0,
    }
    said = dict(facts) | {"Disclaimer": DISCLAIMER}
    buffer = io.BytesIO()
    if kind == "gif":
        comment = "; ".join(f"{key}: {value}" for key, value in said.items())
        pages[0].save(buffer, format="GIF", comment=comment.encode("utf-8"), **options)
    else:
        info = PngInfo()
        for key, value in said.items():
            info.add_itxt(key, value)
        pages[0].save(buffer, format="PNG", pnginfo=info, **options)
    return buffer.getvalue()


def _still(shown: _Shown, k: int) -> Image.Image:
    """One frame in grey, which GIF keeps exactly."""
    cell = _frame(shown, k, _ANIMATED_SIDES)
    height, width = cell.picture.shape
    page = Image.new("RGB", (width, height + _BAR + 2 * _LINE + 8), _PAPER)
    page.paste(Image.fromarray(cell.picture), (0, 0))
    _caption(ImageDraw.Draw(page), cell, 0, height + 3)
    return page.convert("L")
