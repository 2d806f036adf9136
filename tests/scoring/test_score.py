"""The stage that writes scores.json, and scores as text."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.features import by_sqrtm
from helpers.scoring import (
    CALLS,
    a_dataset,
    as_features,
    extractor,
    numbers_of,
    put_samples,
    random_images,
)
from helpers.tiny import flagged

from bloodjax import features
from bloodjax.runtime.download import UnavailableError
from bloodjax.scoring import score, tables
from bloodjax.scoring.embedding import shuffled_rows
from bloodjax.scoring.score import ScoreConfig

FEW = ScoreConfig(count=10, draws=2)


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
def test_values_have_four_digits_or_the_decimals_of_another(value, like, text):
    assert tables.format_value(value, like) == text


def test_names_for_people():
    names = ("fd_bloodnet", "as is"), ("fid", "pytorch-fid"), ("fid", "clean")
    assert [tables.title(*n) for n in names] == ["FD-BloodNet", "FID", "FID (clean)"]
    other = ("fd_inception-ab", "pytorch-fid"), ("fd_inception-ab", "clean")
    assert [tables.title(*n) for n in other] == ["FD-inception-ab", "FD-inception-ab (clean)"]
    assert tables.title("fd_inception-raw-range", "raw-range") == "FD-inception-raw-range"


def test_sigma_has_two_decimals_at_least():
    summary = {"seeds": 5, "mean": 201.734, "std": 0.231}
    assert tables.format_mean_std(summary) == "201.73 ± 0.23"
    assert tables.format_draws({"n": 5, "std": 0.231}, 1201.7) == "0.23"


# ---- the stage


def without_floats(text):
    return re.sub(r"-?\d+\.\d+(e[-+]\d+)?", "x", text)


def test_the_file_is_the_stored_one(workdir):
    """Keys, order and layout to the byte; numbers as far as another BLAS may round them."""
    put_samples(workdir, random_images(2, 9), [5, 6])
    score.write_scores(workdir, a_dataset(40), ScoreConfig(count=8, draws=2))
    text = (workdir / "scores.json").read_text("utf-8")
    expected = Path(__file__).with_name("expected_scores.json").read_text("utf-8")
    assert without_floats(text) == without_floats(expected)
    numbers, stored = (numbers_of(json.loads(x)) for x in (text, expected))
    assert numbers == pytest.approx(stored, rel=1e-9, abs=1e-12)


def test_sets_of_samples_are_those_after_the_first(workdir):
    images, dataset = random_images(2, 32), a_dataset(40)
    values = []
    for k in range(3):
        put_samples(workdir, images[:, 10 * k : 10 * k + 10], [5, 6])
        values.append([s["value"] for s in score.write_scores(workdir, dataset, FEW)["scores"]])
    put_samples(workdir, images, [5, 6])
    result = score.write_scores(workdir, dataset, replace(FEW, sample_sets=3))
    for s, one in enumerate(result["scores"]):
        of_seed = [row[s] for row in values]
        spread = {"n": 3, "mean": np.mean(of_seed), "std": np.std(of_seed)}
        assert one["sampling"] == pytest.approx(spread, rel=1e-6)
        assert (one["value"], one["n_fake"]) == (pytest.approx(of_seed[0], rel=1e-6), 10)
    assert sum(share["fake"] for share in one["classes"].values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="sample_sets=4: expected at most 3.*sample.count=40"):
        score.write_scores(workdir, dataset, replace(FEW, sample_sets=4))


def test_run_scores_each_seed(workdir):
    dataset = a_dataset()
    result = score.write_scores(workdir, dataset, ScoreConfig(count=30))
    assert json.loads((workdir / "scores.json").read_text("utf-8")) == result
    assert [p.name for p in workdir.iterdir() if p.name != "samples.npz"] == ["scores.json"]
    first, second = result["scores"]
    assert (first["seed"], second["seed"], first["step"]) == (5, 4294967295, 40)
    assert first["name"] == "fd_bloodnet" and first["features"] == "bloodnet"
    assert (first["n_real"], first["n_fake"]) == (30, 30)
    assert (first["real"]["n_real"], first["real"]["n_fake"]) == (30, 30)
    assert (first["dataset"], first["dataset_digest"]) == ("bloodmnist", "cd" * 32)
    assert (first["extractor_sha256"], first["protocol"]) == ("ab" * 32, "as is")
    assert first["extractor_weights"] == "w.npz"
    (summary,) = result["summary"]
    values = [first["value"], second["value"]]
    assert summary["mean"] == pytest.approx(np.mean(values)) and summary["seeds"] == 2
    assert summary["std"] == pytest.approx(abs(values[0] - values[1]) / 2)  # population: ddof = 0
    assert summary["floor"] == first["floor"] == second["floor"] < min(values)


def test_run_compares_the_right_images(workdir):
    dataset = a_dataset(20)
    fakes = random_images(2, 20)
    fakes[0, :3] += 55
    fakes[1, :9] += 55
    put_samples(workdir, fakes, [5, 6])
    scores, shares = score.write_scores(workdir, dataset, ScoreConfig(count=20))["scores"], []
    for s, fake in zip(scores, fakes, strict=True):  # with count = N the real set is all of them
        real, fake = (as_features(x).astype(np.float64) for x in (dataset.images, fake))
        assert s["value"] == pytest.approx(by_sqrtm(real, fake), rel=1e-6)
        shares.append((fake[:, 0] > 0.5).mean())
        assert s["classes"]["light"]["fake"] == pytest.approx(shares[-1])
    assert 0 < shares[0] < shares[1]


def test_run_reads_real_and_generated_images_in_two_ways_where_a_space_does(workdir, monkeypatch):
    def make(name):
        right = extractor("bloodnet")
        if name == "bloodnet":
            return right
        raw = {"name": "bloodnet-raw-reals", "features": lambda x: as_features(x) ** 2}
        return right._replace(**raw, classify=None, classes=(), generated=right)

    monkeypatch.setattr(features, "make", make)
    dataset = a_dataset()
    with np.load(workdir / "samples.npz") as file:
        fakes = file["images"]
    result = score.write_scores(
        workdir, dataset, ScoreConfig(count=45, features=("bloodnet", "bloodnet:raw-reals"))
    )
    plain, raw = result["scores"][:2], result["scores"][2:]
    assert [s["name"] for s in raw] == ["fd_bloodnet-raw-reals"] * 2
    real = as_features(dataset.images[shuffled_rows(dataset)]).astype(np.float64) ** 2
    for s, plain_score, fake in zip(raw, plain, fakes, strict=True):
        fake = as_features(fake[:45]).astype(np.float64)
        assert s["value"] == pytest.approx(by_sqrtm(real[:45], fake), rel=1e-6)
        assert s["floor"] == pytest.approx(by_sqrtm(real[:45], real[45:] ** 0.5), rel=1e-6)
        shares = [
            {name: (share["real"], share["fake"]) for name, share in x["classes"].items()}
            for x in (s, plain_score)
        ]
        assert shares[0] == shares[1], "both are told by the plain space"


def test_labelled_samples_are_compared_with_the_class_that_was_asked_for(workdir):
    """A bright image is light; the labels of both sides are chosen without looking."""
    dataset, labels = a_dataset(40), (np.arange(50) % 3 == 0).astype(np.int32)
    images = random_images(2, 50, high=255)
    put_samples(workdir, images, [5, 6], np.stack([labels, 1 - labels]))
    result = score.write_scores(workdir, dataset, ScoreConfig(count=30))
    real = dataset.images[shuffled_rows(dataset)[:30]], dataset.labels[shuffled_rows(dataset)[:30]]
    for s, fake, asked in zip(result["scores"], images, (labels, 1 - labels), strict=True):
        sides = {"real": real, "fake": (fake[:30], asked[:30])}
        right = {
            side: (as_features(x)[:, 0] > 0.5).astype(int) == y for side, (x, y) in sides.items()
        }
        expected = {side: hits.mean() for side, hits in right.items()}
        assert s["accuracy"] == pytest.approx(expected) and 0 < expected["fake"] < 1
        for k, name in enumerate(("dark", "light")):
            expected = {side: hits[sides[side][1] == k].mean() for side, hits in right.items()}
            assert s["classes"][name]["accuracy"] == pytest.approx(expected)
    both = [s["accuracy"]["fake"] for s in result["scores"]]
    assert f"BloodNet assigns {np.mean(both):.1%} of the samples" in tables.describe_accuracy(
        result
    )


def test_a_class_that_nobody_asked_for_has_no_accuracy(workdir):
    put_samples(workdir, random_images(1, 50), [5], np.zeros((1, 50), np.int32))
    (s,) = score.write_scores(workdir, a_dataset(), ScoreConfig(count=30))["scores"]
    assert s["classes"]["light"]["accuracy"]["fake"] is None
    assert s["accuracy"]["fake"] == s["classes"]["dark"]["accuracy"]["fake"]


def test_run_takes_all_there_are_and_says_so(workdir):
    result = score.write_scores(workdir, a_dataset(31), ScoreConfig(count=10_000))
    first = result["scores"][0]
    assert (first["n_real"], first["n_fake"]) == (31, 50)
    assert (first["real"]["n_real"], first["real"]["n_fake"]) == (11, 20)


def test_run_sees_the_real_images_once(workdir):
    score.write_scores(workdir, a_dataset(90), ScoreConfig(count=40))
    # 2 count real images for score and floor; 40 fakes a seed, for the score and for the classes
    assert sum(CALLS) == 80 + 2 * 40
    score.write_scores(workdir, a_dataset(90), ScoreConfig(count=40))
    assert sum(CALLS) == 80 + 2 * 2 * 40


def test_run_sees_them_once_more_for_classes_that_only_bloodnet_tells(workdir):
    result = score.write_scores(workdir, a_dataset(90), ScoreConfig(count=40, features=("other",)))
    assert sum(CALLS) == 2 * (80 + 2 * 40)
    assert [s["features"] for s in result["scores"]] == ["other"] * 2
    assert all(s["classes"] for s in result["scores"])


def test_run_is_deterministic_and_its_real_images_do_not_depend_on_the_seed(workdir):
    once, rerun = (
        score.write_scores(workdir, a_dataset(), ScoreConfig(count=30)) for _ in range(2)
    )
    assert once == rerun
    with np.load(workdir / "samples.npz") as file:
        images = file["images"]
    put_samples(workdir, images, [6, 7])
    other = score.write_scores(workdir, a_dataset(), ScoreConfig(count=30))
    assert [s["value"] for s in other["scores"]] == [s["value"] for s in once["scores"]]


@pytest.mark.parametrize(
    "change", [{"classify": None, "classes": ()}, {"classes": ("light", "dark")}]
)
def test_run_counts_no_classes_it_cannot_tell(workdir, monkeypatch, change):
    monkeypatch.setattr(features, "make", lambda name: extractor(name, **change))
    assert score.write_scores(workdir, a_dataset(), ScoreConfig())["scores"][0]["classes"] is None


def test_run_in_two_spaces(workdir):
    result = score.write_scores(workdir, a_dataset(), ScoreConfig(features=("bloodnet", "other")))
    assert [s["name"] for s in result["summary"]] == ["fd_bloodnet", "fd_other"]
    assert len(result["scores"]) == 4


def test_run_without_samples_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"samples\.npz is missing.*--mode=sample"):
        score.write_scores(tmp_path, a_dataset(), ScoreConfig())


def flipped(raw):
    position = len(raw) // 3
    return raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


@pytest.mark.parametrize("damage", [flipped, flagged, lambda raw: raw[:-9]])
def test_run_names_damaged_samples_and_the_remedy(workdir, damage):
    file = workdir / "samples.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"samples\.npz: not readable .* move it away and sample"):
        score.write_scores(workdir, a_dataset(), ScoreConfig())


def test_run_refuses_images_of_another_shape(workdir):
    with pytest.raises(ValueError, match=r"expected uint8 \(seeds, n, 8, 8, 3\) as in bloodmnist"):
        score.write_scores(workdir, a_dataset(shape=(8, 8, 3)), ScoreConfig())
    assert not (workdir / "scores.json").exists()


def test_run_refuses_float_images(workdir):
    put_samples(workdir, np.zeros((1, 9, 4, 4, 3), np.float32), [0])
    with pytest.raises(ValueError, match="holds float32 images"):
        score.write_scores(workdir, a_dataset(), ScoreConfig())


def without_inception(name):
    if name.startswith("inception"):
        raise UnavailableError("no weights; set BLOODJAX_INCEPTION=FILE")
    return extractor(name)


def test_run_goes_on_without_the_weights_and_says_how_to_get_them(workdir, monkeypatch, capsys):
    monkeypatch.setattr(features, "make", without_inception)
    config = ScoreConfig(features=("bloodnet", "inception:clean"))
    assert score.keep_available(config).features == ("bloodnet",)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("scores go on without inception:clean: no weights; set BLOODJAX_INCEPTION=FILE")
    result = score.write_scores(
        workdir, a_dataset(), ScoreConfig(features=("bloodnet", "inception"))
    )
    assert {s["name"] for s in result["scores"]} == {"fd_bloodnet"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"features": ("inception",)}, "none is available; add bloodnet"),
        ({"features": (1,)}, "score.features"),
        ({"count": 1}, "score.count=1"),
        ({"draws": 0}, "score.draws=0"),
        ({"sample_sets": 0}, "score.sample_sets=0"),
    ],
)
def test_check_refuses_what_run_could_not_do(monkeypatch, options, message):
    monkeypatch.setattr(features, "make", without_inception)
    with pytest.raises(ValueError, match=message):
        score.keep_available(ScoreConfig(**options))


def test_a_space_that_is_asked_for_twice_counts_once(workdir, monkeypatch):
    monkeypatch.setattr(features, "make", lambda name: extractor("bloodnet"))
    config = ScoreConfig(count=30, features=("bloodnet", "bloodnet:as-is"))
    assert score.write_scores(workdir, a_dataset(), config)["summary"][0]["seeds"] == 2
