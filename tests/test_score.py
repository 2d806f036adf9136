"""Distances against independent formulas, and the stage that writes scores.json."""

import itertools
import json

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import special_ortho_group
from small import flagged

from bloodjax import features, score, tables
from bloodjax.data import Dataset
from bloodjax.distance import Moments, floor, frechet
from bloodjax.download import Unavailable


def rng(*seed):
    return np.random.default_rng(seed)


def gaussian(mean, cov, n=1000):
    return Moments(n=n, mean=np.asarray(mean, float), m2=np.asarray(cov, float) * (n - 1))


def by_sqrtm(a, b):
    """The formula as printed in Heusel et al. (2017), eq. 6."""
    root = np.trace(sqrtm(a.cov @ b.cov)).real
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * root


def by_nuclear_norm(x, y):
    """tr (S_x S_y)^(1/2) = |X Y^T|_* of centred, scaled X and Y: no covariance, no squaring."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * root


def skewed(n, d, seed):
    """Features like a network's: correlated, not negative, of very different sizes."""
    mix = rng(seed, 1).normal(size=(d, d)) * np.logspace(0, -2, d)
    return np.maximum(rng(seed, 2).normal(size=(n, d)) @ mix + 0.1, 0)


def test_frechet_is_the_printed_formula():
    a, b = Moments.of(skewed(500, 32, 0)), Moments.of(skewed(700, 32, 1))
    assert frechet(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)


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


@pytest.mark.parametrize("n, m", [(50, 50), (50, 90), (90, 50), (50, 1000), (2, 50)])
def test_frechet_of_fewer_images_than_features_is_exact(n, m):
    x, y = skewed(n, 128, 0), skewed(m, 128, 1)
    expected = by_nuclear_norm(x, y)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-10)


def test_frechet_refuses_another_space():
    with pytest.raises(ValueError, match="3 features against 4: expected the same space"):
        frechet(gaussian(np.zeros(3), np.eye(3)), gaussian(np.zeros(4), np.eye(4)))


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("order", [1, -1])
def test_moments_of_a_stream_are_those_of_the_batch(chunk, order):
    x = (skewed(200, 12, 0) + 1000).astype(np.float32)  # a mean that would eat the digits of E[xx]
    parts = [Moments.of(x[i : i + chunk]) for i in range(0, len(x), chunk)][::order]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    x = x.astype(np.float64)
    assert total.n == 200
    np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-12)
    scale = np.abs(np.cov(x, rowvar=False)).max()
    np.testing.assert_allclose(total.cov, np.cov(x, rowvar=False), rtol=0, atol=1e-12 * scale)


def test_moments_merge_alike_in_any_grouping():
    a, b, c = (Moments.of(skewed(n, 8, n)) for n in (5, 50, 500))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-12, atol=1e-12)


def test_moments_leave_the_features_alone():
    x = np.ones((3, 2)) * [[1], [2], [3]]
    Moments.of(x)
    assert x[2, 0] == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_moments_refuse_what_is_not_finite(bad):
    x = np.zeros((5, 3), np.float32)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="features of 5 images hold NaN"):
        Moments.of(x)


