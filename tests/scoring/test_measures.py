"""What is reported of samples: each figure from the right sets of images."""

from collections import Counter

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bloodjax.scoring.comparison import Pair, RealSet
from bloodjax.scoring.distances import Moments, frechet, frechet_from_features
from bloodjax.scoring.measures import (
    CLOSEST,
    compare,
    score_classes,
    score_reals,
    score_samples,
)
from bloodjax.scoring.neighbours import Manifold


def gaussian(n, seed, shift=0.0, d=4):
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def test_other_draws_are_other_real_images():
    train, fake = gaussian(200, 0), gaussian(80, 1)
    real = RealSet.draw(train, 80, draws=5)
    result = score_samples(real, fake, np.arange(200))
    values = [frechet(spread, Moments.of(fake)) for spread in real.draws]
    assert result["value"] == pytest.approx(frechet_from_features(train[:80], fake), rel=1e-9)
    assert len({round(v, 9) for v in values}) == 5
    assert result["draws"]["n"] == 5 and result["draws"]["mean"] == pytest.approx(np.mean(values))
    assert result["draws"]["std"] == pytest.approx(np.std(values))  # population: ddof = 0


def test_further_sets_of_samples_change_nothing_but_their_own_spread():
    train, *sets = gaussian(200, 0), gaussian(80, 1), gaussian(80, 2), gaussian(80, 3)
    real, rows = RealSet.draw(train, 80, draws=2), np.arange(200)
    alone, result = score_samples(real, sets[0], rows), score_samples(real, sets[0], rows, sets[1:])
    values = [frechet_from_features(train[:80], x) for x in sets]
    spread = {"n": 3, "mean": np.mean(values), "std": np.std(values)}  # population: ddof = 0
    assert result.pop("sampling") == pytest.approx(spread)
    assert result == alone


def test_draws_of_all_images_are_one_draw():
    assert len(RealSet.draw(gaussian(80, 4), 80, draws=5).draws) == 1


def test_draws_spread_as_the_distance_does():
    """The σ of draws against that of many really independent real sets."""
    rng = np.random.default_rng(0)
    train, fake = gaussian(5_000, 2), gaussian(300, 3, shift=0.5)
    spread = score_samples(RealSet.draw(train, 300, draws=40), fake, np.arange(5_000))["draws"]
    sets = (train[rng.integers(0, 5_000, 300)] for _ in range(200))
    assert spread["std"] == pytest.approx(
        np.std([frechet_from_features(x, fake) for x in sets]), rel=0.35
    )


def test_copies_are_found_and_shown_first():
    train = gaussian(300, 4)
    fake = gaussian(50, 5, shift=3.0)
    fake[[7, 30]] = train[[250, 11]]  # the first is not among the images compared with
    fake[7] += 1e-4
    rows = np.random.default_rng(6).permutation(1000)[:300]
    result = score_samples(RealSet.draw(train, 100), fake, rows)
    first, second = result["closest"][:2]
    assert (first["sample"], first["train"]) == (30, rows[11]) and first["ratio"] == 0
    assert (second["sample"], second["train"]) == (7, rows[250]) and 0 < second["ratio"] < 1e-2
    assert len(result["closest"]) == CLOSEST
    ratios = [pair["ratio"] for pair in result["closest"]]
    assert ratios == sorted(ratios)


def test_memorised_is_the_share_of_ratios_below_one():
    train, fake = gaussian(60, 7), gaussian(CLOSEST, 8)
    result = score_samples(RealSet.draw(train, 40), fake, np.arange(60))
    radius = np.sort(cdist(train, train), axis=1)[:, 1]
    apart = cdist(fake, train)
    index = apart.argmin(1)
    ratio = apart.min(1) / radius[index]
    assert result["memorised"] == pytest.approx((ratio <= 1).mean())
    pairs = {pair["sample"]: pair for pair in result["closest"]}
    for i in range(CLOSEST):
        assert pairs[i]["ratio"] == pytest.approx(ratio[i], rel=1e-5)
        assert pairs[i]["distance"] == pytest.approx(apart[i].min(), rel=1e-5)


