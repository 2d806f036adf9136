"""What seeds can tell: beside simulations, textbook values, and a study made of known numbers."""

import itertools
import json

import numpy as np
import pytest
from helpers.scoring import put_samples, random_images
from scipy import stats

from bloodjax.scoring import inference, statistics, verdicts
from bloodjax.scoring.seeds import Measurement

BASIS = {"dataset": "bloodmnist", "dataset_digest": "cd", "extractor_sha256": "ef"}
BASIS |= {"n_real": 5000, "n_fake": 5000}
VAE = [27.55, 25.92, 26.84, 26.35, 25.53]
GAN = [27.53, 31.56, 27.13, 28.01, 26.85]
DDPM = [9.99, 9.27, 9.95]


def put(folder, run, values, draws=0.2, n_draws=5, measures=None, seeds=range(99), **changes):
    """Write a run with a score for each value, and further measures, a list for each."""
    (folder / run).mkdir()
    method = {"config": {"method": {"name": run.partition("_")[0]}}}
    (folder / run / "config.json").write_text(json.dumps(method))
    scores = [
        {"seed": seed, "name": "fid", "protocol": "pytorch-fid", "value": value, **BASIS}
        | {"draws": {"n": n_draws, "mean": value, "std": draws}}
        | {key: column[i] for key, column in (measures or {}).items()}
        | changes
        for i, (seed, value) in enumerate(zip(seeds, values, strict=False))
    ]
    (folder / run / "scores.json").write_text(json.dumps({"scores": scores, "summary": []}))


def sample(run, values, measure="value", seeds=range(99)):
    """One measure of one run."""
    seeds = tuple(seeds)[: len(values)]
    values = np.array(values, float)
    return Measurement(run, "vae", "bloodmnist", "FID", measure, seeds, values, None, None, ())


def verdict(first, second, measure="value", **seeds):
    a, b = sample("vae", first, measure), sample("gan", second, measure, **seeds)
    return verdicts.compare(a, b)["verdict"]


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


@pytest.mark.parametrize(
    ("statistic", "n", "claim"),
    [
        (np.mean, 3, 0.75),
        (np.mean, 5, 0.83),
        (np.mean, 10, 0.90),
        (np.mean, 50, 0.95),
        (inference.interquartile_mean, 5, 0.90),
        (inference.interquartile_mean, 10, 0.94),
    ],
)
def test_a_bootstrap_covers_as_often_as_its_docstring_says(statistic, n, claim, monkeypatch):
    """Close to 95 % from fifty values on; five are too few, and the docstring says so."""
    monkeypatch.setattr(inference, "RESAMPLES", 1000)
    values = np.random.default_rng(n).normal(3, 2.0, (1500, n))
    low, high = inference.bootstrap_interval(values, statistic)
    assert np.mean((low < 3) & (3 < high)) == pytest.approx(claim, abs=0.02)


def test_a_bootstrap_gives_the_same_interval_again():
    first, second = (inference.bootstrap_interval(np.array(VAE)) for _ in range(2))
    assert first == second and first[0] < np.mean(VAE) < first[1]


def test_an_interquartile_mean_ignores_both_ends():
    values = np.array([-1000.0, 3.0, 1.0, 1000.0, 2.0])
    assert inference.interquartile_mean(values) == 2
    assert inference.interquartile_mean(np.arange(8.0)) == 3.5
    assert inference.interquartile_mean(np.array([1.0, 2.0, 4.0, 8.0])) == 3


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9])
def test_a_sign_flip_test_counts_all_flips(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    means = np.abs((signs * differences).mean(axis=1))
    share = np.mean(means >= abs(differences.mean()) * (1 - 1e-12))
    assert inference.sign_flip_test(differences) == pytest.approx(share)
    assert inference.sign_flip_test(1 + np.arange(n)) == inference.least_p(n) == 2 / 2**n


def test_a_sign_flip_test_rejects_as_often_as_its_level_without_a_difference():
    """Uniform differences are symmetric and not normal: 2 of 64 flips are as extreme."""
    values = np.random.default_rng(3).uniform(-1, 1, (600, 6))
    rejected = [inference.sign_flip_test(x) < 0.05 for x in values]
    assert np.mean(rejected) == pytest.approx(1 / 32, abs=0.02)


@pytest.mark.parametrize(("gap", "a", "b"), [(0.0, 1, 1), (1.0, 1, 1), (2.0, 1, 3)])
def test_the_probability_of_improvement_is_that_of_normal_values(gap, a, b):
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, a, (4000, 5)), rng.normal(gap, b, (4000, 5))
    shares = np.array(list(map(inference.probability_of_improvement, x, y)))
    truth = stats.norm.cdf(gap / np.hypot(a, b))
    assert shares.mean() == pytest.approx(truth, abs=0.01)

    limits = {p: inference.improvement_interval(p, 5, 5) for p in np.unique(shares)}
    covered = [limits[p][0] <= truth <= limits[p][1] for p in shares]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02 if a == b else 0.03)


