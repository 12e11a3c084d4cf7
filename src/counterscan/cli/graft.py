"""``counterscan augment graft``: lesions that a tagger finds in training images, put into other training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from counterscan.cli.machine import use
from counterscan.errors import InputError


@dataclass
class Graft:
    """Make studies with chosen findings: put lesions of training images into others, judge each, keep what passes.

    As many controls without the finding are made by the same means.
    """

    tagger: tyro.conf.Positional[Path]
    """A run folder of `counterscan tag train` on this store."""
    store: tyro.conf.Positional[Path]
    """The store that it was trained on, with the splits train and val."""
    findings: tuple[str, ...]
    """What and how many: "Edema=500" "Consolidation=200"."""
    classifier: tuple[Path, ...]
    """Run folders of the classifiers that judge, trained on the store's split train; not the tagger's own."""
    out: Path
    """Folder for images/, table.csv and grafts.json."""
    healed: bool = False
    """Also write the images that lesions were taken out of, as images without the finding."""
    filler_steps: int = 600
    """Steps of the network that says what lies under a lesion; trained once, in OUT/filler, minutes at 64 px."""
    tries: float = 8.0
    """At most so many for each image that is wanted."""
    seed: int = 0
    """Which lesion meets which body."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""

    def run(self) -> int:
        from rich.console import Console

        from counterscan.cli.steer import asked, gate_of, rates
        from counterscan.cli.tables import say
        from counterscan.data.store import PreparedStore
        from counterscan.taggan import TagGAN
        from counterscan.taggan.filling import FillerConfig, fit_filler, locate
        from counterscan.tbsmgan.grafts import Grafting, write_grafts

        use(self.threads, self.device)
        store = PreparedStore.open(self.store)
        tagger = TagGAN.from_pretrained(self.tagger, self.device)
        unknown = [name for name in tagger.findings if name not in store.findings]
        if unknown:
            remedy = f"Give the store that the tagger was trained on; this one has {', '.join(store.findings)}"
            raise InputError(f"the store has no {unknown[0]!r}", path=self.store, remedy=remedy)
        gate = gate_of(self.store, self.classifier, self.out / "gate", self.device)
        train, val = store.parts("train", "val")
        labels, held = (part.with_findings(tagger.findings).table.targets("ignore", "ignore") for part in (train, val))
        wanted = dict(map(asked, self.findings))
        regions, config = locate(tagger, train, labels), FillerConfig()
        loop = replace(
            config.training, steps=self.filler_steps, seed=self.seed, threads=self.threads, device=self.device
        )
        filler = fit_filler(train, labels, val, held, regions, self.out / "filler", replace(config, training=loop))
        grafting = Grafting(tagger, regions, filler, train, labels, gate, self.seed)
        made = write_grafts(grafting, wanted, self.out, tries=self.tries, healed=self.healed)
        if grafting.tally.counts:
            Console().print(rates(grafting.tally.table()))
        for name, counts in made.items():
            say(f"{name}: " + ", ".join(f"{count:,} {method}" for method, count in counts.items()))
            if not counts["graft"]:
                say(
                    f"the classifiers see {name} in {grafting.share(name):.0%} of its grafts; less than half is too few"
                )
        total = sum(sum(counts.values()) for counts in made.values())
        say(f"{self.out / 'table.csv'}: {total:,} synthetic studies")
        return 0 if total else 1


COMMANDS = {"graft": Graft}
