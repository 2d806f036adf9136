"""What is reported of generated images' features beside real ones', float32 [N, d] of any space."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bloodjax.scoring.distances import Moments, frechet, frechet_from_features, infinity, kid
from bloodjax.scoring.neighbours import Manifold, compare_manifolds, nearest

SEED = 0  # of every random subset drawn here: the same features give the same figures
NEIGHBOURS = 5  # the most that any measure looks for
SHARES = ("precision", "recall", "density", "coverage")
CLOSEST = 12  # pairs of a sample and a training image that are kept to be looked at


@dataclass(frozen=True)
class Real:
    """Real images in one feature space, with what is computed of them once for all that they meet.

    Attributes:
        features: of those that generated ones are compared with, [n, d].
        train: of all training images at hand, those first, [N >= n, d].
        draws: moments of the n, and of other draws of n.
    """

    features: np.ndarray
    train: np.ndarray
    draws: list[Moments]

    @classmethod
    def of(cls, train: np.ndarray, n: int, draws: int = 1) -> "Real":
        """`draws` sets of n real images: the first of `train`, then random ones out of it."""
        sets = [Moments.of(train[:n])]
        for draw in range(1, draws):
            order = np.random.default_rng((SEED, draw)).permutation(len(train))
            sets.append(Moments.of(train[order[:n]]))
        return cls(train[:n], train, sets)

    @cached_property
    def manifold(self) -> Manifold | None:
        """Of the n; None if there are too few for neighbours."""
        return Manifold.of(self.features, NEIGHBOURS) if len(self.features) > NEIGHBOURS else None

    @cached_property
    def train_manifold(self) -> Manifold | None:
        """Of all training images; None if the n are too few."""
        return Manifold.of(self.train, 1) if self.manifold else None


def measures(real: Real, fake: np.ndarray, moments: Moments) -> dict[str, Any]:
    """How images compare with real ones, be they generated or real as well.

    Args:
        real: the real images.
        fake: the others, [m, d].
        moments: of those.

    Returns:
        value (the Fréchet distance), kid, kid_std (over its subsets), precision, recall, density,
        coverage, memorised (by the images of `real.manifold`), n_real and n_fake. What needs more
        images than there are is None.
    """
    mean, std = kid(real.features, fake, seed=SEED)
    near: dict[str, Any] = dict.fromkeys((*SHARES, "memorised"))
    if real.manifold and len(fake) > NEIGHBOURS:
        found = compare_manifolds(real.manifold, Manifold.of(fake, NEIGHBOURS))
        near = {name: getattr(found, name) for name in SHARES}
        near["memorised"] = found.nearest.memorised
    return {
        "value": frechet(real.draws[0], moments),
        "kid": mean,
        "kid_std": std,
        **near,
        "n_real": len(real.features),
        "n_fake": len(fake),
    }


def score_samples(real: Real, fake: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """All that is said of one model's samples.

    Args:
        real: the real images.
        fake: the samples, [m, d].
        rows: where in the data set `real.train` comes from.

    Returns:
        `measures`, with memorised by all of `real.train`, and
        infinity: the Fréchet distance extrapolated to infinitely many samples; None below 4.
        draws: {"n", "mean", "std"}: the same samples against each draw of real images.
        closest: the samples nearest to a training image for what that one's neighbours are, as
            {"sample", "train" (rows of samples and data set), "distance", "ratio"}: below 1 is
            what counts as memorised.
    """
    moments = Moments.of(fake)
    result = measures(real, fake, moments)
    first, *others = real.draws
    values = [result["value"], *(frechet(drawn, moments) for drawn in others)]
    spread = {"n": len(values), "mean": float(np.mean(values)), "std": float(np.std(values))}
    further = infinity(first, fake, values[0], seed=SEED) if len(fake) >= 4 else None
    result |= {"infinity": further, "draws": spread, "closest": []}
    if train := real.train_manifold:
        near = nearest(train, fake)
        own = np.sqrt(train.ball(1)[near.index])  # how far that image's nearest other is
        ratio = near.distance / np.maximum(own, np.finfo(float).tiny)
        result["memorised"] = near.memorised
        result["closest"] = [
            {
                "sample": int(i),
                "train": int(rows[near.index[i]]),
                "distance": float(near.distance[i]),
                "ratio": float(ratio[i]),
            }
            for i in np.argsort(ratio, kind="stable")[:CLOSEST]
        ]
    return result


def score_reals(real: Real) -> dict[str, Any]:
    """What real images score beside other real images: two disjoint sets of `real.train`, of as
    many as `real.features` or, where there are too few for that, of half of all.

    Returns:
        floor (the Fréchet distance), floor_n (images on each side) and real (all `measures`).
    """
    n = min(len(real.features), len(real.train) // 2)
    own = real if n == len(real.features) else Real.of(real.train, n)
    other = real.train[n : 2 * n]
    found = measures(own, other, Moments.of(other))
    return {"floor": found["value"], "floor_n": n, "real": found}


def score_classes(
    classes: Sequence[str],
    real: tuple[np.ndarray, np.ndarray],
    fake: tuple[np.ndarray, np.ndarray],
) -> dict[str, dict[str, float | None]]:
    """Each class by itself: {class: {"real", "fake", "distance"}}.

    Args:
        classes: the K class names.
        real, fake: features [n, d], and the class 0..K-1 of each image, both by the same
            classifier, so that its errors are on both sides. It must put everything somewhere:
            pictures of no cell at all count as the class that they resemble most.

    Returns:
        The share of images in the class, and the Fréchet distance between its real and its
        generated images; None where a side has fewer than 2.
    """
    result: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(classes):
        own = [features[labels == k] for features, labels in (real, fake)]
        result[name] = {
            "real": len(own[0]) / len(real[0]),
            "fake": len(own[1]) / len(fake[0]),
            "distance": frechet_from_features(*own) if min(map(len, own)) >= 2 else None,
        }
    return result
