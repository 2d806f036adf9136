"""What seeds can tell: beside simulations, textbook values, and a study made of known numbers."""

import json

import numpy as np
import pytest
from scipy import stats

from bloodjax.scoring import inference, statistics

BASIS = {"dataset_digest": "cd", "extractor_sha256": "ef", "n_real": 5000, "n_fake": 5000}
VAE = [27.55, 25.92, 26.84, 26.35, 25.53]
GAN = [27.53, 31.56, 27.13, 28.01, 26.85]
DDPM = [9.99, 9.27, 9.95]


def put(folder, run, values, draws=0.2, measures=None, **changes):
    """Write a run with a score for each value, and further measures, a list for each."""
    (folder / run).mkdir()
    method = {"config": {"method": {"name": run.partition("_")[0]}}}
    (folder / run / "config.json").write_text(json.dumps(method))
    scores = [
        {"seed": seed, "name": "fid", "protocol": "pytorch-fid", "value": value, **BASIS, **changes}
        | {"draws": {"n": 5, "mean": value, "std": draws}}
        | {key: column[seed] for key, column in (measures or {}).items()}
        for seed, value in enumerate(values)
    ]
    (folder / run / "scores.json").write_text(json.dumps({"scores": scores, "summary": []}))


def rows(result, part, **wanted):
    return [row for row in result[part] if wanted.items() <= row.items()]


@pytest.fixture
def run(capsys):
    """The command; what it printed, and the lines on the console."""

    def command(*args):
        statistics.main([*map(str, args)])
        return capsys.readouterr()

    return command


# ---- formulas ----------------------------------------------------------------------------------


