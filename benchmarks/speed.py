"""How fast, as ratios measured in one run on one machine.

    python benchmarks/speed.py --out runs/speed            # all four parts, half an hour
    python benchmarks/speed.py --out runs/speed --quick    # does it run: under a minute, figures mean nothing

`inference`: image in, map and mask out, against Grad-CAM and Integrated Gradients with 50 steps (Captum) on a
classifier of ResNet-18's size. `training`: the step as shipped (bf16 where the machine has units for it) against the
same step in eager fp32. `reading`: `prepare` once and reading an epoch against decoding the files every epoch.
`memory`: peak of preparing, of an epoch and of `counterscan tag run` over 1,000 and over 50,000 images, each in a
process of its own. Contestants take turns, so that a busy moment hits all of them; figures are medians.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from counterscan.classify.task import LabelledRows
from counterscan.data.intensity import IntensityRecipe
from counterscan.data.load import load
from counterscan.data.phantom import PhantomConfig, write_phantom
from counterscan.data.prepare import prepare
from counterscan.data.store import PreparedStore
from counterscan.data.table import StudyTable
from counterscan.files import write_json, write_text
from counterscan.nets.cnn import Classifier, ClassifierConfig
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.report.stream import stream
from counterscan.report.tables import Cell, Table
from counterscan.taggan import (
    ONE_VIEW,
    VIEWS,
    MapGenerator,
    MaskRule,
    NetworkConfig,
    TagGAN,
    TagGANConfig,
    TagGANTask,
)
from counterscan.training import BalancedSampler, Context, finding_groups
from counterscan.training.distributed import World
from counterscan.training.ema import EMA
from counterscan.training.feed import Feed
from counterscan.training.precision import bfloat16_is_fast

FINDING = "Consolidation"
OWN = "TagGAN, one view"
Part = Literal["inference", "training", "reading", "memory"]
Race = dict[str, list[float]]


@dataclass
class Speed:
    """Run the parts and write speed.json and speed.md."""

    out: Path = Path("runs/speed")
    """Folder for the figures."""
    parts: tuple[Part, ...] = ("inference", "training", "reading", "memory")
    """What to measure."""
    quick: bool = False
    """Tiny sizes and two repeats, to see that it runs."""
    threads: int = 1
    """CPU threads of every contestant."""

    def run(self) -> None:
        """Measure, write, print."""
        torch.set_num_threads(self.threads)
        made: dict[str, list[Table]] = {}
        with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
            for part in self.parts:
                made[part] = PARTS[part](self, Path(scratch))
                for table in made[part]:
                    Console(width=120).print(table.to_rich())
        facts = {
            "command": " ".join(["python", *sys.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {self.threads} thread(s)",
            "torch": torch.__version__,
        }
        tables = [table for part in made.values() for table in part]
        figures = {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
        write_json(self.out / "speed.json", facts | {"tables": figures})
        about = "; ".join(f"{name}: {value}" for name, value in facts.items())
        write_text(self.out / "speed.md", "\n\n".join([about, *(f"{t.title}\n\n{t.to_markdown()}" for t in tables)]))


def race(contestants: Mapping[str, Callable[[], Any]], repeats: int, budget: float = 60.0) -> Race:
    """Seconds of each contestant in each round; a round starts with another one each time.

    A first, uncounted run warms up and tells how many rounds fit the budget (seconds per contestant); one that fills
    half of it counts and is the only one.
    """
    times: Race = {name: [] for name in contestants}
    rounds: dict[str, int] = {}
    names = list(contestants)
    for name in names:
        first = timed(contestants[name])
        rounds[name] = min(repeats, int(budget / first)) if first < budget / 2 else 0
        times[name] += [] if rounds[name] else [first]
    for number in range(max(rounds.values())):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            if number < rounds[name]:
                times[name].append(timed(contestants[name]))
    return times


def timed(run: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ratio(times: Race, name: str, reference: str) -> float:
    """Median over the rounds that both ran of time / the reference's time in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=False))


# Inference


