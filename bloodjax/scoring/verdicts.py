"""Two runs beside one another: differences, tests, and a verdict that claims no more."""

import operator
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from bloodjax.scoring import inference
from bloodjax.scoring.inference import LEVEL, POWER
from bloodjax.scoring.seeds import BETTER, Measurement

Row = dict[str, Any]
LIMIT = round(1 - LEVEL, 10)  # of p
CAUTION = (
    "Each p is that of one comparison: among comparisons without a difference, up to 5 % reach "
    "p < 0.05 by chance. Bootstrap intervals of few seeds are too narrow: nominally 95 %, they "
    "cover the true mean in 75 % of all cases with 3 seeds, and in 83 % with 5."
)
BLANK = dict.fromkeys(("difference", "low", "high", "flip_p", "detectable"))


def compare_runs(samples: Sequence[Measurement]) -> list[Row]:
    """Return `compare` of each pair of runs with the same basis, by each measure."""
    alike = operator.attrgetter("space", "measure", "basis")
    return [compare(a, b) for a, b in combinations(samples, 2) if alike(a) == alike(b)]


def compare(a: Measurement, b: Measurement) -> Row:
    """Return how two runs differ by one measure, second minus first.

    Returns:
        gap: of the means over all seeds of each.
        welch_p: of Welch's t test; None if neither run varies.
        needed: seeds on each side that show the gap with power 0.8; None: over 1,000.
        first_better, first_low, first_high: the probability that a training of the first is better
            than one of the second, with its 95 % interval; None if no direction is better.
        pairs, difference, ...: see `compare_pairs`.
        verdict: in words.
    """
    row: Row = {"first": a.run, "second": b.run, "space": a.space, "measure": a.measure}
    row |= {"gap": b.mean - a.mean, "welch_p": None, "needed": None}
    if a.std or b.std:
        moments = a.mean, a.std, len(a.values), b.mean, b.std, len(b.values)
        welch: Any = stats.ttest_ind_from_stats(*moments, equal_var=False)
        row["welch_p"] = float(welch.pvalue)
        row["needed"] = inference.values_needed(row["gap"], a.std, b.std)

    row |= dict.fromkeys(("first_better", "first_low", "first_high"))
    if better := BETTER[a.measure]:
        sides = (b.values, a.values) if better == "higher" else (a.values, b.values)
        row["first_better"] = p = inference.probability_of_improvement(*sides)
        interval = inference.improvement_interval(p, len(a.values), len(b.values))
        row["first_low"], row["first_high"] = interval

    shared = [seed for seed in a.seeds if seed in b.seeds]
    first, second = (x.values[[x.seeds.index(seed) for seed in shared]] for x in (a, b))
    row |= compare_pairs(second - first)
    return row | {"verdict": give_verdict(row, second - first)}


def compare_pairs(differences: np.ndarray) -> Row:
    """Return what differences by seed, float64 [n], tell; None each for fewer than two.

    Returns:
        pairs: n, the number of seeds that both runs have.
        difference, low, high: the mean with its bootstrap interval.
        flip_p, least_p: of the sign-flip test, and the least p that n pairs allow.
        detectable: the smallest mean that n pairs show by a t test with power 0.8.
    """
    n = len(differences)
    row: Row = {"pairs": n, "least_p": inference.least_p(n) if n > 1 else None} | BLANK
    if n < 2:
        return row
    row["difference"] = float(differences.mean())
    row["low"], row["high"] = map(float, inference.bootstrap_interval(differences))
    row["flip_p"] = inference.sign_flip_test(differences)
    std = float(differences.std(ddof=1))
    return row | {"detectable": inference.detectable_difference(std, n)}


def give_verdict(row: Row, differences: np.ndarray) -> str:
    """Return the sentences that a comparison, a row of `compare`, supports."""
    n = row["pairs"]
    if n < 2:
        return f"The runs share {n} seed{'s' * (n != 1)}: {judge_welch(row)}."

    # What the seeds show
    better = BETTER[row["measure"]]
    sign = np.sign(row["difference"])
    first_leads = sign < 0 if better == "higher" else sign > 0
    leader, other = ("first", "second") if first_leads else ("second", "first")
    word = "better" if better else "lower"
    count = np.count_nonzero(np.sign(differences) == sign)
    observed = f"{row[leader]} is {word} than {row[other]} on average and for {count} of {n} seeds."
    if not sign:
        observed = f"{row['first']} and {row['second']} have equal means over {n} seeds."

    # What a test makes of it
    if row["least_p"] >= LIMIT:
        test = f"{n} seeds cannot reach p < {LIMIT} by a sign-flip test: the least p is "
        test += f"{row['least_p']:.4g}. {judge_welch(row).capitalize()}."
    elif row["flip_p"] < LIMIT:
        test = f"A sign-flip test tells them apart: p = {row['flip_p']:.2g}."
    else:
        test = f"A sign-flip test does not tell them apart: p = {row['flip_p']:.2g}. With {n} "
        test += f"seeds of this spread, a t test misses a difference below {row['detectable']:.3g} "
        test += f"in more than {100 * (1 - POWER):.0f} % of all cases."
    return f"{observed} {test}"


def judge_welch(row: Row) -> str:
    """Return what Welch's t test makes of a comparison, without a full stop."""
    p = row["welch_p"]
    if p is None:
        return "no test, since neither run varies"
    verb = "tells" if p < LIMIT else "does not tell"
    return f"a t test, which assumes normal values, {verb} them apart: p = {p:.2g}"
