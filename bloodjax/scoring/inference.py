"""What a few values tell: intervals of σ, and the power of a comparison of two means."""

from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.95, 0.8  # of intervals and tests; of comparisons (Cohen, 1988)
MOST = 1000  # values that a comparison may need


def sigma_interval(std: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of σ, from the sample σ of n normal values.

    (n - 1) s² / σ² follows χ² with n - 1 degrees of freedom.
    """
    tails = np.array([1 + LEVEL, 1 - LEVEL]) / 2
    low, high = std * np.sqrt((n - 1) / stats.chi2.ppf(tails, n - 1))
    return float(low), float(high)


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
    shift = abs(gap) / np.sqrt((a**2 + b**2) / n)
    limit = stats.t.ppf((1 + LEVEL) / 2, df)
    wrong_side = np.nan_to_num(stats.nct.cdf(-limit, df, shift))  # NaN where it underflows
    return stats.nct.sf(limit, df, shift) + wrong_side


def values_needed(gap: float, a: float, b: float) -> int | None:
    """Return the values on each side that tell two means apart with power 0.8.

    None: more than `MOST`. The arguments are those of `welch_power`.
    """
    n = np.arange(2, MOST + 1)
    enough = n[welch_power(gap, a, b, n) >= POWER]
    return int(enough[0]) if len(enough) else None


def detectable_gap(std: float, n: int) -> float:
    """Return the gap of two means that n values on each side, of equal σ, show with power 0.8."""
    gap = optimize.root_scalar(lambda x: welch_power(x, 1, 1, n) - POWER, bracket=(0, 100)).root
    return std * gap


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
