"""Images beside real images in one feature space, with the results that several metrics share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bloodjax.scoring.distances import Moments, frechet, kid
from bloodjax.scoring.neighbours import Comparison, Manifold, Nearest, compare_manifolds, nearest

SEED = 0  # of every random subset drawn here: the same features give the same numbers
NEIGHBOURS = 5  # the largest number of neighbours that a metric uses


@dataclass(frozen=True)
class RealSet:
    """Real images in one feature space, with the results that do not depend on the samples.

    Attributes:
        features: the real images that samples are compared with, float32 [n, d].
        train: the images among which copies are searched, float32 [N >= n, d]; the first n are
            `features`.
        draws: moments of the n images, then of further random draws of n images.
    """

    features: np.ndarray
    train: np.ndarray
    draws: list[Moments]

    @classmethod
    def draw(cls, train: np.ndarray, n: int, draws: int = 1) -> "RealSet":
        """Return the first n images of `train`, with the moments of `draws - 1` random sets.

        All images make one set alone, since every further draw would be the same.
        """
        sets = [Moments.of(train[:n])]
        for draw in range(1, draws if n < len(train) else 1):
            order = np.random.default_rng((SEED, draw)).permutation(len(train))
            sets.append(Moments.of(train[order[:n]]))
        return cls(train[:n], train, sets)

    @cached_property
    def manifold(self) -> Manifold | None:
        """The manifold of the n images; None if n is too small for it."""
        return Manifold.of(self.features, NEIGHBOURS) if len(self.features) > NEIGHBOURS else None

    @cached_property
    def train_manifold(self) -> Manifold | None:
        """The manifold of all training images; None if n is too small for it."""
        return Manifold.of(self.train, 1) if self.manifold else None


@dataclass(frozen=True)
class Pair:
    """A set of images, generated or real, beside the real images.

    Attributes:
        real: the real images.
        features: the other images, float32 [m, d].
        train: the images among which copies are searched; None turns the search off.
    """

    real: RealSet
    features: np.ndarray
    train: Manifold | None

    @cached_property
    def moments(self) -> Moments:
        """The moments of `features`."""
        return Moments.of(self.features)

    @cached_property
    def frechet(self) -> float:
        """The Fréchet distance to the first draw of real images."""
        return frechet(self.real.draws[0], self.moments)

    @cached_property
    def kid(self) -> tuple[float, float]:
        """The kernel distance: mean and standard deviation over its subsets."""
        return kid(self.real.features, self.features, seed=SEED)

    @cached_property
    def neighbours(self) -> Comparison | None:
        """Precision, recall, density and coverage; None if a side has too few images."""
        if self.real.manifold is None or len(self.features) <= NEIGHBOURS:
            return None
        return compare_manifolds(self.real.manifold, Manifold.of(self.features, NEIGHBOURS))

    @cached_property
    def nearest(self) -> Nearest | None:
        """The nearest image of `train` for each image; None without `train`."""
        if self.train is not None and self.train is self.real.manifold:
            return self.neighbours and self.neighbours.nearest
        return nearest(self.train, self.features) if self.train else None