def test_the_probability_of_improvement_is_mann_and_whitneys():
    for x, y in ((VAE, GAN), (DDPM, VAE), ([1, 2, 2, 3], [2, 2, 4])):
        u = stats.mannwhitneyu(y, x, method="asymptotic").statistic
        assert inference.probability_of_improvement(x, y) == pytest.approx(u / len(x) / len(y))
    low, high = inference.improvement_interval(1.0, 5, 5)
    assert 0.6 < low < 0.7 and high == 1  # five seeds a side do not make it certain
    assert inference.improvement_interval(0.0, 5, 5) == pytest.approx((0, 1 - low))


@pytest.mark.parametrize("n", [3, 5, 12])
def test_the_interval_of_improvement_ends_where_the_estimate_is_just_plausible(n):
    """There the estimate is 1.96 standard errors away, by Hanley and McNeil (1982), eq. 2."""
    for estimate in (0.5, 0.68, 1.0):
        p, _ = inference.improvement_interval(estimate, n, n)
        q1, q2 = p / (2 - p), 2 * p**2 / (1 + p)
        variance = (p * (1 - p) + (n - 1) * (q1 + q2 - 2 * p**2)) / n**2
        assert (estimate - p) / np.sqrt(variance) == pytest.approx(1.959964)


def test_the_detectable_difference_is_shown_in_four_of_five_simulations():
    gap = inference.detectable_difference(2.0, 5)
    differences = np.random.default_rng(5).normal(gap, 2.0, (20_000, 5))
    rejected = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)


def test_components_are_those_of_the_simulation():
    rng = np.random.default_rng(6)
    values = rng.normal(20, 3.0, (3000, 5, 1)) + rng.normal(0, 1.5, (3000, 5, 4))
    means, within = values.mean(axis=2), values.var(axis=2, ddof=1).mean(axis=1)
    parts = np.array(
        [inference.variance_components(*x, 4) for x in zip(means, within, strict=True)]
    )
    assert np.mean(parts**2, axis=0) == pytest.approx([9, 2.25], rel=0.03)

    assert inference.variance_components(np.array([5.0, 5.0]), 1.0, 4) == (0, 1)


def test_shared_draws_make_the_spread_over_models_smaller_by_no_more_than_stated():
    """A draw moves all models by the same and each by something else; the former cancels."""
    rng = np.random.default_rng(7)
    models, draws = rng.normal(20, 3.0, (3000, 5, 1)), rng.normal(0, 1.5, (3000, 1, 4))
    values = models + draws + rng.normal(0, 1.0, (3000, 5, 4))
    means, within = values.mean(axis=2), values.var(axis=2, ddof=1).mean(axis=1)
    parts = [inference.variance_components(*x, 4) for x in zip(means, within, strict=True)]
    between, reals = np.mean(np.square(parts), axis=0)
    assert reals == pytest.approx(1.5**2 + 1, rel=0.03)
    assert 9 - reals / 4 < between < 9


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
    assert pair["welch_p"] == pytest.approx(stats.ttest_ind(VAE, GAN, equal_var=False).pvalue)
    assert pair["needed"] > 5  # these five seeds do not tell the two apart


def test_interquartile_means_begin_with_five_seeds(tmp_path, run):
    put(tmp_path, "vae", VAE)
    put(tmp_path, "gan", GAN[:4])
    out = json.loads(run(tmp_path, "--json").out)
    five, four = (*rows(out, "spreads", run="vae"), *rows(out, "spreads", run="gan"))
    assert five["iqm"] == pytest.approx(np.mean([25.92, 26.35, 26.84]))
    assert min(VAE) <= five["iqm_low"] < five["iqm"] < five["iqm_high"] <= max(VAE)
    assert [four[key] for key in ("iqm", "iqm_low", "iqm_high")] == [None] * 3


def test_a_source_that_the_scores_do_not_tell_stays_empty(tmp_path, run):
    put(tmp_path, "vae", VAE, draws=0.32)
    put(tmp_path, "gan", GAN, draws=0.0, n_draws=1)
    many, single = json.loads(run(tmp_path, "--json").out)["components"][::-1]
    assert many["reals"] == pytest.approx(0.32 * np.sqrt(5 / 4))
    assert many["models"] == pytest.approx(np.sqrt(np.var(VAE, ddof=1) - 0.32**2 / 4))
    assert many["training"] is many["sampling"] is single["models"] is single["reals"] is None
    assert "One set of samples" in many["note"] and "One draw" in single["note"]
    assert many["note"] in run(tmp_path).out


