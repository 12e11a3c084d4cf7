"""``counterscan augment``: synthetic studies for rare findings. ``augment gan`` trains a generator and samples it.

Commands of the generator are in ``GAN``, those that use it in ``COMMANDS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from counterscan.cli import clip, generator, graft, steer, study
from counterscan.cli.audit import AUDIT, audit_command
from counterscan.cli.machine import use
from counterscan.cli.main import Lazy
from counterscan.cli.reports import Reports
from counterscan.errors import InputError
from counterscan.training.precision import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from counterscan.tbsmgan import GANConfig, StyleGAN


@dataclass
class GanTrain:
    """Train a generator on a prepared store; go on where an interrupted run stopped."""

    store: tyro.conf.Positional[Path]
    """Folder made by `counterscan data prepare`, with rows in the split train, and some in val to compare with."""
    out: Path = field(kw_only=True)
    """Run folder; the same command goes on with an interrupted run."""
    preset: Literal["cxr64-cpu", "cxr64-lite", "cxr128", "cxr256"] = "cxr64-cpu"
    """Networks and settings: 64 px for CPUs, 128 and 256 px for a GPU."""
    minutes: float | None = None
    """Train for about so long on this machine instead of the preset's number of steps."""
    steps: int | None = None
    """Length of the run in steps."""
    batch_size: int | None = None
    """Images per step over all processes; default: the preset's."""
    findings: tuple[str, ...] = ()
    """Findings that images can be asked for; default: all of the store."""
    conditional: bool = True
    """Learn images by their findings; without, images of no particular finding."""
    classifier: Path | None = None
    """Run folder of a classifier of the same training images, to watch with; default: one is trained."""
    loss: Literal["logistic", "relativistic"] = "logistic"
    """Relativistic keeps more modes and costs 1.65 times as much per image."""
    gamma: float | None = None
    """Weight of R1; default: chosen by size and batch."""
    find: float = 0.3
    """Weight of each finding in the discriminator."""
    augment: Literal["adaptive", "ramp", "none"] = "adaptive"
    """How the discriminator's random views come and go."""
    mixing: float = 0.0
    """Share of steps with style mixing."""
    path_length: float | None = None
    """Weight of the path length penalty; default: the preset's."""
    precision: Precision | None = None
    """Of the networks' arithmetic; default: the preset's."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    seed: int = 0
    """Of weights, batches and latents."""

    def run(self) -> None:
        from counterscan.classify import load_classifier
        from counterscan.cli.tables import say
        from counterscan.data.store import PreparedStore
        from counterscan.tbsmgan import fit

        if self.minutes is not None and self.steps is not None:
            raise InputError("give either a time or a number of steps", field="--minutes")
        store = PreparedStore.open(self.store)
        config = self._config(store)
        classifier = load_classifier(self.classifier) if self.classifier is not None else None
        gan = fit(store, self.out, config, classifier=classifier)
        shown = {
            name: gan.figures[name] for name in ("fid", "consistency", "diversity", "copies") if name in gan.figures
        }
        say(f"{self.out / 'model'}: " + ", ".join(f"{name} {value:.3g}" for name, value in shown.items()))
        for finding, learned in gan.learned.items():
            auc = gan.figures[f"consistency/{finding}"]
            say(f"  {finding}: consistency AUC {auc:.3f}, {'learned' if learned else 'not learned'}")
        for trouble in gan.diagnoses:
            say(f"  {trouble}")

    def _config(self, store: object) -> GANConfig:
        from counterscan.tbsmgan import preset, steps_in

        base = preset(self.preset)
        objective = replace(
            base.objective,
            loss=self.loss,
            gamma=self.gamma,
            find=self.find,
            augment=self.augment,
            mixing=self.mixing,
            path=base.objective.path if self.path_length is None else self.path_length,
        )
        loop = replace(
            base.training,
            batch_size=base.training.batch_size if self.batch_size is None else self.batch_size,
            precision=self.precision or base.training.precision,
            threads=self.threads,
            device=self.device,
            seed=self.seed,
        )
        config = replace(base, training=loop, objective=objective, findings=self.findings, conditional=self.conditional)
        steps = loop.steps if self.steps is None else self.steps
        if self.minutes is not None:
            # An interrupted run goes on to the end it had set itself.
            steps = _steps_before(self.out) or steps_in(self.minutes, store, config)  # type: ignore[arg-type]
        tenth = max(1, steps // 10)
        return replace(
            config,
            training=replace(loop, steps=steps, validate_every=tenth, checkpoint_every=tenth, sample_every=tenth),
        )


def _steps_before(folder: Path) -> int | None:
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        return None
    return int(yaml.safe_load(path.read_text(encoding="utf-8"))["training"]["steps"])


@dataclass
class GanSample:
    """Write synthetic images, marked as such, with a study table and a picture of all."""

    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    out: Path = field(kw_only=True)
    """Folder for images/, table.csv and grid.png."""
    findings: tuple[str, ...] = ()
    """What to show, how often: "Edema=5" "Edema+Cardiomegaly=3" "No Finding=2"; default: as in the training images."""
    count: int = 16
    """Number of images when no findings are named."""
    psi: float = 0.7
    """Truncation: 1 for the full variety, less for typical images."""
    truncation: tuple[float, ...] = ()
    """Also write truncation.png: the same latents at each of these values, one row each."""
    seed: int = 0
    """Of the latents."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""

    def run(self) -> None:
        from counterscan.cli.tables import say
        from counterscan.png import png
        from counterscan.tbsmgan import StyleGAN
        from counterscan.tbsmgan.export import facts_of, write_studies
        from counterscan.tbsmgan.grids import truncation_grid
        from counterscan.training import image_grid

        use(self.threads, self.device)
        gan = StyleGAN.from_pretrained(self.model, self.device)
        labels = asked_for(gan, self.findings) if self.findings else gan.draw_labels(self.count, self.seed)
        images = gan.sample(labels=labels, psi=self.psi, seed=self.seed)
        settings = {"psi": f"{self.psi:g}", "seed": str(self.seed)}
        table = write_studies(gan, images, labels, self.out, settings=settings)
        facts = facts_of(gan, settings=settings)
        _write(self.out / "grid.png", png(image_grid(images), facts))
        if self.truncation:
            few = labels[:8]
            rows = truncation_grid(gan, self.truncation, len(few), labels=few, seed=self.seed)
            _write(self.out / "truncation.png", png(image_grid(rows), facts))
        say(f"{table}: {len(images):,} synthetic images")
        for name in (finding for finding, learned in gan.learned.items() if not learned):
            if bool((labels[:, gan.findings.index(name)] > 0).any()):
                say(f"  {name} was not learned well: images asked to show it may not")


