"""Distances between feature sets against closed forms, plain loops, SciPy, scikit-learn and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.neighbors import NearestNeighbors
from torch import nn

from counterscan.errors import InputError
from counterscan.metrics import realism as r
from counterscan.nets.cnn import Classifier, ClassifierConfig


def normal(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(n, d, seed):
    return normal(n, d, seed) @ normal(d, d, seed + 100) + normal(1, d, seed + 200)


def with_moments(n, mean, cov, seed):
    """Features whose sample mean and covariance are exactly these."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(cov).T + mean


def test_fid_of_gaussians_in_closed_form():
    mean, other = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 0.0, 1.5]).double()
    s, t = torch.tensor([4.0, 1.0, 9.0]).double(), torch.tensor([1.0, 1.0, 0.25]).double()
    x, y = with_moments(50, mean, torch.diag(s), 0), with_moments(40, other, torch.diag(t), 1)
    # Diagonal: |mu - mu'|^2 + sum (sigma - sigma')^2.
    assert r.fid(x, y) == pytest.approx(6 + 1 + 0 + 2.5**2)
    turned = torch.linalg.qr(normal(3, 3, 5)).Q
    assert r.fid(x @ turned, y @ turned) == pytest.approx(r.fid(x, y))
    assert r.fid(x[:, :1], y[:, :1]) == pytest.approx(1 + 1)
    assert abs(r.fid(x, x)) < 1e-10
    assert r.fid(x, x + 2) == pytest.approx(12)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 45, 12), (6, 9, 20)])
def test_fid_equals_scipys_matrix_root(n, m, d):
    x, y = correlated(n, d, 0), correlated(m, d, 1)
    cov, cov_fake = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    root, root_fake = (linalg.sqrtm(c + 1e-14 * np.eye(d)).real for c in (cov, cov_fake))
    overlap = np.linalg.svd(root @ root_fake, compute_uv=False).sum()
    if n > d:
        assert overlap == pytest.approx(np.trace(linalg.sqrtm(cov @ cov_fake)).real)
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(cov) + np.trace(cov_fake) - 2 * overlap
    assert r.fid(x, y) == pytest.approx(expected, rel=1e-6)
    assert r.fid(y, x) == pytest.approx(r.fid(x, y))


def test_fid_is_biased_and_kid_is_not():
    few = [r.fid(normal(20, 8, i), normal(20, 8, i + 50)) for i in range(30)]
    kids = torch.tensor([r.kid(normal(20, 8, i), normal(20, 8, i + 50), subsets=1).full for i in range(30)])
    assert min(few) > 0.5
    assert abs(kids.mean()) < 3 * kids.std() / math.sqrt(30)
    assert (kids < 0).any()


def test_kid_equals_a_plain_loop():
    x, y = normal(7, 3, 0), normal(5, 3, 1) + 0.5

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    among = [
        sum(k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j) / (len(a) * (len(a) - 1))
        for a in (x, y)
    ]
    between = sum(k(a, b) for a in x for b in y) / 35
    found = r.kid(x, y)
    assert found.full == pytest.approx(sum(among) - 2 * between)
    # The subset is the whole set, in another order.
    whole = r.kid(x[:5], y, subsets=3, subset_size=5)
    assert whole.value == pytest.approx(whole.full)
    assert whole.sd == pytest.approx(0, abs=1e-12)


def test_kid_equals_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normal(40, 16, 2), 1.3 * normal(40, 16, 3) + 0.2
    assert r.kid(x, y).full == pytest.approx(float(kid.poly_mmd(x, y)))


def test_kid_subsets_agree_with_the_whole(monkeypatch):
    x, y = normal(300, 4, 0), normal(200, 4, 1) + 0.3
    found = r.kid(x, y, subsets=200, subset_size=50)
    assert found.interval.low < found.value < found.interval.high
    assert found.interval.value == found.value
    assert found.value == pytest.approx(found.full, abs=4 * found.sd / math.sqrt(200) + 0.01)
    assert found == r.kid(x, y, subsets=200, subset_size=50)
    assert found.value != r.kid(x, y, subset_size=50, generator=torch.Generator().manual_seed(1)).value
    whole = found.full
    monkeypatch.setattr(r, "_ROWS_AT_ONCE", 7)
    assert r.kid(x, y, subsets=1).full == pytest.approx(whole)
    assert r.kid(x[:3], y[:3], subsets=2).sd >= 0


