"""A trained generator, ready to be asked for images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from counterscan.data.findings import canonical_name
from counterscan.data.intensity import IntensityRecipe
from counterscan.errors import InputError
from counterscan.nets.stylegan2 import Generator, Noise
from counterscan.tbsmgan.card import model_card

PSI = 0.7  # truncation of samples: some variety is given for images that look right
_BATCH = 64


@dataclass(frozen=True)
class TrainingPatients:
    """Who a generator learned from, so that nothing is measured on the same patients later.

    Ids are kept as 48-bit salted hashes: enough to find a known id again, not to read ids out. Whoever guesses an id
    can test the guess; keep the file to yourself if ids are guessable and must stay secret.

    Attributes:
        salt: makes the hashes of two generators incomparable.
        hashes: sorted, 12 hex digits each.
    """

    salt: str
    hashes: tuple[str, ...] = ()

    @classmethod
    def of(cls, patients: Iterable[str], salt: str) -> TrainingPatients:
        """Of patient ids, as the study table has them."""
        return cls(salt, tuple(sorted({_hash(patient, salt) for patient in patients})))

    def among(self, patients: Iterable[str]) -> list[str]:
        """Which of these patients it learned from, each once, in order."""
        known = set(self.hashes)
        return [patient for patient in dict.fromkeys(patients) if _hash(patient, self.salt) in known]


def _hash(patient: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}\n{patient}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class LabelMix:
    """The combinations of findings that the training images have, from which samples are asked for in like shares.

    Attributes:
        labels: (M, K) in [0, 1], distinct conditions.
        shares: (M,) adding up to 1.
    """

    labels: Tensor
    shares: Tensor

    @classmethod
    def of(cls, conditions: Tensor) -> LabelMix:
        """Of the conditions (N, K) of all training images."""
        labels, counts = torch.unique(conditions.float(), dim=0, return_counts=True)
        return cls(labels, counts / counts.sum())

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, K) conditions."""
        return self.labels[torch.multinomial(self.shares, n, replacement=True, generator=generator)]


