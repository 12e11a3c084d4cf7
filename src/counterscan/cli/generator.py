"""What a trained generator is put to: ``counterscan augment gan invert``, ``evaluate`` and ``export``.

``COMMANDS`` holds the three, for the list in ``cli.augment``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from counterscan.cli.machine import use
from counterscan.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from counterscan.tbsmgan import StyleGAN
    from counterscan.tbsmgan.inverter import Inversion, Inverter


@dataclass
class GanInvert:
    """Find the latents of real images; train the encoder that it takes, the first time. Say how good each answer is."""

    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, folders, study tables. Edit only images that the generator learned from if you test on others."""
    out: Path = field(kw_only=True)
    """Folder for results.csv, latents.safetensors, reconstructions/ and inversions.png."""
    encoder: Path | None = None
    """Run folder of the encoder; default: MODEL/encoder. Without a finished one there it is trained, with --store."""
    store: Path | None = None
    """Folder made by `counterscan data prepare` with the splits train and val, to train the encoder on."""
    classifier: Path | None = None
    """Run folder of a classifier whose features images should agree in; default: MODEL/classifier, if there is one."""
    encoder_steps: int = 1000
    """Length of the encoder's training."""
    steps: int = 200
    """Descent on each image's latents: 0 takes the encoder's answer, 50 is quick, 200 usual."""
    noise: bool = False
    """Find noise maps too: more detail, which edits leave alone."""
    tune: int = 0
    """Steps of pivotal tuning of a copy of the generator on all these images together; 0 for none. The copy is written
    to OUT/tuned and is as private as the images."""
    links: Path | None = None
    """Write a CSV of pseudonymous id and path here; keep it as private as the images."""
    seed: int = 0
    """Of the encoder's training and of tuning."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> int:
        import torch

        from counterscan.cli.tables import say
        from counterscan.tbsmgan import StyleGAN
        from counterscan.tbsmgan.inversion import RefineConfig
        from counterscan.tbsmgan.tuning import TuneConfig, tune

        if self.steps < 0 or self.tune < 0:
            raise InputError("must be 0 or more", field="--steps" if self.steps < 0 else "--tune")
        use(self.threads, self.device)
        gan = StyleGAN.from_pretrained(self.model, self.device)
        inverter = self._inverter(gan)
        names, images, bad = _read(self.inputs, self.out, gan, self.links)
        for path, reason in bad[:10]:
            say(f"  {path}: {reason}")
        if not names:
            say(f"{self.out}: no image could be read")
            return 1
        x = torch.stack(images)
        config = RefineConfig(steps=self.steps, noise=self.noise)
        found = inverter.invert(x, config)
        if self.tune:
            # Whose images these are is not known here, so nothing may be measured with the copy.
            tuned = tune(gan, x, found.latents, TuneConfig(steps=self.tune, seed=self.seed), inverter.likeness)
            tuned.save_pretrained(self.out / "tuned")
            found = inverter.judge(x, found.latents, tuned)
        self._write(gan, names, x, found)
        good = sum(verdict == "ok" for verdict in found.verdicts)
        say(
            f"{self.out}: {len(names)} images, {good} of them ok, {len(bad)} unusable; "
            f"PSNR {float(found.psnr.mean()):.1f} dB, SSIM {float(found.ssim.mean()):.3f} on average"
        )
        return 0

    def _inverter(self, gan: StyleGAN) -> Inverter:
        from dataclasses import replace

        from counterscan.data.store import PreparedStore
        from counterscan.tbsmgan.encoder_training import EncoderConfig, train_encoder
        from counterscan.tbsmgan.inverter import SETTINGS, Inverter

        folder = self.encoder or self.model / "encoder"
        classifier = self._classifier()
        if any((place / SETTINGS).is_file() for place in (folder, folder / "encoder")):
            return Inverter.from_pretrained(folder, gan, classifier)
        if self.store is None:
            raise InputError(
                "there is no finished encoder here",
                path=folder,
                field="--encoder",
                remedy="Name one, or train it with --store and the images that the generator learned from",
            )
        base = EncoderConfig()
        loop = replace(
            base.training, steps=self.encoder_steps, seed=self.seed, threads=self.threads, device=self.device
        )
        store = PreparedStore.open(self.store)
        return train_encoder(gan, store, folder, replace(base, training=loop), classifier=classifier)

    def _classifier(self) -> nn.Module | None:
        from counterscan.classify import load_classifier

        folder = self.classifier or _beside(self.model)
        return load_classifier(folder, self.device) if folder is not None else None

    def _write(self, gan: StyleGAN, names: list[str], x: Tensor, found: Inversion) -> None:
        import csv
        import io

        import torch

        from counterscan.files import atomic_write, write_text
        from counterscan.png import png
        from counterscan.pretrained import write_tensors
        from counterscan.report.pictures import grey
        from counterscan.tbsmgan.export import facts_of
        from counterscan.training import image_grid

        facts = facts_of(gan) | {"Description": "Synthetic image: what the generator makes of a real one"}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "psnr", "ssim", "distance", "verdict"])
        for row, name in enumerate(names):
            figures = [f"{float(values[row]):.4f}" for values in (found.psnr, found.ssim, found.distance)]
            writer.writerow([name, *figures, found.verdicts[row]])
            with atomic_write(self.out / "reconstructions" / f"{name}.png") as handle:
                handle.write(png(grey(found.images[row]), facts))
        write_text(self.out / "results.csv", text.getvalue())
        tensors = {"ws": found.latents.ws} | {f"noise/{name}": maps for name, maps in found.latents.noises.items()}
        about = {"ids": "\n".join(names), "checkpoint": gan.checkpoint}
        write_tensors(self.out / "latents.safetensors", tensors, about)
        worst = found.psnr.argsort()[:16]
        rows = torch.stack([x[worst], found.images[worst], (x[worst] - found.images[worst]).abs() * 2 - 1])
        with atomic_write(self.out / "inversions.png") as handle:
            handle.write(png(image_grid(rows), facts | {"Rows": "image, reconstruction, difference; the worst first"}))


def _beside(model: Path) -> Path | None:
    """The classifier that watched the generator's training, if its folder is there."""
    return next((f for f in (model / "classifier", model.parent / "classifier") if f.is_dir()), None)


