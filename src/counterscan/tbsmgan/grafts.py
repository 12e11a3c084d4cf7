"""Lesions of some training images put into others, and taken out of their own: labelled images without a generator.

    x_0   = x_s with the region of its lesion filled (``taggan.filling``)         the healthy counterpart of s
    alpha = (x_s - x_0) / (1 - x_0) where the lesion is brighter, / (1 + x_0) where it is darker
    x_t + alpha (1 - x_t), or x_t + alpha (1 + x_t)      an image t without the finding gets the lesion of s

TagGAN's map, learned from image-level labels, says where the lesion is; what it changes there is the whole difference
to a body without it: a real lesion, in a place where one was, and what surrounds it is real. As an opacity alpha it
shows as far as the other body lets it: in a lung, and hardly in front of a heart. A lesion is taken only where it can
be taken out, so that the verifiers no longer see it. What has one has the finding, whether verifiers see it or not:
those that they miss are the ones to learn from. They are asked whether the rest of the body stayed (``NEEDED`` of
``tbsmgan.gate``); where they do not see most grafts of a finding, its lesions do not fit other bodies, and none is
made. Of a few bodies a lesion gets the one that is most like x_0 where it is to lie: hearts, diaphragms and skulls lie
elsewhere in others. Where the tagger takes a body's sides to look alike, half of the lesions change sides. Controls are
made by the same means of images without the finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import counterscan
from counterscan.data.findings import canonical_name
from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.files import atomic_write, write_json
from counterscan.png import png
from counterscan.tbsmgan.acceptance import Tally
from counterscan.tbsmgan.export import quantised
from counterscan.tbsmgan.gate import Gate
from counterscan.tbsmgan.judgement import Judgement, Sign
from counterscan.tbsmgan.synthesis import MOSTLY, state_of, write_table
from counterscan.training.checkpoint import weights_digest

if TYPE_CHECKING:
    from counterscan.taggan import TagGAN
    from counterscan.taggan.filling import Filler, Regions

NOTICE = "SYNTHETIC IMAGE: a lesion was put in or taken out. Research use only. Not a medical device."
_LEAST_ROOM = 0.1  # of grey that is left to a lesion; less would make noise opaque
LESION_PATIENT = "lesion_patient"  # column: an image of two patients is an image of both
NEEDED = ("off-target", "identity", "new")  # that a graft must pass
FEWEST = 5  # lesions of a finding that can be taken out, below which none is put in
_CANDIDATES = 32  # bodies of which one is chosen for a lesion
_BATCH = 64
_STATE = "grafts.json"

Progress = Callable[[str, int, int], None]  # finding, accepted, wanted


@dataclass(frozen=True)
class Grafts:
    """Images that passed.

    Attributes:
        images: (N, 1, S, S) in [-1, 1].
        rows: (N,) which training image each is of.
        lesions: (N,) of which training image the lesion is.
        seen: (N,) P(finding) of each, mean over the verifiers.
    """

    images: Tensor
    rows: np.ndarray
    lesions: np.ndarray
    seen: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> Grafts:
        """Some of them."""
        return Grafts(self.images[:count], self.rows[:count], self.lesions[:count], self.seen[:count])


@dataclass(frozen=True)
class _Lesions:
    """Lesions and where they lay.

    Attributes:
        sources: (N,) of which training image.
        opacities, healthy: (N, 1, S, S), alpha and x_0 of the module.
        regions: (N, 1, S, S) bool, of the lesion and its rim.
    """

    sources: np.ndarray
    opacities: Tensor
    healthy: Tensor
    regions: Tensor

    @classmethod
    def between(cls, sources: np.ndarray, images: Tensor, healthy: Tensor, regions: Tensor) -> _Lesions:
        """What images have and their healthy counterparts have not."""
        return cls(sources, opacity(images, healthy), healthy, regions)

    @classmethod
    def joined(cls, parts: Sequence[_Lesions]) -> _Lesions:
        return cls(
            np.concatenate([part.sources for part in parts]),
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("opacities", "healthy", "regions")),
        )

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, at: np.ndarray) -> _Lesions:
        """Some of them, by number."""
        rows = torch.from_numpy(at)
        return _Lesions(self.sources[at], self.opacities[rows], self.healthy[rows], self.regions[rows])

    def mirrored(self, these: Tensor) -> _Lesions:
        """With some (N,) bool turned left to right."""
        turned = these.view(-1, 1, 1, 1)
        pictures = (self.opacities, self.healthy, self.regions)
        return _Lesions(self.sources, *(torch.where(turned, x.flip(-1), x) for x in pictures))

    def apart(self, images: Tensor) -> Tensor:
        """(N,) mean |difference| of images (N, 1, S, S) and x_0 within the regions."""
        return ((images - self.healthy).abs() * self.regions).sum((1, 2, 3)) / self.regions.sum((1, 2, 3)).clamp_min(1)


class Grafting:
    """Puts lesions in and takes them out.

    Args:
        tagger: trained on the split train.
        regions: where it sees findings in ``images``, by ``taggan.filling.locate``.
        filler: says what lies under them.
        images: the split train that the gate was calibrated on.
        labels: (N, C) 1, 0 or NaN, columns as the tagger's findings.
        gate: what lets through.
        seed: which lesion meets which body.
        least: ``share`` below which no graft of a finding is made.

    Attributes:
        tally: tries and what passed; see ``Tally``.

    Raises:
        InputError: images of another size, or a finding that the gate does not know.
    """

    def __init__(
        self,
        tagger: TagGAN,
        regions: Regions,
        filler: Filler,
        images: PreparedStore,
        labels: np.ndarray,
        gate: Gate,
        seed: int = 0,
        least: float = MOSTLY,
    ) -> None:
        if tagger.size is not None and tagger.size != images.size:
            raise InputError(f"it is of {tagger.size} px, the images of {images.size}", field="tagger")
        missing = [name for name in tagger.findings if name not in gate.findings]
        if missing:
            remedy = f"Train classifiers of the tagger's findings; these know {', '.join(gate.findings)}"
            raise InputError(f"the verifiers do not know {missing[0]!r}", field="verifiers", remedy=remedy)
        self.tagger, self.regions, self.filler = tagger, regions, filler
        self.images, self.labels, self.gate, self.seed, self.least = images, labels, gate, seed, least
        self.tally = Tally()
        self._taken: dict[str, tuple[_Lesions, Grafts]] = {}
        # Of the first batch, judged and counted once: what passed, and the share in which the verifiers see it.
        self._begun: dict[str, tuple[Grafts, float]] = {}

    def make(self, finding: str, sign: Sign, count: int, tries: float) -> Grafts:
        """Images of one finding that pass.

        Args:
            finding: one of the tagger's.
            sign: 1 puts it into images that lack it, -1 takes it out of images that have it, each once.
            count: how many are wanted.
            tries: at most so many for each, but ``_BATCH`` in any case.

        Returns:
            Up to ``count``; none with the finding where fewer than ``FEWEST`` lesions can be taken out, or where
            ``share`` is too small.

        Raises:
            InputError: an unknown finding, or one that no training image has.
        """
        if sign < 0:
            return self._lesions(finding)[1].first(count)
        found: list[Grafts] = []
        if self.share(finding) < self.least:
            return self._joined(found)
        for part in self._grafted(finding, int(tries * count)):
            found.append(part)
            if sum(map(len, found)) >= count:
                break
        return self._joined(found).first(count)

    def controls(self, finding: str, count: int) -> Grafts:
        """Images without the finding that were made as grafts are: how they are made then tells nothing of it.

        What lies in an image without the finding where others have it is taken out of that image by the same means and
        put into another. ``NEEDED`` holds of them, too; they do not count in ``tally``.

        Args:
            finding: one of the tagger's.
            count: at most so many; none where no image is known to lack it.
        """
        column = self._column(finding)
        own, bodies = self.regions.of(column), np.flatnonzero(self.labels[:, column] == 0)
        dice, found = np.random.default_rng([self.seed, column, 1]), list[Grafts]()
        budget = 2 * count + _BATCH
        while len(own) and len(bodies) and sum(map(len, found)) < count and budget > 0:
            sources, at = dice.choice(bodies, _BATCH), dice.integers(len(own), size=_BATCH)
            x = self.images.images(sources)
            masks = own.masks[torch.from_numpy(at)] & self.images.valid(sources)
            lesions = _Lesions.between(sources, x, self.filler.fill(x, masks), masks)
            after, judged, rows = self._put(lesions, bodies, dice, finding)
            found.append(self._passed(judged, after, rows, sources))
            budget -= _BATCH
        return self._joined(found).first(count)

    def _put(
        self, lesions: _Lesions, bodies: np.ndarray, dice: np.random.Generator, finding: str
    ) -> tuple[Tensor, Judgement, np.ndarray]:
        """Each lesion in one of the bodies (rows), what the gate says, and the rows of the bodies.

        Half of the lesions are mirrored where sides look alike: what one has, the other could have.
        """
        turned = dice.random(len(lesions)) < 0.5
        candidates = dice.choice(bodies, (_CANDIDATES, len(lesions)))
        if self.tagger.care.flips:
            lesions = lesions.mirrored(torch.from_numpy(turned))
        apart = torch.stack([lesions.apart(self.images.images(rows)) for rows in candidates])
        rows = candidates[apart.argmin(dim=0).numpy(), np.arange(len(lesions))]
        before = self.images.images(rows)
        after = with_opacity(before, lesions.opacities)
        judged = self.gate.judge(before, after, finding, 1, own=torch.from_numpy(rows))
        return after, replace(judged, needed=NEEDED), rows

    def share(self, finding: str) -> float:
        """Share of the first ``_BATCH`` grafts in which every verifier sees the finding."""
        return self._begun[finding][1] if next(self._grafted(finding, _BATCH), None) is not None else 0.0

    def _grafted(self, finding: str, tries: int) -> Iterator[Grafts]:
        lesions, _ = self._lesions(finding)
        bodies = np.flatnonzero(self.labels[:, self._column(finding)] == 0)
        if len(lesions) < FEWEST or not len(bodies):
            return
        for batch, start in enumerate(range(0, tries, _BATCH)):
            if not start and finding in self._begun:
                yield self._begun[finding][0]
                continue
            dice = np.random.default_rng([self.seed, self._column(finding), 0, batch])
            some = lesions.take(dice.integers(len(lesions), size=min(_BATCH, tries - start) if start else _BATCH))
            after, judged, rows = self._put(some, bodies, dice, finding)
            self.tally.add(judged)
            part = self._passed(judged, after, rows, some.sources)
            if not start:
                self._begun[finding] = part, float(judged.reached.double().mean())
            yield part

    def _lesions(self, finding: str) -> tuple[_Lesions, Grafts]:
        """Lesions that can be taken out, and the healed images that pass."""
        if finding not in self._taken:
            own = self.regions.of(self._column(finding))
            if not len(own):
                raise InputError("no training image has it", field=f"finding {finding!r}", remedy="Leave it out")
            lesions, healed = list[_Lesions](), list[Grafts]()
            for rows, masks in zip(
                np.split(own.rows, range(_BATCH, len(own), _BATCH)), own.masks.split(_BATCH), strict=True
            ):
                x = self.images.images(rows)
                after = self.filler.fill(x, masks)
                judged = self.gate.judge(x, after, finding, -1, own=torch.from_numpy(rows))
                self.tally.add(judged)
                lesions.append(_Lesions.between(rows, x, after, masks).take(np.flatnonzero(judged.reached)))
                healed.append(self._passed(judged, after, rows, rows))
            self._taken[finding] = _Lesions.joined(lesions), self._joined(healed)
        return self._taken[finding]

    @staticmethod
    def _passed(judged: Judgement, images: Tensor, rows: np.ndarray, lesions: np.ndarray) -> Grafts:
        kept = judged.accepted
        return Grafts(images[kept], rows[kept.numpy()], lesions[kept.numpy()], judged.after[kept])

    def _joined(self, parts: list[Grafts]) -> Grafts:
        size = self.images.size
        return Grafts(
            torch.cat([torch.zeros(0, 1, size, size), *(part.images for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.rows for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.lesions for part in parts)]),
            torch.cat([torch.zeros(0), *(part.seen for part in parts)]),
        )

    def _column(self, finding: str) -> int:
        if finding not in self.tagger.findings:
            known = ", ".join(self.tagger.findings)
            raise InputError(f"the model does not know {finding!r}", field="finding", remedy=f"It knows {known}")
        return self.tagger.findings.index(finding)


def opacity(image: Tensor, healthy: Tensor) -> Tensor:
    """Alpha of the module: of what an image has and its healthy counterpart has not.

    Args:
        image, healthy: (N, 1, S, S) in [-1, 1].

    Returns:
        (N, 1, S, S) in [-1, 1], 0 where they are equal.
    """
    change = image - healthy
    room = torch.where(change > 0, 1 - healthy, 1 + healthy).clamp_min(_LEAST_ROOM)
    return (change / room).clamp(-1, 1)


def with_opacity(image: Tensor, alpha: Tensor) -> Tensor:
    """The image with a lesion of this opacity; the reverse of ``opacity`` on the healthy image."""
    return image + alpha * torch.where(alpha > 0, 1 - image, 1 + image)


def write_grafts(
    grafting: Grafting,
    findings: Mapping[str, int],
    folder: str | Path,
    *,
    tries: float = 8.0,
    healed: bool = False,
    progress: Progress | None = None,
) -> dict[str, dict[str, int]]:
    """A study table of grafts, as many controls, and healed images, with truthful labels.

    Writes ``images/``, PNG files that say what they are, ``table.csv`` with the tagger's findings and, beside each
    image, "edited", "seen" (P of it, mean over the verifiers), "method" ("graft", "control" or "healed"),
    "lesion_patient" and "synthetic"; and ``grafts.json`` with rates and settings. The same call goes on after the last
    finding that was finished.

    Args:
        grafting: what makes them.
        findings: finding -> how many images with it are wanted.
        folder: where to write.
        tries: at most so many for each image that is wanted.
        healed: also write the images that lesions were taken out of, up to as many.
        progress: called after each finding.

    Returns:
        Finding -> "graft", "control" and "healed" -> how many were written.

    Raises:
        InputError: nothing wanted, an unknown finding, or a folder of another request.
    """
    wanted, folder = {canonical_name(name): int(count) for name, count in findings.items()}, Path(folder)
    if not wanted or min(wanted.values()) < 1:
        raise InputError("nothing is wanted", field="findings", remedy='Give numbers, such as {"Edema": 500}')
    request = {
        "wanted": wanted,
        "tries": tries,
        "healed": healed,
        "seed": grafting.seed,
        "least": grafting.least,
        "tagger": grafting.tagger.checkpoint,
        "filler": weights_digest(grafting.filler.net),
        "verifiers": grafting.gate.digests(),
    }
    state: dict[str, Any] = {"synthetic": True, "request": request, "made": {}, "tally": {}, "rates": [], "rows": []}
    if (begun := state_of(folder / _STATE, request)) is not None:
        state, grafting.tally.counts = begun, begun["tally"]
    made, rows = state["made"], state["rows"]
    for name, count in wanted.items():
        if name in made:
            continue
        parts = {"graft": grafting.make(name, 1, count, tries)}
        parts["control"] = grafting.controls(name, len(parts["graft"]))
        if healed:
            parts["healed"] = grafting.make(name, -1, count, tries)
        counts = {method: len(found) for method, found in parts.items()}
        for method, found in parts.items():
            for at in range(len(found)):
                rows.append(_row(grafting, found, at, name, method, f"images/{method}-{len(rows):06d}.png", folder))
        made[name] = counts
        state |= {"tally": grafting.tally.counts, "rates": grafting.tally.table()}
        write_table(rows, grafting.tagger.findings, folder)
        write_json(folder / _STATE, state)
        if progress is not None:
            progress(name, counts["graft"], count)
    return dict(made)


def _row(
    grafting: Grafting, found: Grafts, at: int, finding: str, method: str, image: str, folder: Path
) -> dict[str, Any]:
    """Write one image; its row of the table."""
    tagger, row = grafting.tagger, int(found.rows[at])
    labels = dict(zip(tagger.findings, grafting.labels[row].tolist(), strict=True))
    labels[finding] = float(method == "graft")
    facts = {
        "Synthetic": "true",
        "Description": NOTICE,
        "Software": f"counterscan {counterscan.__version__}",
        "Checkpoint": tagger.checkpoint or "",
        "Method": f"{method}: {finding}",
    }
    with atomic_write(folder / image) as handle:
        handle.write(png(quantised(found.images[at], 8), facts))
    return {
        "image": image,
        "patient": grafting.images.patients[row],
        "split": "train",
        **{name: value for name, value in labels.items() if value == value},  # NaN is unknown, a blank cell
        "seen": round(float(found.seen[at]), 4),
        "edited": finding,
        "method": method,
        LESION_PATIENT: grafting.images.patients[int(found.lesions[at])],
        "synthetic": 1,
    }
