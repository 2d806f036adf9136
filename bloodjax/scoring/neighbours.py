"""Nearest neighbours between two sets of features, in float64.

Precision and recall, density and coverage, and the nearest training image of each sample, which
shows memorised images. No matrix of all pairs is held: distances come in strips of some rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bloodjax.scoring.distances import blocks, check_features, check_space, multiply

ROWS = 512  # rows of a strip: 80 MB against 20,000 images


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield |x_i - y_j|^2 of all pairs, as (rows of x, float64 [rows, m]).

    The next strip overwrites the memory of the last one. Distances are computed as
    |x|^2 + |y|^2 - 2 x.y relative to the mean of y, so that less cancels. A value that the
    rounding of equal vectors can explain counts as 0: duplicates have exactly that distance.
    x and y are features, float [n, d] and [m, d].
    """
    centre = y.mean(axis=0, dtype=np.float64)
    rounding = 2 * (len(centre) + 3) * np.finfo(np.float64).eps  # a bound: d products in each dot
    strips = np.empty((min(ROWS, len(x)), len(y)))  # a new one each time would double the memory
    for rows in blocks(len(x), ROWS):
        a = x[rows] - centre
        aa = np.einsum("nd,nd->n", a, a)[:, None]
        strip = strips[: len(a)]
        for columns in blocks(len(y), ROWS):  # tiles fit into the processor's cache
            b = y[columns] - centre
            tile = aa + np.einsum("nd,nd->n", b, b) - 2 * multiply(a, b)
            tile[tile < rounding * aa] = 0
            strip[:, columns] = tile
        yield rows, strip


@dataclass(frozen=True)
class Manifold:
    """Images as points, each with the balls that reach to its nearest neighbours.

    Attributes:
        features: any float [n, d].
        squares: float64 [n, k], squared distances to the 1st .. k-th nearest other image of the
            set, ascending. A duplicate counts as another image, at distance 0.
    """

    features: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, k: int = 5) -> "Manifold":
        """Return the manifold of features, float [n > k, d], with balls up to the k-th neighbour.

        Raises:
            ValueError: k < 1, fewer than k + 1 images, or invalid features.
        """
        check_features(features)
        n = len(features)
        if not 1 <= k < n:
            raise ValueError(
                f"no k={k} nearest others among n={n} images: expected 1 <= k < n; "
                "take more images or a smaller k"
            )
        squares = np.empty((n, k))
        for rows, strip in squared_distances(features, features):
            strip[np.arange(len(strip)), np.arange(rows.start, rows.stop)] = np.inf  # not itself
            strip.partition(k - 1, axis=1)
            squares[rows] = np.sort(strip[:, :k], axis=1)
        return cls(features, squares)

    def ball(self, k: int) -> np.ndarray:
        """Return the squared radii of the balls up to the k-th nearest other image, float64 [n]."""
        if not 1 <= k <= self.squares.shape[1]:
            raise ValueError(
                f"k={k} nearest neighbours: expected 1 <= k <= {self.squares.shape[1]}; "
                "make the manifold with a larger k, Manifold.of(features, k)"
            )
        return self.squares[:, k - 1]


class Nearest(NamedTuple):
    """The nearest training image of each of m fakes.

    Attributes:
        rows: int64 [m], its row among the training images.
        distance: float64 [m], to it.
        copied: bool [m], whether no other training image is nearer to it than the fake is.
    """

    rows: np.ndarray
    distance: np.ndarray
    copied: np.ndarray

    @property
    def memorised(self) -> float:
        """The share of copied fakes: 1 - authenticity.

        Alaa et al. (2022, arXiv:2102.08921), by its definition. A network that only copies has 1.
        New images of the training distribution do not have 0 but the probability that two nearest
        neighbours are mutual: 2/3 on a line, 0.62 in a plane, less in many dimensions. So compare
        with real images that were held out.
        """
        return float(self.copied.mean())


class Comparison(NamedTuple):
    """Shares, 0..1, and a density, >= 0, of m fakes among n real images.

    Attributes:
        precision: fakes in some real image's ball (<=): Kynkäänniemi et al. (2019,
            arXiv:1904.06991), eq. 1 and 2.
        recall: real images in some fake's ball (<=): the same.
        density: mean number of real balls that hold a fake (<), over k; about 1 for equal
            distributions, more if fakes crowd together: Naeem et al. (2020,
            arXiv:2002.09797). Their code excludes the boundary.
        coverage: real images whose ball holds a fake (<): the same.
        nearest: the nearest real image of each fake.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    nearest: Nearest


def compare_manifolds(
    real: Manifold, fake: Manifold, k_precision: int = 3, k_density: int = 5
) -> Comparison:
    """Return precision, recall, density, coverage and neighbours, in one pass over the pairs.

    The balls reach to the neighbour `k_precision` in precision and recall, to `k_density` in
    density and coverage.

    Raises:
        ValueError: a manifold has fewer neighbours, or the feature spaces differ in size.
    """
    check_space(real.features.shape[1], fake.features.shape[1])
    real_ball, fake_ball = real.ball(k_precision), fake.ball(k_precision)
    dense_ball = real.ball(k_density)
    n, m = len(real.features), len(fake.features)
    precise, dense = 0, 0
    recalled, covered = np.zeros(n, bool), np.zeros(n, bool)
    parts = []
    for rows, strip in squared_distances(fake.features, real.features):
        precise += (strip <= real_ball).any(axis=1).sum()
        recalled |= (strip <= fake_ball[rows, None]).any(axis=0)
        inside = strip < dense_ball
        dense += inside.sum()
        covered |= inside.any(axis=0)
        parts.append(nearest_of(real, strip))
    return Comparison(
        precision=float(precise / m),
        recall=float(recalled.mean()),
        density=float(dense / (k_density * m)),
        coverage=float(covered.mean()),
        nearest=concatenate(parts),
    )


def nearest(train: Manifold, fake: np.ndarray) -> Nearest:
    """Return the nearest training image of each fake, features float [m, d].

    This serves training images that are not the real images of `compare_manifolds`.
    """
    check_features(train.features, fake)
    strips = squared_distances(fake, train.features)
    return concatenate([nearest_of(train, strip) for _, strip in strips])


def nearest_of(train: Manifold, strip: np.ndarray) -> Nearest:
    """Return the nearest image of each row of squared distances, float64 [rows, n]."""
    rows = strip.argmin(axis=1)
    square = strip[np.arange(len(strip)), rows]
    return Nearest(rows, np.sqrt(square), square <= train.ball(1)[rows])


def concatenate(parts: list[Nearest]) -> Nearest:
    """Return the parts of a set as one."""
    return Nearest(*map(np.concatenate, zip(*parts, strict=True)))
