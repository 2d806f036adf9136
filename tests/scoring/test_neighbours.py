"""Neighbours against the papers' formulas pair by pair, other packages and known expectations."""

import tracemalloc

import jax
import numpy as np
import pytest
from helpers.features import rng, skewed, torch_fidelity
from scipy.spatial.distance import cdist
from scipy.stats import special_ortho_group

from bloodjax.scoring import distances, neighbours
from bloodjax.scoring.neighbours import Manifold, compare_manifolds, nearest

SHAPES = [(40, 60, 3), (60, 40, 20), (30, 30, 100), (25, 6, 1)]


def both(real, fake, k_precision=3, k_density=5):
    k = max(k_precision, k_density)
    return compare_manifolds(Manifold.of(real, k), Manifold.of(fake, k), k_precision, k_density)


def column(*values):
    return np.array(values, float)[:, None]


def radius(points, i, k):
    """To the k-th nearest of the others."""
    return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]


def by_pairs(real, fake, k_precision, k_density):
    """Kynkäänniemi et al. (2019), eq. 1 and 2, and Naeem et al. (2020), pair by pair."""

    def inside(point, centres, k):
        return any(
            np.linalg.norm(point - o) <= radius(centres, i, k) for i, o in enumerate(centres)
        )

    def holds(i, point):
        return np.linalg.norm(point - real[i]) < radius(real, i, k_density)

    balls = [[holds(i, point) for point in fake] for i in range(len(real))]
    return (
        np.mean([inside(point, real, k_precision) for point in fake]),
        np.mean([inside(point, fake, k_precision) for point in real]),
        np.sum(balls) / (k_density * len(fake)),
        np.mean([any(row) for row in balls]),
    )


# ---- the four shares


@pytest.mark.parametrize("n, m, d", [(12, 15, 2), (14, 9, 30)])
@pytest.mark.parametrize("k_precision, k_density", [(3, 5), (5, 3), (1, 1)])
def test_compare_is_the_papers_pair_by_pair(n, m, d, k_precision, k_density):
    real, fake = skewed(n, d, 0), skewed(m, d, 1) * 1.1
    expected = by_pairs(real, fake, k_precision, k_density)
    assert both(real, fake, k_precision, k_density)[:4] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n, m, d", SHAPES)
def test_compare_is_prdc(n, m, d):
    prdc = pytest.importorskip("prdc", reason="the package of Naeem et al. is not installed")
    real, fake = rng(0).normal(size=(n, d)), rng(1).normal(size=(m, d))  # no edges: < is <=
    actual = both(real, fake, 4, 4)
    for name, value in prdc.compute_prdc(real, fake, nearest_k=4).items():
        assert getattr(actual, name) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("n, m, d", SHAPES)
def test_precision_and_recall_are_torch_fidelitys(n, m, d):
    torch, reference = torch_fidelity("metric_prc")
    real, fake = skewed(n, d, 0), skewed(m, d, 1) * 1.1
    expected = reference.calculate_precision_recall_full(
        torch.from_numpy(fake), torch.from_numpy(real), neighborhood=3
    )
    assert both(real, fake)[:2] == pytest.approx(expected, rel=1e-6)  # theirs are float32 means


def test_precision_is_of_the_fakes_and_recall_of_the_reals():
    real, fake = 3 * rng(0).normal(size=(200, 16)), 0.1 * rng(1).normal(size=(200, 16))
    actual = both(real, fake)
    assert actual.precision > 0.8 and actual.recall < 0.3


def test_compare_on_a_line():
    """To the nearest: 1 around 0 and 1, 4 around 5; 0.3 around 4 and 4.3, 5.2 around 9.5."""
    actual = both(column(0, 1, 5), column(4, 4.3, 9.5), 1, 1)
    # 4 and 4.3 lie near 5, which lies near 9.5; nothing else near anything
    assert actual[:4] == pytest.approx((2 / 3, 1 / 3, 2 / 3, 1 / 3))
    assert list(actual.nearest.rows) == [2, 2, 2]
    assert list(actual.nearest.distance) == pytest.approx([1, 0.7, 4.5])
    assert list(actual.nearest.copied) == [True, True, False]


