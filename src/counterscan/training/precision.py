"""In which numbers networks compute."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has units for it that were measured to pay: GPUs that support it, and CPUs with AMX.

    Elsewhere it is emulated: on a CPU with AVX2 alone a convolution takes 5 to 20 times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def autocast(device: torch.device, precision: Precision, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16 where the precision says so, "auto" where it is fast; weights stay float32."""
    half = precision == "bf16" or (precision == "auto" and bfloat16_is_fast(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and half)
