"""The generator for other runtimes: ONNX files of its two halves, checked against the network they were made from.

    mapping.onnx     z (N, z_dim), c (N, K) where it is conditional  ->  ws (N, num_ws, w_dim), not truncated
    synthesis.onnx   ws (N, num_ws, w_dim)                           ->  image (N, 1, S, S), not clipped

The halves are apart so that ws can be truncated (m + psi (ws - m), with m a mean of ws), mixed and edited in between.
Noise is the network's own. N is free.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

import counterscan
from counterscan.errors import CounterscanError, InputError
from counterscan.files import atomic_write
from counterscan.nets.stylegan2 import Generator
from counterscan.tbsmgan.export import NOTICE
from counterscan.tbsmgan.generator import StyleGAN

MAPPING, SYNTHESIS = "mapping.onnx", "synthesis.onnx"
TOLERANCE = 1e-4
_TRACED, _TRIED = 3, (1, 5)  # numbers of images: when it is recorded, and when it is checked


class _Synthesis(nn.Module):
    """``Generator.synthesize`` with constant noise, in one piece whatever N is: a loop over parts would fix N."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, ws: Tensor) -> Tensor:
        maps = [buffer for name, buffer in self.generator.named_buffers() if name.endswith("noise_const")]
        noises: list[Tensor | None] = [noise.expand(ws.shape[0], -1, -1) for noise in maps]
        return self.generator._image(self.generator.styles(ws), noises)


class _Mapping(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.generator.map(z, c)


def export_onnx(gan: StyleGAN, folder: str | Path) -> dict[str, float]:
    """Write ``mapping.onnx`` and ``synthesis.onnx``.

    Returns:
        By file name the largest difference from the network for 1 and 5 random latents, in units of w and of grey (the
        range of images is 2); by onnxruntime on the CPU.

    Raises:
        InputError: onnx, onnxscript or onnxruntime are not installed, or the folder cannot be written.
        CounterscanError: the file does not give what the network gives, to 1e-4 of the largest value or of 1.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} must be installed", remedy='Install "counterscan[export]"')
    folder = Path(folder)
    generator = copy.deepcopy(gan.generator).cpu().float().eval()
    dice = torch.Generator().manual_seed(0)
    z, c = (torch.rand(max(_TRIED), n, generator=dice) for n in (generator.config.z_dim, generator.config.labels))
    inputs = (2 * z - 1, c) if generator.config.labels else (2 * z - 1,)
    with torch.no_grad():
        ws = generator.map(*inputs)
    # In training mode, which changes nothing else, labels are not looked at: a graph cannot raise.
    halves: list[tuple[str, nn.Module, tuple[Tensor, ...], tuple[str, ...], str]] = [
        (MAPPING, _Mapping(generator).train(), inputs, ("z", "c")[: len(inputs)], "ws"),
        (SYNTHESIS, _Synthesis(generator), (ws.contiguous(),), ("ws",), "image"),
    ]
    found = {}
    for name, module, tried, names, out in halves:
        content = _graph(gan, module, tuple(x[:_TRACED] for x in tried), names, out)
        found[name] = _difference(module, content, tried, names)
        with atomic_write(folder / name) as handle:
            handle.write(content)
    return found


def _graph(gan: StyleGAN, module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], out: str) -> bytes:
    import onnx

    count = Dim("N", min=1, max=65536)
    # strict: the other way of recording takes the number of images for a constant
    with _quiet():
        program = torch.export.export(module, inputs, dynamic_shapes={name: {0: count} for name in names}, strict=True)
        made = torch.onnx.export(
            program, inputs, dynamo=True, input_names=list(names), output_names=[out], verbose=False
        )
    assert made is not None
    model = made.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    facts = {
        "notice": NOTICE,
        "made_by": f"counterscan {counterscan.__version__}",
        "checkpoint": gan.checkpoint,
        "findings": ", ".join(gan.findings),
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that are not needed, and of the mode that is meant."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(module: nn.Module, content: bytes, inputs: tuple[Tensor, ...], names: tuple[str, ...]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in _TRIED:
        part = [x[:count] for x in inputs]
        with torch.no_grad():
            wanted = module(*part)
        (got,) = session.run(None, dict(zip(names, (x.numpy() for x in part), strict=True)))
        apart = float((torch.from_numpy(got) - wanted).abs().max())
        if not apart <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise CounterscanError(f"the ONNX graph differs from the network by {apart:.2g} for {count} images")
        worst = max(worst, apart)
    return worst