def test_one_image_has_moments_but_no_covariance():
    one = Moments.of(np.ones((1, 3)))
    assert one.merge(Moments.of(np.zeros((1, 3)))).cov[0, 0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 image has no covariance"):
        frechet(one, Moments.of(skewed(10, 3, 0)))
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        Moments.of(np.ones((0, 3)))


@pytest.mark.parametrize("n", [3, 100])
def test_floor_compares_disjoint_halves(n):
    x = np.array([0.0, 1, 10, 100, 1000, 10000])[:, None]
    halves = [
        frechet(Moments.of(x[list(a)]), Moments.of(np.delete(x, a, axis=0)))
        for a in itertools.combinations(range(6), 3)
    ]
    values = [floor(x, n, seed) for seed in range(40)]
    assert all(np.isclose(v, halves, rtol=1e-9, atol=1e-9).any() for v in values)
    assert len(np.unique(np.round(values, 3))) > 3  # the draw depends on the seed
    assert floor(x, n, 1) == floor(x, n, 1)


def test_floor_of_equal_sets_falls_with_their_size():
    x = skewed(2000, 8, 0)
    large, small = (np.mean([floor(x, n, seed) for seed in range(20)]) for n in (1000, 100))
    assert large == pytest.approx(small / 10, rel=0.3)  # both its terms go as 1 / n


@pytest.mark.parametrize(
    "value, like, text",
    [
        (12.3456, None, "12.35"),
        (0.056784, 12.3, "0.06"),
        (-1e-13, None, "0.000000"),
        (-0.8, None, "-0.8000"),
        (-0.004, 12.3, "0.00"),
        (-0.006, 12.3, "-0.01"),
        (351, None, "351.0"),
    ],
)
def test_show(value, like, text):
    assert tables.show(value, like) == text


def test_names_for_people():
    names = ("fd_bloodnet", "as is"), ("fid", "pytorch-fid"), ("fid", "clean")
    assert [tables.title(*n) for n in names] == ["FD-BloodNet", "FID", "FID (clean)"]


# ---- the stage

CLASSES = ("dark", "light")
CALLS = []


def as_features(images):
    CALLS.append(len(images))
    x = images.reshape(len(images), -1) / np.float32(255)
    return np.stack([x.mean(1), x.std(1), x[:, 0], x[:, -1]], axis=1).astype(np.float32)


def as_classes(x):
    return np.stack([1 - x[:, 0], x[:, 0]], axis=1)


def extractor(name, classify=as_classes, classes=CLASSES):
    return features.Extractor(name, 4, "ab" * 32, "as is", as_features, classify, classes)


def a_dataset(n=90, shape=(4, 4, 3)):
    images = rng(1).integers(0, 256, (n, *shape), dtype=np.uint8)
    return Dataset(images, np.arange(n, dtype=np.int32) % 2, CLASSES, "bloodmnist", "cd" * 32)


def put_samples(folder, images, seeds):
    trace = images[:, :2, None].repeat(3, axis=2)
    np.savez(
        folder / "samples.npz",
        images=images,
        labels=np.full(images.shape[:2], -1, np.int32),
        seeds=np.array(seeds, np.uint32),
        step=40,
        trace=trace,
        trace_name=np.array("denoising"),
    )


@pytest.fixture
def workdir(tmp_path, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(features, "make", extractor)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    put_samples(
        tmp_path, rng(2).integers(0, 200, (2, 50, 4, 4, 3), dtype=np.uint8), [5, 4294967295]
    )
    CALLS.clear()
    return tmp_path


def test_run_scores_each_seed(workdir):
    dataset = a_dataset()
    result = score.run(workdir, dataset, count=30)
    assert json.loads((workdir / "scores.json").read_text("utf-8")) == result
    assert [p.name for p in workdir.iterdir() if p.name != "samples.npz"] == ["scores.json"]
    first, second = result["scores"]
    assert (first["seed"], second["seed"], first["step"]) == (5, 4294967295, 40)
    assert first["name"] == "fd_bloodnet" and first["features"] == "bloodnet"
    assert (first["n_real"], first["n_fake"], first["floor_n"]) == (30, 30, 30)
    assert (first["dataset"], first["dataset_digest"]) == ("bloodmnist", "cd" * 32)
    assert (first["extractor_sha256"], first["protocol"]) == ("ab" * 32, "as is")
    (summary,) = result["summary"]
    values = [first["value"], second["value"]]
    assert summary["mean"] == pytest.approx(np.mean(values)) and summary["seeds"] == 2
    assert summary["std"] == pytest.approx(abs(values[0] - values[1]) / 2)  # population: ddof = 0
    assert summary["floor"] == first["floor"] == second["floor"] < min(values)


def test_run_compares_the_right_images(workdir):
    dataset = a_dataset(20)
    with np.load(workdir / "samples.npz") as file:
        fakes = file["images"][:, :20]
    scores = score.run(workdir, dataset, count=20)["scores"]
    for s, fake in zip(scores, fakes, strict=True):  # with count = N the real set is all of them
        real, fake = (as_features(x).astype(np.float64) for x in (dataset.images, fake))
        expected = by_sqrtm(Moments.of(real), Moments.of(fake))
        assert s["value"] == pytest.approx(expected, rel=1e-6)
        shares = (fake[:, 0] > 0.5).mean()
        assert s["classes"]["light"]["fake"] == pytest.approx(shares)


def test_run_takes_all_there_are_and_says_so(workdir):
    result = score.run(workdir, a_dataset(31), count=10_000)
    first = result["scores"][0]
    assert (first["n_real"], first["n_fake"], first["floor_n"]) == (31, 50, 15)


def test_run_sees_the_real_images_once(workdir):
    score.run(workdir, a_dataset(90), count=40)
    # 2 count real images for score and floor; 40 fakes a seed, for the score and for the classes
    assert sum(CALLS) == 80 + 2 * 40
    score.run(workdir, a_dataset(90), count=40)
    assert sum(CALLS) == 80 + 2 * 2 * 40


def test_run_sees_them_once_more_for_classes_that_only_bloodnet_tells(workdir):
    result = score.run(workdir, a_dataset(90), count=40, features=("other",))
    assert sum(CALLS) == 2 * (80 + 2 * 40)
    assert [s["features"] for s in result["scores"]] == ["other"] * 2
    assert all(s["classes"] for s in result["scores"])


def test_run_is_deterministic_and_its_real_images_do_not_depend_on_the_seed(workdir):
    once, again = (score.run(workdir, a_dataset(), count=30) for _ in range(2))
    assert once == again
    with np.load(workdir / "samples.npz") as file:
        images = file["images"]
    put_samples(workdir, images, [6, 7])
    other = score.run(workdir, a_dataset(), count=30)
    assert [s["value"] for s in other["scores"]] == [s["value"] for s in once["scores"]]


@pytest.mark.parametrize(
    "change", [{"classify": None, "classes": ()}, {"classes": ("light", "dark")}]
)
def test_run_counts_no_classes_it_cannot_tell(workdir, monkeypatch, change):
    monkeypatch.setattr(features, "make", lambda name: extractor(name, **change))
    assert score.run(workdir, a_dataset())["scores"][0]["classes"] is None


def test_run_in_two_spaces(workdir):
    result = score.run(workdir, a_dataset(), features=("bloodnet", "other"))
    assert [s["name"] for s in result["summary"]] == ["fd_bloodnet", "fd_other"]
    assert len(result["scores"]) == 4


def test_run_without_samples_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"samples\.npz is missing.*--mode=sample"):
        score.run(tmp_path, a_dataset())


def flipped(raw):
    at = len(raw) // 3
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, flagged, lambda raw: raw[:-9]])
def test_run_names_damaged_samples_and_the_remedy(workdir, damage):
    file = workdir / "samples.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"samples\.npz: not readable .* move it away and sample"):
        score.run(workdir, a_dataset())


