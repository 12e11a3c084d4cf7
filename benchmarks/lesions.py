"""How much of a lesion is found? TagGAN's map, and the difference to what a network finds under it, against the truth.

    python benchmarks/lesions.py --study runs/study --out runs/lesions

On the phantom a lesion is known: the film minus the same film rendered without the finding. `--study` is a finished
`benchmarks/study.py phantom` with the arm graft, whose tagger and filler are asked about its test films.
Written: `lesions.md`, `lesions.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import tyro
from record import facts, publish
from torch import Tensor

from counterscan.data.phantom import PhantomConfig, render
from counterscan.data.splits import spaced
from counterscan.data.store import PreparedStore
from counterscan.files import read_json, write_json
from counterscan.metrics.intervals import mean_interval
from counterscan.report.tables import Table
from counterscan.taggan import TagGAN
from counterscan.taggan.filling import Filler, region_of

_BATCH = 64


@dataclass(frozen=True)
class Measures:
    """Of one way to a lesion e, against the truth l, (N,) each, over the pixels of a film."""

    share: Tensor
    """<e, l> / <l, l>: 1 where all of it is found."""
    correlation: Tensor
    """Of e and l; NaN for an empty e."""
    error: Tensor
    """Root mean square of e - l; an image spans 2."""

    @classmethod
    def of(cls, found: Tensor, truth: Tensor) -> Measures:
        """Both (N, 1, S, S)."""
        e, lesion = found.flatten(1).double(), truth.flatten(1).double()
        a, b = (x - x.mean(1, keepdim=True) for x in (e, lesion))
        return cls(
            (e * lesion).sum(1) / lesion.square().sum(1),
            (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)),
            (e - lesion).square().mean(1).sqrt(),
        )


def truths(folder: Path, rows: np.ndarray, files: list[str], finding: str) -> Iterator[Tensor]:
    """What the finding adds to each of these films, (1, S, S) in units of [-1, 1]."""
    about = read_json(folder / "phantom.json")
    known = {field.name: about[field.name] for field in fields(PhantomConfig) if field.name in about}
    config = PhantomConfig(**known)
    for row in rows:
        index = int(Path(files[row]).stem)
        with_it, without = (render(config, about["seed"], index, without=w).image for w in ((), (finding,)))
        yield torch.from_numpy(with_it - without)[None]


def main(study: Path, out: Path, most: int = 200, threads: int = 1) -> None:
    """Measure.

    Args:
        study: folder of a study with the arm graft.
        out: for the table.
        most: films of each finding.
        threads: of the CPU.
    """
    torch.set_num_threads(threads)
    store = PreparedStore.open(study / "store")
    tagger, filler = TagGAN.from_pretrained(study / "tagger"), Filler.from_pretrained(study / "filler")
    (test,) = store.parts("test")
    files = test.table.frame["image"].astype(str).tolist()
    rows, record = [], {}
    for finding in tagger.findings:
        has = np.flatnonzero(test.labels[:, test.findings.index(finding)] == 1)
        own = spaced(has, most)
        films, truth = test.images(own), torch.stack(list(truths(study / "phantom", own, files, finding)))
        maps = torch.cat([tagger.maps(part, finding)[0] for part in films.split(_BATCH)])
        whole = films - filler.fill(films, region_of(maps))
        for name, found in (("nothing", 0 * maps), ("TagGAN's map", maps), ("filled", whole)):
            measured = Measures.of(found, truth)
            patients = test.patients[own].tolist()
            values = {f.name: mean_interval(getattr(measured, f.name), patients) for f in fields(Measures)}
            rows.append((finding, len(own), name, *values.values()))
            record[f"{finding}, {name}"] = {key: (v.value, v.low, v.high) for key, v in values.items()}
    columns = ("Finding", "Films", "Lesion", *(f.name for f in fields(Measures)))
    note = f"{facts()}. Test films of {study.name}; means with 95 % intervals over patients."
    write_json(out / "lesions.json", record)
    publish(Table("How much of a lesion is found", columns, tuple(rows), digits=3), note, out / "lesions.md")


if __name__ == "__main__":
    tyro.cli(main)
