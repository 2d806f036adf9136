"""The metrics beside the Fréchet distance. All columns, averages and notes derive from METRICS."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bloodjax.scoring.comparison import SEED, Pair
from bloodjax.scoring.distances import infinity


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that describes images beside real images.

    Attributes:
        key: its name in scores.json.
        compute: returns the value; None if there are too few images.
        heading: the column in the report; "" leaves the metric out.
        terminal: the column on a terminal of 80 characters; "" leaves the metric out.
        better: the direction of improvement; "" if neither is better.
        note: a sentence for the report.
        scale: the factor that tables multiply by.
        digits: the format of the scaled value; "" formats it as a Fréchet distance.
        averaged: whether summaries hold mean and standard deviation over seeds.
        between_reals: whether it is also computed between two sets of real images.
    """

    key: str
    compute: Callable[[Pair], float | None]
    heading: str = ""
    terminal: str = ""
    better: Literal["lower", "higher", ""] = ""
    note: str = ""
    scale: float = 1
    digits: str = ".3f"
    averaged: bool = True
    between_reals: bool = True

    def measure(self, pair: Pair) -> float | None:
        """Return the value as JSON can hold it; None where it is undefined or not finite."""
        value = self.compute(pair)
        return value if value is not None and math.isfinite(value) else None


def extrapolate(pair: Pair) -> float | None:
    """Return the Fréchet distance of infinitely many images; None below 4 images."""
    if len(pair.features) < 4:
        return None
    return infinity(pair.real.draws[0], pair.features, pair.frechet, seed=SEED)


METRICS = (
    Metric(
        key="infinity",
        compute=extrapolate,
        heading="n → ∞",
        better="lower",
        note="n → ∞ is the Fréchet distance extrapolated to infinitely many samples.",
        digits="",
        between_reals=False,
    ),
    Metric(
        key="kid",
        compute=lambda pair: pair.kid[0],
        heading="KID ×10³",
        terminal="KID ×10³",
        better="lower",
        scale=1000,
        digits=".3g",
    ),
    Metric(key="kid_std", compute=lambda pair: pair.kid[1], averaged=False),
    Metric(
        key="precision",
        compute=lambda pair: pair.neighbours and pair.neighbours.precision,
        heading="precision",
        terminal="prec.",
        better="higher",
    ),
    Metric(
        key="recall",
        compute=lambda pair: pair.neighbours and pair.neighbours.recall,
        heading="recall",
        terminal="recall",
        better="higher",
    ),
    Metric(
        key="density",
        compute=lambda pair: pair.neighbours and pair.neighbours.density,
        heading="density",
        better="higher",
    ),
    Metric(
        key="coverage",
        compute=lambda pair: pair.neighbours and pair.neighbours.coverage,
        heading="coverage",
        better="higher",
    ),
    Metric(
        key="memorised",
        compute=lambda pair: pair.nearest and pair.nearest.memorised,
        heading="memorised",
        note="Memorised is the share of samples that are nearer to a training image than every "
        "other training image is.",
    ),
)
