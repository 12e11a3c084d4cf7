"""The model card of a generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import counterscan

_PARTS = (
    ("fid", "FID against training images, in features of a classifier of the same images"),
    ("kid", "KID, likewise"),
    ("consistency", "label consistency, mean AUC"),
    ("diversity", "variety of the least varied class, as a share of real images'"),
    ("near_ratio", "distance to the nearest training image, as a share of held-out images'"),
    ("copies", "share of samples that are nearer to a training image than nearly all held-out images are"),
    ("r_t", "E sign D(real)"),
    ("p", "probability of each augmentation"),
)
_LEARNED = {True: "yes", False: "no: do not use samples of it", None: "not judged"}


def model_card(
    findings: Sequence[str],
    size: int,
    figures: Mapping[str, float],
    learned: Mapping[str, bool],
    diagnoses: Sequence[str],
    facts: Sequence[str] = (),
) -> str:
    """Markdown.

    Args:
        findings: what it can be asked for.
        size: pixels of a side.
        figures: of the validation, named as ``Monitors`` names them.
        learned: finding -> whether samples show it.
        diagnoses: trouble, in words.
        facts: further lines.
    """
    lines = [
        "---",
        "library_name: counterscan",
        "tags: [medical-imaging, synthetic-data, stylegan2]",
        "---",
        f"# StyleGAN for {', '.join(findings) or 'images without labels'}",
        "",
        f"Synthetic one-channel images of {size} x {size} pixels in [-1, 1] (counterscan {counterscan.__version__}).",
        "",
        *(f"* {fact}" for fact in facts),
        *(f"* {text}: {figures[name]:.4g}" for name, text in _PARTS if name in figures),
    ]
    if findings:
        lines += ["", "| finding | consistency AUC | learned | variety |", "|---|---|---|---|"]
        for finding in findings:
            auc, varied = (_number(figures.get(f"{what}/{finding}")) for what in ("consistency", "diversity"))
            known = _LEARNED[learned.get(finding)]
            lines.append(f"| {finding} | {auc} | {known} | {varied} |")
    lines += (
        ["", "## Trouble found", "", *(f"* {text}." for text in diagnoses)] if diagnoses else ["", "No trouble found."]
    )
    lines += [
        "",
        "**Research use only. Not a medical device.** Every image is synthetic and shows no patient; what is asked for "
        "is not always what is shown, and rare anatomy may be missing. Do not measure anything on patients whose "
        "images it learned from.",
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
