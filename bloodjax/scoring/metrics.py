"""The metrics beside the Fréchet distance. All columns, averages and notes derive from METRICS."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bloodjax.scoring.comparison import SEED, Pair
from bloodjax.scoring.distances import infinity


@dataclass(frozen=True)
class Metric:
    """A number that describes images beside real images.

    Attributes:
        key: its name in scores.json.
        heading: the column in the report; "" leaves the metric out.
        compute: returns the value; None if there are too few images.
        terminal: the column on a terminal of 80 characters; "" leaves the metric out.
        better: the direction of improvement; "" if neither is better.
        scale: the factor that tables multiply by.
        digits: the format of the scaled value; "" formats it as a Fréchet distance.
        note: a sentence for the report.
        averaged: whether summaries hold mean and standard deviation over seeds.
        between_reals: whether it is also computed between two sets of real images.
    """

    key: str
    heading: str
    compute: Callable[[Pair], float | None]
    terminal: str = ""
    better: Literal["lower", "higher", ""] = ""
    scale: float = 1
    digits: str = ".3f"
    note: str = ""
    averaged: bool = True
    between_reals: bool = True

    def measure(self, pair: Pair) -> float | None:
        """Return the value as JSON can hold it; None where it is undefined or not finite."""
        value = self.compute(pair)
        return value if value is not None and math.isfinite(value) else None


def extrapolate(pair: Pair) -> float | None:
    """Return the Fréchet distance of infinitely many images; None below 4 images a feature.

    Below two images a feature in each subset, the distance is no straight line in 1 / N.
    """
    if len(pair.features) < 4 * pair.features.shape[1]:
        return None
    return infinity(pair.real.draws[0], pair.features, pair.frechet, seed=SEED)


def among_neighbours(name: str) -> Callable[[Pair], float | None]:
    """Return the function from a pair to a field of its `neighbours`."""
    return lambda pair: getattr(pair.neighbours, name, None)


METRICS = (
    Metric(
        "infinity",
        "n → ∞",
        extrapolate,
        better="lower",
        digits="",
        note="n → ∞ is the Fréchet distance extrapolated to infinitely many samples; it takes four "
        "samples a feature.",
        between_reals=False,
    ),
    Metric(
        "kid",
        "KID ×10³",
        lambda pair: pair.kid[0],
        terminal="KID ×10³",
        better="lower",
        scale=1000,
        digits=".3g",
    ),
    Metric("kid_std", "", lambda pair: pair.kid[1], averaged=False),
    Metric("precision", "precision", among_neighbours("precision"), "prec.", "higher"),
    Metric("recall", "recall", among_neighbours("recall"), "recall", "higher"),
    Metric("density", "density", among_neighbours("density"), better="higher"),
    Metric("coverage", "coverage", among_neighbours("coverage"), better="higher"),
    Metric(
        "memorised",
        "memorised",
        lambda pair: pair.nearest and pair.nearest.memorised,
        note="Memorised is the share of samples that are nearer to one of the first "
        "2 × score.count training images than that image's nearest neighbour is.",
    ),
)