def test_edges_count_for_precision_and_recall_and_not_for_density_and_coverage():
    real, fake = column(-4, -2, 2, 4), column(0, 100)  # balls of 2, so that 0 is on two edges
    actual = both(real, fake, 1, 1)
    assert actual[:4] == (0.5, 1.0, 0.0, 0.0)
    actual = both(column(-4, 4), column(-2, 2), 1, 1)  # 8 around the reals, 4 around the fakes
    assert actual[:4] == (1.0, 1.0, 2.0, 1.0)
    actual = both(column(-6, 6), column(-2, 2), 1, 1)  # 4 from -6 to -2: the edge of a fake's ball
    assert actual.recall == 1
    assert both(column(-6.5, 6.5), column(-2, 2), 1, 1).recall == 0


def test_density_counts_all_balls_and_coverage_only_whether():
    real, fake = column(-3, -1, 1, 3), column(-0.5, 0.5, 50)
    actual = both(real, fake, 1, 1)
    assert actual.density == pytest.approx(4 / 3)  # both in the balls of -1 and 1, 50 in none
    assert actual.coverage == 0.5


def test_copies_have_everything():
    half = rng(0).integers(-50, 50, (30, 40))
    real = np.concatenate([half, -half]).astype(np.float32)  # a mean of 0: exact arithmetic
    actual = both(real, real[::-1].copy())
    assert actual[:4] == (1, 1, 1, 1)
    assert list(actual.nearest.rows) == list(range(60))[::-1]


def test_equal_distributions_have_the_density_and_coverage_expected():
    """A fake's rank among the neighbours of a real image is as likely as any other."""
    n, m, k = 120, 90, 5
    draws = [rng(3, i).normal(size=(n + m, 6)) for i in range(60)]
    values = np.array([both(x[:n], x[n:])[:4] for x in draws])
    error = 4 * values.std(axis=0) / 60**0.5
    assert values[:, 2].mean() == pytest.approx(1, abs=error[2])
    j = np.arange(1, k + 1)
    expected = 1 - np.prod((n - j) / (n + m - j))
    assert values[:, 3].mean() == pytest.approx(expected, abs=error[3])
    assert error.max() < 0.06


# ---- the balls


@pytest.mark.parametrize("n, d, k", [(2, 3, 1), (30, 3, 5), (30, 100, 29), (700, 9, 50)])
def test_manifold_knows_the_distances_to_the_others(n, d, k):
    x = skewed(n, d, 0)
    actual = Manifold.of(x, k)
    expected = np.sort(cdist(x, x), axis=1)[:, 1 : k + 1]
    np.testing.assert_allclose(np.sqrt(actual.squares), expected, rtol=1e-9)
    np.testing.assert_array_equal(actual.ball(k), actual.squares[:, -1])


@pytest.mark.parametrize("offset", [0, 1e3])
def test_duplicates_are_neighbours_at_exactly_nothing(offset):
    x = (rng(0).normal(size=(40, 300)) + offset).astype(np.float32)
    x[[7, 30]] = x[3]
    x[20] = x[11]
    squares = Manifold.of(x, 3).squares
    copies = np.isin(np.arange(40), [3, 7, 30, 11, 20])
    np.testing.assert_array_equal(squares[:, 0] == 0, copies)
    np.testing.assert_array_equal(squares[:, 1] == 0, np.isin(np.arange(40), [3, 7, 30]))
    assert (squares[:, 2] > 100).all()


# ---- what was memorised


