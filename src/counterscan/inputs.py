"""What every system asks of the images, classifiers and devices it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterscan.errors import InputError, line_of

_REMEDY = "Load them with the model's size and recipe (counterscan.data.load)"


def checked_images(images: Tensor, size: int | None = None) -> Tensor:
    """The images in float32, if a model can be asked about them.

    Args:
        images: (N, 1, H, W) in [-1, 1], of any floating point type.
        size: side that the model works at; None for any.

    Raises:
        InputError: no such tensor, another shape or size, pixels that are NaN or infinite, or values outside of
            [-1, 1].
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"expected a tensor of floats in [-1, 1], got {given}", field="images", remedy=_REMEDY)
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(f"expected images (N, 1, H, W), got {tuple(images.shape)}", field="images", remedy=_REMEDY)
    if size is not None and images.shape[-2:] != (size, size):
        raise InputError(
            f"images are {images.shape[-2]} x {images.shape[-1]}, the model works at {size}",
            field="size",
            remedy=_REMEDY,
        )
    bad = int((~images.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} pixels are NaN or infinite", field="images", remedy="Mend or leave out the image")
    if len(images) and (float(images.min()) < -1.001 or float(images.max()) > 1.001):
        raise InputError(
            f"pixels range from {float(images.min()):.3g} to {float(images.max()):.3g}, not from -1 to 1",
            field="images",
            remedy=_REMEDY,
        )
    return images.float()


def findings_of(classifier: nn.Module) -> tuple[str, ...]:
    """Canonical names of a classifier's columns.

    Raises:
        InputError: it does not say them.
    """
    if not hasattr(classifier, "findings"):
        raise InputError(
            "the classifier has no attribute findings",
            field="classifier",
            remedy="Wrap it: counterscan.classify.adapter.AdaptedClassifier",
        )
    return tuple(classifier.findings)  # type: ignore[arg-type]


def check_device(device: str, field: str = "device") -> None:
    """Whether torch can compute there, before anything is loaded to it.

    Raises:
        InputError: it cannot.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{device!r} cannot be used ({line_of(error)})", field=field, remedy="Use cpu") from None


def device_of(module: Any) -> torch.device:
    """Where a module, or the one whose method this is, computes; the CPU for functions and modules without weights."""
    module = getattr(module, "__self__", module)
    tensors = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
    return next((x.device for x in tensors), torch.device("cpu"))