def test_precision_recall_density_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [0.6], [50.0]])
    found = r.precision_recall_density_coverage(real, fake, k=1)
    # Balls of the real: 1, 1, 1, 8 wide; of the fake: 0.1, 0.1, 49.4.
    assert found.precision.tolist() == [1, 1, 0]
    assert found.density.tolist() == [2, 2, 0]  # 0.5 lies in those around 0 and 1, 0.6 too
    assert found.coverage.tolist() == [1, 1, 0, 0]
    assert found.recall.tolist() == [0, 1, 1, 1]


def test_precision_recall_density_coverage_against_scikit_learn(monkeypatch):
    monkeypatch.setattr(r, "_ROWS_AT_ONCE", 16)
    real, fake, k = normal(60, 5, 0), 0.8 * normal(45, 5, 1) + 0.3, 3
    found = r.precision_recall_density_coverage(real, fake, k)

    def reach(x):
        return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]

    distance = np.linalg.norm(real.numpy()[:, None] - fake.numpy()[None], axis=2)
    held = distance <= reach(real)[:, None]
    assert found.precision.tolist() == held.any(0).tolist()
    assert found.density.tolist() == pytest.approx((held.sum(0) / k).tolist())
    assert found.coverage.tolist() == held.any(1).tolist()
    assert found.recall.tolist() == (distance <= reach(fake)).any(1).tolist()
    # The same set covers itself; each ball holds its k neighbours and its own centre.
    same = r.precision_recall_density_coverage(real, real, k)
    assert all(float(x.mean()) == 1 for x in (same.precision, same.recall, same.coverage))
    assert float(same.density.mean()) == pytest.approx((k + 1) / k)
    # Far apart nothing is covered.
    far = r.precision_recall_density_coverage(real, fake + 100, k)
    assert all(float(x.sum()) == 0 for x in (far.precision, far.recall, far.coverage, far.density))


def test_nearest_neighbours_find_the_copy(monkeypatch):
    monkeypatch.setattr(r, "_ROWS_AT_ONCE", 4)
    reference = normal(30, 6, 0, torch.float32)
    query = torch.cat([reference[7:8], normal(9, 6, 1, torch.float32)])
    found = r.nearest_neighbours(query, reference, k=3)
    distances, indices = NearestNeighbors(n_neighbors=3).fit(reference.double()).kneighbors(query.double())
    np.testing.assert_allclose(found.distances, distances, atol=1e-7)
    assert found.indices.tolist() == indices.tolist()
    assert found.distances[0, 0] == 0
    assert found.indices[0, 0] == 7
    far = normal(30, 200, 2) + 1000  # where the product form of the distance loses its digits
    assert r.nearest_neighbours(far, far).distances.tolist() == [[0]] * 30
    pictures = reference[:, :4].reshape(30, 1, 2, 2)
    assert r.nearest_neighbours(pictures[5:6], pictures).indices.item() == 5


def test_features_of_a_classifier():
    torch.manual_seed(0)
    net = Classifier(ClassifierConfig(widths=(4, 6)), ("Edema",)).train()
    images = torch.rand(5, 1, 16, 16) * 2 - 1
    extractor = r.InDomainFeatures(net)
    found = r.features_of(extractor, images, batch_size=2)
    assert found.shape == (5, 6)
    assert not found.requires_grad
    assert net.training
    assert net.stem.weight.requires_grad
    net.eval()
    torch.testing.assert_close(found, net.features(images).mean((2, 3)))
    torch.testing.assert_close(r.features_of(lambda x: x.flatten(1), images), images.flatten(1))


def test_bad_input_names_the_field():
    x = normal(6, 3, 0)
    images = torch.zeros(4, 1, 8, 8)
    calls = {
        "fake: expected features of one width": lambda: r.fid(x, x[:, :2]),
        "real: 1 images": lambda: r.fid(x[:1], x),
        "fake: holds NaN": lambda: r.kid(x, x / 0 - x / 0),
        "subset_size: 7": lambda: r.kid(x, x, subset_size=7),
        "subset_size: 1": lambda: r.kid(x, x, subset_size=1),
        "subsets": lambda: r.kid(x, x, subsets=0),
        "real: 6 images": lambda: r.precision_recall_density_coverage(x, x, k=6),
        "k: 7": lambda: r.nearest_neighbours(x, x, k=7),
        "k: 0": lambda: r.nearest_neighbours(x, x, k=0),
        "query": lambda: r.nearest_neighbours(x * torch.nan, x),
        "extractor": lambda: r.features_of(lambda i: i, images),
        "images": lambda: r.features_of(lambda i: i.flatten(1), images[:0]),
        "batch_size": lambda: r.features_of(lambda i: i.flatten(1), images, batch_size=0),
        "classifier": lambda: r.InDomainFeatures(nn.Linear(2, 2)),
    }
    for field, call in calls.items():
        with pytest.raises(InputError, match=field):
            call()