def test_the_interval_of_sigma_is_that_of_tables():
    low, high = inference.sigma_interval(1.0, 5)  # the usual factors for five values
    assert (round(low, 3), round(high, 3)) == (0.599, 2.874)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_the_interval_covers_sigma_as_often_as_it_claims(n):
    std = np.random.default_rng(n).normal(7, 2.0, (20_000, n)).std(axis=1, ddof=1)
    low, high = np.multiply.outer(inference.sigma_interval(1.0, n), std)
    assert np.mean((low < 2) & (2 < high)) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(("effect", "n"), [(0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_values_needed_are_cohens(effect, n):
    assert inference.values_needed(effect, 1, 1) == n  # Cohen (1988), table 2.4.1
    assert inference.values_needed(-3 * effect, 3, 3) == n
    assert inference.detectable_gap(2.0, n) <= 2 * effect < inference.detectable_gap(2.0, n - 1)


@pytest.mark.parametrize(("gap", "a", "b", "n"), [(2, 1, 1, 5), (4, 3, 1, 8), (0.0, 1, 1, 6)])
def test_the_power_is_that_of_simulated_tests(gap, a, b, n):
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, a, (10_000, n)), rng.normal(gap, b, (10_000, n))
    rejected = stats.ttest_ind(x, y, axis=1, equal_var=False).pvalue < 0.05
    assert inference.welch_power(gap, a, b, n) == pytest.approx(rejected.mean(), abs=0.02)


def test_the_power_grows_to_one_without_a_gap_in_between():
    power = inference.welch_power(10.0, 1.0, 1.0, np.arange(2, 1001))
    assert np.all(np.diff(power) >= -1e-9) and power[-1] == pytest.approx(1)
    assert inference.values_needed(1e-6, 1.0, 1.0) is None


def test_a_spread_like_the_published_one_has_any_probability():
    """Under its assumption the probability is uniform."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(100, 2, (2000, 5)), rng.normal(300, 6, (2000, 4))
    p = [inference.small_spread_test(a.mean(), a.std(), 5, b) for a, b in zip(x, y, strict=True)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


# ---- a study -----------------------------------------------------------------------------------


def test_spreads_are_those_of_scipy(tmp_path, run):
    put(tmp_path, "vae", VAE, draws=0.32)
    put(tmp_path, "gan", GAN)
    result = json.loads(run(tmp_path, "--json").out)
    (row,) = rows(result, "spreads", run="vae", measure="value")
    assert (row["space"], row["seeds"], row["mean"]) == ("FID", 5, pytest.approx(26.438))
    assert row["std"] == pytest.approx(stats.tstd(VAE))
    assert row["draws"] == pytest.approx(0.32 * np.sqrt(5 / 4))
    bounds = [np.sqrt(4 * np.var(VAE, ddof=1) / stats.chi2.ppf(q, 4)) for q in (0.975, 0.025)]
    assert [row["low"], row["high"]] == pytest.approx(bounds)

    (pair,) = rows(result, "comparisons", measure="value")
    assert (pair["first"], pair["second"]) == ("gan", "vae")
    assert pair["gap"] == pytest.approx(np.mean(VAE) - np.mean(GAN))
    assert pair["p"] == pytest.approx(stats.ttest_ind(VAE, GAN, equal_var=False).pvalue)
    assert pair["needed"] > 5  # these five seeds do not tell the two apart


def test_the_studys_sigma_is_tested_as_a_share_of_the_mean(tmp_path, run):
    put(tmp_path, "vae", VAE, draws=0.32)
    put(tmp_path, "edm", [4.0, 5.0])  # the study has no such method
    (row,) = json.loads(run(tmp_path, "--json").out)["study"]
    assert row["run"] == "vae"
    assert row["study"] == pytest.approx(0.23 * np.sqrt(5 / 4) / 201.73)
    assert row["std"] == pytest.approx(stats.variation(VAE, ddof=1))
    assert row["p"] == pytest.approx(stats.f.cdf((row["study"] / row["std"]) ** 2, 4, 4))
    assert row["p"] < 1e-4 and row["draws"] == pytest.approx(0.32 * np.sqrt(5 / 4) / 26.438)


def test_orders_are_compared_with_the_better_run_first(tmp_path, run):
    """Distance 1 < 2 < 3 < 4; precision agrees, recall reverses, coverage swaps one pair of six."""
    columns = {"precision": [4, 3, 2, 1], "recall": [1, 2, 3, 4], "coverage": [4, 2, 3, 1]}
    for i in range(4):
        measures = {key: [x[i] / 4, x[i] / 4] for key, x in columns.items()} | {"density": [1, 1]}
        put(tmp_path, f"vae_{i}", [i + 1.0, i + 1.5], measures=measures)
    orders = rows(json.loads(run(tmp_path, "--json").out), "rankings", first="FID value")
    taus = {row["second"].removeprefix("FID "): row["tau"] for row in orders}
    assert taus.pop("density") is None  # all runs are equal
    assert taus == pytest.approx({"precision": 1, "recall": -1, "coverage": 4 / 6})
    assert {row["runs"] for row in orders} == {4}


def test_tables_show_every_run_and_verdict(tmp_path, run):
    for name, values in {"vae": VAE, "gan": GAN, "ddpm": DDPM}.items():
        put(tmp_path, name, values, measures={"precision": [0.5] * 5})
    text = run(tmp_path).out
    for part in ("FID: spread over seeds", "26.44", "Runs that differ", "Orders", "The study's σ"):
        assert part in text, part


# ---- what cannot be compared -------------------------------------------------------------------


def test_runs_that_cannot_be_used_take_one_line_each(tmp_path, run):
    put(tmp_path, "vae", VAE)
    put(tmp_path, "gan", GAN)
    put(tmp_path, "gan_few", GAN, n_fake=250)
    put(tmp_path, "edm", [4.0])
    put(tmp_path, "old", VAE)
    file = tmp_path / "old" / "scores.json"
    file.write_text(file.read_text().replace("extractor_sha256", "sha256"))
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "config.json").write_text("{}")
    out, err = run(tmp_path, "--json")
    result = json.loads(out)
    assert {row["run"] for row in result["spreads"]} == {"vae", "gan", "gan_few"}
    assert [(row["first"], row["second"]) for row in result["comparisons"]] == [("gan", "vae")]
    assert err.splitlines() == [
        f"{tmp_path / 'edm'} is left out: 1 seed, expected at least 2",
        f"{tmp_path / 'later'} is left out: no scores yet, run --mode=score",
        f"{tmp_path / 'old'} is left out: an older version scored it, run --mode=score",
        "gan_few is not compared with other runs by FID: n_fake is 250, elsewhere 5000",
    ]


def test_a_folder_without_scores_of_seeds_is_refused(tmp_path, run, capsys):
    put(tmp_path, "vae", [1.0])
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as stop:
            run(folder)
        assert stop.value.code == 1
        expected = f"error: {folder}: no run with scores of 2 seeds or more; expected the folder"
        assert capsys.readouterr().err.splitlines()[-1].startswith(expected)


def test_seeds_scored_in_different_ways_are_refused(tmp_path, run, capsys):
    put(tmp_path, "vae", VAE)
    file = tmp_path / "vae" / "scores.json"
    file.write_text(file.read_text().replace('"n_real": 5000', '"n_real": 100', 1))
    with pytest.raises(SystemExit):
        run(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "seeds differ in dataset_digest or extractor_sha256" in line and "--mode=score" in line


def test_equal_values_of_all_seeds_have_no_test(tmp_path, run):
    put(tmp_path, "vae", [3.0, 3.0])
    put(tmp_path, "gan", [5.0, 5.0])
    result = json.loads(run(tmp_path, "--json").out)
    (pair,) = result["comparisons"]
    assert (pair["gap"], pair["p"], pair["needed"]) == (-2, None, None) and not result["study"]