def test_run_refuses_images_of_another_shape(workdir):
    with pytest.raises(ValueError, match=r"expected uint8 \(seeds, n, 8, 8, 3\) as in bloodmnist"):
        score.run(workdir, a_dataset(shape=(8, 8, 3)))
    assert not (workdir / "scores.json").exists()


def test_run_refuses_float_images(workdir):
    put_samples(workdir, np.zeros((1, 9, 4, 4, 3), np.float32), [0])
    with pytest.raises(ValueError, match="holds float32 images"):
        score.run(workdir, a_dataset())


def without_inception(name):
    if name.startswith("inception"):
        raise Unavailable("no weights; set BLOODJAX_INCEPTION=FILE")
    return extractor(name)


def test_run_goes_on_without_the_weights_and_says_how_to_get_them(workdir, monkeypatch, capsys):
    monkeypatch.setattr(features, "make", without_inception)
    score.check(features=("bloodnet,inception:clean",), count=30, draws=5)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("scores go on without inception:clean: no weights; set BLOODJAX_INCEPTION=FILE")
    result = score.run(workdir, a_dataset(), features=("bloodnet", "inception"))
    assert {s["name"] for s in result["scores"]} == {"fd_bloodnet"}


@pytest.mark.parametrize(
    "options, what",
    [
        ({"features": ("inception",)}, "none is available; add bloodnet"),
        ({"count": 1}, "score.count=1"),
        ({"draws": 0}, "score.draws=0"),
    ],
)
def test_check_refuses_what_run_could_not_do(monkeypatch, options, what):
    monkeypatch.setattr(features, "make", without_inception)
    with pytest.raises(ValueError, match=what):
        score.check(**{"features": ("bloodnet",), "count": 30, "draws": 5} | options)
