"""In which order a network's weights lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def channels_last(module: _Module) -> _Module:
    """The same module, its 4-D weights in NHWC order: convolutions give the same up to rounding, in other time."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
