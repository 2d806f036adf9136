"""What is reported of generated images' features beside real ones', float32 [N, d] of any space."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bloodjax.distance import Moments, distance, frechet, infinity, kid
from bloodjax.neighbours import Manifold, compare, nearest

SEED = 0  # of every random subset drawn here: the same features give the same figures
NEIGHBOURS = 5  # the most that any measure looks for
SHARES = ("precision", "recall", "density", "coverage")
CLOSEST = 12  # pairs of a sample and a training image that are kept to be looked at


class Real(NamedTuple):
    """Real images in one feature space, with what is computed of them once for all seeds.

    Attributes:
        features: of those that generated ones are compared with, [n, d].
        draws: moments of those, and of other draws of n.
        manifold: of those; None if there are too few for neighbours.
        train: of all training images at hand; the same.
    """

    features: np.ndarray
    draws: list[Moments]
    manifold: Manifold | None
    train: Manifold | None

    @classmethod
    def of(cls, features: np.ndarray, train: np.ndarray, draws: int = 1) -> "Real":
        """`draws` sets of n real images: `features` itself, then random ones out of `train`."""
        sets = [Moments.of(features)]
        for draw in range(1, draws):
            order = np.random.default_rng((SEED, draw)).permutation(len(train))
            sets.append(Moments.of(train[order[: len(features)]]))
        if len(features) <= NEIGHBOURS:
            return cls(features, sets, None, None)
        return cls(features, sets, Manifold.of(features, NEIGHBOURS), Manifold.of(train, 1))


def measures(real: Real, fake: np.ndarray) -> dict[str, Any]:
    """How images compare with real ones, be they generated or real as well.

    Returns:
        value (the Fréchet distance), kid, kid_std (over its subsets), precision, recall, density,
        coverage, memorised (by the images of `real.manifold`), n_real and n_fake. What needs more
        images than there are is None.
    """
    mean, std = kid(real.features, fake, seed=SEED)
    near: dict[str, Any] = dict.fromkeys((*SHARES, "memorised"))
    if real.manifold and len(fake) > NEIGHBOURS:
        found = compare(real.manifold, Manifold.of(fake, NEIGHBOURS))
        near = {name: getattr(found, name) for name in SHARES}
        near["memorised"] = found.nearest.memorised
    return {
        "value": frechet(real.draws[0], Moments.of(fake)),
        "kid": mean,
        "kid_std": std,
        **near,
        "n_real": len(real.features),
        "n_fake": len(fake),
    }


def of_samples(real: Real, fake: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
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
    result, moments = measures(real, fake), Moments.of(fake)
    values = [frechet(drawn, moments) for drawn in real.draws]
    spread = {"n": len(values), "mean": float(np.mean(values)), "std": float(np.std(values))}
    further = infinity(real.draws[0], fake, seed=SEED) if len(fake) >= 4 else None
    result |= {"infinity": further, "draws": spread, "closest": []}
    if real.train:
        near = nearest(real.train, fake)
        own = np.sqrt(real.train.ball(1)[near.index])  # how far that image's nearest other is
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


def of_reals(train: np.ndarray, count: int) -> dict[str, Any]:
    """What real images score beside other real images: two disjoint sets of at most `count`.

    Args:
        train: features of shuffled real images, [N, d].

    Returns:
        floor (the Fréchet distance), floor_n (images on each side) and real (all `measures`).
    """
    n = min(count, len(train) // 2)
    found = measures(Real.of(train[:n], train[:n]), train[n : 2 * n])
    return {"floor": found["value"], "floor_n": n, "real": found}


def by_class(
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
            "distance": distance(*own) if min(map(len, own)) >= 2 else None,
        }
    return result
