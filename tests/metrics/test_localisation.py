"""Per-image localisation figures against scikit-learn, scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score

from counterscan.metrics import localisation as loc


def made_up(n: int = 6, size: int = 9, levels: int | None = None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, 1, size, size, generator=generator)
    if levels:
        maps = (maps * levels).floor() / levels
    truth = torch.rand(n, 1, size, size, generator=generator) < 0.3
    valid = torch.rand(n, 1, size, size, generator=generator) < 0.8
    return maps, truth, valid


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_curves_equal_sklearn(levels, padded):
    maps, truth, valid = made_up(levels=levels)
    used = valid if padded else torch.ones_like(valid)
    ap = loc.pixel_average_precision(maps, truth, valid if padded else None)
    auroc = loc.pixel_auroc(maps, truth, valid if padded else None)
    for i in range(len(maps)):
        y, s = truth[i][used[i]].numpy(), maps[i][used[i]].numpy()
        assert ap[i].item() == pytest.approx(average_precision_score(y, s), abs=1e-12)
        assert auroc[i].item() == pytest.approx(roc_auc_score(y, s), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=24))
def test_curves_equal_sklearn_whatever_the_ties(items):
    scores = torch.tensor([[[float(s) for s, _ in items]]])
    truth = torch.tensor([[[t for _, t in items]]])
    if not truth.any():
        assert loc.pixel_average_precision(scores, truth).isnan()
        return
    expected = average_precision_score(truth.flatten().numpy(), scores.flatten().numpy())
    assert loc.pixel_average_precision(scores, truth).item() == pytest.approx(expected, abs=1e-12)
    if not truth.all():
        expected = roc_auc_score(truth.flatten().numpy(), scores.flatten().numpy())
        assert loc.pixel_auroc(scores, truth).item() == pytest.approx(expected, abs=1e-12)


def test_rows_are_split_to_bound_memory(monkeypatch):
    maps, truth, valid = made_up()
    whole = loc.pixel_average_precision(maps, truth, valid)
    monkeypatch.setattr(loc, "_SORTED_AT_ONCE", 100)
    assert torch.equal(loc.pixel_average_precision(maps, truth, valid), whole)


def test_regions_by_hand():
    masks = torch.tensor([[[1, 1, 0], [0, 0, 0]]]).bool()
    truth = torch.tensor([[[1, 0, 0], [1, 1, 0]]]).bool()
    assert loc.pixel_recall(masks, truth).item() == pytest.approx(1 / 3)
    assert loc.pixel_precision(masks, truth).item() == pytest.approx(1 / 2)
    assert loc.iou(masks, truth).item() == pytest.approx(1 / 4)
    assert loc.dice(masks, truth).item() == pytest.approx(2 / 5)
    assert loc.area_fraction(masks).item() == pytest.approx(1 / 3)
    valid = torch.tensor([[[1, 0, 1], [1, 0, 1]]]).bool()
    assert loc.pixel_recall(masks, truth, valid).item() == pytest.approx(1 / 2)
    assert loc.pixel_precision(masks, truth, valid).item() == 1
    assert loc.area_fraction(masks, valid).item() == pytest.approx(1 / 4)


def test_iou_equals_sklearn_and_dice_follows_from_it():
    maps, truth, _ = made_up()
    masks = maps > 0.6
    iou = loc.iou(masks, truth)
    expected = [jaccard_score(t.flatten().numpy(), m.flatten().numpy()) for t, m in zip(truth, masks, strict=True)]
    np.testing.assert_allclose(iou, expected, atol=1e-12)
    torch.testing.assert_close(loc.dice(masks, truth), 2 * iou / (1 + iou))


@pytest.mark.parametrize("padded", [False, True])
def test_ncc_is_pearson(padded):
    maps, truth, valid = made_up()
    used = valid if padded else torch.ones_like(valid)
    got = loc.ncc(maps, truth, valid if padded else None)
    for i in range(len(maps)):
        expected = pearsonr(maps[i][used[i]].numpy(), truth[i][used[i]].float().numpy()).statistic
        assert got[i].item() == pytest.approx(expected, abs=1e-6)
    assert loc.ncc(truth.float(), truth)[0].item() == pytest.approx(1)
    assert loc.ncc(-truth.float(), truth)[0].item() == pytest.approx(-1)


def test_silence_scores_zero_not_nan():
    truth = made_up()[1]
    for constant in (0.0, 0.1):
        flat = torch.full(truth.shape, constant)
        assert (loc.ncc(flat, truth) == 0).all()
        assert (loc.pointing_game(flat, truth) == 0).all()
    nothing = torch.zeros_like(truth)
    for figure in loc.mask_scores(nothing, truth).values():
        assert (figure == 0).all()
    assert (loc.energy_in_region(nothing.float(), truth) == 0).all()
    chance = truth.flatten(1).double().mean(1)
    torch.testing.assert_close(loc.pixel_average_precision(torch.zeros(truth.shape), truth), chance)
    assert (loc.pixel_auroc(torch.zeros(truth.shape), truth) == 0.5).all()


def test_empty_truth_is_nan_everywhere():
    maps, truth, _ = made_up()
    truth[2] = False
    figures = loc.map_scores(maps, truth) | loc.mask_scores(maps > 0.5, truth)
    figures.pop("area")
    for name, values in figures.items():
        assert values.isnan().tolist() == [i == 2 for i in range(len(maps))], name


def test_pointing_game_shares_ties():
    truth = torch.tensor([[[1, 0], [0, 0]]]).bool()
    assert loc.pointing_game(torch.tensor([[[3.0, 1], [0, 0]]]), truth).item() == 1
    assert loc.pointing_game(torch.tensor([[[1.0, 3], [0, 0]]]), truth).item() == 0
    assert loc.pointing_game(torch.tensor([[[3.0, 3], [0, 0]]]), truth).item() == 0.5
    valid = torch.tensor([[[1, 0], [1, 1]]]).bool()
    assert loc.pointing_game(torch.tensor([[[1.0, 3], [0, 0]]]), truth, valid).item() == 1


def test_area_matched_masks_have_the_area_of_the_truth():
    maps, truth, valid = made_up(levels=3)
    masks = loc.area_matched_masks(maps, truth, valid)
    assert torch.equal(masks.flatten(1).sum(1), (truth & valid).flatten(1).sum(1))
    assert not (masks & ~valid).any()
    for i in range(len(maps)):
        kept, left = maps[i][masks[i]], maps[i][valid[i] & ~masks[i]]
        assert kept.min() >= left.max()
    tied = loc.area_matched_masks(torch.zeros(1, 2, 3), torch.tensor([[[0, 0, 0], [1, 1, 0]]]).bool())
    assert tied.flatten().tolist() == [True, True, False, False, False, False]  # reading order
    assert loc.area_matched_iou(truth.float(), truth)[0] == 1


def test_energy():
    truth = torch.tensor([[[1, 0], [0, 0]]]).bool()
    assert loc.energy_in_region(torch.tensor([[[3.0, 1], [0, 0]]]), truth).item() == pytest.approx(0.75)
    with pytest.raises(ValueError, match=">= 0"):
        loc.energy_in_region(torch.tensor([[[3.0, -1], [0, 0]]]), truth)


def test_oracle_dice_is_the_brute_force_best():
    maps, truth, valid = made_up()
    truth[0] = False
    oracle = loc.oracle_dice(maps, truth, valid)
    brute = [(loc.dice(maps >= t, truth, valid).nanmean().item(), t.item()) for t in maps[valid].unique()]
    best = max(brute)
    assert oracle.dice == pytest.approx(best[0])
    assert loc.dice(maps >= oracle.threshold, truth, valid).nanmean().item() == pytest.approx(oracle.dice)
    assert loc.oracle_dice(maps, truth, valid, candidates=64).dice > best[0] - 0.02
    assert np.isnan(loc.oracle_dice(maps, torch.zeros_like(truth)).dice)


def test_bad_input_is_refused():
    maps, truth, valid = made_up()
    with pytest.raises(ValueError, match="one shape"):
        loc.ncc(maps, truth[:3])
    with pytest.raises(ValueError, match="bool"):
        loc.ncc(maps, truth.float())
    with pytest.raises(ValueError, match="threshold the map"):
        loc.dice(maps, truth)
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        loc.ncc(maps[0, 0], truth[0, 0])
    broken = maps.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        loc.pixel_average_precision(broken, truth)
    valid[0, 0, 0, 0] = False
    assert loc.pixel_average_precision(broken, truth, valid).isfinite().all()  # padding may hold anything
    assert loc.ncc(broken, truth, valid).isfinite().all()