def inference(options: Speed, _: Path) -> list[Table]:
    """Milliseconds per image and ratios, by size and batch."""
    torch.manual_seed(0)
    generator = MapGenerator(NetworkConfig(), 1)
    nn.init.normal_(generator.net.head.weight, std=0.05)
    classifier = Classifier(ClassifierConfig(arch="resnet18"), (FINDING,)).eval()
    half = copy.deepcopy(classifier).to(memory_format=torch.channels_last)
    systems: dict[str, Any] = {
        OWN: TagGAN([generator], (FINDING,), care=ONE_VIEW),
        "Grad-CAM": GradCAM(classifier),
        "Grad-CAM, bf16": GradCAM(half),
        "IG-50": IntegratedGradients(classifier, n_steps=50),
        "TagGAN, ten views": TagGAN([generator], (FINDING,), care=VIEWS),
    }
    seconds: list[list[Cell]] = []
    ratios: list[list[Cell]] = []
    for size in (64,) if options.quick else (64, 128, 256):
        for count in (1, 16):
            images = torch.rand(count, 1, size, size) * 2 - 1
            tasks = {name: map_and_mask(system, images, "bf16" in name) for name, system in systems.items()}
            times = race(tasks, 2 if options.quick else (15 if size < 256 else 7))
            label = f"{size} px, batch {count}"
            seconds.append([label, *(1e3 * statistics.median(times[name]) / count for name in systems)])
            ratios.append([label, *(ratio(times, name, OWN) for name in systems if name != OWN)])
    note = (
        "Image in, map and mask out, without scores. TagGAN: as shipped, U-Net of base 16; the others on a classifier "
        "of ResNet-18's size, Grad-CAM differentiating its last stage only. bf16: autocast, channels last."
    )
    rivals = [name for name in systems if name != OWN]
    return [
        Table("Inference, milliseconds per image", ("", *systems), seconds, note=note),
        Table(f"Inference, time relative to {OWN}", ("", *rivals), ratios, note="Above 1: slower."),
    ]


def map_and_mask(system: Any, images: Tensor, half: bool) -> Callable[[], Tensor]:
    """Attribution, evidence, mask: the same three calls for all."""

    def evidence() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            signed = system.attribute(images, 0).float()
        return system.evidence(signed, images)

    rule = MaskRule(float(np.percentile(evidence().numpy(), 99)))
    return lambda: rule(evidence())


# Training


def training(options: Speed, scratch: Path) -> list[Table]:
    """Seconds per step, before and after bGAN joins."""
    size, rows = 64, []
    store = phantom_store(scratch / "training", 96 if options.quick else 256, size)
    for name, share in (("fGAN alone", 0.0), ("with bGAN", 1.0)):
        tasks = {kind: trainer(store, kind == "shipped", share) for kind in ("shipped", "naive")}
        times = race(tasks, 2 if options.quick else 25)
        medians = [statistics.median(times[kind]) for kind in tasks]
        rows.append([f"{size} px, {name}", *medians, ratio(times, "naive", "shipped")])
    arithmetic = "bf16 autocast" if bfloat16_is_fast(torch.device("cpu")) else "fp32, since bf16 is emulated here,"
    note = (
        "One step of TagGANTask with its default networks, batch 32, frozen small classifier, critic, averaged weights "
        f"and the reading of the batch. As shipped: {arithmetic} and reading ahead; naive: eager fp32, neither."
    )
    columns = ("", "as shipped, s", "naive, s", "naive / shipped")
    return [Table("Training step", columns, rows, note=note, digits=3)]


def trainer(store: PreparedStore, shipped: bool, share: float) -> Callable[[], None]:
    """A function that does one more training step at ``share`` of the way."""
    torch.manual_seed(0)
    config = TagGANConfig()
    loop = config.training if shipped else replace(config.training, precision="fp32", prefetch=False)
    groups, meaning = finding_groups(store.labels)
    classifier = Classifier(ClassifierConfig(), store.findings).eval().requires_grad_(False)
    task = TagGANTask(config.networks, config.objective, store.findings, [classifier], meaning)
    averages = {name: EMA(task.modules[name], loop.ema_half_life, loop.ema_ramp) for name in task.ema}
    sampler = BalancedSampler(groups, loop.batch_size, 0)
    feed = Feed(LabelledRows(store, store.labels), sampler, World(), prefetch=loop.prefetch)
    context, step = Context(task, loop, World(), averages, feed), int(share * (loop.steps - 1))

    def once() -> None:
        task.step(context, context.begin(step))
        context.verify()
        for average in averages.values():
            average.update(1, step + 1)

    return once


# Reading


