"""How fast the StyleGAN2 networks are, as ratios to a plain implementation of the same networks, in one run.

    python benchmarks/gan_speed.py --out runs/gan-speed             # cxr64-cpu, batch 32, about five minutes
    python benchmarks/gan_speed.py --out runs/gan-speed --quick     # does it run: seconds, figures mean nothing

`plain` is StyleGAN2 as its formulas read, with the weights of ours: a kernel for every image and grouped convolutions,
transposed convolution and the filter [1, 3, 3, 1] to upsample, one operation after the other, float32, NCHW. It is
checked to make the same images and logits first. Both take the same steps: a generator step through the discriminator,
a discriminator step on as many real as generated images, and the gradient penalty R1 every 16th time. Contestants take
turns. Figures are images per second of CPU time on one core, so that other jobs on the machine count little.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from speed import peak_mib
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import profile

from counterscan import losses
from counterscan.files import write_json, write_text
from counterscan.nets.discriminator import Discriminator, minibatch_stddev
from counterscan.nets.stylegan2 import Generator, preset
from counterscan.report.tables import Cell, Table

LAZY = 16
LABELS = 5
OURS, OURS_FP32, PLAIN = "ours, bf16", "ours, fp32", "plain, fp32"
CONTESTANTS = (OURS, OURS_FP32, PLAIN)
SQRT2 = math.sqrt(2)


@dataclass
class GANSpeed:
    """Measure, print, and write gan_speed.json and gan_speed.md."""

    out: Path = Path("runs/gan-speed")
    """Folder for the figures."""
    preset: str = "cxr64-cpu"
    """Of the networks."""
    batch: int = 32
    """Images in a batch."""
    rounds: int = 12
    """Turns of each contestant at each job."""
    threads: int = 1
    """CPU threads of every contestant."""
    quick: bool = False
    """Two rounds of a small batch, to see that it runs."""

    def run(self) -> None:
        """Measure, write, print."""
        torch.set_num_threads(self.threads)
        batch, rounds = (4, 2) if self.quick else (self.batch, self.rounds)
        pairs = {name: Networks(self.preset, name, batch) for name in CONTESTANTS}
        check(pairs)
        tables = [speed(pairs, rounds, self.threads), memory(self.preset, batch), *profiles(pairs[OURS])]
        facts = {
            "command": " ".join(["python", *sys.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {self.threads} thread(s), "
            f"load {os.getloadavg()[0]:.1f}",
            "torch": torch.__version__,
            "networks": f"{self.preset}, {LABELS} findings, batch {batch}",
        }
        for table in tables:
            Console(width=120).print(table.to_rich())
        figures = {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
        write_json(self.out / "gan_speed.json", facts | {"tables": figures})
        about = "; ".join(f"{name}: {value}" for name, value in facts.items())
        write_text(
            self.out / "gan_speed.md", "\n\n".join([about, *(f"{t.title}\n\n{t.to_markdown()}" for t in tables)])
        )


# The plain implementation


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with its gain."""
    return F.leaky_relu(x, 0.2) * SQRT2


