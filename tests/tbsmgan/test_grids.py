from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.metrics.realism import fid
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.grids import (
    consistency,
    findings_grid,
    interpolation_grid,
    mixing_grid,
    shared_logits,
    truncation_curve,
    truncation_grid,
)
from tests.tbsmgan.lively import FINDINGS, lively_gan


@pytest.fixture(scope="module")
def gan() -> StyleGAN:
    return lively_gan()


def coarse(x: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


class Knows(nn.Module):
    """Findings in another order, with logits that its images' first pixels spell."""

    findings = ("Consolidation", "Cardiomegaly", "Edema")

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :3]


def test_ways_begin_and_end_at_samples(gan: StyleGAN) -> None:
    grid = interpolation_grid(gan, 2, 5, seed=3)
    assert grid.shape == (2, 5, 1, 16, 16)
    ends = gan.sample(4, seed=3)
    torch.testing.assert_close(grid[:, 0], ends[:2])
    torch.testing.assert_close(grid[:, -1], ends[2:])
    steps = grid.diff(dim=1).flatten(2).norm(dim=2)
    assert (steps > 0).all()
    labels = torch.eye(2).repeat(2, 1)
    torch.testing.assert_close(
        interpolation_grid(gan, 2, 3, labels=labels, seed=3)[:, 0], gan.sample(labels=labels, seed=3)[:2]
    )


def test_mixed_styles_take_coarse_from_rows_and_fine_from_columns(gan: StyleGAN) -> None:
    grid = mixing_grid(gan, 2, 3, cut=1, seed=1)
    assert grid.shape == (3, 4, 1, 16, 16)
    sources = gan.sample(5, seed=1)
    torch.testing.assert_close(grid[1:, 0], sources[:2])
    torch.testing.assert_close(grid[0, 1:], sources[2:])
    assert (grid[0, 0] == -1).all()
    labels = gan.draw_labels(5, 1)
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    ws = gan.map(z, labels, 0.7)
    mixed = torch.cat([ws[1:2, :1], ws[4:5, 1:]], dim=1)
    torch.testing.assert_close(grid[2, 3], gan.synthesize(mixed).clamp(-1, 1)[0])


def test_rows_of_findings_share_their_latents(gan: StyleGAN) -> None:
    grid, names = findings_grid(gan, 3, seed=4)
    assert names == ("none of them", *FINDINGS)
    torch.testing.assert_close(grid[2], gan.sample(labels=gan.labels_for("Cardiomegaly").expand(3, -1), seed=4))
    plain, names = findings_grid(lively_gan(labels=0), 3)
    assert (plain.shape[0], names) == (1, ("samples",))


def test_truncated_to_nothing_latents_of_one_label_look_alike(gan: StyleGAN) -> None:
    grid = truncation_grid(gan, (0.0, 1.0), labels=torch.zeros(3, 2), columns=3)
    assert (grid[0, 0] - grid[0, 1]).abs().max() < 1e-5
    assert (grid[1, 0] - grid[1, 1]).abs().max() > 1e-2


def test_the_curve_pays_variety_for_fidelity(gan: StyleGAN) -> None:
    real = coarse(gan.sample(400, psi=1.0, seed=9))
    points = truncation_curve(gan, real, coarse, (0.0, 0.5, 1.0), samples=200, classifier=Knows())
    assert [p.psi for p in points] == [0.0, 0.5, 1.0]
    assert points[0].fid > points[1].fid > points[2].fid  # the real images are samples themselves
    assert points[0].kid > points[2].kid
    assert points[0].recall < points[1].recall < points[2].recall
    assert points[1].precision > 0.9
    made = gan.sample(200, psi=1.0)
    assert points[2].fid == pytest.approx(fid(real, coarse(made)))
    assert 0 <= points[2].consistency <= 1
    (alone,) = truncation_curve(gan, real, coarse, (1.0,), samples=50)
    assert alone.consistency != alone.consistency


def test_consistency_reads_the_asked_findings_by_name(gan: StyleGAN) -> None:
    images = torch.zeros(4, 1, 16, 16)
    images[:, 0, 0, :3] = torch.tensor([[9.0, 0.1, 0.2], [9, 0.9, 0.1], [0, 0.2, 0.9], [0, 0.8, 0.8]])
    known, logits = shared_logits(gan, Knows(), images)
    assert known == FINDINGS
    torch.testing.assert_close(logits, images[:, 0, 0, [2, 1]])
    labels = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert consistency(gan, Knows(), images, labels).tolist() == [1.0, 1.0]
    assert consistency(gan, Knows(), images, 1 - labels).tolist() == [0.0, 0.0]
    assert consistency(gan, Knows(), images, torch.zeros(4, 2)).isnan().all()


def test_wrong_input_is_refused(gan: StyleGAN) -> None:
    for call, match in (
        (lambda: interpolation_grid(gan, 1, 1), "columns"),
        (lambda: interpolation_grid(gan, 2, 2, labels=torch.zeros(3, 2)), "labels"),
        (lambda: mixing_grid(gan, 0, 2), "rows"),
        (lambda: mixing_grid(gan, cut=4), "cut"),
        (lambda: truncation_grid(gan, ()), "psis"),
        (lambda: truncation_curve(gan, torch.zeros(9, 4), coarse, samples=5), "samples"),
    ):
        with pytest.raises(InputError, match=match):
            call()
