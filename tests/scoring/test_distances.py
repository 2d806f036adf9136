"""Distances of sets of features: moments, few images, extrapolation, the kernel distance."""

import itertools
import tracemalloc

import numpy as np
import pytest
from helpers.features import by_sqrtm, rng, skewed, torch_fidelity
from scipy.stats import special_ortho_group

from bloodjax.scoring import distances
from bloodjax.scoring.distances import Moments, frechet, infinity, kid


def gaussian(mean, cov, n=10**9):
    """A distribution that is known, not sampled."""
    return Moments(n=n, mean=np.asarray(mean, float), m2=np.asarray(cov, float) * (n - 1))


def by_nuclear_norm(x, y):
    """tr (S_x S_y)^(1/2) = |X Y^T|_* of centred, scaled X and Y: no covariance, no squaring."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * root


# ---- moments


@pytest.mark.parametrize("block", [1, 12 * 7, 2**22])  # of 1 row, 7 rows, all
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_moments_do_not_depend_on_blocks(monkeypatch, block, kind):
    monkeypatch.setattr(distances, "BLOCK", block)
    x = (skewed(200, 12, 0) + 1000).astype(kind)  # a mean that would eat the digits of E[xx]
    assert_moments(Moments.of(x), x, 1e-13)


def assert_moments(actual, x, tolerance):
    x = x.astype(np.float64)
    cov = np.cov(x, rowvar=False)
    assert actual.n == len(x)
    np.testing.assert_allclose(actual.mean, x.mean(0), rtol=tolerance)
    np.testing.assert_allclose(actual.cov, cov, rtol=0, atol=tolerance * np.abs(cov).max())


def test_moments_leave_the_features_alone():
    x = np.ones((3, 2)) * [[1], [2], [3]]
    Moments.of(x)
    assert x[2, 0] == 3


def test_moments_take_no_copy_of_all_features(monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", 2**14)
    x = rng(0).normal(size=(20_000, 64)).astype(np.float32)
    tracemalloc.start()
    Moments.of(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2  # a float64 copy would be twice as large as x


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_moments_refuse_what_is_not_finite_in_any_block(monkeypatch, bad):
    monkeypatch.setattr(distances, "BLOCK", 4)
    for row in (0, 6):
        x = np.zeros((7, 2), np.float32)
        x[row, 1] = bad
        with pytest.raises(ValueError, match="features of 7 images hold NaN"):
            Moments.of(x)


def test_moments_refuse_what_overflows():
    with pytest.raises(ValueError, match="overflowing"):
        Moments.of(np.array([[1e200], [-1e200]]))


def test_one_image_has_moments_but_no_covariance():
    one = Moments.of(np.ones((1, 3)))
    assert (one.mean == 1).all() and (one.m2 == 0).all()
    with pytest.raises(ValueError, match="1 image has no covariance"):
        frechet(one, Moments.of(skewed(10, 3, 0)))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        Moments.of(np.ones((0, 3)))


@pytest.mark.parametrize("n", [4, 8, 9, 50])
def test_root_is_a_root_of_as_many_dimensions_as_there_are(n):
    a = Moments.of(skewed(n, 8, 0))
    assert a.root.shape == (8, min(n - 1, 8))
    np.testing.assert_allclose(a.root @ a.root.T, a.m2, rtol=0, atol=1e-13 * np.trace(a.m2))


def test_root_where_a_feature_never_varies():
    """There is no Cholesky factor then, however many images there are."""
    x, y = skewed(50, 8, 0), skewed(60, 8, 1)
    x[:, 3] = 0.5
    a = Moments.of(x)
    np.testing.assert_allclose(a.root @ a.root.T, a.m2, rtol=0, atol=1e-13 * np.trace(a.m2))
    assert frechet(a, Moments.of(y)) == pytest.approx(frechet(Moments.of(y), a), rel=1e-7)


# ---- Fréchet distance


def test_frechet_is_the_printed_formula():
    x, y = skewed(500, 32, 0), skewed(700, 32, 1)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(by_sqrtm(x, y), rel=1e-9)


def test_frechet_of_diagonal_gaussians():
    a, b = gaussian([0, 1, 2], np.diag([1, 4, 9])), gaussian([3, 1, 0], np.diag([16, 4, 1]))
    assert frechet(a, b) == pytest.approx(13 + 3**2 + 0 + 2**2, rel=1e-12)


def test_frechet_of_gaussians_with_common_axes():
    v = special_ortho_group.rvs(6, random_state=0)
    s, t = np.arange(1.0, 7), np.arange(6.0, 0, -1) / 2
    a, b = (gaussian(np.zeros(6), v * w**2 @ v.T) for w in (s, t))
    assert frechet(a, b) == pytest.approx(np.sum((s - t) ** 2), rel=1e-12)


def test_frechet_of_shifted_means_is_the_squared_shift():
    x, shift = skewed(300, 16, 0), rng(7).normal(size=16)
    expected = shift @ shift
    assert frechet(Moments.of(x), Moments.of(x + shift)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("n, m", [(400, 400), (400, 60), (20, 30)])
def test_frechet_is_symmetric_and_zero_to_itself(n, m):
    a, b = Moments.of(skewed(n, 40, 0)), Moments.of(skewed(m, 40, 1))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)
    assert abs(frechet(a, a)) < 1e-12 * np.trace(a.cov) < frechet(a, b)


def test_frechet_refuses_another_space():
    with pytest.raises(ValueError, match="3 features against 4: expected the same space"):
        frechet(gaussian(np.zeros(3), np.eye(3)), gaussian(np.zeros(4), np.eye(4)))


def test_frechet_factors_the_first_set_once(monkeypatch):
    calls, factors = [], {name: getattr(np.linalg, name) for name in ("eigh", "cholesky")}
    for name, factor in factors.items():
        monkeypatch.setattr(np.linalg, name, lambda x, f=factor: calls.append(1) or f(x))
    real = Moments.of(skewed(100, 8, 0))
    values = [frechet(real, Moments.of(skewed(n, 8, 1))) for n in (60, 200)]
    infinity(real, skewed(30, 8, 1), values[0])
    assert len(calls) == 1 and values[0] != values[1]


@pytest.mark.parametrize("n, m", [(50, 300), (300, 50), (2, 300), (300, 2), (50, 50), (60, 50)])
def test_few_images_are_exact_on_either_side(n, m):
    x, y = skewed(n, 128, 0), skewed(m, 128, 1)
    expected = by_nuclear_norm(x, y)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-10)
    assert distances.frechet_from_features(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n, m", [(16, 16), (17, 16), (17, 17), (100, 17), (300, 400)])
def test_distance_is_the_printed_formula_around_the_change_of_route(monkeypatch, n, m):
    sizes, eigvalsh = [], np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda x: sizes.append(len(x)) or eigvalsh(x))
    x, y = skewed(n, 16, 0), skewed(m, 16, 1)
    assert distances.frechet_from_features(x, y) == pytest.approx(by_nuclear_norm(x, y), rel=1e-10)
    if min(n, m) > 20:  # sqrtm is not exact on what is almost singular
        assert distances.frechet_from_features(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-8)
    assert max(sizes) <= 16  # the smaller problem, of images or of features


@pytest.mark.parametrize("n, m", [(20, 30), (30, 20), (20, 500), (500, 20), (40, 40)])
def test_distance_of_few_images_factors_nothing(monkeypatch, n, m):
    monkeypatch.delattr(np.linalg, "eigh")
    x, y = skewed(n, 40, 0), skewed(m, 40, 1)
    assert distances.frechet_from_features(x, y) == pytest.approx(
        distances.frechet_from_features(y, x), rel=1e-10
    )
    assert distances.frechet_from_features(x, y) == pytest.approx(by_nuclear_norm(x, y), rel=1e-10)


@pytest.mark.parametrize("n", [30, 300])
def test_distance_turns_shifts_and_scales_as_it_must(n):
    x, y = skewed(n, 40, 0), skewed(n + 9, 40, 1)
    turn = special_ortho_group.rvs(40, random_state=0)
    expected = distances.frechet_from_features(x, y)
    moved = (5 - 3 * z[::-1] @ turn for z in (x, y))
    assert distances.frechet_from_features(*moved) == pytest.approx(9 * expected, rel=1e-9)
    assert abs(distances.frechet_from_features(x, x)) < 1e-7 * expected


@pytest.mark.parametrize("d", [2, 40])
def test_one_image_has_no_distance(d):
    for pair in ((1, 9), (9, 1), (1, 1)):
        with pytest.raises(ValueError, match="1 image has no covariance"):
            distances.frechet_from_features(*(skewed(n, d, n) for n in pair))


# ---- extrapolated to infinitely many fakes


def extrapolated(real, fake, **options):
    return infinity(real, fake, frechet(real, Moments.of(fake)), **options)


@pytest.mark.parametrize("n, first", [(4, 2), (101, 50), (9999, 4999), (30_000, 5000)])
def test_infinity_finds_a_straight_line_exactly(monkeypatch, n, first):
    sizes = []

    def line(real, fake):
        sizes.append(fake.n)
        return 3 + 70 / fake.n

    monkeypatch.setattr(distances, "frechet", line)
    actual = infinity(None, np.zeros((n, 1)), 3 + 70 / n, points=7)
    assert actual == pytest.approx(3, rel=1e-9)
    assert (len(sizes), sizes[0]) == (6, first)  # all fakes are known
    assert np.ptp(np.diff([*sizes, n])) <= 1  # evenly spaced


def test_infinity_draws_each_subset_anew_without_replacement(monkeypatch):
    drawn_subsets = []
    monkeypatch.setattr(Moments, "of", lambda x: drawn_subsets.append(x[:, 0]) or len(x))
    monkeypatch.setattr(distances, "frechet", lambda real, size: 1 / size)
    infinity(None, np.arange(40.0)[:, None], 1 / 40, points=5)
    assert all(len(np.unique(x)) == len(x) for x in drawn_subsets)
    assert not set(drawn_subsets[0]) <= set(drawn_subsets[1])  # not the same ones and some more
    assert [len(x) for x in drawn_subsets] == [20, 25, 30, 35]


def test_infinity_takes_the_bias_of_few_fakes_away():
    d, n, shift = 16, 4000, 0.1
    still = gaussian(np.zeros(d), np.eye(d))
    raw, fitted, shifted = [], [], []
    for draw in range(40):
        fake = rng(3, draw).normal(size=(n, d))
        raw.append(frechet(still, Moments.of(fake)))
        fitted.append(extrapolated(still, fake))
        shifted.append(extrapolated(still, fake + shift))
    bias = np.mean(raw)
    assert bias == pytest.approx(d / n + d * (d + 1) / (4 * n), rel=0.1)  # of mean, of covariance
    assert abs(np.mean(fitted)) < 0.05 * bias
    assert np.mean(shifted) == pytest.approx(d * shift**2, rel=0.02)


def test_infinity_leaves_what_few_real_images_add():
    d, n = 16, 2000
    raw, fitted = [], []
    for draw in range(12):
        real, fake = rng(4, draw).normal(size=(2, n, d))
        raw.append(frechet(Moments.of(real), Moments.of(fake)))
        fitted.append(extrapolated(Moments.of(real), fake))
    assert np.mean(fitted) == pytest.approx(np.mean(raw) / 2, rel=0.15)


def test_infinity_depends_on_the_seed_and_on_the_order():
    real, fake = Moments.of(skewed(2000, 6, 0)), skewed(2000, 6, 1)
    value = extrapolated(real, fake)
    assert value == extrapolated(real, fake, seed=0)
    assert value != extrapolated(real, fake, seed=1)
    assert value != extrapolated(real, fake[::-1])  # another draw, as it says
    assert value == pytest.approx(extrapolated(real, fake[::-1]), rel=0.3)


def test_infinity_refuses_what_has_no_line():
    real = Moments.of(skewed(9, 2, 0))
    with pytest.raises(ValueError, match="15 subsets of 3 images: expected 2 and 4 at least"):
        infinity(real, skewed(3, 2, 0), 0.0)
    with pytest.raises(ValueError, match="1 subsets of 9 images"):
        infinity(real, skewed(9, 2, 0), 0.0, points=1)
    with pytest.raises(ValueError, match="2 features against 3"):
        infinity(real, skewed(9, 3, 0), 0.0)


# ---- the kernel distance


def naive_mmd2(x, y):
    """Gretton et al. (2012), eq. 3, pair by pair, with Bińkowski et al.'s kernel."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_mmd2_is_the_double_loop():
    x, y = rng(0).normal(size=(12, 5)), rng(1).normal(size=(9, 5)) + 0.5
    assert distances.mmd2(x, y) == pytest.approx(naive_mmd2(x, y), rel=1e-12)