def asked_for(gan: StyleGAN, requests: tuple[str, ...]) -> Tensor:
    """Conditions (N, K) of requests such as "Edema+Cardiomegaly=3"; without "=" one image.

    Raises:
        InputError: a request that cannot be read, or a finding that the generator does not know.
    """
    import torch

    from counterscan.data.findings import NO_FINDING, canonical_name

    rows = []
    for request in requests:
        names, _, number = request.partition("=")
        if not (number or "1").isdigit() or int(number or "1") < 1:
            raise InputError(
                f"{request!r} does not end in a number of images", field="--findings", remedy='Write "Edema=5"'
            )
        wanted = [name for name in map(canonical_name, names.split("+")) if name != NO_FINDING]
        rows += [gan.labels_for(*wanted)] * int(number or "1")
    return torch.stack(rows)


def _write(path: Path, content: bytes) -> None:
    from counterscan.files import atomic_write

    with atomic_write(path) as handle:
        handle.write(content)


GAN = {"train": GanTrain, "sample": GanSample, **generator.COMMANDS}

COMMANDS = {
    "gan": Lazy("The generator: train it, ask it for images, invert real ones, evaluate, export.", lambda: GAN),
    "clip": Lazy("The text-image model: train it on images and reports.", lambda: clip.COMMANDS),
    "reports": Reports,
    **steer.COMMANDS,
    **graft.COMMANDS,
    "audit": Lazy(AUDIT, audit_command),
    **study.COMMANDS,
}
