"""Copies, constant images and few samples: finite scores, and a report of them."""

import json
import math

import numpy as np
import pytest
from helpers.scoring import a_dataset, dataset_of, numbers_of, put_samples, random_images

from bloodjax import features
from bloodjax.report.run import write_report
from bloodjax.scoring import score
from bloodjax.scoring.measures import CLOSEST
from bloodjax.scoring.score import ScoreConfig


def score_and_report(workdir, dataset, **options):
    """The scores, which are finite in the file and in the report."""
    result = score.write_scores(workdir, dataset, ScoreConfig(**options))
    text = (workdir / "scores.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == result
    floats = [x for x in numbers_of(result) if isinstance(x, float)]
    assert all(math.isfinite(x) and abs(x) < 1e12 for x in floats)
    page = write_report(workdir, dataset).read_text("utf-8")
    table = (workdir / "report" / "table.md").read_text("utf-8")
    assert not {"nan", "inf", "-inf", "None"} & set(table.split()) and ">nan<" not in page
    return result


def constant(n):
    return np.full((n, 4, 4, 3), 90, np.uint8)


TWICE = np.tile(random_images(45, seed=1, high=256), (2, 1, 1, 1))
SETS = {
    "every image twice": TWICE,
    "constant images": constant(90),
    "half of them constant": np.concatenate([constant(45), TWICE[:45]]),
}
SAMPLES = {
    "new": random_images(2, 30),
    "copies": np.stack([TWICE[:30], TWICE[15:45]]),
    "constant": constant(60).reshape(2, 30, 4, 4, 3),
}


@pytest.mark.parametrize("data", SETS)
@pytest.mark.parametrize("samples", SAMPLES)
def test_no_distance_is_divided_by_zero(workdir, data, samples):
    put_samples(workdir, SAMPLES[samples], [5, 6])
    score_and_report(workdir, dataset_of(SETS[data]), count=30)


def test_a_copy_of_a_duplicate_has_the_ratio_zero_and_other_samples_have_none(workdir):
    images = random_images(1, 30)
    images[0, [4, 20]] = TWICE[[7, 44]]
    put_samples(workdir, images, [5])
    (result,) = score_and_report(workdir, dataset_of(TWICE))["scores"]
    pairs = result["closest"]
    assert {pair["sample"] for pair in pairs[:2]} == {4, 20}
    assert [pair["ratio"] for pair in pairs] == [0.0] * 2 + [None] * (CLOSEST - 2)
    distances = [pair["distance"] for pair in pairs]
    assert distances == sorted(distances) and distances[2] > 0
    assert result["memorised"] == 2 / 30


def test_samples_that_copy_every_image_are_at_distance_zero(workdir):
    put_samples(workdir, TWICE[None, :45], [5])
    (result,) = score_and_report(workdir, dataset_of(TWICE))["scores"]
    assert result["memorised"] == 1 and result["value"] < 0.01
    assert [pair["ratio"] for pair in result["closest"]] == [0.0] * CLOSEST


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 20])
def test_few_samples_are_scored(workdir, n):
    put_samples(workdir, random_images(2, n), [5, 6])
    result = score_and_report(workdir, a_dataset(), count=30)["scores"][0]
    assert result["n_fake"] == n and (result["infinity"] is None) == (n < 16)  # of four features
    assert (result["precision"] is None) == (n < 6)


@pytest.mark.parametrize("n", [4, 5, 12])
def test_few_real_images_are_enough(workdir, n):
    result = score_and_report(workdir, a_dataset(n))["scores"][0]
    real = result["real"]
    assert result["n_real"] == n and real["n_real"] + real["n_fake"] == n
    assert (result["closest"] == []) == (n < 6)


def test_too_few_images_are_refused_before_any_work(workdir, monkeypatch):
    monkeypatch.setattr(features, "make", pytest.fail)
    with pytest.raises(ValueError, match="holds 3 images: expected at least 4 to score"):
        score.write_scores(workdir, a_dataset(3), ScoreConfig())
    put_samples(workdir, random_images(2, 1), [5, 6])
    with pytest.raises(ValueError, match="1 image for each seed: expected at least 2"):
        score.write_scores(workdir, a_dataset(), ScoreConfig())


def test_bloodnet_scores_data_with_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put_samples(tmp_path, TWICE[None, :20], [0])
    dataset = dataset_of(TWICE)
    (result,) = score_and_report(tmp_path, dataset, features=("bloodnet",), draws=1)["scores"]
    assert result["closest"][0]["ratio"] == 0 and result["memorised"] == 1