def test_kid_of_whole_sets_is_the_double_loop():
    x, y = skewed(15, 6, 0).astype(np.float32), skewed(15, 6, 1).astype(np.float32)
    expected = naive_mmd2(x.astype(np.float64), y.astype(np.float64))
    mean, std = kid(x, y, subsets=3, size=1000)
    assert mean == pytest.approx(expected, rel=1e-12) and std == 0
    assert (type(mean), type(std)) == (float, float)


@pytest.mark.parametrize("n, m, size", [(5, 4, 3), (4, 5, 2), (3, 6, 99), (6, 3, 99)])
def test_kid_draws_without_replacement(n, m, size):
    x, y = skewed(n, 3, 0), skewed(m, 3, 1)
    cut = min(n, m, size)
    pairs = [
        naive_mmd2(x[list(a)], y[list(b)])
        for a in itertools.combinations(range(n), cut)
        for b in itertools.combinations(range(m), cut)
    ]
    values = [kid(x, y, subsets=1, size=size, seed=seed)[0] for seed in range(40)]
    assert all(np.isclose(value, pairs, rtol=1e-9, atol=1e-12).any() for value in values)
    assert len(np.unique(np.round(values, 9))) > min(len(pairs), 40) / 3
    # the mean over all subsets is the estimate of all images: that is what unbiased means
    assert np.mean(pairs) == pytest.approx(naive_mmd2(x, y), rel=1e-9)
    mean, std = kid(x, y, subsets=3000, size=size)
    assert mean == pytest.approx(naive_mmd2(x, y), abs=5 * std / 3000**0.5 + 1e-12)
    assert std == pytest.approx(np.std(pairs), rel=0.15)


