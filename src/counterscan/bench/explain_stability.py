"""Do maps stay when the image barely changes, and go when the classifier forgets? On a sample of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from counterscan.bench.explaining import Probe, Systems, seeds_of, stray_share
from counterscan.bench.subjects import image_names, patient_names, rows_of, study_batch
from counterscan.counterpart import Query, StudyBatch, System
from counterscan.data.store import PreparedStore
from counterscan.inputs import device_of
from counterscan.metrics import stability

Factory = Callable[[nn.Module], System]


def stability_of(
    systems: Systems,
    store: PreparedStore,
    rows: Any,
    finding: str,
    *,
    probe: Probe | None = None,
    device: torch.device | str = "cpu",
    key: bytes | None = None,
) -> pd.DataFrame:
    """How evidence holds when the image barely changes: max-sensitivity, and noise curves.

    Each image is explained 2 + draws + sigmas times: take a sample.

    Args:
        systems, store, finding, probe, key: see ``evaluate_explainers``.
        rows: the sample.
        device: where the systems are.

    Returns:
        Columns ``system``, ``seed``, ``image``, "max_sensitivity", and for each sigma "noise_rank_<sigma>" (Spearman),
        "noise_iou_<sigma>" and "noise_stray_<sigma>"; for ``ExplainerEvaluation.joined``.
    """
    p = probe or Probe()

    def measure(system: System, batch: StudyBatch) -> dict[str, Tensor]:
        maps: list[Tensor] = []

        def attribute(images: Tensor) -> Tensor:
            answers = system.counterparts(replace(batch, images=images).to(device), Query(finding))
            maps.append(torch.stack([a.evidence.detach().float().cpu() for a in answers]))
            return maps[-1]

        # All in one call, so that valid pixels and sources stay with their images.
        x, valid, n = batch.images, batch.valid, len(batch)
        worst = stability.max_sensitivity(attribute, x, radius=p.radius, draws=p.draws, valid=valid, batch_size=n)
        maps.clear()
        curve = stability.noise_curve(attribute, x, p.sigmas, area=p.area, valid=valid, batch_size=n)
        figures = {"max_sensitivity": worst}
        for k, sigma in enumerate(p.sigmas):
            figures |= {f"noise_rank_{sigma:g}": curve.spearman[k], f"noise_iou_{sigma:g}": curve.iou[k]}
            figures[f"noise_stray_{sigma:g}"] = stray_share(maps[1 + k], valid)
        return figures

    return pd.concat(
        [
            _over_sample(partial(measure, system), store, rows, key).assign(system=name, seed=seed)
            for name, entry in systems.items()
            for seed, system in enumerate(seeds_of(entry))
        ],
        ignore_index=True,
    )


def randomisation_test(
    factories: Mapping[str, Factory],
    classifier: nn.Module,
    store: PreparedStore,
    rows: Any,
    finding: str,
    *,
    seed: int = 0,
    key: bytes | None = None,
) -> pd.DataFrame:
    """Model parameter randomisation test (Adebayo 2018): what is left of maps when the classifier forgets.

    Maps are those of ``attribute``, signed and unsmoothed, where a system has it, else evidence.

    Args:
        factories: name to a function that builds the system around a classifier. One whose generator was trained with
            the classifier must train it anew, or its answer shows what happens without.
        classifier: trained; its layers are randomised from the top, see ``metrics.stability.randomised``.
        rows: the sample.
        seed: of the new weights.
        store, finding, key: see ``evaluate_explainers``.

    Returns:
        Columns ``system``, ``seed``, ``image``, and for the depths top (last layer), half and all "mprt_<depth>"
        (Spearman), "mprt_abs_<depth>" (of magnitudes) and "mprt_ssim_<depth>"; for ``ExplainerEvaluation.joined``.

    Raises:
        InputError: the classifier has no layers that could be randomised.
    """
    layers, device = len(stability.parameter_layers(classifier)), device_of(classifier)
    depths = {"top": min(1, layers), "half": (layers + 1) // 2, "all": None}
    forgotten = {name: stability.randomised(classifier, seed=seed, depth=depth) for name, depth in depths.items()}

    def measure(before: System, after: Mapping[str, System], batch: StudyBatch) -> dict[str, Tensor]:
        there, figures = batch.to(device), dict[str, Tensor]()
        maps = signed_maps(before, there, finding)
        for depth, system in after.items():
            others = signed_maps(system, there, finding)
            alike = stability.map_similarity(maps, others, batch.valid)
            figures |= {f"mprt_{depth}": alike.spearman, f"mprt_ssim_{depth}": alike.ssim}
            figures[f"mprt_abs_{depth}"] = stability.map_similarity(maps.abs(), others.abs(), batch.valid).spearman
        return figures

    frames = []
    for name, factory in factories.items():
        after = {depth: factory(other) for depth, other in forgotten.items()}
        figures = _over_sample(partial(measure, factory(classifier), after), store, rows, key)
        frames.append(figures.assign(system=name, seed=0))
    return pd.concat(frames, ignore_index=True)


def _over_sample(
    measure: Callable[[StudyBatch], dict[str, Tensor]], store: PreparedStore, rows: Any, key: bytes | None
) -> pd.DataFrame:
    """Figures (n,) of each batch as a row per image."""
    chosen = rows_of(store, rows)
    parts = [chosen[start : start + 16] for start in range(0, len(chosen), 16)]
    found = [measure(study_batch(store, part, patient_names(store, part, key))) for part in parts]
    columns = {name: torch.cat([figures[name] for figures in found]).double().numpy() for name in found[0]}
    return pd.DataFrame({"image": image_names(store, chosen, key), **columns})


def signed_maps(system: Any, batch: StudyBatch, finding: str) -> Tensor:
    """(n, 1, H, W) attributions, or evidence of a system that has none; 0 on padding, on the CPU."""
    if callable(getattr(system, "attribute", None)):
        maps = system.attribute(batch.images, finding)
    else:
        maps = torch.stack([a.evidence for a in system.counterparts(batch, Query(finding))])
    maps = maps.detach().float().cpu()
    return maps if batch.valid is None else maps * batch.valid.cpu()
