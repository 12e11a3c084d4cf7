"""TagGAN as a system: image in; map, healthy counterpart, mask and score out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import counterscan
from counterscan.care import Care, average_over_views, evaluating, tidy
from counterscan.counterpart import Counterpart, Provenance, Query, StudyBatch
from counterscan.errors import InputError
from counterscan.familiarity import Familiarity, unlike
from counterscan.inputs import checked_images
from counterscan.nets.cnn import Classifier
from counterscan.nets.layout import channels_last
from counterscan.taggan.masks import MaskRule, calibrate, hide_and_seek
from counterscan.taggan.model import MapGenerator
from counterscan.training.precision import autocast

if TYPE_CHECKING:
    from counterscan.data.intensity import IntensityRecipe
    from counterscan.data.store import PreparedStore
    from counterscan.taggan.training import TagGANConfig

VIEWS = Care(flips=True, shifts=((2, 2), (-2, 2), (2, -2), (-2, -2)), smoothing=1 / 64, reach=0.055)
ONE_VIEW = Care(smoothing=1 / 64, reach=0.055)
_CACHED_PIXELS = 2**16


class TagGAN:
    """Disease maps from image-level labels.

    Use ``TagGAN.fit`` or ``TagGAN.from_pretrained``. Several generators (seeds) are averaged.

    Args:
        generators: trained ``MapGenerator`` of the same findings.
        findings: canonical names of the label columns.
        classifier: frozen, logits (N, C); gives ``score_before`` and ``score_after``. None leaves scores to the map:
            mean of the strongest 1 % of the evidence.
        rules: finding -> mask rule; a finding without one gets no mask.
        familiarity: of images, in the classifier's features, where it is one of ours; none means that every image is
            taken for one of the kind that the networks learned from.
        care: views that are averaged, smoothing and spreading of the evidence. Mirrored views suit bodies whose sides
            look alike.
        size: side of the model's grid in pixels.
        recipe: how intensities became [-1, 1] in training; applied again to every file.
        checkpoint: digest of the weights.
    """

    name = "TagGAN"

    def __init__(
        self,
        generators: Sequence[MapGenerator],
        findings: Sequence[str],
        *,
        classifier: nn.Module | None = None,
        rules: dict[str, MaskRule] | None = None,
        familiarity: Familiarity | None = None,
        care: Care = VIEWS,
        size: int | None = None,
        recipe: IntensityRecipe | None = None,
        checkpoint: str | None = None,
    ) -> None:
        # Channels last: with bfloat16 (`_map_of`) the faster order on CPUs and GPUs.
        self.generators = [channels_last(generator.eval().requires_grad_(False)) for generator in generators]
        self.findings, self.classifier, self.rules = tuple(findings), classifier, dict(rules or {})
        self.familiarity = familiarity if isinstance(classifier, Classifier) else None
        self.care, self.size, self.recipe, self.checkpoint = care, size, recipe, checkpoint

    @classmethod
    def fit(
        cls,
        store: PreparedStore,
        folder: str | Path,
        config: TagGANConfig | None = None,
        *,
        classifiers: Sequence[nn.Module] | None = None,
    ) -> TagGAN:
        """Train on the store's "train" rows, choose and calibrate on its "val" rows; see ``taggan.training.fit``."""
        from counterscan.taggan.training import fit

        return fit(store, folder, config, classifiers=classifiers)

    @classmethod
    def from_pretrained(cls, folder: str | Path | Sequence[str | Path], device: str = "cpu") -> TagGAN:
        """Load one model folder or run folder, or several whose maps are averaged.

        Raises:
            InputError: no model there, or models of different findings, sizes or recipes.
        """
        from counterscan.taggan.pretrained import load

        return load([folder] if isinstance(folder, (str, Path)) else list(folder), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, settings and a model card to a folder that ``from_pretrained`` reads, offline."""
        from counterscan.taggan.pretrained import save

        return save(self, Path(folder))

    def with_care(self, care: Care) -> TagGAN:
        """The same networks with other views; mask rules are dropped, because thresholds depend on the views."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, care=care, rules={})
        return copy

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generators[0].parameters()).device

    @torch.no_grad()
    def maps(self, images: Tensor, finding: str) -> tuple[Tensor, Tensor | None]:
        """Signed maps, averaged over generators and views.

        Args:
            images: (N, 1, H, W) in [-1, 1].
            finding: one of ``findings``.

        Returns:
            M (N, 1, H, W), and its standard deviation over generators (N, 1, H, W), None with one generator.

        Raises:
            InputError: unknown finding, or images that are not finite, in range and single-channel.
        """
        column, x = self._column(finding), checked_images(images).to(self.device)
        each = []
        for generator in self.generators:

            def map_of(view: Tensor, generator: MapGenerator = generator) -> Tensor:
                return self._map_of(generator, view, column)

            with evaluating(generator):
                each.append(average_over_views(map_of, x, self.care))
        stack = torch.stack(each)
        return stack.mean(dim=0), stack.std(dim=0) if len(each) > 1 else None

    @staticmethod
    def _map_of(generator: MapGenerator, x: Tensor, column: int) -> Tensor:
        """M of one generator and view; bfloat16 where that is fast, on a CPU in parts whose features fit the cache."""
        part = max(1, _CACHED_PIXELS // (x.shape[-1] * x.shape[-2])) if x.device.type == "cpu" else max(1, len(x))
        with autocast(x.device, "auto"):
            maps = [generator(p, torch.full((len(p),), column, device=p.device)).float() for p in x.split(part)]
        return torch.cat(maps)

    def attribute(self, inputs: Tensor, target: int | str) -> Tensor:
        """Captum's shape: signed maps M (N, 1, H, W) for one finding, by name or column."""
        return self.maps(inputs, target if isinstance(target, str) else self.findings[target])[0]

    @torch.no_grad()
    def counterparts(
        self, batch: StudyBatch, query: Query, *, uncertainty: bool = False, hide_and_seek_share: float | None = None
    ) -> list[Counterpart]:
        """Maps, healed images, masks and scores.

        Args:
            batch: images on the model's grid.
            query: the finding to remove; ``strength`` scales M before it is subtracted.
            uncertainty: add "uncertainty" to the extras: standard deviation of M over generators, mirror images and
                one-pixel steps of the input; costs as many passes again.
            hide_and_seek_share: also drop mask regions that bring back less than this share of the classifier's logit.

        Raises:
            InputError: unknown finding, a query to add one, or unusable images.
        """
        if query.direction != "remove":
            raise InputError("TagGAN takes findings away and cannot add them", field="direction")
        column = self._column(query.finding)
        if not len(batch):
            return []
        batch = dataclasses.replace(batch, images=checked_images(batch.images)).to(self.device)
        x, valid = batch.images, batch.valid
        m, spread = self.maps(x, query.finding)
        m = m * valid if valid is not None else m
        healed = (x - query.strength * m).clamp(-1, 1)
        evidence = self.evidence(m, x, valid)
        rule = self.rules.get(query.finding)
        masks = rule(evidence, valid) if rule is not None else None
        before, after = self._scores(x, evidence, column) or [], self._scores(healed, None, column)
        figures = self._figures(x)
        if uncertainty:
            spread = self._spread(x, query.finding)
        made_by = Provenance(self.name, counterscan.__version__, self.checkpoint, self.settings(query.finding))
        answers = []
        for i in range(len(batch)):
            mask = None if masks is None else masks[i]
            if mask is not None and hide_and_seek_share is not None and self.classifier is not None:
                mask = hide_and_seek(
                    mask, x[i], healed[i], lambda images: self._logits(images)[:, column], share=hide_and_seek_share
                )
            answers.append(
                Counterpart(
                    image=batch.images[i].cpu(),
                    evidence=evidence[i].cpu(),
                    counterpart=healed[i].cpu(),
                    mask=None if mask is None else mask.cpu(),
                    query=query,
                    made_by=made_by,
                    score_before=before[i],
                    score_after=None if after is None else after[i],
                    extras={} if spread is None else {"uncertainty": spread[i].cpu()},
                    figures=figures[i],
                    verdict=self._verdict(before, after, i, column, figures[i]),
                    source=None if batch.sources is None else batch.sources[i],
                )
            )
        return answers

    def evidence(self, maps: Tensor, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """|M| of images within the valid pixels, smoothed and spread as ``care`` says, 0 on padding; same shape."""
        if valid is None:
            return tidy(maps.abs(), images, self.care)
        return tidy((maps * valid).abs(), images, self.care) * valid

    def calibrate(self, store: PreparedStore, rows: Sequence[int] | Any, **settings: Any) -> None:
        """Set every finding's mask rule on the rows that lack it; ``settings`` go to ``masks.calibrate``."""
        view = store.subset(rows)
        for column, finding in enumerate(self.findings):
            healthy = view.subset(view.labels[:, column] == 0)
            parts = [healthy.batch(range(i, min(i + 32, len(healthy)))) for i in range(0, len(healthy), 32)]
            maps = [self.evidence(self.maps(p.images, finding)[0].cpu(), p.images, p.valid) for p in parts]
            valid = torch.cat([p.valid for p in parts if p.valid is not None]) if parts else None
            self.rules[finding] = calibrate(torch.cat(maps) if maps else torch.zeros(0), valid, **settings)

    def _column(self, finding: str) -> int:
        if finding not in self.findings:
            raise InputError(
                f"the model does not know {finding!r}", field="finding", remedy=f"It knows {', '.join(self.findings)}"
            )
        return self.findings.index(finding)

    def _logits(self, images: Tensor) -> Tensor:
        assert self.classifier is not None
        with evaluating(self.classifier):
            logits: Tensor = self.classifier(images)
        return logits.float()

    def _scores(self, images: Tensor, evidence: Tensor | None, column: int) -> list[float] | None:
        """Calibrated probabilities, where there is a classifier; of the evidence else."""
        if self.classifier is not None:
            logits = self._logits(images)
            known = self.classifier if isinstance(self.classifier, Classifier) else None
            chances = known.probabilities(logits) if known is not None else logits.sigmoid()
            return chances[:, column].tolist()
        if evidence is None:
            return None
        return strongest(evidence).tolist()

    def _spread(self, x: Tensor, finding: str) -> Tensor:
        """Standard deviation of M over generators, views and steps of the input."""
        steps = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
        each = []
        for generator in self.generators:
            for mirrored in (False, True) if self.care.flips else (False,):
                for down, right in steps:
                    view = torch.roll(x, (down, right), dims=(-2, -1))
                    view = view.flip(-1) if mirrored else view
                    m = self._map_of(generator, view, self._column(finding))
                    each.append(torch.roll(m.flip(-1) if mirrored else m, (-down, -right), dims=(-2, -1)))
        return torch.stack(each).std(dim=0)

    def _figures(self, x: Tensor) -> list[dict[str, float]]:
        """Of each image "strangeness", how far it is from the training images, more than 1 being too far, if known."""
        if self.familiarity is None or not isinstance(self.classifier, Classifier):
            return [{} for _ in x]
        return [{"strangeness": s} for s in self.familiarity.strangeness([self.classifier], x).tolist()]

    def _verdict(
        self, before: list[float], after: list[float] | None, i: int, column: int, figures: dict[str, float]
    ) -> str:
        if figures.get("strangeness", 0.0) > 1:
            return f"not to be trusted: {unlike(figures['strangeness'])}"
        if after is None:
            return "ok"
        threshold = float(self.classifier.threshold[column]) if isinstance(self.classifier, Classifier) else 0.5
        if before[i] < threshold or after[i] < threshold:
            return "ok"
        return f"not healed: the classifier still sees the finding in the counterpart (p = {after[i]:.2f})"

    def settings(self, finding: str) -> dict[str, Any]:
        """How maps and masks of a finding are made, in plain values."""
        rule = self.rules.get(finding)
        return {
            "generators": len(self.generators),
            **dataclasses.asdict(self.care),
            "mask": None if rule is None else rule.to_dict(),
        }


def strongest(evidence: Tensor, share: float = 0.01) -> Tensor:
    """Mean of the strongest ``share`` of each map's pixels: (N, 1, H, W) to (N,). The map's own score of disease."""
    flat = evidence.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(dim=1)