@dataclass
class StyleGAN:
    """A generator with what is known of it. Latents: z (N, z_dim), w (N, num_ws, w_dim), styles one (N, C_l) a layer.

    Attributes:
        generator: the averaged network, in evaluation mode, without gradients.
        findings: K names of what it can be asked for; empty when it takes no condition.
        mix: combinations in the training images; None when it takes no condition.
        size: pixels of a side.
        recipe: how the training images' intensities became [-1, 1]; None for stores made from arrays.
        checkpoint: digest of the weights.
        patients: whom it learned from.
        figures: of the validation of this checkpoint: "fid", "consistency/<finding>", ...; see ``Monitors``.
        learned: finding -> whether samples show it when it is asked for.
        diagnoses: trouble found while training, in words.
        facts: how it was trained, in words.
    """

    generator: Generator
    findings: tuple[str, ...] = ()
    mix: LabelMix | None = None
    recipe: IntensityRecipe | None = None
    checkpoint: str = ""
    patients: TrainingPatients = field(default_factory=lambda: TrainingPatients(""))
    figures: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, bool] = field(default_factory=dict)
    diagnoses: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.generator.eval().requires_grad_(False)
        if len(self.findings) != self.generator.config.labels:
            raise InputError(
                f"{len(self.findings)} names for {self.generator.config.labels} conditions", field="findings"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> StyleGAN:
        """A finished run folder, its ``model`` folder, or a folder written by ``save_pretrained``.

        Raises:
            InputError: no generator there, or a damaged one.
        """
        from counterscan.tbsmgan.pretrained import load

        return load(Path(folder), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, settings, label mix, patients' hashes and a model card; see ``tbsmgan.pretrained``.

        Raises:
            InputError: the folder cannot be written.
        """
        from counterscan.tbsmgan.pretrained import save

        return save(self, Path(folder))

    def card(self) -> str:
        """The model card, Markdown."""
        return model_card(self.findings, self.size, self.figures, self.learned, self.diagnoses, self.facts)

    @property
    def size(self) -> int:
        return self.generator.config.size

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def map(self, z: Tensor, c: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """z (N, z_dim) and conditions (N, K) in [0, 1] to w (N, num_ws, w_dim); see ``Generator.map``."""
        return self.generator.map(z, c, psi, cutoff)

    def synthesize(
        self, ws: Tensor | None = None, *, styles: Sequence[Tensor] | None = None, noise: Noise = "const"
    ) -> Tensor:
        """Images (N, 1, H, W) from w, or from styles; not clipped. See ``Generator.synthesize``."""
        return self.generator.synthesize(ws, styles=styles, noise=noise)

    def styles(self, ws: Tensor) -> list[Tensor]:
        """w to one (N, C_l) per layer, the S space; see ``Generator.styles``."""
        return self.generator.styles(ws)

    def labels_for(self, *present: str) -> Tensor:
        """The condition (K,) with these findings, by any name they are known by, and no other.

        Raises:
            InputError: it was not trained on one of them.
        """
        condition = torch.zeros(len(self.findings))
        for name in map(canonical_name, present):
            if name not in self.findings:
                raise InputError(
                    f"this generator was not trained on {name!r}",
                    field="findings",
                    remedy=f"It knows {', '.join(self.findings)}" if self.findings else "It takes no condition",
                )
            condition[self.findings.index(name)] = 1.0
        return condition

    def draw_labels(self, n: int, seed: int = 0) -> Tensor:
        """(n, K) conditions with the training images' mixture of findings, the same for the same arguments.

        Raises:
            InputError: n is below 1.
        """
        if n < 1:
            raise InputError(f"{n} must be at least 1", field="n")
        if self.mix is None:
            return torch.zeros(n, 0)
        return self.mix.draw(n, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def sample(self, n: int | None = None, *, labels: Tensor | None = None, psi: float = PSI, seed: int = 0) -> Tensor:
        """New images, the same for the same arguments; the i-th has the same z whatever is asked of it.

        Args:
            n: how many, asked for what ``draw_labels(n, seed)`` says; or give ``labels``.
            labels: (N, K) what each image is to show, in [0, 1].
            psi: truncation: 1 for the full variety, 0 for the mean image of a condition.
            seed: of the latents.

        Returns:
            (N, 1, H, W) float32 in [-1, 1] on the CPU.

        Raises:
            InputError: neither or both of ``n`` and ``labels``, or labels of another width or out of range.
        """
        count = len(self.findings)
        if (n is None) == (labels is None):
            raise InputError("give either a number of images or their labels", field="n")
        labels = self.draw_labels(n, seed) if n is not None else labels.detach().float().cpu()  # type: ignore[union-attr]
        if labels.ndim != 2 or labels.shape[1] != count or not len(labels):
            raise InputError(f"expected (N, {count}) with N >= 1, got {tuple(labels.shape)}", field="labels")
        if not bool(((labels >= 0) & (labels <= 1)).all()):
            raise InputError("must lie in [0, 1]", field="labels")
        z = torch.randn(len(labels), self.generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
        images = []
        for part, c in zip(z.split(_BATCH), labels.split(_BATCH), strict=True):
            made = self.generator(part.to(self.device), c.to(self.device) if count else None, psi=psi)
            images.append(made.float().clamp(-1, 1).cpu())
        return torch.cat(images)

    def refuse_patients(self, patients: Iterable[str]) -> None:
        """Raise InputError if one of these patients is among those it learned from; call it before measuring on them.

        Raises:
            InputError: a leak, or nothing is known of the training patients.
        """
        if not self.patients.hashes:
            raise InputError(
                "nothing is known of the patients this generator learned from",
                field="patients",
                remedy="Keep training_patients.json beside the weights, or do not measure with it",
            )
        seen = self.patients.among(patients)
        if seen:
            raise InputError(
                f"the generator learned from {len(seen):,} of these patients, {seen[0]!r} first",
                field="patients",
                remedy="Measure on patients that no part of the system has seen",
            )