def test_sets_of_samples_tell_training_from_sampling(tmp_path, run):
    """A training with σ 3 whose sets of samples spread by σ 1.5, as population σ over 4 sets."""
    rng = np.random.default_rng(8)
    sets = rng.normal(50, 3.0, (400, 1)) + rng.normal(0, 1.5, (400, 4))
    put(tmp_path, "vae", sets[:, 0], seeds=range(400))
    file = tmp_path / "vae" / "scores.json"
    scores = json.loads(file.read_text())
    for score, values in zip(scores["scores"], sets, strict=True):
        score["sampling"] = {"n": 4, "mean": values.mean(), "std": values.std()}
    file.write_text(json.dumps(scores))
    (row,) = json.loads(run(tmp_path, "--json").out)["components"]
    assert row["training"] == pytest.approx(3, rel=0.1)
    assert row["sampling"] == pytest.approx(1.5, rel=0.05)
    assert row["note"] == ""

    del scores["scores"][0]["sampling"]  # one seed without is none
    file.write_text(json.dumps(scores))
    (row,) = json.loads(run(tmp_path, "--json").out)["components"]
    assert row["training"] is row["sampling"] is None


def test_runs_are_paired_by_the_seeds_that_both_have(tmp_path, run):
    put(tmp_path, "vae", VAE, seeds=(0, 1, 2, 3, 4))
    put(tmp_path, "gan", GAN, seeds=(6, 4, 3, 1, 0))
    (pair,) = rows(json.loads(run(tmp_path, "--json").out), "comparisons", measure="value")
    by_seed = np.array(VAE)[[4, 3, 1, 0]] - np.array(GAN)[1:]
    assert (pair["first"], pair["pairs"]) == ("gan", 4)
    assert pair["difference"] == pytest.approx(by_seed.mean())
    assert by_seed.min() <= pair["low"] < pair["difference"] < pair["high"] <= by_seed.max()
    assert (pair["flip_p"], pair["least_p"]) == (0.25, 0.125)
    std = by_seed.std(ddof=1)
    assert pair["detectable"] == pytest.approx(inference.detectable_difference(std, 4))
    assert pair["first_better"] == pytest.approx(np.mean(np.less.outer(GAN, VAE)))
    assert pair["first_low"] < pair["first_better"] < pair["first_high"]


@pytest.mark.parametrize(("n", "p"), [(2, "0.5"), (3, "0.25"), (4, "0.125"), (5, "0.0625")])
def test_few_seeds_never_pass_a_sign_flip_test(n, p):
    text = verdict(np.arange(n) / 10, 1000 + np.arange(n) ** 2)
    assert text.startswith(f"vae is better than gan on average and for {n} of {n} seeds. {n} seeds")
    assert f"{n} seeds cannot reach p < 0.05 by a sign-flip test: the least p is {p}." in text
    assert "A t test, which assumes normal values, tells them apart: p = " in text


def test_verdicts_claim_no_more_than_the_numbers():
    six = [1.0, 1.5, 1.2, 1.4, 1.1, 1.3]
    text = verdict(np.add(six, 10), six)
    assert text == (
        "gan is better than vae on average and for 6 of 6 seeds. "
        "A sign-flip test tells them apart: p = 0.031."
    )
    text = verdict(six, np.add(six, [1, -1, 1, 1, -1, 1]))
    assert "for 4 of 6 seeds. A sign-flip test does not tell them apart: p = " in text
    assert "a t test misses a difference below 1.48 in more than 20 % of all cases" in text
    assert verdict(VAE, VAE).startswith("vae and gan have equal means over 5 seeds. 5 seeds cannot")
    assert "a t test, which assumes normal values, does not tell" in verdict(VAE, GAN).lower()


def test_the_direction_of_a_measure_decides_which_run_is_better():
    low, high = [0.1, 0.2, 0.15], [0.8, 0.7, 0.9]
    assert verdict(low, high, "precision").startswith("gan is better than vae")
    assert verdict(low, high, "memorised").startswith("vae is lower than gan")
    row = verdicts.compare(sample("vae", low, "precision"), sample("gan", high, "precision"))
    assert (row["first_better"], row["first_low"]) == (0, 0) and row["first_high"] < 0.6
    row = verdicts.compare(sample("vae", low, "memorised"), sample("gan", high, "memorised"))
    assert row["first_better"] is row["first_high"] is None


