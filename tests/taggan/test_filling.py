from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from counterscan.data.store import PreparedStore
from counterscan.errors import InputError
from counterscan.nets.unet import UNet
from counterscan.taggan.filling import Filler, FillerConfig, Regions, fit_filler, locate, region_of
from counterscan.training import read_metrics

SIZE = 16


def body(count: int, seed: int = 0) -> np.ndarray:
    """Smooth ramps, each with a slope of its own: what is hidden can be told from what is not."""
    slopes = np.random.default_rng(seed).uniform(-0.8, 0.8, (count, 1, 1))
    return np.broadcast_to(slopes * np.linspace(-1, 1, SIZE)[:, None], (count, SIZE, SIZE)).copy()


def spot(at: tuple[int, int] = (4, 9)) -> np.ndarray:
    found = np.zeros((SIZE, SIZE), bool)
    found[at[0] : at[0] + 4, at[1] : at[1] + 4] = True
    return found


def store_of(count: int, seed: int) -> PreparedStore:
    """Every third image has a bright spot."""
    images, labels = body(count, seed), (np.arange(count) % 3 == 0).astype(float)[:, None]
    images[labels[:, 0] == 1] = np.where(spot(), 0.9, images[labels[:, 0] == 1])
    return PreparedStore.from_arrays(
        np.rint((images + 1) * 127.5).astype(np.uint8), labels=labels, findings=("Mass",), split="train"
    )


class SpotTagger:
    """Sees a weak mark in the middle of where the spots are."""

    findings, size = ("Mass",), SIZE

    def maps(self, images: Tensor, finding: str) -> tuple[Tensor, None]:
        mark = torch.zeros(SIZE, SIZE)
        mark[5:7, 10:12] = 0.1
        return mark.expand(len(images), 1, SIZE, SIZE), None


def config(steps: int = 300) -> FillerConfig:
    made = FillerConfig()
    loop = replace(made.training, steps=steps, validate_every=100, checkpoint_every=100, tensorboard=False)
    return replace(made, training=loop, base=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Filler, Path, Regions]:
    folder, train, val = tmp_path_factory.mktemp("filler"), store_of(60, 0), store_of(30, 1)
    regions = locate(SpotTagger(), train, train.labels)  # type: ignore[arg-type]
    return fit_filler(train, train.labels, val, val.labels, regions, folder, config()), folder, regions


def test_regions_are_where_maps_are_strong_whatever_their_sign_and_size() -> None:
    mark = torch.zeros(2, 1, SIZE, SIZE)
    mark[0, 0, 5:8, 4:7], mark[1, 0, 5:8, 4:7] = 0.01, -1.0
    found = region_of(mark)
    assert torch.equal(found[0], found[1])
    assert found[0, 0, 4:9, 3:8].all()
    assert 9 < found[0].sum() < 60
    assert not region_of(torch.zeros(1, 1, SIZE, SIZE)).any()


def test_findings_are_located_in_the_images_that_have_them() -> None:
    train = store_of(9, 0)
    found = locate(SpotTagger(), train, train.labels)  # type: ignore[arg-type]
    assert found.rows.tolist() == [0, 3, 6]
    assert found.columns.tolist() == [0, 0, 0]
    assert found.masks.shape == (3, 1, SIZE, SIZE)
    assert len(found.of(0)) == 3
    assert len(found.of(1)) == 0
    nobody = locate(SpotTagger(), train, np.zeros((9, 1)))  # type: ignore[arg-type]
    assert len(nobody) == 0
    assert nobody.masks.shape == (0, 1, SIZE, SIZE)


def test_a_lesion_gives_way_to_the_body_behind_it(made: tuple[Filler, Path, Regions]) -> None:
    filler, _, _ = made
    truth = torch.from_numpy(body(20, seed=5)).float()[:, None]
    ill = torch.where(torch.from_numpy(spot()), 0.9, truth)
    region = torch.zeros_like(ill, dtype=torch.bool)
    region[..., 2:10, 7:15] = True
    healed = filler.fill(ill, region)
    assert torch.equal(healed[~region], ill[~region])
    inside = torch.from_numpy(spot()).expand_as(ill)
    before, after = ((x - truth)[inside].square().mean().sqrt() for x in (ill, healed))
    assert after < 0.3 * before
    assert healed.abs().max() <= 1
    assert torch.equal(filler.fill(ill, torch.zeros_like(region)), ill)
    assert len(filler.fill(ill[:0], region[:0])) == 0


def test_the_same_call_loads_what_is_done(made: tuple[Filler, Path, Regions]) -> None:
    filler, folder, regions = made
    assert [row for row in read_metrics(folder) if "validation/rmse" in row]
    train, val = store_of(60, 0), store_of(30, 1)
    again = fit_filler(train, train.labels, val, val.labels, regions, folder, config())
    x, m = train.images(np.arange(4)), torch.ones(4, 1, SIZE, SIZE, dtype=torch.bool)
    assert torch.equal(filler.fill(x, m), again.fill(x, m))
    assert torch.equal(filler.fill(x, m), Filler.from_pretrained(folder).fill(x, m))
    longer = fit_filler(train, train.labels, val, val.labels, regions, folder, config(302))
    assert longer.steps == 302
    assert Filler.from_pretrained(folder).steps == 302


def test_images_that_have_every_finding_teach_nothing_and_break_nothing(tmp_path: Path) -> None:
    train, all_ill = store_of(12, 0), np.ones((12, 1))
    regions = locate(SpotTagger(), train, all_ill)  # type: ignore[arg-type]
    filler = fit_filler(train, all_ill, train, all_ill, regions, tmp_path, config(2))
    assert torch.isfinite(filler.fill(train.images(), regions.masks)).all()


def test_what_cannot_be_done_is_said(made: tuple[Filler, Path, Regions], tmp_path: Path) -> None:
    filler, _, regions = made
    with pytest.raises(InputError, match="16 px"):
        filler.fill(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.bool))
    train = store_of(9, 0)
    with pytest.raises(InputError, match="no training image has a finding"):
        fit_filler(train, train.labels, train, train.labels, regions.of(5), tmp_path)
    with pytest.raises(InputError, match=r"no filler\.json"):
        Filler.from_pretrained(tmp_path)
    Filler(UNet(2, 4), 8).save_pretrained(tmp_path)
    (tmp_path / "filler.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="damaged"):
        Filler.from_pretrained(tmp_path)
    for field, value in (("base", 0), ("rate", 0.0), ("shift", 0.5)):
        with pytest.raises(InputError, match=field):
            FillerConfig(**{field: value})
