from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.errors import InputError
from counterscan.metrics.realism import fid, kid
from counterscan.nets.ada import AdaptiveConfig
from counterscan.tbsmgan.monitors import NOBODY, MonitorConfig, Monitors
from tests.taggan.blobs import FINDINGS, blob_store
from tests.tbsmgan.small import NETWORK

STORE = blob_store(400, findings=2)
LEARN, HELD = STORE.subset(STORE.split == "train"), STORE.subset(STORE.split == "val")


class Judge(nn.Module):
    """Knows the answer: the brightest place on the left, the darkest on the right; features are pooled pixels."""

    findings = FINDINGS

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)[:, :, None, None] * self.weight

    def forward(self, x: Tensor) -> Tensor:
        places = nn.functional.avg_pool2d(x, 3, 1)
        return torch.stack([places[..., :7].amax(dim=(1, 2, 3)), -places[..., 7:].amin(dim=(1, 2, 3))], dim=1)


class Painter(nn.Module):
    """Stands in for a generator: ``paint`` makes images of z and conditions."""

    config = NETWORK

    def __init__(self, paint: object) -> None:
        super().__init__()
        self.paint, self.weight = paint, nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        return self.paint(z, c)  # type: ignore[operator]


def watch(**changes: object) -> Monitors:
    arguments: dict = {"classifier": Judge(), "config": MonitorConfig(samples=200)} | changes
    labels = LEARN.labels.copy()
    return Monitors(LEARN, HELD, labels, lambda x: x.nan_to_num(0.5), FINDINGS, **arguments)


def fresh(seed: int = 7) -> object:
    """New images of the same distribution, with what is asked for."""
    new = blob_store(1200, findings=2, seed=seed)
    images, labels = new.images(), torch.from_numpy(new.labels)
    pools = {pair: images[(labels == torch.tensor(pair)).all(dim=1)] for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}
    taken = dict.fromkeys(pools, 0)

    def paint(z: Tensor, c: Tensor) -> Tensor:
        made = []
        for pair in map(tuple, c.int().tolist()):
            made.append(pools[pair][taken[pair] % len(pools[pair])])
            taken[pair] += 1
        return torch.stack(made)

    return paint


def test_a_generator_that_is_right_gets_good_marks() -> None:
    monitors = watch()
    figures = monitors(Painter(fresh()))
    assert figures["consistency"] > 0.99
    assert monitors.learned(figures) == dict.fromkeys(FINDINGS, True)
    assert figures["fid"] < 3 * monitors.floor
    assert 0.9 < figures["diversity"] < 1.1
    assert {f"diversity/{name}" for name in (*FINDINGS, NOBODY)} <= figures.keys()
    assert figures["near_ratio"] == pytest.approx(1, abs=0.1)
    assert figures["copies"] <= 0.01
    assert monitors.diagnose(figures) == []


def test_fid_and_kid_are_those_of_metrics_realism() -> None:
    monitors, painted = watch(), []

    def paint(z: Tensor, c: Tensor) -> Tensor:
        painted.append((z[:, :1, None, None] * 0.2).expand(-1, 1, 16, 16) + 0.1 * torch.randn(len(z), 1, 16, 16))
        return painted[-1]

    figures = monitors(Painter(paint))
    fakes = torch.cat(painted).clamp(-1, 1)
    real = nn.functional.adaptive_avg_pool2d(LEARN.images(), 4).flatten(1)
    fake = nn.functional.adaptive_avg_pool2d(fakes, 4).flatten(1)
    assert figures["fid"] == pytest.approx(fid(real, fake), rel=1e-4)
    assert figures["kid"] == pytest.approx(kid(real, fake, subsets=20).value, rel=1e-4)
    assert figures["consistency"] == pytest.approx(0.5, abs=0.12)
    assert monitors.learned(figures) == dict.fromkeys(FINDINGS, False)


def test_a_generator_that_hands_out_its_training_images_is_caught() -> None:
    images = LEARN.images()
    monitors = watch()
    figures = monitors(Painter(lambda z, c: images[torch.randint(len(images), (len(z),))]))
    assert figures["copies"] == 1
    assert figures["near_ratio"] < 0.05
    assert [text.split(":")[0] for text in monitors.diagnose(figures)] == ["memorisation"]


def test_one_image_per_class_is_collapse() -> None:
    monitors = watch()
    paint = fresh()
    kinds = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    prototypes = paint(torch.zeros(4, 8), kinds)  # type: ignore[operator]
    figures = monitors(Painter(lambda z, c: prototypes[(2 * c[:, 0] + c[:, 1]).long()]))
    assert figures["consistency"] > 0.95
    assert figures["diversity"] == 0
    (trouble,) = monitors.diagnose(figures)
    assert trouble.startswith(f"mode collapse: samples of {FINDINGS[0]}")


def test_an_overfitted_discriminator_is_named_only_at_the_ceiling() -> None:
    monitors, adaptive = watch(), AdaptiveConfig(ceiling=0.6, target=0.6)
    assert "overfitted discriminator" in monitors.diagnose({"r_t": 0.9, "p": 0.6}, adaptive)[0]
    assert monitors.diagnose({"r_t": 0.9, "p": 0.4}, adaptive) == []
    assert monitors.diagnose({"r_t": 0.62, "p": 0.6}, adaptive) == []
    assert monitors.diagnose({"r_t": 0.9, "p": 0.6}) == []


def test_the_criterion_puts_truth_first_and_fid_second() -> None:
    judge = watch().criterion
    false, blurred, good = (judge({"fid": f, "consistency": c}) for f, c in ((1.0, 0.6), (50.0, 0.8), (5.0, 0.76)))
    assert false < blurred < good  # type: ignore[operator]
    assert judge({}) is None
    assert judge({"fid": 3.0}) == 1.25


def test_unknown_labels_are_not_judged() -> None:
    labels = LEARN.labels.copy()
    labels[:, 1] = np.nan
    monitors = Monitors(
        LEARN, HELD, labels, lambda x: x.nan_to_num(0.0), FINDINGS, Judge(), config=MonitorConfig(samples=100)
    )
    figures = monitors(Painter(fresh()))
    assert f"consistency/{FINDINGS[0]}" in figures
    assert f"consistency/{FINDINGS[1]}" not in figures


def test_without_findings_or_held_out_images_the_rest_is_still_measured() -> None:
    nobody = HELD.subset(np.zeros(len(HELD), bool))
    monitors = Monitors(LEARN, nobody, np.zeros((len(LEARN), 0)), lambda x: x, (), config=MonitorConfig(samples=64))
    images = LEARN.images()
    figures = monitors(Painter(lambda z, c: images[torch.randint(len(images), (len(z),))]))
    assert figures.keys() == {"fid", "kid", "diversity/all images", "diversity", "near_ratio", "copies"}
    assert figures["copies"] == 1
    asked_nothing = watch(conditional=False)(Painter(lambda z, c: images[: len(z)] if c is None else None))
    assert "consistency" not in asked_nothing


def test_modes_come_back() -> None:
    painter = Painter(fresh()).train()
    with evaluating(painter):
        pass
    watch()(painter)  # type: ignore[arg-type]
    assert painter.training


def test_bad_arguments_are_named() -> None:
    class Other(Judge):
        findings = ("Edema",)

    with pytest.raises(InputError, match="classifier: the classifier does not know"):
        watch(classifier=Other())
    with pytest.raises(InputError, match=r"^samples: "):
        MonitorConfig(samples=1)
    with pytest.raises(InputError, match=r"^near: "):
        MonitorConfig(near=2)