def test_real_images_are_compared_with_others():
    train = gaussian(101, 9)
    others = train + 1  # the same images, embedded in another way
    for real_count, count, n, m in ((30, 30, 30, 30), (30, 9, 30, 9), (1000, 300, 25, 76)):
        result = score_reals(RealSet.draw(train, real_count), others, count)
        assert (result["real"]["n_real"], result["real"]["n_fake"]) == (n, m)
        assert result["floor"] == pytest.approx(
            frechet_from_features(train[:n], others[n : n + m]), rel=1e-9
        )
    assert result["real"]["memorised"] < 0.9  # one set does not hold the other


@pytest.fixture
def work(monkeypatch):
    """What is computed, in order: ("moments", n), ("root", d) and (k, n) of manifolds."""
    done, moments, manifold, root = [], Moments.of, Manifold.of, np.linalg.cholesky
    monkeypatch.setattr(Moments, "of", lambda x: done.append(("moments", len(x))) or moments(x))
    monkeypatch.setattr(Manifold, "of", lambda x, k: done.append((k, len(x))) or manifold(x, k))
    monkeypatch.setattr(np.linalg, "cholesky", lambda m: done.append(("root", len(m))) or root(m))
    return done


@pytest.mark.parametrize("count", [40, 20])
def test_nothing_is_computed_twice(work, count):
    """Two models beside 40 or 20 of 80 real images, and other real images beside those."""
    real = RealSet.draw(gaussian(80, 16), count, draws=2)
    score_reals(real, real.train, count)
    for seed in (0, 1):
        score_samples(real, gaussian(50, seed), np.arange(80))
    once = Counter(work)
    sizes = {n: times for (kind, n), times in once.items() if kind == "moments"}
    assert sizes.pop(count) == 3  # two draws, and the other real images
    assert sizes.pop(50) == 2  # each model
    assert sum(sizes.values()) == 2 * 14  # the smaller subsets of each model's line
    rest = {key: times for key, times in once.items() if key[0] != "moments"}
    assert rest == {
        ("root", 4): 2,  # of each draw
        (1, 80): 1,  # all training images
        (5, count): 2,  # the real images, and the other ones
        (5, 50): 2,  # each model
    }


def test_half_of_few_real_images_meets_the_other_half(work):
    train = gaussian(80, 16)
    score_reals(RealSet.draw(train, 60), train, 60)
    assert Counter(work) == {("moments", 60): 1, ("moments", 40): 2, ("root", 4): 1, (5, 40): 2}


def test_few_images_give_what_can_be_given():
    real, fake = gaussian(5, 10), gaussian(3, 11)
    result = score_samples(RealSet.draw(real, 5), fake, np.arange(5))
    assert result["value"] > 0 and result["infinity"] is None and result["closest"] == []
    assert result["precision"] is None and result["memorised"] is None
    small = Pair(RealSet.draw(gaussian(9, 0), 9), fake, None)
    assert compare(small)["recall"] is None and compare(small)["memorised"] is None


def test_each_class_by_itself():
    real, fake = gaussian(90, 12), gaussian(50, 13)
    real_labels, fake_labels = np.arange(90) % 3, np.minimum(np.arange(50), 1)
    result = score_classes(("a", "b", "c"), (real, real_labels), (fake, fake_labels))
    assert result["a"] == {"real": 1 / 3, "fake": 1 / 50, "distance": None}
    assert result["c"] == {"real": 1 / 3, "fake": 0.0, "distance": None}
    expected = frechet_from_features(real[real_labels == 1], fake[1:])
    assert result["b"]["distance"] == pytest.approx(expected) and result["b"]["fake"] == 49 / 50


def test_figures_do_not_depend_on_chance():
    train, fake = gaussian(60, 14), gaussian(40, 15)
    once, rerun = (score_samples(RealSet.draw(train, 40, 3), fake, np.arange(60)) for _ in "ab")
    assert once == rerun
