"""medXGAN as published (Dravid et al., CVPRW 2022, arXiv 2204.05376): what medXGAN+ is measured against.

    (z1, z2) = argmin BCE(p(G(z1, z2)), p(x)) + 4 |G(z1, z2) - x|^2     for each image, by 5,000 steps of Adam
    y = G(z1, 0)                                                        the negative counterpart, as G makes it
    G(z1, a z2), 1 >= a >= 0                                            the way there

Networks and objective are in ``medxgan.published_training``. Here too all is as in the authors' code, faults mended:
attributions keep one target, and G is never tuned towards a retouched image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn

import counterscan
from counterscan.care import Care, evaluating, tidy
from counterscan.classify import from_pretrained as classifier_from
from counterscan.classify import save_pretrained as save_classifier
from counterscan.counterpart import CounterfactualPath, Counterpart, Direction, Provenance, Query, StudyBatch
from counterscan.data.intensity import IntensityRecipe
from counterscan.errors import InputError
from counterscan.files import read_json, sha256_file, write_json, write_text
from counterscan.inputs import checked_images, findings_of
from counterscan.medxgan.attribution import LEAST_RISE, displacement_integrated_gradients, path_integrated_gradients
from counterscan.medxgan.inversion import latent_optimisation
from counterscan.medxgan.published_training import (
    LadderConfig,
    LadderGenerator,
    PublishedObjective,
    column_of,
    train_generator,
)
from counterscan.metrics.faithfulness import completeness_gap
from counterscan.metrics.validity import psnr
from counterscan.nets.cnn import Classifier
from counterscan.pretrained import reading, write_tensors
from counterscan.training import TrainConfig
from counterscan.training.checkpoint import weights_digest

if TYPE_CHECKING:
    from counterscan.data.store import PreparedStore

SETTINGS, WEIGHTS, CLASSIFIER = "medxgan_published.json", "generator.safetensors", "classifier"


@dataclass(frozen=True)
class PublishedExplain:
    """How an image is explained.

    Attributes:
        steps, rate, pixel: of the inversion, see ``latent_optimisation``.
        seed: of z2's start and of the draws, which are the same for every image.
        frames: of the way from reconstruction to counterpart, both included.
        fineness: steps of the integrated gradients from one frame to the next.
        draws: of z2, to add a finding; the first that changes the call is taken.
        care: smoothing of the evidence, by default without spreading; there is nothing to average.
        internal_batch_size: images inverted together; bounds memory.
    """

    steps: int = 5000
    rate: float = 0.01
    pixel: float = 4.0
    seed: int = 0
    frames: int = 11
    fineness: int = 5
    draws: int = 8
    care: Care = field(default_factory=lambda: Care(smoothing=1 / 64))
    internal_batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("frames", 2), ("fineness", 1), ("draws", 1), ("internal_batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"must be at least {least}", field=name)


def _training() -> TrainConfig:
    return TrainConfig(steps=65_000, batch_size=32, validate_every=1000, checkpoint_every=1000, sample_every=2000)


@dataclass(frozen=True)
class PublishedConfig:
    """Everything that a run is made of.

    Attributes:
        training: the loop's settings; about as many steps as the brain model's, at a constant rate, without averaging.
        networks: None takes the published ones for the store's size.
        objective, explain: see there.
    """

    training: TrainConfig = field(default_factory=_training)
    networks: LadderConfig | None = None
    objective: PublishedObjective = field(default_factory=PublishedObjective)
    explain: PublishedExplain = field(default_factory=PublishedExplain)


class PublishedMedXGAN:
    """Visual explanations of one finding of one frozen classifier. The counterpart is G's image, nothing of x is kept.

    Use ``PublishedMedXGAN.fit`` or ``PublishedMedXGAN.from_pretrained``.

    Args:
        generator: trained G.
        classifier: (N, 1, H, W) in [-1, 1] to logits (N, C), with ``findings``. It is put into evaluation mode and its
            weights are taken out of training, and stay so.
        finding: the one that G was trained for, by name or column.
        config: how images are explained.
        recipe: how intensities became [-1, 1] in training.
        checkpoint: digest of the weights.
    """

    name = "medXGAN"

    def __init__(
        self,
        generator: LadderGenerator,
        classifier: nn.Module,
        finding: int | str,
        *,
        config: PublishedExplain | None = None,
        recipe: IntensityRecipe | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.classifier = classifier.eval().requires_grad_(False)
        self.column, self.findings = column_of(classifier, finding), findings_of(classifier)
        self.finding, self.size = self.findings[self.column], generator.config.size
        self.config, self.recipe, self.checkpoint = config or PublishedExplain(), recipe, checkpoint

    @classmethod
    def fit(
        cls,
        store: PreparedStore,
        classifier: nn.Module,
        folder: str | Path,
        config: PublishedConfig | None = None,
        *,
        finding: int | str | None = None,
    ) -> PublishedMedXGAN:
        """Train, save to ``folder/model``. Called again after an interruption it goes on from there.

        Args:
            store: the rows of its split "train" are used, no label is: positive is what the classifier calls so.
            classifier, folder, config, finding: see the class.

        Raises:
            InputError: no training rows, a size without published networks, or the classifier calls all images alike.
        """
        config, folder, column = config or PublishedConfig(), Path(folder), column_of(classifier, finding)
        generator, digest = train_generator(
            store, classifier, column, folder, config.training, config.networks, config.objective
        )
        explainer = cls(
            generator, classifier, column, config=config.explain, recipe=store.recipe, checkpoint=digest[:16]
        )
        explainer.save_pretrained(folder / "model")
        return explainer

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, classifier: nn.Module | None = None, device: str = "cpu"
    ) -> PublishedMedXGAN:
        """Load a run or model folder; a classifier that is not counterscan's own must be given again.

        Raises:
            InputError: no model, a damaged one, or a classifier that is missing or another one.
        """
        folder = next((f for f in (Path(folder), Path(folder) / "model") if (f / SETTINGS).is_file()), Path(folder))
        settings = read_json(folder / SETTINGS)
        with reading(folder):
            known = settings["classifier"]
            if classifier is None and known["own"]:
                classifier = classifier_from(folder / CLASSIFIER, device)
            generator = LadderGenerator(LadderConfig(**settings["networks"]))
            generator.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
            values = settings["explain"]
            care = Care(**{**values["care"], "shifts": tuple(map(tuple, values["care"]["shifts"]))})
            config = PublishedExplain(**{**values, "care": care})
            recipe = IntensityRecipe.from_dict(settings["recipe"]) if settings["recipe"] is not None else None
            finding = settings["finding"]
        if classifier is None or weights_digest(classifier) != known["digest"]:
            raise InputError(
                "it is not kept with the model" if classifier is None else "the model was trained for another one",
                path=folder,
                field="classifier",
                remedy="Give the classifier that the model was trained for",
            )
        checkpoint = sha256_file(folder / WEIGHTS)[:16]
        return cls(
            generator.to(device), classifier.to(device), finding, config=config, recipe=recipe, checkpoint=checkpoint
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, settings and a model card to a folder that ``from_pretrained`` reads; settings last."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS, self.generator.state_dict())
        own = isinstance(self.classifier, Classifier)
        if isinstance(self.classifier, Classifier):
            save_classifier(self.classifier, folder / CLASSIFIER)
        digest = weights_digest(self.classifier)
        write_text(
            folder / "README.md",
            f"# medXGAN for {self.finding}\n\nThe published method, made for one classifier (digest "
            f"{digest[:16]}) and images of {self.size} x {self.size} pixels in [-1, 1].\n\n"
            "**Research use only. Not a medical device.** Counterparts are synthetic images.\n",
        )
        settings = {
            "version": counterscan.__version__,
            "finding": self.finding,
            "networks": dataclasses.asdict(self.generator.config),
            "explain": dataclasses.asdict(self.config),
            "recipe": self.recipe.to_dict() if self.recipe is not None else None,
            "classifier": {"own": own, "digest": digest},
        }
        write_json(folder / SETTINGS, settings)
        return folder

    @property
    def device(self) -> torch.device:
        """Where G is."""
        return next(self.generator.parameters()).device

    def invert(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of images (N, 1, H, W): z1 (N, anatomy) and z2 (N, pathology), z1 from 0 and z2 from one draw."""
        c, sizes, n = self.config, self.generator.config, len(images)

        def start() -> list[Tensor]:
            z2 = self._normal(1, c.seed).expand(n, -1)
            return [torch.zeros(n, sizes.anatomy, device=self.device), z2]

        with torch.inference_mode(False), evaluating(self.classifier), evaluating(self.generator):
            z1, z2 = latent_optimisation(
                checked_images(images, self.size).to(self.device).clone(),
                start,
                lambda codes: self.generator(*codes),
                self._logits,
                column=self.column,
                steps=c.steps,
                rate=c.rate,
                pixel=c.pixel,
            )
        return z1, z2

    @torch.no_grad()
    def path(self, z1: Tensor, start: Tensor, end: Tensor, strength: float = 1.0) -> Tensor:
        """G along the straight line from z2 = ``start`` to ``strength`` of the way to ``end``.

        Returns:
            (K, N, 1, H, W) with K = (frames - 1) * fineness + 1; every ``fineness``-th is a frame.
        """
        shares = strength * torch.linspace(0, 1, (self.config.frames - 1) * self.config.fineness + 1)
        return torch.stack([self.generator(z1, torch.lerp(start, end, share)) for share in shares.tolist()])

    def maps(self, path: Tensor) -> dict[str, Tensor]:
        """Of a path (K, N, 1, H, W) from reconstruction to counterpart, signed maps (N, 1, H, W).

        "difference" is reconstruction - counterpart; "lig" are the latent integrated gradients of f over the path,
        which sum to its difference; "lig_published" those of the paper, but with the target kept.
        """
        backwards = path.flip(0)
        return {
            "difference": path[0] - path[-1],
            "lig": path_integrated_gradients(backwards, self._output),
            "lig_published": displacement_integrated_gradients(backwards, self._output),
        }

    def attribute(self, inputs: Tensor, target: int | str) -> Tensor:
        """Captum's shape: the signed difference map (N, 1, H, W)."""
        answers = self.explain(inputs, target)
        if not answers:
            return torch.zeros_like(inputs)
        return torch.stack([a.extras["difference"] for a in answers]).to(inputs.device)

    def explain(self, images: Tensor, target: int | str, direction: Direction = "remove") -> list[Counterpart]:
        """Explain the classifier's finding in images (N, 1, H, W) in [-1, 1]; see ``counterparts``."""
        finding = self.findings[column_of(self.classifier, target)]
        return self.counterparts(StudyBatch(images, self.findings), Query(finding, direction))

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """Counterparts with evidence, scores and path.

        Returns:
            One per image, on the CPU. ``path`` leads from the reconstruction (strength 0) to the counterpart (the
            query's strength) with the classifier's probabilities; ``extras`` holds the ``maps`` and the
            "reconstruction"; ``figures`` the quality: "psnr" of the reconstruction, "logit_gap" between it and the
            image, "completeness_gap" (NaN where the logit hardly changes), "flipped".

        Raises:
            InputError: G was trained for another finding, or unusable images.
        """
        if column_of(self.classifier, query.finding) != self.column:
            raise InputError(
                f"the model explains {self.finding}", field="finding", remedy=f"Train one for {query.finding}"
            )
        batch = dataclasses.replace(batch, images=checked_images(batch.images, self.size))
        part = self.config.internal_batch_size
        with torch.inference_mode(False), evaluating(self.classifier), evaluating(self.generator):
            parts = [batch.rows(slice(start, start + part)) for start in range(0, len(batch), part)]
            return [answer for each in parts for answer in self._answers(each, query)]

    def _answers(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        batch = batch.to(self.device)
        removing, x, valid = query.direction == "remove", batch.images.clone(), batch.valid
        z1, z2 = self.invert(x)
        end = torch.zeros_like(z2) if removing else self._drawn(z1, z2, query.strength)
        path = self.path(z1, z2, end, query.strength)
        frames, maps = path[:: self.config.fineness], self.maps(path)
        with torch.no_grad():
            logits = torch.stack([self._logits(frame) for frame in frames])  # (K, N, C)
            image = self._output(x)
        before, again, after = (f.sigmoid() for f in (image, logits[0, :, self.column], logits[-1, :, self.column]))
        evidence = tidy(maps["difference"].abs(), x, self.config.care)
        if valid is not None:
            evidence = evidence * valid
        figures = {
            "psnr": psnr(x, path[0], valid),
            "logit_gap": (image - logits[0, :, self.column]).abs(),
            "completeness_gap": completeness_gap(
                maps["lig"], logits[0, :, self.column], logits[-1, :, self.column], LEAST_RISE
            ),
            "flipped": ((after < 0.5) == removing).float(),
        }
        strengths = query.strength * torch.linspace(0, 1, self.config.frames)
        made_by = Provenance(self.name, counterscan.__version__, self.checkpoint, dataclasses.asdict(self.config))
        extras = maps | {"reconstruction": path[0]}
        return [
            Counterpart(
                image=batch.images[i].cpu(),
                evidence=evidence[i].cpu(),
                counterpart=path[-1, i].cpu(),
                query=query,
                made_by=made_by,
                score_before=float(before[i]),
                score_after=float(after[i]),
                path=CounterfactualPath(frames[:, i].cpu(), strengths, logits[:, i].sigmoid().cpu()),
                extras={name: m[i].cpu() for name, m in extras.items()},
                figures={name: float(values[i]) for name, values in figures.items()},
                verdict=_verdict(removing, float(before[i]), float(again[i]), float(after[i])),
                source=None if batch.sources is None else batch.sources[i],
            )
            for i in range(len(x))
        ]

    @torch.no_grad()
    def _drawn(self, z1: Tensor, z2: Tensor, strength: float) -> Tensor:
        """The first draw of z2 that makes the call positive; where none does, the one that comes nearest."""
        best, most = z2, torch.full((len(z1),), -torch.inf, device=z1.device)
        for draw in self._normal(self.config.draws, self.config.seed + 1):
            end = draw.expand_as(z2)
            logits = self._output(self.generator(z1, torch.lerp(z2, end, strength)))
            better = (most < 0) & (logits > most)
            best, most = torch.where(better[:, None], end, best), torch.where(better, logits, most)
        return best

    def _normal(self, count: int, seed: int) -> Tensor:
        """(count, pathology) from N(0, I), drawn on the CPU so that devices agree."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.generator.config.pathology, generator=generator).to(self.device)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits.float()

    def _output(self, images: Tensor) -> Tensor:
        return self._logits(images)[:, self.column]


def _verdict(removing: bool, before: float, again: float, after: float) -> str:
    """Of the classifier's probabilities for image, reconstruction and counterpart."""
    if (before >= 0.5) != (again >= 0.5):
        return (
            f"not explainable: the classifier gives the image p = {before:.2f}, but its reconstruction, where the path "
            f"starts, p = {again:.2f}"
        )
    if (before < 0.5) == removing:
        return "ok: the classifier's call was already " + ("negative" if removing else "positive")
    return "ok" if (after < 0.5) == removing else f"not flipped: the classifier's call stays (p = {after:.2f})"
