"""Steering by text: ``counterscan augment edit`` one image, ``augment synthesize`` many studies of chosen findings.

``COMMANDS`` holds the two, for the list in ``cli.augment``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from counterscan.cli.clip import ZERO_SHOT
from counterscan.cli.machine import use
from counterscan.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from counterscan.counterpart import Counterpart
    from counterscan.data.store import PreparedStore
    from counterscan.nets.cnn import Classifier
    from counterscan.tbsmgan import StyleGAN
    from counterscan.tbsmgan.bodies import Supply
    from counterscan.tbsmgan.edits import Edited, Origin, Prompt
    from counterscan.tbsmgan.gate import Gate
    from counterscan.tbsmgan.steering import Steering
    from counterscan.text.zeroshot import ZeroShot

Method = Literal["style", "learned", "per-image", "label-swap", "random"]


@dataclass
class Edit:
    """Show an image as it would look with, or without, what a text says: a strip over strengths, maps and numbers."""

    image: tyro.conf.Positional[Path]
    """Image file; one of a patient that the generator learned from if you test on others."""
    text: tyro.conf.Positional[str]
    """What to ask for: the name of a finding, or text such as "small left pleural effusion"."""
    generator: Path
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    text_model: Path
    """Folder of the text-image model."""
    out: Path
    """Folder for the strip, the animation, the maps and the numbers."""
    strength: tuple[float, ...] = ()
    """Standard deviations towards the text, negative ones away; default: from minus to plus the method's usual one."""
    method: Method = "style"
    """How: "style" moves channels of the S space, "learned" a direction of W, "per-image" is optimised for each image,
    "label-swap" hears finding and side only, "random" is a placebo."""
    store: Path | None = None
    """The store that both models were trained on: its validation images tell what the text-image model knows, if no
    record of that lies beside it."""
    classifier: Path | None = None
    """Run folder of a classifier that judges each image of the strip; without, the text-image model's own opinion."""
    encoder: Path | None = None
    """Run folder of the encoder; default: GENERATOR/encoder. See `counterscan augment gan invert`."""
    steps: int = 200
    """Descent on the image's latents: 0 takes the encoder's answer (or the mean image), 200 is usual."""
    cache: Path | None = None
    """Folder for what is measured once per generator and text-image model; default: GENERATOR/steering."""
    force: bool = False
    """Also where the generator or the text-image model does not know what is asked for. Only to look."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> None:
        from counterscan.classify import load_classifier
        from counterscan.cli.tables import say
        from counterscan.data.load import load
        from counterscan.report.pseudonym import pseudonym, secret_key
        from counterscan.report.strips import write_explanation
        from counterscan.tbsmgan.edits import Origin

        if self.steps < 0:
            raise InputError("must be 0 or more", field="--steps")
        use(self.threads, self.device)
        steering = _steering(self)
        prompt = steering.prompt(self.text, method=self.method, force=self.force)
        image, _, _ = load(self.image, steering.gan.recipe, steering.gan.size)
        w, verdict = _inverted(self, steering.gan, image[None])
        body = Origin.of_images(steering.gan, image[None], w)
        classifier = load_classifier(self.classifier, self.device) if self.classifier is not None else None
        edits = _edits(steering, body, prompt, self.strength, self.method)
        answer, names = counterpart(image, edits, steering, verdict, classifier)
        name = pseudonym(str(self.image.resolve()), secret_key())
        written = write_explanation(self.out, name, answer, findings=names)
        for edited in edits:
            told = f"  strength {edited.strength:+g}"
            if edited.text_after is not None:
                told += f": cosine with the text {float(edited.text_after[0]):+.3f}"
            say(told)
        say(f"{written['strip']}: {prompt.finding}, {answer.verdict}")


@dataclass
class Synthesize:
    """Make studies with chosen findings: edit, judge every edit, keep what passes; go on where a run stopped."""

    generator: tyro.conf.Positional[Path]
    """A run folder of `counterscan augment gan train`, or a folder written by save_pretrained."""
    text_model: tyro.conf.Positional[Path]
    """Folder of the text-image model."""
    store: tyro.conf.Positional[Path]
    """The store that both were trained on, with the splits train and val."""
    findings: tuple[str, ...]
    """What and how many: "Edema=500" "small left pleural effusion=200"."""
    classifier: tuple[Path, ...]
    """Run folders of the classifiers that judge, trained on the store's split train; every one has to be sure."""
    out: Path
    """Folder for images/, table.csv and synthesis.json; the same command goes on with an interrupted run."""
    remove: bool = False
    """Take the findings out of bodies that have them, instead of bringing them in."""
    strength: float | None = None
    """Standard deviations; default: each body is moved until the classifiers see the finding."""
    method: Method | Literal["best"] = "best"
    """How: "style" moves channels of the S space, "learned" a direction of W, "label-swap" hears finding and side only;
    "best" asks all three and keeps for each body what the classifiers like best. "per-image" is optimised for each
    image, "random" is a placebo."""
    bodies: Literal["new", "real"] = "new"
    """What is edited: new samples of the generator; or the store's training images, each once, which keep their texture
    (needs an encoder, see `counterscan augment gan invert`). Edited images of patients are images of these patients."""
    encoder: Path | None = None
    """Run folder of the encoder for real bodies; default: GENERATOR/encoder."""
    tries: float = 10.0
    """At most so many edits for each study that is wanted."""
    psi: float = 0.7
    """Truncation of the bodies: 1 for the full variety, less for typical ones."""
    cache: Path | None = None
    """Folder for what is measured once per generator and text-image model; default: GENERATOR/steering."""
    force: bool = False
    """Also where the generator or the text-image model does not know what is asked for; the gate still judges."""
    seed: int = 0
    """Of the bodies."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> int:
        from rich.console import Console
        from rich.progress import Progress

        from counterscan.cli.tables import say
        from counterscan.tbsmgan.steering import BEST
        from counterscan.tbsmgan.synthesis import MOSTLY, SynthesisConfig, passing, synthesize

        use(self.threads, self.device)
        config = SynthesisConfig(-1 if self.remove else 1, self.strength, self.tries, psi=self.psi, seed=self.seed)
        steering = _steering(self)
        methods: tuple[Method, ...] = BEST if self.method == "best" else (self.method,)
        prompts: dict[str, Prompt] = {}
        wanted: dict[str, int] = {}
        for text, count in map(asked, self.findings):
            prompt = steering.prompt(text, method=methods[-1], force=self.force)
            if prompt.finding in prompts:
                raise InputError(
                    f"{prompt.finding} is asked for twice",
                    field="--findings",
                    remedy="Make one run for each, with folders of their own",
                )
            prompts[prompt.finding], wanted[prompt.finding] = prompt, count
        gate = gate_of(self.store, self.classifier, self.out / "gate", self.device)
        editors = [steering.editor(method) for method in methods]
        supply = _supply(self, steering.gan)
        for name, share in passing(editors, gate, prompts, supply, config).items():
            if share < MOSTLY:
                say(f"{name}: {share:.0%} of edits pass; most fail, and the classifiers' errors choose some")
        with Progress(transient=True, console=Console(stderr=True)) as bar:
            tasks = {name: bar.add_task(name, total=count) for name, count in wanted.items()}
            report = synthesize(
                steering.gan,
                editors,
                gate,
                prompts,
                wanted,
                self.out,
                config,
                supply=supply,
                progress=lambda name, done, _: bar.update(tasks[name], completed=done),
            )
        Console().print(rates(report.tally.table()))
        for name, count in report.accepted.items():
            short = f"; {report.short[name]}" if name in report.short else ""
            strength = f"strength {report.strengths[name]:+g}" if name in report.strengths else "not tried"
            say(f"{name}: {count:,} of {report.wanted[name]:,} studies, {strength}{short}")
        say(f"{report.table}: {sum(report.accepted.values()):,} synthetic studies")
        return 0 if any(report.accepted.values()) else 1


def _steering(command: Edit | Synthesize) -> Steering:
    from counterscan.data.store import PreparedStore
    from counterscan.tbsmgan import StyleGAN
    from counterscan.tbsmgan.steering import Steering
    from counterscan.text.clip import load_clip

    gan = StyleGAN.from_pretrained(command.generator, command.device)
    model = load_clip(command.text_model, command.device)
    cache = command.cache or command.generator / "steering"
    store = PreparedStore.open(command.store) if command.store is not None else None
    known = zero_shot_of(command.text_model, model, store, cache)
    return Steering(gan, model, zero_shot=known, cache=cache, progress=_Counted())


class _Counted:
    """Says that channels are being measured, and how far it is."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        if self._bar is None:
            self._bar = Progress(transient=True, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("measuring style channels, once per generator", total=total)
        self._bar.update(self._task, completed=done)
        if done == total:
            self._bar.stop()
            self._bar = None


def zero_shot_of(folder: Path, model: Any, store: PreparedStore | None, cache: Path) -> ZeroShot | None:
    """What is known of a text-image model: the record beside it, or in the cache, or measured on the store's validation
    images and kept in the cache; None without any."""
    import torch

    from counterscan.tbsmgan.edits.base import digest_of
    from counterscan.text.zeroshot import ZeroShot, judge

    own = cache / f"zeroshot-{digest_of(model)}.json"
    for path in (folder / ZERO_SHOT, folder / "model" / ZERO_SHOT, own):
        if path.is_file():
            return ZeroShot.load(path)
    if store is None:
        return None
    val = store.subset(store.split == "val")
    known = judge(model, val, torch.from_numpy(val.labels), val.findings)
    known.save(own)
    return known


def asked(request: str) -> tuple[str, int]:
    """Text and number of "Edema=500"."""
    text, _, number = request.rpartition("=")
    if not text or not number.isdigit() or int(number) < 1:
        raise InputError(f"{request!r} does not say what and how many", field="--findings", remedy='Write "Edema=500"')
    return text, int(number)


def _supply(command: Synthesize, gan: StyleGAN) -> Supply:
    from counterscan.data.store import PreparedStore
    from counterscan.tbsmgan.bodies import Inverted, Sampled
    from counterscan.tbsmgan.inverter import Inverter

    if command.bodies == "new":
        return Sampled(gan, command.psi, command.seed)
    encoder = Inverter.from_pretrained(command.encoder or command.generator / "encoder", gan)
    (train,) = PreparedStore.open(command.store).parts("train")
    labels = train.table.targets("ignore", "zero")
    return Inverted.of(gan, encoder.encode, train, labels, train.findings, command.seed)


def gate_of(store: Path, classifiers: Sequence[Path], folder: Path, device: str) -> Gate:
    """The gate of these classifiers, calibrated on the store's training and validation images unless it is there."""
    from counterscan.classify import load_classifier
    from counterscan.data.store import PreparedStore
    from counterscan.tbsmgan.gate import Gate

    verifiers = [load_classifier(path, device) for path in classifiers]
    if (folder / "gate.json").is_file():
        return Gate.load(folder, verifiers)
    gate = Gate.calibrate(verifiers, PreparedStore.open(store))
    gate.save(folder)
    return gate


def _inverted(command: Edit, gan: StyleGAN, x: Tensor) -> tuple[Tensor, str]:
    """w (1, num_ws, w_dim) of an image, by the encoder if there is one, and how good that is."""
    from counterscan.cli.generator import watcher_of
    from counterscan.metrics.validity import psnr
    from counterscan.tbsmgan.edits.base import images_of
    from counterscan.tbsmgan.inversion import RefineConfig, refine
    from counterscan.tbsmgan.inverter import SETTINGS, Inverter

    folder, config = command.encoder or command.generator / "encoder", RefineConfig(steps=command.steps)
    if any((place / SETTINGS).is_file() for place in (folder, folder / "encoder")):
        watcher = watcher_of(folder, command.generator, command.device)
        found = Inverter.from_pretrained(folder, gan, watcher).invert(x, config)
        return found.latents.ws.to(gan.device), found.verdicts[0]
    if command.encoder is not None:
        raise InputError(
            "there is no encoder here", path=folder, field="--encoder", remedy="Train one, or leave it out"
        )
    middle = gan.generator.w_avg.expand(1, gan.generator.num_ws, -1)
    w = refine(gan, x, middle, config).ws
    reached = float(psnr(x, images_of(gan, w).cpu())[0])
    return w, f"not judged: without an encoder no limits are known; PSNR {reached:.1f} dB"


def _edits(
    steering: Steering, body: Origin, prompt: Prompt, strengths: tuple[float, ...], method: Method
) -> list[Edited]:
    """One per strength, from the lowest to the highest; strength 0 is among them."""
    if not strengths:
        usual = steering.editor(method).usual(prompt)
        strengths = (-usual, -usual / 2, usual / 2, usual)
    return [steering.edit(body, prompt, strength, method=method) for strength in sorted({0.0, *strengths})]


def counterpart(
    image: Tensor, edits: list[Edited], steering: Steering, verdict: str, classifier: Classifier | None = None
) -> tuple[Counterpart, tuple[str, ...]]:
    """Edits of one image as the answer of a system, with the names of the path's outputs.

    Args:
        image: (1, H, W) in [-1, 1].
        edits: of this one image, by rising strength; one has strength 0.
        steering: who made them.
        verdict: on the inversion.
        classifier: gives calibrated probabilities along the strip; without, the text-image model's own, uncalibrated.

    Raises:
        InputError: the classifier does not know the finding.
    """
    import torch

    import counterscan
    from counterscan.counterpart import CounterfactualPath, Counterpart, Provenance, Query

    prompt = edits[0].prompt
    frames = torch.cat([edited.after for edited in edits]).cpu()
    if classifier is not None:
        if prompt.finding not in classifier.findings:
            raise InputError(
                f"the classifier does not know {prompt.finding!r}",
                field="--classifier",
                remedy=f"It knows {', '.join(classifier.findings)}",
            )
        device, names = next(classifier.parameters()).device, tuple(classifier.findings)
        with torch.no_grad():
            outputs = classifier.probabilities(classifier(frames.to(device))).cpu()
    else:
        names = (prompt.finding,)
        cosines = torch.cat([edited.text_after for edited in edits if edited.text_after is not None])
        scale = float(getattr(steering.model, "logit_scale", 1.0))
        outputs = torch.sigmoid(scale * cosines).cpu()[:, None]
        verdict += "; p is the text-image model's own opinion, not calibrated"
    strengths = torch.tensor([edited.strength for edited in edits])
    unchanged = frames[int(strengths.abs().argmin())]
    reconstruction = edits[0].latents.shown(steering.gan).image
    assert reconstruction is not None
    furthest = frames[int(strengths.abs().argmax())]
    toward = float(strengths[int(strengths.abs().argmax())]) > 0
    column = names.index(prompt.finding)
    settings = {"method": edits[0].method, "touched": max(edited.touched for edited in edits)}
    answer = Counterpart(
        image=image,
        evidence=(furthest - unchanged).abs(),
        query=Query(prompt.finding, "add" if toward else "remove", float(strengths.abs().max()), prompt.text),
        made_by=Provenance("TB-SMGAN", counterscan.__version__, steering.gan.checkpoint, settings),
        counterpart=furthest,
        score_before=float(outputs[int(strengths.abs().argmin()), column]),
        score_after=float(outputs[int(strengths.abs().argmax()), column]),
        path=CounterfactualPath(frames, strengths, outputs),
        extras={"difference": unchanged - furthest, "reconstruction": reconstruction[0].cpu()},
        verdict=verdict,
    )
    return answer, names


def rates(rows: list[dict[str, Any]]) -> Any:
    """The gate's rates for the terminal, as narrow as 80 columns: counts, and the share that passes each criterion."""
    from counterscan.report.tables import Table

    columns = {
        "finding": "Finding",
        "tried": "Tried",
        "accepted": "Passed",
        "target": "Target",
        "off-target": "Others",
        "identity": "Body",
        "realism": "Real",
        "new": "New",
    }
    cells = [[row[c] for c in columns] for row in rows]
    return Table("What the gate let through", tuple(columns.values()), cells, digits=2).to_rich()


COMMANDS = {"edit": Edit, "synthesize": Synthesize}