@pytest.mark.parametrize("n, m, d", SHAPES)
def test_nearest_is_the_least_of_all_distances(n, m, d):
    train, fake = skewed(n, d, 0), skewed(m, d, 1)
    actual = nearest(Manifold.of(train, 1), fake)
    pairs, centres = cdist(fake, train), cdist(train, train) + np.diag([np.inf] * n)
    np.testing.assert_array_equal(actual.rows, pairs.argmin(axis=1))
    np.testing.assert_allclose(actual.distance, pairs.min(axis=1), rtol=1e-9)
    expected = pairs.min(axis=1) <= centres.min(axis=1)[pairs.argmin(axis=1)]
    np.testing.assert_array_equal(actual.copied, expected)
    assert actual.memorised == expected.mean()


def test_compare_finds_the_nearest_as_well():
    real, fake = skewed(50, 4, 0), skewed(40, 4, 1)
    for one, other in zip(nearest(Manifold.of(real), fake), both(real, fake).nearest, strict=True):
        np.testing.assert_array_equal(one, other)


def test_copies_are_memorised_and_what_is_far_is_not():
    train = (rng(0).normal(size=(50, 64)) + 7).astype(np.float32)
    train[1] = train[0]  # a copy of what is there twice is a copy
    manifold = Manifold.of(train, 1)
    actual = nearest(manifold, train[[0, 5, 9, 9]])
    assert actual.memorised == 1 and list(actual.rows) == [0, 5, 9, 9]
    assert list(actual.distance) == [0, 0, 0, 0]
    assert nearest(manifold, train + 100).memorised == 0
    mixed = np.concatenate([train[:10], train[:30] + 100])
    assert nearest(manifold, mixed).memorised == 0.25


@pytest.mark.parametrize("d, expected", [(1, 2 / 3), (2, 6 * np.pi / (8 * np.pi + 3 * np.sqrt(3)))])
def test_new_images_have_the_share_of_mutual_neighbours(d, expected):
    """Reciprocal pairs of a Poisson process: a ball's volume over that of two which each reach
    to the other's centre."""
    train, new = rng(0).random((3000, d)), rng(1).random((3000, d))
    actual = nearest(Manifold.of(train, 1), new)
    assert actual.memorised == pytest.approx(expected, abs=4 * 0.5 / 3000**0.5)


# ---- what must not matter


def test_shares_do_not_depend_on_units_axes_origin_and_order():
    real, fake = skewed(80, 12, 0), skewed(70, 12, 1)
    turn = special_ortho_group.rvs(12, random_state=0)
    order, other = rng(2).permutation(80), rng(3).permutation(70)
    expected, actual = (
        both(real, fake),
        both(*(2 * (x @ turn) + 1e4 for x in (real[order], fake[other]))),
    )
    assert actual[:4] == pytest.approx(expected[:4], rel=1e-12)
    np.testing.assert_array_equal(order[actual.nearest.rows], expected.nearest.rows[other])
    np.testing.assert_allclose(actual.nearest.distance, 2 * expected.nearest.distance[other], 1e-6)


@pytest.mark.parametrize("kind, offset", [(np.float32, 1e4), (np.float64, 1e6)])
def test_distances_are_as_exact_far_from_the_origin(kind, offset):
    """Squares of the offset have no digits left for distances of 1."""
    x = (rng(0).normal(size=(60, 8)) + offset).astype(kind)
    exact = x.astype(np.float64)
    expected = np.sort(cdist(exact, exact), axis=1)[:, 1:6]
    np.testing.assert_allclose(np.sqrt(Manifold.of(x).squares), expected, rtol=1e-9)