def upfirdn(x: Tensor, pad: int, gain: float) -> Tensor:
    """The filter [1, 3, 3, 1] in both directions on (N, C, H, W) padded by zeros."""
    line = torch.tensor([1.0, 3, 3, 1], device=x.device)
    kernel = torch.outer(line, line) * gain / 64
    return F.conv2d(F.pad(x, (pad,) * 4), kernel.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def modulated(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: bool) -> Tensor:
    """A convolution with a kernel for every image, as one grouped convolution."""
    n, inputs, h, w = x.shape
    outputs, _, k, _ = weight.shape
    kernels = weight * style.view(n, 1, inputs, 1, 1)
    if demodulate:
        kernels = kernels * torch.rsqrt(kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, n * inputs, h, w)
    if up:
        turned = kernels.flip(3, 4).transpose(1, 2).reshape(n * inputs, outputs, k, k)
        y = upfirdn(F.conv_transpose2d(x, turned, stride=2, groups=n), 1, 4.0)
    else:
        y = F.conv2d(x, kernels.reshape(n * outputs, inputs, k, k), padding=k // 2, groups=n)
    return y.view(n, outputs, *y.shape[2:])


def plain_generator(net: Generator, z: Tensor, c: Tensor, noise: str) -> Tensor:
    """Images of ``net`` by the formulas."""
    ws = net.map(z, c)
    left = iter(net.style_layers)
    x = net.const.permute(2, 0, 1).expand(len(z), -1, -1, -1)
    image: Tensor | None = None
    for convs, gray in zip(net.convs, net.grays, strict=True):
        part: Any
        for part in convs:  # type: ignore[attr-defined]
            style = part.affine(ws[:, next(left).w])
            x = modulated(x, part.weight * part.gain, style, True, part.up)
            drawn = part.noise_const if noise == "const" else torch.randn(len(z), 1, *x.shape[2:])
            x = lrelu(x + part.strength * drawn + part.bias.view(1, -1, 1, 1))
        part = gray
        style = part.affine(ws[:, next(left).w])
        y = modulated(x, (part.weight * part.gain).view(1, -1, 1, 1), style, False, False) + part.bias
        image = y if image is None else F.interpolate(image, scale_factor=2, mode="bilinear") + y
    assert image is not None
    return image


def plain_discriminator(net: Discriminator, x: Tensor, c: Tensor) -> Tensor:
    """Logits of ``net`` by the formulas."""

    def conv(part: Any, x: Tensor, **where: int) -> Tensor:
        return F.conv2d(x, part.weight / math.sqrt(part.weight[0].numel()), part.bias, **where)

    if net.stem is not None:
        x = lrelu(conv(net.stem, x))
    part: Any
    for part in net.halvings:
        skip = F.conv2d(F.avg_pool2d(x, 2), part.skip / math.sqrt(part.skip.shape[1]))
        if part.before is not None:
            x = lrelu(conv(part.before, x, padding=1))
        x = (lrelu(conv(part.down, x, stride=2, padding=1)) + skip) / SQRT2
    if net.config.minibatch_stddev > 1:
        x = minibatch_stddev(x, net.config.minibatch_stddev)
    if net.last is not None:
        x = lrelu(conv(net.last, x, padding=1))
    features = net.dense(x.flatten(1))
    assert net.embed is not None
    return net.head(features)[:, 0] + (features * net.embed(c)).sum(dim=1) / math.sqrt(features.shape[1])


# The steps, the same for all


class Networks:
    """Both networks, a batch, and the four jobs, by one of the contestants.

    Args:
        name: of the preset.
        kind: one of ``CONTESTANTS``.
        batch: images.
    """

    def __init__(self, name: str, kind: str, batch: int) -> None:
        torch.manual_seed(0)
        config = preset(name, labels=LABELS)
        self.kind, self.g, self.d = kind, Generator(config), Discriminator(config)
        for key, p in self.g.named_parameters():
            if key.endswith("strength"):
                nn.init.constant_(p, 0.1)
        self.z, self.c = torch.randn(batch, config.z_dim), torch.rand(batch, LABELS).round()
        self.real = torch.rand(batch, 1, config.size, config.size) * 2 - 1
        self.jobs: dict[str, Callable[[], Any]] = {
            "G forward": self.sample,
            "G step": self.g_step,
            "D step": self.d_step,
            "R1 step": self.r1_step,
        }

    def images(self, noise: Any) -> Tensor:
        """(N, 1, H, W)."""
        if self.kind == PLAIN:
            return plain_generator(self.g, self.z, self.c, noise)
        with self.precision():
            return self.g(self.z, self.c, noise=noise)

    def logits(self, x: Tensor, c: Tensor) -> Tensor:
        """(N,)."""
        if self.kind == PLAIN:
            return plain_discriminator(self.d, x, c)
        with self.precision():
            return self.d(x, c).logits

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 or not."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.kind == OURS)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Images without gradients."""
        return self.images("const")

    def g_step(self) -> None:
        """Gradients of the generator."""
        self._backward(self.g, losses.logistic_generator(self.logits(self.images("random"), self.c)))

    def d_step(self) -> None:
        """Gradients of the discriminator, real and generated images in one pass."""
        with torch.no_grad():
            fake = self.images("random")
        both = self.logits(torch.cat([self.real, fake]), torch.cat([self.c, self.c]))
        real, made = both.chunk(2)
        self._backward(self.d, losses.logistic_critic(real, made))

    def r1_step(self) -> None:
        """Gradients of the penalty alone."""
        self._backward(self.d, losses.r1_penalty(lambda x: self.logits(x, self.c), self.real))

    @staticmethod
    def _backward(net: nn.Module, loss: Tensor) -> None:
        net.zero_grad(set_to_none=True)
        loss.backward(inputs=list(net.parameters()))


def check(pairs: dict[str, Networks]) -> None:
    """Ours in float32 and the plain implementation make the same images and logits."""
    images = [pairs[name].sample() for name in (OURS_FP32, PLAIN)]
    torch.testing.assert_close(*images, atol=1e-4, rtol=1e-4)
    pair = [pairs[name].logits(pairs[name].real, pairs[name].c) for name in (OURS_FP32, PLAIN)]
    torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


# What is measured


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Of this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


def speed(pairs: dict[str, Networks], rounds: int, threads: int) -> Table:
    """Images per second and ratios; a first round warms up and does not count."""
    times: dict[tuple[str, str], list[float]] = {}
    names = list(pairs)
    for number in range(rounds + 1):
        for job in pairs[OURS].jobs:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds = cpu_seconds(pairs[name].jobs[job])
                if number:
                    times.setdefault((job, name), []).append(seconds)
    for name in names:  # the lazy schedule, round by round
        steps = zip(*(times[job, name] for job in ("G step", "D step", "R1 step")), strict=True)
        times["cycle", name] = [g + d + r1 / LAZY for g, d, r1 in steps]
    batch = len(pairs[OURS].z)
    rows: list[list[Cell]] = []
    for job in (*pairs[OURS].jobs, "cycle"):
        rates = [batch / statistics.median(times[job, name]) / threads for name in names]
        shares = [
            statistics.median(a / b for a, b in zip(times[job, PLAIN], times[job, name], strict=True))
            for name in (OURS, OURS_FP32)
        ]
        rows.append([job, *rates, *shares])
    note = (
        f"Medians of {rounds} rounds. G step: through the discriminator. D step: real and generated images, the latter "
        f"made without gradients. R1 step: the penalty alone. Cycle: G step, D step and a {LAZY}th of an R1 step."
    )
    columns = ("", *(f"{name}, images/s" for name in names), "bf16 / plain", "fp32 / plain")
    return Table("Speed per core", columns, rows, note=note)


def memory(name: str, batch: int) -> Table:
    """Peak resident memory of a cycle, each contestant in a process of its own."""
    rows: list[list[Cell]] = []
    for kind in CONTESTANTS:
        command = [sys.executable, __file__, "--job", name, kind, str(batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append([kind, found["before"], found["peak"], found["peak"] - found["before"]])
    note = "A G step, a D step and an R1 step. Before: libraries and networks."
    return Table("Peak memory", ("", "before, MiB", "peak, MiB", "growth, MiB"), rows, note=note, digits=0)


def run_job(name: str, kind: str, batch: int) -> None:
    """One cycle in this process; prints its peak."""
    torch.set_num_threads(1)
    pair = Networks(name, kind, batch)
    before = peak_mib()
    for job in ("G step", "D step", "R1 step"):
        pair.jobs[job]()
    sys.stdout.write(json.dumps({"before": before, "peak": peak_mib()}) + "\n")


def profiles(pair: Networks) -> Iterator[Table]:
    """What our steps spend their time on: the largest operations' shares."""
    for job in ("G step", "D step", "R1 step"):
        for _ in range(2):
            pair.jobs[job]()
        with profile() as found:
            for _ in range(3):
                pair.jobs[job]()
        events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        rows: list[list[Cell]] = [
            [event.key, event.count // 3, 100 * event.self_cpu_time_total / total] for event in events[:10]
        ]
        yield Table(f"{OURS}: what bounds the {job}", ("operation", "calls", "share, %"), rows, digits=0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        tyro.cli(GANSpeed).run()
