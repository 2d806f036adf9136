"""What a few values tell: intervals, tests, their power, and components of variance."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.95, 0.8  # of intervals and tests; of comparisons (Cohen, 1988)
MAX_VALUES = 1000  # values that a comparison may need
RESAMPLES = 9999  # of a bootstrap, and of sign flips if all are more
BATCH = 1000  # resamples in memory at a time
SEED = 0  # of resamples: the same values give the same interval
QUARTILE = 0.25  # the share of the values that an interquartile mean cuts off on each side


# ---- one set of values -------------------------------------------------------------------------


def sigma_interval(std: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of σ, from the sample σ of n normal values.

    (n - 1) s² / σ² follows χ² with n - 1 degrees of freedom.
    """
    tails = np.array([1 + LEVEL, 1 - LEVEL]) / 2
    low, high = std * np.sqrt((n - 1) / stats.chi2.ppf(tails, n - 1))
    return float(low), float(high)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean without n // 4 values at each end; of five, the middle three."""
    return stats.trim_mean(values, QUARTILE, axis=axis)


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean
) -> tuple[Any, Any]:
    """Return the 95 % percentile interval of a bootstrap over values, float64 [..., n].

    Efron (1979). Few values make it too narrow. In simulations with normal values, the interval of
    the mean covers the true mean in 75 % of all cases with 3 values, 83 % with 5, 90 % with 10 and
    94 % with 40; that of the interquartile mean in 90 % with 5 and 94 % with 10.

    Args:
        values: at least 2 along the last axis.
        statistic: a function of the values and `axis`.
    """
    options: Any = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile"}
    options["random_state"] = np.random.default_rng(SEED)
    result = stats.bootstrap((values,), statistic, axis=-1, batch=BATCH, **options)
    return result.confidence_interval.low, result.confidence_interval.high


def variance_components(means: np.ndarray, within: float, n: int) -> tuple[float, float]:
    """Return σ between groups and σ within groups of n values each.

    One-way random effects, estimated by the moments of the analysis of variance (Searle, Casella
    and McCulloch, 1992, ch. 3). A negative variance between groups counts as 0.

    Args:
        means: of the groups, float64 [groups], at least 2.
        within: the mean of the groups' sample variances, with n - 1.
        n: values in each group.
    """
    between = max(means.var(ddof=1) - within / n, 0.0)
    return float(np.sqrt(between)), float(np.sqrt(within))


# ---- two sets of values ------------------------------------------------------------------------


def sign_flip_test(differences: np.ndarray) -> float:
    """Return the two-sided p of paired differences, float64 [n], by flips of their signs.

    The paired permutation test of Fisher (1935): if the pairs are exchangeable, each sign is as
    likely as the other. It assumes no normal values. All 2^n flips are counted up to 13 pairs,
    and `RESAMPLES` random ones beyond.
    """
    options: Any = {"permutation_type": "samples", "n_resamples": RESAMPLES}
    options["random_state"] = np.random.default_rng(SEED)
    return float(stats.permutation_test((differences,), np.mean, **options).pvalue)


def least_p(n: int) -> float:
    """Return the least two-sided p that a sign-flip test of n pairs can reach."""
    return 2.0 ** (1 - n)


def probability_of_improvement(worse: np.ndarray, better: np.ndarray) -> float:
    """Return the share of all pairs of values in which `better` is larger; a tie is half.

    U / (n m) of Mann and Whitney (1947); Agarwal et al. (2021, arXiv:2108.13264), section 4.3.
    """
    return float((np.sign(np.subtract.outer(better, worse)).mean() + 1) / 2)


def improvement_interval(probability: float, n: int, m: int) -> tuple[float, float]:
    """Return the 95 % interval of `probability_of_improvement` of n and m values.

    Method 5 of Newcombe (2006, Statistics in Medicine 25:559). Where no values overlap, it keeps
    a width, and a bootstrap has none. In simulations with 5 normal values a side it covers the
    true probability in 95 % of all cases if both σ are equal, and in 92 to 94 % if one is four
    times the other.
    """
    z2 = stats.norm.ppf((1 + LEVEL) / 2) ** 2

    def excess(p: float, estimate: float) -> float:
        others = ((n + m) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        return float((estimate - p) ** 2 - z2 * p * (1 - p) * (1 + others) / (n * m))

    def limit(estimate: float) -> float:
        """Return the lower limit; p = 1 solves the equation too, but is not the limit."""
        if not estimate:
            return 0.0
        bracket = 0, min(estimate, 1 - 1e-9)
        return float(optimize.root_scalar(excess, (estimate,), bracket=bracket).root)

    return limit(probability), 1 - limit(1 - probability)


# ---- power -------------------------------------------------------------------------------------


def t_power(shift: Any, df: Any) -> np.ndarray:
    """Return the power of a two-sided t test; the statistic is noncentral t of `shift` and `df`."""
    limit = stats.t.ppf((1 + LEVEL) / 2, df)
    wrong_side = np.nan_to_num(stats.nct.cdf(-limit, df, shift))  # NaN where it underflows
    return stats.nct.sf(limit, df, shift) + wrong_side


def welch_power(gap: float, a: float, b: float, n: Any) -> np.ndarray:
    """Return the power of Welch's two-sided t test of two means.

    The statistic follows a noncentral t distribution (Welch, 1947; Satterthwaite, 1946).

    Args:
        gap: the difference of the true means.
        a: the true σ of the first values, not 0 if b is.
        b: the true σ of the second values.
        n: values on each side, at least 2: an integer, or integers of any shape.
    """
    df = (np.asarray(n) - 1) * (a**2 + b**2) ** 2 / (a**4 + b**4)
    return t_power(abs(gap) / np.sqrt((a**2 + b**2) / n), df)


def values_needed(gap: float, a: float, b: float) -> int | None:
    """Return the values on each side that tell two means apart with power 0.8.

    None: more than `MAX_VALUES`. The arguments are those of `welch_power`.
    """
    n = np.arange(2, MAX_VALUES + 1)
    enough = n[welch_power(gap, a, b, n) >= POWER]
    return int(enough[0]) if len(enough) else None


def detectable_gap(std: float, n: int) -> float:
    """Return the gap of two means that n values on each side, of equal σ, show with power 0.8."""
    gap = optimize.root_scalar(lambda x: welch_power(x, 1, 1, n) - POWER, bracket=(0, 100)).root
    return std * gap


def detectable_difference(std: float, n: int) -> float:
    """Return the mean of n paired differences that a t test shows with power 0.8.

    `std` is the true σ of the differences.
    """

    def excess(x: float) -> float:
        return float(t_power(x * np.sqrt(n), n - 1)) - POWER

    return std * optimize.root_scalar(excess, bracket=(0, 100)).root


def small_spread_test(mean: float, std: float, n: int, values: np.ndarray) -> float:
    """Return the probability that n values like `values` spread as little as `std`.

    The F test of two variances, each relative to its squared mean; errors of the means are
    neglected.

    Args:
        mean: the mean of n other values.
        std: their population σ.
        n: their number.
        values: float64 [m], not all equal.
    """
    variance = n / (n - 1) * (std / mean) ** 2
    ratio = variance / (values.std(ddof=1) / values.mean()) ** 2
    return float(stats.f.cdf(ratio, n - 1, len(values) - 1))
