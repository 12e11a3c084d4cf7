"""What all attribution peers share: the classifier's contract, equal care (test-time averaging, smoothing, spreading),
Counterparts.

A classifier is an ``nn.Module`` that takes (N, 1, H, W) in [-1, 1] and returns logits (N, C), one column per finding
(sigmoid, not softmax), with two attributes: ``findings``, the C canonical names, and ``cam_layers``, its convolutional
stages from high resolution to the last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import counterscan
from counterscan.care import Care, average_over_views, evaluating, tidy
from counterscan.counterpart import Counterpart, Provenance, Query, StudyBatch
from counterscan.errors import InputError

Target = int | str | Sequence[int] | Tensor
Masker = Callable[[Tensor, Tensor | None], Tensor]
Part = Literal["positive", "magnitude"]


class AttributionPeer(ABC):
    """A map of evidence computed from a frozen classifier. Callable like a Captum method and usable as a System.

    Args:
        classifier: see the module's text. Its mode, its parameters and their gradients are left as they were.
        care: averaging, smoothing and spreading.
        masker: turns evidence (N, 1, H, W) and valid pixels into bool masks; calibrate it as for our own systems, on
            healthy validation images. None leaves masks out.
        part: which part of the attributions is evidence: what speaks for the finding, or their magnitude.
    """

    name: str

    def __init__(
        self,
        classifier: nn.Module,
        *,
        care: Care | None = None,
        masker: Masker | None = None,
        part: Part = "positive",
    ) -> None:
        if part not in get_args(Part):
            raise InputError(f"no part {part!r}", field="part", remedy=f"Use {' or '.join(get_args(Part))}")
        for attribute in ("findings", "cam_layers"):
            if not hasattr(classifier, attribute):
                raise InputError(f"the classifier has no attribute {attribute}", remedy="See counterscan.peers.base")
        self.classifier, self.care, self.masker, self.part = classifier, care or Care(), masker, part
        contract: Any = classifier
        self.findings: tuple[str, ...] = tuple(contract.findings)
        self.cam_layers: list[nn.Module] = list(contract.cam_layers)

    @abstractmethod
    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """(N, 1, H, W) attributions of logit ``target`` (N,), with the classifier in eval mode and gradients on."""

    def settings(self) -> dict[str, Any]:
        """What a reader needs to make the maps again."""
        return asdict(self.care) | {"shifts": list(self.care.shifts)}

    def evidence(self, attributions: Tensor, images: Tensor) -> Tensor:
        """Attributions of images as evidence >= 0, smoothed and spread as ``care`` says; same shape."""
        return tidy(self._speaks_for(attributions), images, self.care)

    def _speaks_for(self, attributions: Tensor) -> Tensor:
        """The part of signed attributions that is evidence, >= 0."""
        return attributions.abs() if self.part == "magnitude" else attributions.clamp_min(0)

    def attribute(self, inputs: Tensor, target: Target) -> Tensor:
        """Attributions as the method defines them, averaged over the views of ``care`` but neither smoothed nor spread.

        Args:
            inputs: (N, 1, H, W) in [-1, 1].
            target: column of the logits, a finding's name, or one column per image.

        Returns:
            Shaped like ``inputs``, detached.

        Raises:
            InputError: the inputs are not (N, 1, H, W), or the classifier has no such target.
        """
        if inputs.ndim != 4 or inputs.shape[1] != 1:
            raise InputError(f"expected images (N, 1, H, W), got {tuple(inputs.shape)}")
        columns = self._columns(target, inputs)
        if not len(inputs):
            return torch.zeros_like(inputs)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.classifier):
            images, columns = inputs.detach().clone(), columns.clone()  # autograd takes no inference tensors
            return average_over_views(lambda x: self._attribute(x, columns).detach(), images, self.care)

    def counterparts(self, batch: StudyBatch, query: Query) -> list[Counterpart]:
        """One attribution map per image, without a counterpart.

        Raises:
            InputError: the classifier does not know the finding, or the query asks to add one.
        """
        if query.direction != "remove":
            raise InputError(f"{self.name} shows where a finding is and cannot add one", field="direction")
        evidence = self.evidence(self.attribute(batch.images, query.finding), batch.images)
        with torch.no_grad(), evaluating(self.classifier):
            logits = self.classifier(batch.images) if len(batch) else torch.zeros(0, 1)
        scores = logits[:, self._columns(query.finding, batch.images[:1])].sigmoid().flatten().tolist()
        return as_counterparts(batch, query, evidence, self.name, self.settings(), self.masker, scores)

    def _columns(self, target: Target, inputs: Tensor) -> Tensor:
        """(N,) columns of the logits, checked."""
        findings = self.findings
        if isinstance(target, str):
            if target not in findings:
                raise InputError(
                    f"the classifier does not know {target!r}",
                    field="finding",
                    remedy=f"It knows {', '.join(findings)}",
                )
            target = findings.index(target)
        columns = torch.as_tensor(target, dtype=torch.long, device=inputs.device).flatten()
        columns = columns.expand(len(inputs)) if len(columns) == 1 else columns
        if len(columns) != len(inputs) or bool(((columns < 0) | (columns >= len(findings))).any()):
            raise InputError(f"target must be one of {len(findings)} columns, or one per image", field="target")
        return columns


def as_counterparts(
    batch: StudyBatch,
    query: Query,
    evidence: Tensor,
    system: str,
    settings: dict[str, Any],
    masker: Masker | None = None,
    scores: Sequence[float] | None = None,
) -> list[Counterpart]:
    """Wrap evidence (N, 1, H, W) >= 0, set to zero on padding, as one Counterpart per image."""
    evidence = evidence.detach().float()
    if batch.valid is not None:
        evidence = evidence * batch.valid
    masks = masker(evidence, batch.valid) if masker is not None else None
    made_by = Provenance(system, counterscan.__version__, settings=settings)
    return [
        Counterpart(
            image=batch.images[i],
            evidence=evidence[i],
            query=query,
            made_by=made_by,
            mask=None if masks is None else masks[i],
            score_before=None if scores is None else scores[i],
            source=None if batch.sources is None else batch.sources[i],
        )
        for i in range(len(batch))
    ]
