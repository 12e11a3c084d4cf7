"""medXGAN+ as a system: an image in; its way to the counterpart, maps, quality figures and a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import counterscan
from counterscan.care import Care, evaluating, tidy
from counterscan.counterpart import CounterfactualPath, Counterpart, Direction, Provenance, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.inputs import checked_images
from counterscan.medxgan.attribution import path_integrated_gradients, straight_path, transfer_mask
from counterscan.medxgan.inversion import PersuadeConfig, RefineConfig, persuade, refine
from counterscan.medxgan.model import Code, MedXGANNetworks
from counterscan.metrics.validity import psnr
from counterscan.texture import kept_texture

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore
    from counterscan.medxgan.training import MedXGANConfig


@dataclass(frozen=True)
class ExplainConfig:
    """How an image is explained.

    Attributes:
        refine: descent after E's one pass.
        persuade: descent on counterparts of which the classifier is not ``sure``.
        frames: of the way from image to counterpart, both included.
        transfer: take only the difference from the generator and keep the image's own texture elsewhere; else the
            answer is the generator's image.
        fade: mean |change| around a pixel from which the image's own texture, which the generator misses, gives way to
            the generator's: there it is the lesion's. None keeps all of it.
        masks: thresholds of ``transfer_mask`` that are tried in turn, tight ones first, until the classifier is sure.
        boosts: factors on the difference that are then tried with the last mask. Where nothing suffices, the attempt
            that comes nearest is the answer.
        sure: probability of the finding at which the classifier is sure that it is gone; 1 - sure that it is there.
            One half would take the first change that tips the call, which other classifiers follow less often.
        evidence: which map is the main one: "lig", which asks the classifier where the change mattered, "difference",
            the change itself, or "ig_negative".
        smoothing, reach: of the evidence; see ``counterscan.care.Care``, whose views are not used here.
    """

    refine: RefineConfig = field(default_factory=RefineConfig)
    persuade: PersuadeConfig = field(default_factory=PersuadeConfig)
    frames: int = 11
    transfer: bool = True
    fade: float | None = 0.4
    masks: tuple[float, ...] = (0.5, 0.35, 0.2, 0.1)
    boosts: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    sure: float = 0.1
    evidence: str = "lig"
    smoothing: float = 1 / 64
    reach: float = 0.055

    def __post_init__(self) -> None:
        for name in ("masks", "boosts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise InputError("must name at least one", field=name)
        if not 0 < self.sure <= CALLED:
            raise InputError(f"{self.sure} must be above 0 and at most {CALLED}", field="sure")
        if self.fade is not None and not self.fade > 0:
            raise InputError(f"{self.fade} must be above 0", field="fade")
        if self.frames < 2:
            raise InputError("must be at least 2: the image and its counterpart", field="frames")
        if self.evidence not in EVIDENCE:
            raise InputError(f"{self.evidence!r} must be one of {', '.join(EVIDENCE)}", field="evidence")


EVIDENCE = ("difference", "lig", "ig_negative")
TOLERANCE = 0.005  # share of the logit's change that LIG may miss
CALLED = 0.5  # the plain probability from which the classifier calls a finding present


@dataclass(frozen=True)
class Limits:
    """What an inversion must reach for its explanation to be trusted, set on validation images.

    Attributes:
        psnr: least PSNR of the reconstruction in dB.
        gap: largest difference of the explained logit between image and reconstruction.
    """

    psnr: float = 0.0
    gap: float = float("inf")


class MedXGAN:
    """Visual explanations of one frozen classifier.

    Use ``MedXGAN.fit`` or ``MedXGAN.from_pretrained``.

    Args:
        networks: trained E and G.
        classifier: frozen; (N, 1, H, W) in [-1, 1] to logits (N, C), with ``findings``; see ``classify.adapter``.
        config: how images are explained.
        donors: finding -> (B, pathology, h, w), z2 blocks of training images that the classifier calls positive; what
            "add" chooses from.
        limits: finding -> limits; none means that every inversion is trusted.
        size: side of the model's grid in pixels.
        recipe: how intensities became [-1, 1] in training.
        checkpoint: digest of the weights.
    """

    name = "medXGAN+"

    def __init__(
        self,
        networks: MedXGANNetworks,
        classifier: nn.Module,
        *,
        config: ExplainConfig | None = None,
        donors: dict[str, Tensor] | None = None,
        limits: dict[str, Limits] | None = None,
        size: int | None = None,
        recipe: IntensityRecipe | None = None,
        checkpoint: str | None = None,
    ) -> None:
        if not hasattr(classifier, "findings"):
            raise InputError(
                "the classifier has no attribute findings",
                field="classifier",
                remedy="Wrap it: counterscan.classify.adapter.AdaptedClassifier",
            )
        self.networks = networks.eval().requires_grad_(False)
        self.classifier = classifier.eval().requires_grad_(False)
        self.findings: tuple[str, ...] = tuple(classifier.findings)  # type: ignore[arg-type]
        if networks.findings != len(self.findings):
            raise InputError(
                f"the networks have {networks.findings} blocks of z2, the classifier {len(self.findings)} findings",
                field="classifier",
                remedy="Give the classifier that the networks were trained with",
            )
        self.config, self.donors, self.limits = config or ExplainConfig(), dict(donors or {}), dict(limits or {})
        self.size, self.recipe, self.checkpoint = size, recipe, checkpoint

    @classmethod
    def fit(
        cls, store: PreparedStore, classifier: nn.Module, folder: str | Path, config: MedXGANConfig | None = None
    ) -> MedXGAN:
        """Train on the store's "train" rows; see ``medxgan.training.fit``."""
        from counterscan.medxgan.training import fit

        return fit(store, classifier, folder, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, classifier: nn.Module | None = None, device: str = "cpu") -> MedXGAN:
        """Load a run or model folder; a classifier that is not counterscan's own must be given again."""
        from counterscan.medxgan.pretrained import load

        return load(Path(folder), classifier, device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, settings and a model card to a folder that ``from_pretrained`` reads, offline."""
        from counterscan.medxgan.pretrained import save

        return save(self, Path(folder))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.networks.parameters()).device

    def invert(self, images: Tensor, config: RefineConfig | None = None) -> tuple[Code, Tensor]:
        """Codes of images (N, 1, H, W), and their reconstructions."""
        x = checked_images(images, self.size).to(self.device)
        with torch.no_grad():
            start = self.networks.encode(x)
        with evaluating(self.classifier):
            code = refine(x, start, self.networks.generate, self._logits, config or self.config.refine)
        with torch.no_grad():
            return code, self.networks.generate(code).float()

    def explain(self, images: Tensor, target: int | str, direction: Direction = "remove") -> list[Counterpart]:
        """Explain one output of the classifier.

        Args:
            images: (N, 1, H, W) in [-1, 1].
            target: a finding of the classifier, by name or column.
            direction: take the finding away, or bring it in.

        Returns:
            One per image. ``path`` leads from the image (strength 0) to the counterpart (strength 1) with the
            classifier's probabilities; ``extras`` holds the maps "difference" (signed, image - counterpart), "lig" and
            "ig_negative", and the "reconstruction"; ``figures`` the quality: "psnr", "logit_gap",
            "completeness_gap", "boost", "flipped".

        Raises:
            InputError: unknown target, unusable images, or no donors for "add".
        """
        finding = target if isinstance(target, str) else self._name(target)
        return self.counterparts(StudyBatch(images, self.findings), Query(finding, direction))

    def attribute(self, inputs: Tensor, target: int | str) -> Tensor:
        """Captum's shape: the signed main map (N, 1, H, W) of one finding."""
        answers = self.explain(inputs, target)
        return torch.stack([a.extras[self.config.evidence] for a in answers]) if answers else inputs

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """See ``explain``; ``query.strength`` scales the change."""
        column = self._column(query.finding)
        if not len(batch):
            return []
        x = checked_images(batch.images, self.size).to(self.device)
        with torch.inference_mode(False), evaluating(self.classifier), evaluating(self.networks):
            return self._answers(x, batch, query, column)

    def _answers(self, x: Tensor, batch: StudyBatch, query: Query, column: int) -> list[Counterpart]:
        code, again = self.invert(x)
        with torch.no_grad():
            before, reconstructed = self._logits(x)[:, column], self._logits(again)[:, column]
            goal = self._goal(code, again, x, query, column)
            valid = None if batch.valid is None else batch.valid.to(x.device)
        goal = self._persuaded(x, again, goal, valid, query, column)
        with torch.no_grad():
            mask, boost = self._smallest(x, again, goal, valid, query, column, self.config.boosts)
            path = self._path(x, again, goal, mask, boost * query.strength)  # (K, N, 1, H, W)
            logits = self._logits(path.flatten(0, 1)).view(len(path), len(x), -1)
        outputs, rise = logits.sigmoid(), logits[0, :, column] - logits[-1, :, column]
        counterpart = path[-1]

        def output(images: Tensor) -> Tensor:
            return self._logits(images)[:, column]

        backwards = path.flip(0)
        maps = {
            "difference": path[0] - counterpart,
            "lig": path_integrated_gradients(backwards, output, tolerance=TOLERANCE),
            "ig_negative": path_integrated_gradients(straight_path(counterpart, path[0], len(path) - 1), output),
        }
        evidence = self.evidence(maps[self.config.evidence], x, query.direction)
        if batch.valid is not None:
            evidence = evidence * batch.valid.to(x.device)
        gap = (maps["lig"].flatten(1).sum(dim=1) - rise).abs() / rise.abs().clamp_min(1e-6)
        p0, p1 = outputs[0, :, column], outputs[-1, :, column]
        flipped = (p1 < CALLED) if query.direction == "remove" else (p1 >= CALLED)
        figures = {
            "psnr": psnr(x, again),
            "logit_gap": (before - reconstructed).abs(),
            "completeness_gap": gap,
            "boost": boost,
            "flipped": flipped.float(),
        }
        made_by = Provenance(self.name, counterscan.__version__, self.checkpoint, self.settings())
        strengths = torch.linspace(0, 1, len(path))
        answers = []
        for i in range(len(x)):
            numbers = {name: float(values[i]) for name, values in figures.items()}
            answers.append(
                Counterpart(
                    image=batch.images[i],
                    evidence=evidence[i].cpu(),
                    counterpart=counterpart[i].cpu(),
                    query=query,
                    made_by=made_by,
                    score_before=float(p0[i]),
                    score_after=float(p1[i]),
                    path=CounterfactualPath(path[:, i].cpu(), strengths, outputs[:, i].cpu()),
                    extras={name: m[i].cpu() for name, m in maps.items()} | {"reconstruction": again[i].cpu()},
                    figures=numbers,
                    verdict=self._verdict(numbers, float(p0[i]), float(p1[i]), query),
                    source=None if batch.sources is None else batch.sources[i],
                )
            )
        return answers

    def evidence(self, maps: Tensor, images: Tensor, direction: Direction = "remove") -> Tensor:
        """A signed map of images as evidence >= 0, smoothed and spread: a difference counts in both signs, an
        attribution where it speaks for the finding."""
        if self.config.evidence == "difference":
            speaks = maps.abs()
        else:
            speaks = (maps if direction == "remove" else -maps).clamp_min(0)
        return tidy(speaks, images, Care(smoothing=self.config.smoothing, reach=self.config.reach))

    def settings(self) -> dict[str, Any]:
        """How explanations are made, in plain values."""
        return asdict(self.config)

    def _goal(self, code: Code, again: Tensor, x: Tensor, query: Query, column: int) -> _Goal:
        """Where the way leads: z2 = 0, or the donor that changes the call with the smallest change of the image."""
        if query.direction == "remove":
            end = code.scaled(0.0, column)
            return _Goal(code, end, self.networks.generate(end).float(), torch.ones_like(x), self.networks)
        donors = self.donors.get(query.finding)
        if donors is None or not len(donors):
            raise InputError(
                f"no donors of {query.finding!r} were kept", field="direction", remedy="Train the explainer anew"
            )
        columns = torch.tensor(column)
        best, least, chosen = again, torch.full((len(x),), float("inf"), device=x.device), code
        for donor in donors.to(x.device):
            end = code.with_block(donor.expand(len(x), *donor.shape), columns)
            image = self.networks.generate(end).float()
            mask = transfer_mask(image - again) if self.config.transfer else torch.ones_like(x)
            moved = self._carried(x, again, image - again, mask)
            p = self._probabilities(moved)[:, column]
            # A donor that does not change the call costs more than any that does, less so the nearer it comes.
            cost = (moved - x).abs().mean(dim=(1, 2, 3)) + torch.where(p >= CALLED, 0.0, 10 + CALLED - p)
            better = cost < least
            least = torch.where(better, cost, least)
            best = torch.where(better.view(-1, 1, 1, 1), image, best)
            chosen = Code(code.z1, torch.where(better.view(-1, 1, 1, 1, 1), end.z2, chosen.z2))
        return _Goal(code, chosen, best, torch.ones_like(x), self.networks)

    def _persuaded(
        self, x: Tensor, again: Tensor, goal: _Goal, valid: Tensor | None, query: Query, column: int
    ) -> _Goal:
        """The goal, moved on within its own differences where the classifier is not sure with any mask."""
        config, sign = self.config.persuade, 1.0 if query.direction == "remove" else -1.0
        if config.steps <= 0:
            return goal
        with torch.no_grad():
            mask, _ = self._smallest(x, again, goal, valid, query, column, (1.0,))
            p = self._probabilities(self._carried(x, again, goal.change(1.0, again), mask))[:, column]
            rows = torch.nonzero((p if sign > 0 else 1 - p) > self.config.sure)[:, 0]
        if not len(rows):
            return goal
        x, again = x[rows], again[rows]
        within = transfer_mask(goal.image[rows] - again, threshold=config.within)
        if valid is not None:
            within = within * valid[rows].to(within.dtype)

        def shown(image: Tensor) -> Tensor:
            change = within * (image - again)
            return self._carried(x, again, change, transfer_mask(change.detach(), threshold=self.config.masks[-1]))

        moved = persuade(
            goal.end.select(rows),
            self.networks.generate,
            shown,
            lambda images: sign * self._logits(images)[:, column],
            config,
        )
        with torch.no_grad():
            return goal.replaced(rows, moved, self.networks.generate(moved).float(), within)

    def _smallest(
        self,
        x: Tensor,
        again: Tensor,
        goal: _Goal,
        valid: Tensor | None,
        query: Query,
        column: int,
        boosts: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        """The tightest mask (N, 1, H, W), then the smallest factor (N,), with which the classifier is sure; where none
        suffices, those that come nearest."""
        removing, config, difference = query.direction == "remove", self.config, goal.change(1.0, again)
        inside = torch.ones_like(x) if valid is None else valid.to(x.dtype)
        masks = [inside]
        if config.transfer:
            masks = [inside * transfer_mask(difference, threshold=threshold) for threshold in config.masks]
        attempts = [(mask, boosts[0]) for mask in masks] + [(masks[-1], b) for b in boosts[1:]]
        chosen, boost = masks[-1], torch.ones(len(x), device=x.device)
        least = torch.full_like(boost, float("inf"))  # probability of what is not wanted, so far
        for mask, factor in attempts:
            image = self._carried(x, again, factor * query.strength * difference, mask)
            p = self._probabilities(image)[:, column]
            left = p if removing else 1 - p
            better = (least > config.sure) & (left < least)
            chosen = torch.where(better.view(-1, 1, 1, 1), mask, chosen)
            boost, least = torch.where(better, factor, boost), torch.where(better, left, least)
            if bool((least <= config.sure).all()):
                break
        return chosen, boost

    def _path(self, x: Tensor, again: Tensor, goal: _Goal, mask: Tensor, boost: Tensor) -> Tensor:
        """(K, N, 1, H, W) from image (or reconstruction) to counterpart."""
        frames = [x if self.config.transfer else again]
        for strength in torch.linspace(0, 1, self.config.frames).tolist()[1:]:
            frames.append(self._carried(x, again, boost.view(-1, 1, 1, 1) * goal.change(strength, again), mask))
        return torch.stack(frames)

    def _carried(self, x: Tensor, again: Tensor, change: Tensor, mask: Tensor) -> Tensor:
        """The generator's change, within the mask, made to the image itself; without transfer to its reconstruction."""
        if not self.config.transfer:
            return (again + mask * change).clamp(-1, 1)
        if self.config.fade is not None:
            change = change - (1 - kept_texture(change, self.config.fade)) * (x - again)
        return (x + mask * change).clamp(-1, 1)

    def _verdict(self, figures: dict[str, float], p0: float, p1: float, query: Query) -> str:
        limits = self.limits.get(query.finding, Limits())
        if figures["psnr"] < limits.psnr:
            return (
                f"not explainable: the generator does not reach this image (PSNR {figures['psnr']:.1f} dB, at least "
                f"{limits.psnr:.1f} needed); it may be unlike the training images"
            )
        if figures["logit_gap"] > limits.gap:
            return (
                "not explainable: the classifier sees image and reconstruction differently (logits "
                f"{figures['logit_gap']:.2f} apart, at most {limits.gap:.2f} allowed)"
            )
        removing = query.direction == "remove"
        if (p0 < CALLED) == removing:
            return "ok: the classifier's call was already " + ("negative" if removing else "positive")
        if not figures["flipped"]:
            return f"not flipped: the classifier's call stays (p = {p1:.2f})"
        return "ok"

    def _name(self, column: int) -> str:
        if not 0 <= column < len(self.findings):
            raise InputError(
                f"column {column} is out of range", field="target", remedy=f"0 to {len(self.findings) - 1} exist"
            )
        return self.findings[column]

    def _column(self, finding: str) -> int:
        if finding not in self.findings:
            raise InputError(
                f"the classifier does not know {finding!r}",
                field="target",
                remedy=f"It knows {', '.join(self.findings)}",
            )
        return self.findings.index(finding)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits.float()

    def _probabilities(self, images: Tensor) -> Tensor:
        return self._logits(images).sigmoid()


@dataclass(frozen=True)
class _Goal:
    """Two codes, the generator's image of the second, and where (N, 1, H, W) it may differ."""

    start: Code
    end: Code
    image: Tensor
    within: Tensor
    networks: MedXGANNetworks

    def change(self, strength: float, again: Tensor) -> Tensor:
        """What the generator changes in a share of the way, from its image ``again`` of the first code."""
        if strength == 1:
            return self.within * (self.image - again)
        z1, z2 = (a + strength * (b - a) for a, b in ((self.start.z1, self.end.z1), (self.start.z2, self.end.z2)))
        return self.within * (self.networks.generate(Code(z1, z2)).float() - again)

    def replaced(self, rows: Tensor, end: Code, image: Tensor, within: Tensor) -> _Goal:
        """With other ends of some rows."""

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new.to(old.dtype))

        ends = Code(put(self.end.z1, end.z1), put(self.end.z2, end.z2))
        return _Goal(self.start, ends, put(self.image, image), put(self.within, within), self.networks)


def donors_of(codes: Sequence[Code], column: int, count: int) -> Tensor:
    """(B, pathology, h, w): z2 blocks of one finding of up to ``count`` images, evenly spaced among them."""
    blocks = torch.cat([code.z2[:, column] for code in codes])
    keep = torch.linspace(0, max(0, len(blocks) - 1), min(count, len(blocks))).round().long()
    return blocks[keep]
