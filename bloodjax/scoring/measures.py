"""The scores of one model's samples, of real images and of single classes, in one feature space."""

from collections.abc import Sequence

import numpy as np

from bloodjax.scoring import metrics
from bloodjax.scoring.comparison import Pair, RealSet
from bloodjax.scoring.distances import Moments, frechet, frechet_from_features
from bloodjax.scoring.scores import Accuracy, ClassScore, Closest, mean_std

CLOSEST = 12  # pairs of a sample and a training image that the report shows


def compare(pair: Pair) -> dict[str, float | None]:
    """Return the Fréchet distance ("value"), the metrics of any two sets, and both counts."""
    values = {m.key: m.measure(pair) for m in metrics.METRICS if m.between_reals}
    counts = {"n_real": len(pair.real.features), "n_fake": len(pair.features)}
    return {"value": pair.frechet, **values, **counts}


def score_samples(
    real: RealSet, fake: np.ndarray, rows: np.ndarray, others: Sequence[np.ndarray] = ()
) -> dict[str, object]:
    """Return the scores of one model's samples.

    Args:
        real: the real images.
        fake: the samples, float32 [m, d].
        rows: int [N], the rows of the data set that `real.train` comes from.
        others: further sets of samples of the model, each like `fake`.

    Returns:
        `compare`, the metrics of samples alone, "draws" and "closest", as `scores.Score` has them;
        "sampling" with `others`.
    """
    pair = Pair(real, fake, real.train_manifold)
    result: dict[str, object] = {**compare(pair)}
    result |= {m.key: m.measure(pair) for m in metrics.METRICS if not m.between_reals}

    # The same samples against each draw of real images.
    values = [pair.frechet, *(frechet(draw, pair.moments) for draw in real.draws[1:])]
    result["draws"] = {"n": len(values), **mean_std(values)}
    if others:
        values = [pair.frechet, *(frechet(real.draws[0], Moments.of(x)) for x in others)]
        result["sampling"] = {"n": len(values), **mean_std(values)}
    return result | {"closest": find_closest(pair, rows)}


def find_closest(pair: Pair, rows: np.ndarray) -> list[Closest]:
    """Return the samples that are most likely copies of a training image, at most `CLOSEST`.

    The ratio divides a sample's distance to its nearest training image by the distance of that
    image to its own nearest neighbour. It is None if the training image has an exact duplicate
    and the sample is no copy. Pairs without a ratio come last, in the order of their distance.
    """
    if pair.train is None or pair.nearest is None:
        return []
    nearest, distance, _ = pair.nearest
    radius = np.sqrt(pair.train.ball(1)[nearest])
    limit = np.where(distance > 0, np.inf, 0.0)  # of distance / radius, as the radius goes to 0
    ratio = np.divide(distance, radius, out=limit, where=radius > 0)
    order = np.lexsort((np.where(np.isinf(ratio), distance, 0), ratio))
    return [
        {
            "sample": int(i),
            "train": int(rows[nearest[i]]),
            "distance": float(distance[i]),
            "ratio": float(ratio[i]) if np.isfinite(ratio[i]) else None,
        }
        for i in order[:CLOSEST]
    ]


def score_reals(real: RealSet, others: np.ndarray, count: int) -> dict[str, object]:
    """Return the scores of `count` other real images beside the real ones, a floor for every model.

    Two disjoint sets of images are compared, of which the second stands for samples. Where there
    are too few images, both sets are smaller in proportion.

    Args:
        real: the real images.
        others: the images of `real.train`, embedded as samples are, float32 [N, d].
        count: the number of a model's samples.

    Returns:
        "floor", the Fréchet distance; "real", see `compare`.
    """
    n, total = len(real.features), len(others)
    n = min(max(n * total // max(n + count, total), 2), total - 2)
    first = real if n == len(real.features) else RealSet.draw(real.train, n)
    result = compare(Pair(first, others[n : n + count], first.manifold))
    return {"floor": result["value"], "real": result}


def score_classes(
    classes: Sequence[str],
    real: tuple[np.ndarray, np.ndarray],
    fake: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, ClassScore]:
    """Return the share of each class on both sides, and the distance between the sides.

    Args:
        classes: the K class names.
        real: features, float32 [n, d], and the class of each image, int [n] in 0..K-1.
        fake: the same of the samples. One classifier labels both sides, so that both sides have
            its errors. It assigns a class to every image, also to images that show no cell.
        labels: the labels of both sides, see `measure_accuracy`; None for unlabelled samples.

    Returns:
        {class: {"real", "fake": shares of the images; "distance": the Fréchet distance between
        the real and the generated images of the class, None if a side has fewer than 2;
        "accuracy" of the images with this label, if there are labels}}.
    """
    result: dict[str, ClassScore] = {}
    for k, name in enumerate(classes):
        x, y = (features[labels == k] for features, labels in (real, fake))
        enough = min(len(x), len(y)) >= 2
        result[name] = {
            "real": len(x) / len(real[0]),
            "fake": len(y) / len(fake[0]),
            "distance": frechet_from_features(x, y) if enough else None,
        }
        if labels:
            sides = zip(labels, (real[1], fake[1]), strict=True)
            result[name]["accuracy"] = measure_accuracy(*((y[y == k], z[y == k]) for y, z in sides))
    return result


def measure_accuracy(
    real: tuple[np.ndarray, np.ndarray], fake: tuple[np.ndarray, np.ndarray]
) -> Accuracy:
    """Return the share of images on each side that the classifier assigns to their label.

    Args:
        real: the label of each real image, and its class by the classifier, int [n].
        fake: the same of the samples, whose label is the class that was asked for.
    """
    shares = [float(np.mean(y == z)) if len(y) else None for y, z in (real, fake)]
    return {"real": shares[0], "fake": shares[1]}