def reading(options: Speed, scratch: Path) -> list[Table]:
    """Seconds for preparing, an epoch from the store, and an epoch that decodes."""
    count, native, size = (64, 128, 64) if options.quick else (400, 512, 128)
    table = write_phantom(scratch / "films", count, PhantomConfig(size=native, text=False), twins=False)
    recipe = IntensityRecipe("range")
    began = time.perf_counter()
    prepare(table, scratch / "store", size=size, recipe=recipe, workers=1)
    once, store = time.perf_counter() - began, PreparedStore.open(scratch / "store")
    order = np.random.default_rng(0).permutation(len(store))
    batches = np.array_split(order, max(1, len(order) // 32))

    def from_store() -> None:
        for rows in batches:
            store.images(np.sort(rows))

    def decoding() -> None:
        for rows in batches:
            torch.stack([load(table.image_path(int(row)), recipe, size)[0] for row in rows])

    times = race({"store": from_store, "files": decoding}, 2 if options.quick else 5)
    store_s, files_s = (statistics.median(times[name]) for name in ("store", "files"))
    rows = [
        [f"{epochs} epochs" if epochs > 1 else "1 epoch", once + epochs * store_s, epochs * files_s,
         epochs * files_s / (once + epochs * store_s)]
        for epochs in (1, 10, 100)
    ]  # fmt: skip
    note = (
        f"{count} PNG films of {native} px read at {size} px in batches of 32, one process. Preparing: {once:.2f} s, "
        f"masks included; an epoch from the store {store_s:.3f} s, decoding {files_s:.2f} s: "
        f"{ratio(times, 'files', 'store'):.0f} times as long. Epochs are multiples of these."
    )
    columns = ("", "prepare and read, s", "decode every epoch, s", "decode / prepared")
    return [Table("Reading", columns, rows, note=note)]


# Memory


def memory(options: Speed, scratch: Path) -> list[Table]:
    """Peak resident memory of three jobs over few and over many images."""
    few, many = (50, 150) if options.quick else (1000, 50_000)
    source = scratch / "sources"
    write_phantom(source, 50, PhantomConfig(size=64, text=False), twins=False)
    tagger = TagGAN([MapGenerator(NetworkConfig(), 1)], (FINDING,), care=ONE_VIEW, size=64)
    tagger.rules[FINDING] = MaskRule(0.1)
    tagger.save_pretrained(scratch / "tagger")
    peaks: dict[str, list[float]] = {job: [] for job in JOBS}
    for count in (few, many):
        folder = scratch / str(count)
        linked_films(source, folder, count)
        for job in JOBS:
            command = [sys.executable, __file__, "--job", job, str(folder), str(scratch / "tagger")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[job].append(json.loads(done.stdout.splitlines()[-1])["peak_mib"])
        shutil.rmtree(folder)
    names = {"prepare": "prepare, one process", "epoch": "an epoch", "tag": "counterscan tag run"}
    rows = [[names[job], small, large, large - small] for job, (small, large) in peaks.items()]
    note = "Each job in a process of its own, 64 px; libraries included. Tagging writes results.csv and no pictures."
    columns = ("", f"{few:,} images, MiB", f"{many:,} images, MiB", "growth, MiB")
    return [Table("Peak memory", columns, rows, note=note, digits=0)]


def linked_films(source: Path, folder: Path, count: int) -> None:
    """A study table of ``count`` films, hard links to a few."""
    (folder / "images").mkdir(parents=True)
    films = sorted((source / "images").iterdir())
    lines = [f"image,patient,split,{FINDING}"]
    for i in range(count):
        os.link(films[i % len(films)], folder / "images" / f"{i:06d}.png")
        lines.append(f"images/{i:06d}.png,p{i},train,{i % 2}")
    write_text(folder / "table.csv", "\n".join(lines) + "\n")


def job_prepare(folder: Path, _: Path) -> None:
    """Decode all images."""
    table = StudyTable.read(folder / "table.csv")
    prepare(table, folder / "store", size=64, recipe=IntensityRecipe("range"), workers=1)


def job_epoch(folder: Path, _: Path) -> None:
    """Read all images once, shuffled."""
    store = PreparedStore.open(folder / "store")
    order = np.random.default_rng(0).permutation(len(store))
    for start in range(0, len(order), 32):
        store.batch(order[start : start + 32])


def job_tag(folder: Path, model: Path) -> None:
    """Answer for all images."""
    torch.set_num_threads(1)
    tagger = TagGAN.from_pretrained(model)
    items = ((entry, None) for entry in sorted((folder / "images").iterdir()))
    stream(tagger, items, folder / "answers", tagger.findings, formats=())


JOBS: dict[str, Callable[[Path, Path], None]] = {"prepare": job_prepare, "epoch": job_epoch, "tag": job_tag}


def run_job(name: str, folder: Path, model: Path) -> None:
    """Do one job in this process and print its peak."""
    JOBS[name](folder, model)
    sys.stdout.write(json.dumps({"peak_mib": peak_mib()}) + "\n")


def peak_mib() -> float:
    """Largest resident size of this process. Linux hands getrusage's figure down from the parent; not this one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def phantom_store(folder: Path, count: int, size: int) -> PreparedStore:
    """Films of which a third have Consolidation, prepared."""
    config = PhantomConfig(size=size, findings=(FINDING,), prevalence=0.4, text=False)
    table = write_phantom(folder / "films", count, config, twins=False)
    prepare(table, folder / "store", size=size, recipe=IntensityRecipe("range"), workers=1)
    return PreparedStore.open(folder / "store")


PARTS: dict[Part, Callable[[Speed, Path], Sequence[Table]]] = {
    "inference": inference,
    "training": training,
    "reading": reading,
    "memory": memory,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        run_job(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        tyro.cli(Speed).run()