@pytest.mark.parametrize("offset", [0, 1e3])
def test_products_of_a_gpu_keep_nine_digits_and_duplicates(monkeypatch, offset):
    x = np.float32(offset + rng(0).standard_normal((600, 40)))
    x[7] = x[3]
    squares, kernel = Manifold.of(x).squares, distances.kid(x[:300] - offset, x[300:] - offset)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert distances.multiply(np.float64(x), np.float64(x)).dtype == np.float64
    np.testing.assert_allclose(Manifold.of(x).squares, squares, rtol=1e-9)
    np.testing.assert_allclose(distances.kid(x[:300] - offset, x[300:] - offset), kernel, rtol=1e-9)
    assert Manifold.of(x).squares[[3, 7], 0].tolist() == [0, 0]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_strips_do_not_matter(monkeypatch, rows):
    real, fake = skewed(50, 9, 0), skewed(40, 9, 1)
    expected = both(real, fake)
    monkeypatch.setattr(neighbours, "ROWS", rows)
    actual = both(real, fake)
    assert actual[:4] == expected[:4]
    np.testing.assert_array_equal(actual.nearest.rows, expected.nearest.rows)
    np.testing.assert_array_equal(actual.nearest.copied, expected.nearest.copied)
    np.testing.assert_allclose(actual.nearest.distance, expected.nearest.distance, rtol=1e-9)


def test_no_matrix_of_all_pairs_is_held(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 32)
    real, fake = rng(0).normal(size=(2, 2000, 4)).astype(np.float32)
    tracemalloc.start()
    manifold = Manifold.of(real)
    compare_manifolds(manifold, Manifold.of(fake))
    nearest(manifold, fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 2000  # a byte a pair: not even which are inside


def test_each_pair_is_computed_once(monkeypatch):
    calls, original = [], neighbours.squared_distances
    count = lambda x, y: calls.append((len(x), len(y))) or original(x, y)  # noqa: E731
    monkeypatch.setattr(neighbours, "squared_distances", count)
    real, seeds = Manifold.of(skewed(30, 4, 0)), [skewed(20, 4, seed) for seed in (1, 2)]
    for fake in seeds:
        compare_manifolds(real, Manifold.of(fake))
    assert calls == [(30, 30), (20, 20), (20, 30), (20, 20), (20, 30)]


# ---- what is refused


@pytest.mark.parametrize("n, k", [(5, 5), (3, 5), (1, 1), (9, 0), (9, -1)])
def test_neighbours_need_enough_images(n, k):
    with pytest.raises(ValueError, match=f"no k={k} nearest others among n={n} images"):
        Manifold.of(skewed(n, 3, 0), k)


def test_compare_needs_the_balls_it_is_asked_for():
    large, small = Manifold.of(skewed(9, 3, 0)), Manifold.of(skewed(9, 3, 1), 2)
    match = r"k=3 nearest neighbours: expected 1 <= k <= 2; make the manifold with .* Manifold\.of"
    with pytest.raises(ValueError, match=match):
        compare_manifolds(large, small)
    with pytest.raises(ValueError, match="k=7 nearest"):
        compare_manifolds(large, large, k_density=7)
    with pytest.raises(ValueError, match="k=0 nearest"):
        compare_manifolds(large, large, k_precision=0)
    assert (
        compare_manifolds(large, small, k_precision=2).density > 0
    )  # density needs no fakes' balls


def test_neighbours_refuse_what_they_cannot_compare():
    real = Manifold.of(skewed(9, 3, 0))
    with pytest.raises(ValueError, match="3 features against 4: expected the same space"):
        compare_manifolds(real, Manifold.of(skewed(9, 4, 0)))
    with pytest.raises(ValueError, match="3 features against 4: expected the same space"):
        nearest(real, skewed(9, 4, 0))
    with pytest.raises(ValueError, match="features of 2 images hold NaN"):
        nearest(real, np.array([[0, 1, 2], [3, np.nan, 4]]))
    with pytest.raises(ValueError, match="features of 8 images hold NaN"):
        Manifold.of(np.full((8, 3), np.inf, np.float32))
    with pytest.raises(ValueError, match=r"shape \(8,\): expected \(n >= 1, d\)"):
        Manifold.of(np.ones(8))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        nearest(real, np.ones((0, 3)))