def test_runs_without_common_seeds_have_no_comparison_by_seed():
    a, b = sample("vae", VAE), sample("gan", GAN, seeds=range(4, 9))
    row = verdicts.compare(a, b)
    assert (row["pairs"], row["difference"], row["flip_p"], row["least_p"]) == (1, *[None] * 3)
    assert row["verdict"].startswith("The runs share 1 seed: a t test, which assumes normal values")


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
    orders = rows(json.loads(run(tmp_path, "--json").out), "orders", first="FID value")
    taus = {row["second"].removeprefix("FID "): row["tau"] for row in orders}
    assert taus.pop("density") is None  # all runs are equal
    assert taus == pytest.approx({"precision": 1, "recall": -1, "coverage": 4 / 6})
    assert {row["runs"] for row in orders} == {4}


def test_runs_are_ranked_by_each_distance_and_kid(tmp_path, run):
    for name, value, kid in (("vae_a", 3.0, 0.2), ("vae_b", 1.0, 0.2), ("vae_c", 2.0, 0.1)):
        put(tmp_path, name, [value, value + 0.5], measures={"kid": [kid, kid], "recall": [1, 0]})
    assert json.loads(run(tmp_path, "--json").out)["ranks"] == [
        {"run": "vae_a", "FID value": 3, "FID kid": 2},
        {"run": "vae_b", "FID value": 1, "FID kid": 2},
        {"run": "vae_c", "FID value": 2, "FID kid": 1},
    ]


def test_tables_show_every_run_and_verdict(tmp_path, run):
    for name, values in {"vae": VAE, "gan": GAN, "ddpm": DDPM}.items():
        put(tmp_path, name, values, measures={"kid": values, "recall": [0.5] * 5})
    text = run(tmp_path).out
    parts = "FID: spread over seeds,26.44,interquartile,σ by its source,Runs that differ,by seed"
    verdicts = "FID: ddpm is better than gan,Ranks,Orders,The study's σ"
    for part in f"{parts},{verdicts}".split(","):
        assert part in text, part
    assert "FID recall" not in text  # ranks are those of distances and KID


def test_other_data_are_not_set_beside_the_study(tmp_path, run):
    put(tmp_path, "vae", VAE, dataset="pathmnist")
    assert json.loads(run(tmp_path, "--json").out)["study"] == []


def test_a_table_in_a_file_is_whole(tmp_path, run):
    name = "t1000_clip_ema_posterior_of_a_long_study"
    put(tmp_path, f"vae_{name}", VAE, measures={"kid": [x * 1e-7 for x in VAE]})
    put(tmp_path, f"gan_{name}", GAN, measures={"kid": [x * 1e-7 for x in GAN]})
    text = run(tmp_path).out
    assert "…" not in text and text.count(f"gan_{name} ") > 3


def test_scores_of_earlier_samples_are_left_out(tmp_path, run):
    put(tmp_path, "vae", VAE)
    put(tmp_path, "gan", GAN)
    put_samples(tmp_path / "gan", random_images(5, 4), range(5))
    out, err = run(tmp_path, "--json")
    assert {row["run"] for row in json.loads(out)["spreads"]} == {"vae"}
    assert f"{tmp_path / 'gan'} is left out: no scores yet" in err


# ---- what cannot be compared -------------------------------------------------------------------


def test_runs_that_cannot_be_used_take_one_line_each(tmp_path, run):
    put(tmp_path, "vae", VAE)
    put(tmp_path, "gan", GAN)
    put(tmp_path, "gan_few", GAN, n_fake=250)
    put(tmp_path, "vae_few", VAE, n_fake=250)
    put(tmp_path, "edm", [4.0])
    put(tmp_path, "old", VAE)
    file = tmp_path / "old" / "scores.json"
    file.write_text(file.read_text().replace("extractor_sha256", "sha256"))
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "config.json").write_text("{}")
    out, err = run(tmp_path, "--json")
    result = json.loads(out)
    assert {row["run"] for row in result["spreads"]} == {"vae", "gan", "vae_few", "gan_few"}
    compared = [(row["first"], row["second"]) for row in result["comparisons"]]
    assert compared == [("gan", "vae"), ("gan_few", "vae_few")]
    assert err.splitlines() == [
        f"{tmp_path / 'edm'} is left out: 1 seed, expected at least 2",
        f"{tmp_path / 'later'} is left out: no scores yet, run --mode=score",
        f"{tmp_path / 'old'} is left out: an older version scored it, run --mode=score",
        "gan_few is not ranked with the other runs by FID: n_fake is 250, elsewhere 5000",
        "vae_few is not ranked with the other runs by FID: n_fake is 250, elsewhere 5000",
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
    assert (pair["gap"], pair["welch_p"], pair["needed"]) == (-2, None, None)
    assert "no test, since neither run varies" in pair["verdict"].lower() and not result["study"]