def watcher_of(encoder: Path, model: Path, device: str) -> nn.Module | None:
    """The classifier beside the generator, if it is the one that the encoder was trained with.

    Images are then inverted by its features, too, as ``invert`` does it.
    """
    from counterscan.classify import load_classifier
    from counterscan.files import read_json
    from counterscan.pretrained import model_folder
    from counterscan.tbsmgan.inverter import SETTINGS
    from counterscan.training.checkpoint import weights_digest

    settings = model_folder(encoder, SETTINGS, "Train an encoder first", inner="encoder") / SETTINGS
    digest, folder = read_json(settings).get("classifier"), _beside(model)
    if digest is None or folder is None:
        return None
    classifier = load_classifier(folder, device)
    return classifier if weights_digest(classifier) == digest else None


def _read(
    inputs: tuple[Path, ...], out: Path, gan: StyleGAN, links: Path | None
) -> tuple[list[str], list[Tensor], list[tuple[str, str]]]:
    """Pseudonyms and images (1, S, S) of what can be read; paths and reasons of what cannot."""
    import csv
    import io

    from counterscan.cli.inputs import Items
    from counterscan.data.load import load
    from counterscan.errors import CounterscanError
    from counterscan.files import write_text
    from counterscan.report.pseudonym import pseudonym, secret_key

    key, names, images, bad, paths = secret_key(), list[str](), list[Any](), list[tuple[str, str]](), list[Any]()
    for path, frame in Items(inputs, False, out):
        try:
            image, _, _ = load(path, gan.recipe, gan.size, frame)
        except CounterscanError as error:
            bad.append((str(path), " ".join(str(error).split())))
            continue
        names.append(pseudonym(f"{path.resolve()}#{frame}", key))
        images.append(image)
        paths.append((names[-1], str(path), "" if frame is None else str(frame)))
    if links is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("id", "path", "frame"), *paths])
        write_text(links, text.getvalue())
    return names, images, bad


