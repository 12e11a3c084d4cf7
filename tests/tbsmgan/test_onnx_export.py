from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from counterscan.errors import CounterscanError, InputError
from counterscan.tbsmgan import onnx_export
from tests.tbsmgan.lively import lively_gan

onnx = pytest.importorskip("onnx", reason="needs counterscan[export]")
runtime = pytest.importorskip("onnxruntime", reason="needs counterscan[export]")
pytest.importorskip("onnxscript", reason="needs counterscan[export]")


def test_both_halves_give_what_the_network_gives(tmp_path: Path) -> None:
    gan = lively_gan()
    found = onnx_export.export_onnx(gan, tmp_path)
    assert set(found) == {"mapping.onnx", "synthesis.onnx"}
    assert max(found.values()) < 1e-4
    mapping, synthesis = (runtime.InferenceSession(tmp_path / name) for name in sorted(found))
    z, c = torch.randn(7, 8), torch.rand(7, 2)
    (ws,) = mapping.run(None, {"z": z.numpy(), "c": c.numpy()})
    np.testing.assert_allclose(ws, gan.map(z, c).numpy(), atol=1e-4)
    (images,) = synthesis.run(None, {"ws": ws})
    np.testing.assert_allclose(images, gan.synthesize(gan.map(z, c)).numpy(), atol=1e-4)
    model = onnx.load(tmp_path / "synthesis.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["findings"] == "Edema, Cardiomegaly"
    assert "SYNTHETIC" in about["notice"]
    shape = model.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["N", gan.generator.num_ws, 8]
    assert not gan.generator.training


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = lively_gan(labels=0)
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(CounterscanError, match="differs from the network"):
        onnx_export.export_onnx(gan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match=r"onnxscript must be installed.*counterscan\[export\]"):
        onnx_export.export_onnx(lively_gan(), tmp_path)
