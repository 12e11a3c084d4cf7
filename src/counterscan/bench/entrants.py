"""Entering rivals on equal terms: the same views, the same rule for masks, the same patients left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterscan.bench.subjects import patient_names, rows_of, study_batch
from counterscan.care import Care
from counterscan.counterpart import Query, System
from counterscan.data.readers import read_image
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.peers.base import Masker
from counterscan.peers.gradcam import GradCAM
from counterscan.peers.integrated_gradients import IntegratedGradients
from counterscan.peers.layercam import LayerCAM
from counterscan.peers.trivial import MeanLesionLocation, RawIntensity, WholeOrgan
from counterscan.taggan.masks import calibrate

PeerFactory = Callable[[Masker | None], System]


def calibrated(
    peer_factory: PeerFactory,
    store: PreparedStore,
    healthy_val_rows: Any,
    finding: str,
    *,
    percentile: float = 99.0,
    min_area: float = 0.001,
    batch_size: int = 32,
    key: bytes | None = None,
) -> System:
    """A peer whose masks follow the rule that our own follow (``taggan.masks.calibrate``).

    Args:
        peer_factory: takes a masker, or None for no masks, and makes the peer: ``lambda m: GradCAM(f, masker=m)``.
        store: prepared images.
        healthy_val_rows: validation images without the finding; indices, slice or bool mask.
        finding: whose evidence is thresholded.
        percentile, min_area: see ``taggan.masks``.
        batch_size: images per question.
        key: of the pseudonyms, for peers that leave patients out.

    Raises:
        InputError: no healthy validation image.
    """
    rows, bare = rows_of(store, healthy_val_rows), peer_factory(None)
    patients = patient_names(store, rows, key)
    evidence, valid = [torch.zeros(0, 1, store.size, store.size)], [torch.zeros(0, 1, store.size, store.size).bool()]
    for i in range(0, len(rows), batch_size):
        batch = study_batch(store, rows[i : i + batch_size], patients[i : i + batch_size])
        assert batch.valid is not None
        evidence.append(torch.stack([a.evidence.cpu() for a in bare.counterparts(batch, Query(finding))]))
        valid.append(batch.valid)
    return peer_factory(calibrate(torch.cat(evidence), torch.cat(valid), percentile=percentile, min_area=min_area))


def mean_location(
    store: PreparedStore,
    rows: Any,
    finding: str,
    *,
    any_lesion: bool = False,
    smoothing: float = 0.0,
    masker: Masker | None = None,
    key: bytes | None = None,
) -> MeanLesionLocation:
    """The mean-lesion-location map of some rows' masks; in an evaluation each image's own patient is left out of it.

    Args:
        any_lesion: masks of every finding count.
        key: the one given to ``evaluate_systems``.

    Raises:
        InputError: no row has a mask.
    """
    chosen = rows_of(store, rows)
    masks = store.masks(chosen, None if any_lesion else finding)
    drawn = masks.flatten(1).any(1)
    if not bool(drawn.any()):
        raise InputError("no image has a lesion mask", path=store.folder, field=finding)
    patients = patient_names(store, chosen[drawn.numpy()], key).tolist()
    return MeanLesionLocation(masks[drawn], patients, smoothing=smoothing, masker=masker)


def first_peers(
    classifier: nn.Module,
    store: PreparedStore,
    healthy_val_rows: Any,
    finding: str,
    *,
    care: Care | None = None,
    ig_steps: int = 50,
    ig_care: Care | None = None,
    location_rows: Any = None,
    any_lesion: bool = False,
    location_smoothing: float = 0.0,
    percentile: float = 99.0,
    min_area: float = 0.001,
    key: bytes | None = None,
) -> dict[str, System]:
    """Grad-CAM, LayerCAM, Integrated Gradients, raw intensity, whole organ, and, given masks, mean lesion location.

    Args:
        classifier: see ``peers.base``; the one our own system used.
        store, healthy_val_rows, finding, percentile, min_area: see ``calibrated``.
        care: views, smoothing and spreading of the three attribution methods and of the intensity; give them ours.
        ig_steps: points of Integrated Gradients.
        ig_care: its views, if fewer than ``care``: each costs ``ig_steps`` passes.
        location_rows: rows whose masks make the location prior, which is supervised; None leaves it out.
        any_lesion: masks of every finding count for it.
        location_smoothing: of the prior, as a share of the width.
    """
    factories: dict[str, PeerFactory] = {
        GradCAM.name: lambda masker: GradCAM(classifier, care=care, masker=masker),
        LayerCAM.name: lambda masker: LayerCAM(classifier, care=care, masker=masker),
        IntegratedGradients.name: lambda masker: IntegratedGradients(
            classifier, n_steps=ig_steps, care=ig_care or care, masker=masker
        ),
        "Raw intensity": lambda masker: RawIntensity(care=care, masker=masker),
    }
    if location_rows is not None:
        factories[MeanLesionLocation.name] = lambda masker: mean_location(
            store,
            location_rows,
            finding,
            any_lesion=any_lesion,
            smoothing=location_smoothing,
            masker=masker,
            key=key,
        )
    made = {
        name: calibrated(factory, store, healthy_val_rows, finding, percentile=percentile, min_area=min_area, key=key)
        for name, factory in factories.items()
    }
    return made | {WholeOrgan.name: WholeOrgan()}


def native_truth(store: PreparedStore, finding: str, *, any_lesion: bool = False) -> Callable[[int], Tensor]:
    """A function from a row to its lesion mask (H, W), bool, on the image file's own grid, read when asked.

    The same masks and boxes count as in ``PreparedStore.masks``.

    Args:
        store: prepared from files that are still there.
        finding: whose masks.
        any_lesion: masks of every finding count.
    """
    named = finding if store.mask_findings and not any_lesion else None

    def mask(row: int) -> Tensor:
        native = store.geometry(row).native
        truth = np.zeros(native, dtype=bool)
        for name, path in store.table.mask_paths(row).items():
            if named is None or name == named:
                truth |= _fitted(read_image(path).pixels, native)
        for entry in store.table.boxes(row):
            if named is None or entry["finding"] == named:
                x, y, width, height = (round(v) for v in entry["box"])
                truth[max(0, y) : max(0, y) + max(1, height), max(0, x) : max(0, x) + max(1, width)] = True
        return torch.from_numpy(truth)

    return mask


def _fitted(pixels: np.ndarray, native: tuple[int, int]) -> np.ndarray:
    """A drawn mask as bool, brought to the image's pixels where it was drawn on a rescaled copy."""
    drawn = torch.from_numpy((pixels > 0.5 * pixels.max()) & (pixels > 0)).float()
    if drawn.shape != tuple(native):
        drawn = F.interpolate(drawn[None, None], size=native, mode="nearest-exact")[0, 0]
    return drawn.bool().numpy()
