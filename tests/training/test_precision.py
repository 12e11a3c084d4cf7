"""In which numbers networks compute: bfloat16 where the device is fast at it, and where it is asked for."""

from __future__ import annotations

import pytest
import torch

from counterscan.classify import ClassifyConfig
from counterscan.medxgan.training import MedXGANConfig
from counterscan.taggan.training import TagGANConfig
from counterscan.training.precision import Precision, autocast, bfloat16_is_fast

CPU = torch.device("cpu")


def units(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """A CPU with or without units for bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: there, raising=False)


@pytest.mark.parametrize(
    ("precision", "there", "kind"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("fp32", True, torch.float32),
    ],
)
def test_auto_computes_in_bfloat16_only_where_there_are_units_for_it(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, there: bool, kind: torch.dtype
) -> None:
    units(monkeypatch, there)
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with autocast(CPU, precision):
        assert layer(x).dtype == kind
        with autocast(CPU, precision, enabled=False):
            assert layer(x).dtype == torch.float32


def test_a_torch_that_does_not_tell_counts_as_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not bfloat16_is_fast(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_fast_where_it_does_not_emulate(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert bfloat16_is_fast(torch.device("cuda")) is native


def test_no_system_computes_in_emulated_bfloat16_unasked() -> None:
    assert ClassifyConfig().precision == "auto"
    assert MedXGANConfig().training.precision == "auto"
    assert TagGANConfig().training.precision == "auto"