def test_kid_is_unbiased():
    """Equal distributions have 0 on average, where the biased estimate has 1.4."""
    x = rng(0).normal(size=(2, 400, 10, 4))
    values = [kid(a, b, subsets=1)[0] for a, b in zip(*x, strict=True)]
    assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5 < 0.5


def test_kid_is_mean_and_population_deviation(monkeypatch):
    values = iter([1.0, 4.0, 4.0])
    monkeypatch.setattr(distances, "mmd2", lambda x, y: next(values))
    x, y = skewed(9, 2, 0), skewed(9, 2, 1)
    assert kid(x, y, subsets=3, size=5) == (3, pytest.approx(2**0.5))


def test_kid_is_torch_fidelitys():
    torch, reference = torch_fidelity("metric_kid")
    x, y = skewed(80, 24, 0), skewed(80, 24, 1) + 0.05
    expected = reference.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=80, verbose=False
    )
    mean, _ = kid(x, y, subsets=1)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-11)


def test_kid_knows_no_order_and_no_axes():
    x, y = skewed(30, 8, 0), skewed(30, 8, 1)
    turn = special_ortho_group.rvs(8, random_state=0)
    expected = kid(x, y)[0]
    assert kid(y, x)[0] == pytest.approx(expected, rel=1e-9)
    assert kid(x[::-1] @ turn, y @ turn)[0] == pytest.approx(expected, rel=1e-9)


def test_kid_is_a_function_of_its_seed():
    x, y = skewed(50, 8, 0), skewed(40, 8, 1)
    assert kid(x, y, 5, 10) == kid(x, y, 5, 10, seed=0) != kid(x, y, 5, 10, seed=1)


def test_kid_refuses_what_it_cannot_compare():
    x = skewed(9, 3, 0)
    with pytest.raises(ValueError, match="3 features against 4: expected the same space"):
        kid(x, skewed(9, 4, 0))
    with pytest.raises(ValueError, match="features of 9 images hold NaN"):
        kid(x, np.where(x > x.mean(), np.nan, x))
    with pytest.raises(ValueError, match="100 subsets of 1 images: expected at least 1, of at"):
        kid(x, x[:1])
    with pytest.raises(ValueError, match="0 subsets of 9 images"):
        kid(x, x, subsets=0)
    with pytest.raises(ValueError, match=r"shape \(9,\): expected \(n >= 1, d\)"):
        kid(x, x[:, 0])