@dataclass
class GanEvaluate:
    """Judge a generator on patients it never saw: fidelity, variety, label truth, copies, truncation; write a page."""

    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    store: tyro.conf.Positional[Path]
    """A prepared store, or a study table, which is then prepared with the model's size and recipe; with rows in the
    splits train and val or test."""
    out: Path = field(kw_only=True)
    """Folder for report.html, card.json and generator.json."""
    classifier: Path | None = None
    """Run folder of a classifier whose features are compared; default: MODEL/classifier, else one is trained."""
    judge: Path | None = None
    """Run folder of a classifier that judges the findings; the generator must not have been chosen with it."""
    samples: int = 1000
    """Synthetic images."""
    psi: float = 1.0
    """Their truncation; 1 judges what was learned, less what `augment gan sample` gives."""
    quick: bool = False
    """Few samples and resamples; for a first look, not for comparison."""
    seed: int = 0
    """Of the samples."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> None:
        from rich.console import Console

        from counterscan.bench.generator_report import GeneratorConfig, evaluate_generator, quick
        from counterscan.bench.quality import QualityConfig
        from counterscan.classify import load_classifier
        from counterscan.cli.classify import open_or_prepare
        from counterscan.cli.inputs import is_table
        from counterscan.cli.tables import say
        from counterscan.tbsmgan import StyleGAN

        use(self.threads, self.device)
        gan = StyleGAN.from_pretrained(self.model, self.device)
        size = gan.size if is_table(self.store) else None
        store = open_or_prepare(self.store, self.out / "store", size, recipe=gan.recipe)
        folder = self.classifier or _beside(self.model)
        config = GeneratorConfig(samples=self.samples, psi=self.psi, card=QualityConfig(seed=self.seed))
        with Console(stderr=True).status("evaluating") as status:
            report = evaluate_generator(
                gan,
                store,
                self.out,
                quick(config) if self.quick else config,
                classifier=load_classifier(folder, self.device) if folder is not None else None,
                judge=load_classifier(self.judge, self.device) if self.judge is not None else None,
                run=self.model if (self.model / "metrics.jsonl").is_file() else None,
                progress=lambda name, done, count: status.update(f"{name}: {done} of {count}"),
            )
        for section in report.card.sections:
            say(f"{section.name}: {section.verdict}. {section.said}")
        for table in report.tables():
            Console().print(table.to_rich())
        say(f"report: {report.page}")


@dataclass
class GanExport:
    """Take a generator elsewhere: ONNX networks, or synthetic studies as PNG or DICOM with a study table."""

    model: tyro.conf.Positional[Path]
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    out: Path = field(kw_only=True)
    """Folder for what is written."""
    onnx: bool = False
    """Write mapping.onnx and synthesis.onnx, checked against the network."""
    weights: bool = False
    """Write weights, settings and model card to OUT/model, as save_pretrained does."""
    count: int = 0
    """Synthetic studies to write, with the training images' mixture of findings."""
    findings: tuple[str, ...] = ()
    """Instead of a count, what to show and how often: "Edema=5" "Edema+Cardiomegaly=3" "No Finding=2"."""
    format: Literal["png8", "png16", "dicom8", "dicom16"] = "png8"
    """Of the studies' images; DICOM files are Secondary Captures, marked as synthetic and derived."""
    psi: float = 0.7
    """Truncation: 1 for the full variety, less for typical images."""
    seed: int = 0
    """Of the latents."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> None:
        from counterscan.cli.augment import asked_for
        from counterscan.cli.tables import say
        from counterscan.tbsmgan import StyleGAN
        from counterscan.tbsmgan.export import write_studies

        if not (self.onnx or self.weights or self.count or self.findings):
            raise InputError(
                "nothing to export", field="--count", remedy="Say --onnx, --weights, --count or --findings"
            )
        if self.count < 0 or (self.count and self.findings):
            raise InputError("give either a positive number of studies or findings", field="--count")
        use(self.threads, self.device)
        gan = StyleGAN.from_pretrained(self.model, self.device)
        if self.onnx:
            from counterscan.tbsmgan.onnx_export import export_onnx

            for name, apart in export_onnx(gan, self.out).items():
                say(f"{self.out / name}: at most {apart:.1g} from the network")
        if self.weights:
            say(f"{gan.save_pretrained(self.out / 'model')}: weights, settings and model card")
        if self.count or self.findings:
            labels = asked_for(gan, self.findings) if self.findings else gan.draw_labels(self.count, self.seed)
            images = gan.sample(labels=labels, psi=self.psi, seed=self.seed)
            settings = {"psi": f"{self.psi:g}", "seed": str(self.seed)}
            table = write_studies(gan, images, labels, self.out, format=self.format, settings=settings)
            say(f"{table}: {len(images):,} synthetic studies")
            for name in sorted(f for f, learned in gan.learned.items() if not learned):
                if bool((labels[:, gan.findings.index(name)] > 0).any()):
                    say(f"  {name} was not learned well: images asked to show it may not")


COMMANDS = {"invert": GanInvert, "evaluate": GanEvaluate, "export": GanExport}
