"""medXGAN+ as a system: an image in; its way to the counterpart, maps, quality figures and a verdict out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import counterscan
from counterscan.care import Care, evaluating, tidy
from counterscan.counterpart import CounterfactualPath, Counterpart, Direction, Provenance, Query, StudyBatch
from counterscan.errors import InputError, line_of
from counterscan.familiarity import Familiarity, unlike
from counterscan.inputs import checked_images, findings_of
from counterscan.medxgan.attribution import LEAST_RISE, path_integrated_gradients, straight_path
from counterscan.medxgan.explain_config import ExplainConfig, convinced
from counterscan.medxgan.inversion import RefineConfig, refine
from counterscan.medxgan.model import Code, MedXGANNetworks
from counterscan.medxgan.search import CounterpartSearch
from counterscan.metrics.faithfulness import completeness_gap
from counterscan.metrics.validity import psnr
from counterscan.training.checkpoint import weights_digest
from counterscan.training.precision import autocast

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore
    from counterscan.medxgan.training import MedXGANConfig
    from counterscan.nets.cnn import Classifier


TOLERANCE = 0.005  # share of the logit's change that LIG may miss


@dataclass(frozen=True)
class Limits:
    """What an inversion must reach for its explanation to be trusted; from validation images.

    Attributes:
        psnr: least PSNR of the reconstruction in dB.
        gap: largest difference of the explained logit between image and reconstruction.
    """

    psnr: float = 0.0
    gap: float = float("inf")


@dataclass(frozen=True)
class Way:
    """How N images become their counterparts.

    Attributes:
        again: (N, 1, H, W), the generator's reconstructions.
        before, reconstructed: (N,) logit of the finding that the classifier gives images and reconstructions.
        path: (K, N, 1, H, W) in [-1, 1], from image (without transfer: reconstruction) to counterpart.
        logits: (K, N, C) of the frames.
        figures: named numbers (N,) of the search.
    """

    again: Tensor
    before: Tensor
    reconstructed: Tensor
    path: Tensor
    logits: Tensor
    figures: dict[str, Tensor]


class MedXGAN:
    """Visual explanations of one frozen classifier.

    Use ``MedXGAN.fit`` or ``MedXGAN.from_pretrained``.

    Args:
        networks: trained E and G.
        classifier: (N, 1, H, W) in [-1, 1] to logits (N, C), with ``findings``; see ``classify.adapter``. It is put
            into evaluation mode and its weights are taken out of training, and stay so.
        witnesses: classifiers of the same findings that counterparts must convince as well; see ``medxgan.witness``.
        config: how images are explained.
        donors: finding -> (B, pathology, h, w), z2 blocks of training images that the classifier calls positive; what
            "add" chooses from.
        limits: finding -> limits; none means that every inversion is trusted.
        familiarity: of images, in the witnesses' features; none means that every image is taken for one of the kind
            that the networks learned from.
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
        witnesses: Sequence[Classifier] = (),
        config: ExplainConfig | None = None,
        donors: dict[str, Tensor] | None = None,
        limits: dict[str, Limits] | None = None,
        familiarity: Familiarity | None = None,
        size: int | None = None,
        recipe: IntensityRecipe | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.findings = findings_of(classifier)
        self.networks = networks.eval().requires_grad_(False)
        self.classifier = classifier.eval().requires_grad_(False)
        if networks.findings != len(self.findings):
            raise InputError(
                f"the networks have {networks.findings} blocks of z2, the classifier {len(self.findings)} findings",
                field="classifier",
                remedy="Give the classifier that the networks were trained with",
            )
        self.witnesses = tuple(witness.eval().requires_grad_(False) for witness in witnesses)
        for witness in self.witnesses:
            if witness.findings != self.findings:
                raise InputError(
                    f"one knows {', '.join(witness.findings)}, the classifier {', '.join(self.findings)}",
                    field="witnesses",
                    remedy="Give networks that learned from this classifier",
                )
        self._witnessed_by = [weights_digest(witness)[:16] for witness in self.witnesses]
        self.config, self.donors, self.limits = config or ExplainConfig(), dict(donors or {}), dict(limits or {})
        self.familiarity = familiarity if self.witnesses else None
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

    def variant(
        self,
        *,
        classifier: nn.Module | None = None,
        config: ExplainConfig | None = None,
        witnesses: Sequence[Classifier] | None = None,
    ) -> MedXGAN:
        """The same networks explaining in another way, or for another classifier, of which no witness has learned.

        Args:
            classifier, config: instead of the own ones.
            witnesses: instead of the own ones, which another classifier has not.
        """
        if witnesses is None:
            witnesses = self.witnesses if classifier is None or classifier is self.classifier else ()
        return MedXGAN(
            self.networks,
            classifier if classifier is not None else self.classifier,
            witnesses=witnesses,
            config=config or self.config,
            donors=self.donors,
            limits=self.limits,
            familiarity=self.familiarity,
            size=self.size,
            recipe=self.recipe,
            checkpoint=self.checkpoint,
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.networks.parameters()).device

    @property
    def judges(self) -> list[Callable[[Tensor], Tensor]]:
        """Who a counterpart must convince, each (N, 1, H, W) to logits (N, C): the classifier, then its witnesses."""
        return [self._logits, *self.witnesses]

    def invert(self, images: Tensor, config: RefineConfig | None = None) -> tuple[Code, Tensor]:
        """Codes of images (N, 1, H, W), and their reconstructions."""
        x = checked_images(images, self.size).to(self.device)
        with torch.no_grad():
            start = self.networks.encode(x)
        with evaluating(self.classifier), autocast(self.device, self.config.precision):
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
            One per image, on the CPU. ``path`` leads from the image (strength 0) to the counterpart with the
            classifier's probabilities; ``extras`` holds the maps "difference" (signed, image - counterpart), "lig" and
            "ig_negative", and the "reconstruction"; ``figures`` the quality: "psnr", "logit_gap", "completeness_gap"
            (NaN where the logit hardly changes), "flipped", "boost", "insisted" (1 where no change of a part of the
            image was enough and it was allowed anywhere); where there are witnesses, "witnessed", the share of them
            that the counterpart convinces, and "strangeness", how far the image is from the training images, more than
            1 being too far.

        Raises:
            InputError: unknown target, unusable images, or no donors for "add".
        """
        finding = target if isinstance(target, str) else self._name(target)
        return self.counterparts(StudyBatch(images, self.findings), Query(finding, direction))

    def attribute(self, inputs: Tensor, target: int | str) -> Tensor:
        """Captum's shape: the signed main map (N, 1, H, W) of one finding."""
        answers = self.explain(inputs, target)
        if not answers:
            return torch.zeros_like(inputs)
        return torch.stack([a.extras[self.config.evidence] for a in answers]).to(inputs.device)

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """See ``explain``; ``query.strength`` scales the change that strength 1 finds, and ends the path."""
        self._column(query.finding)
        batch, part = replace(batch, images=checked_images(batch.images, self.size)), self.config.internal_batch_size
        with torch.inference_mode(False), evaluating(self.classifier), evaluating(self.networks):
            parts = [batch.rows(slice(start, start + part)) for start in range(0, len(batch), part)]
            return [answer for each in parts for answer in self._answers(each, query)]

    def way(self, images: Tensor, query: Query, valid: Tensor | None = None) -> Way:
        """What ``counterparts`` are found by, without maps and verdicts.

        Args:
            images: (N, 1, H, W) in [-1, 1], N >= 1, all at once.
            query: what is asked.
            valid: (N, 1, H, W), False on padding, which nothing changes; None means that every pixel is image.

        Returns:
            Everything on the networks' device.

        Raises:
            InputError: unknown finding, unusable images, or no donors for "add".
        """
        column, x = self._column(query.finding), checked_images(images, self.size).to(self.device)
        valid = None if valid is None else valid.to(x.device)
        with torch.inference_mode(False), evaluating(self.classifier), evaluating(self.networks):
            code, again = self.invert(x)
            with torch.no_grad():
                before, reconstructed = self._logits(x)[:, column], self._logits(again)[:, column]
                if not bool(torch.cat([before, reconstructed]).isfinite().all()):
                    raise InputError(
                        f"the classifier returns NaN or infinite values for {query.finding}",
                        field="classifier",
                        remedy="See what it does with such an image, or leave the image out",
                    )
                search = CounterpartSearch(
                    self.networks, self.judges, self.config, query, column, x, again, before, valid
                )
                path, figures = search.path(code, self.donors.get(query.finding))
                logits = self._logits(path.flatten(0, 1)).view(len(path), len(x), -1)
        return Way(again, before, reconstructed, path, logits, figures)

    def _answers(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        batch, column = batch.to(self.device), self._column(query.finding)
        x, valid = batch.images, batch.valid
        way = self.way(x, query, valid)
        path, logits, counterpart = way.path, way.logits, way.path[-1]
        outputs = logits.sigmoid()

        def output(images: Tensor) -> Tensor:
            return self._logits(images)[:, column]

        backwards = path.flip(0)
        maps = {
            "difference": path[0] - counterpart,
            "lig": path_integrated_gradients(
                backwards, output, tolerance=TOLERANCE, known=logits[:, :, column].flip(0)
            ),
            "ig_negative": path_integrated_gradients(straight_path(counterpart, path[0], len(path) - 1), output),
        }
        evidence = self.evidence(maps[self.config.evidence], x, query.direction)
        if valid is not None:
            evidence = evidence * valid
        p0, p1 = way.before.sigmoid(), outputs[-1, :, column]
        settled, flipped = convinced(p0, query.direction), convinced(p1, query.direction)
        figures = {
            "psnr": psnr(x, way.again, valid),
            "logit_gap": (way.before - way.reconstructed).abs(),
            "completeness_gap": completeness_gap(maps["lig"], logits[0, :, column], logits[-1, :, column], LEAST_RISE),
            "flipped": flipped.float(),
            **way.figures,
        }
        if self.witnesses:
            with torch.no_grad():
                seen = torch.stack([witness(counterpart)[:, column].sigmoid() for witness in self.witnesses])
            figures["witnessed"] = convinced(seen, query.direction).float().mean(dim=0)
        if self.familiarity is not None:
            figures["strangeness"] = self.familiarity.strangeness(self.witnesses, x)
        made_by = Provenance(self.name, counterscan.__version__, self.checkpoint, self.settings())
        strengths = query.strength * torch.linspace(0, 1, len(path))
        answers = []
        for i in range(len(x)):
            numbers = {name: float(values[i]) for name, values in figures.items()}
            answers.append(
                Counterpart(
                    image=batch.images[i].cpu(),
                    evidence=evidence[i].cpu(),
                    counterpart=counterpart[i].cpu(),
                    query=query,
                    made_by=made_by,
                    score_before=float(p0[i]),
                    score_after=float(p1[i]),
                    path=CounterfactualPath(path[:, i].cpu(), strengths, outputs[:, i].cpu()),
                    extras={name: m[i].cpu() for name, m in maps.items()} | {"reconstruction": way.again[i].cpu()},
                    figures=numbers,
                    verdict=self._verdict(numbers, bool(settled[i]), float(p1[i]), query),
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
        return asdict(self.config) | {"witnesses": self._witnessed_by}

    def _verdict(self, figures: dict[str, float], settled: bool, p1: float, query: Query) -> str:
        limits = self.limits.get(query.finding, Limits())
        if figures.get("strangeness", 0.0) > 1:
            return f"not explainable: {unlike(figures['strangeness'])}"
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
        if settled:
            return f"ok: the classifier's call was already {'negative' if query.direction == 'remove' else 'positive'}"
        if not figures["flipped"]:
            return f"not flipped: the classifier's call stays (p = {p1:.2f})"
        if figures.get("witnessed", 1.0) < 1:
            return "not witnessed: networks that learned to answer as the classifier does are not convinced"
        if figures["insisted"]:
            return "ok, but only a change anywhere in the image convinces; what the classifier goes by may be no lesion"
        return "ok"

    def _name(self, column: int) -> str:
        if not isinstance(column, int) or not 0 <= column < len(self.findings):
            raise InputError(
                f"column {column!r} is out of range", field="target", remedy=f"0 to {len(self.findings) - 1} exist"
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
        try:
            logits: Tensor = self.classifier(images)
        except InputError:
            raise
        except Exception as error:  # whatever somebody else's program may raise, one image must not end a batch
            raise InputError(f"the classifier fails on it ({line_of(error, -1)})", field="classifier") from error
        return logits.float()
