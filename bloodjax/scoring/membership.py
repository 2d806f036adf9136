"""A membership attack by loss: does a model know its training images from other ones?"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax.data import Dataset
from bloodjax.images import to_float
from bloodjax.methods import Method, Params, Stats
from bloodjax.runtime.progress import progress
from bloodjax.scoring.embedding import shuffled_rows

MEMBERS = 1000  # images on each side
NOISES = 16  # fixed noises and noise levels that the loss is averaged over
CHUNK = 25  # images in one call


def attack_membership(
    method: Method, model: tuple[Params, Stats], train: Dataset, test: Dataset
) -> float:
    """Return how well the loss tells training from test images, as `area_under_curve`."""
    sides = []
    for dataset in (train, test):
        rows = shuffled_rows(dataset)[:MEMBERS]
        losses = measure_losses(method, model, dataset.images[rows], dataset.labels[rows])
        sides.append(-losses)  # members have low losses
    return area_under_curve(*sides)


def measure_losses(
    method: Method, model: tuple[Params, Stats], images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the method's first loss of each image, a mean over fixed noises, float32 [N].

    Args:
        method: the method.
        model: parameters and statistics.
        images: uint8 [N, H, W, C].
        labels: int [N].
    """
    loss, keys = next(iter(method.losses.values())), random.split(random.key(0), NOISES)

    @jax.jit
    def measure(model: tuple[Params, Stats], images: Array, labels: Array) -> Array:
        def of_image(image: Array, label: Array) -> Array:
            batch = to_float(image)[None], label[None]
            return jax.vmap(lambda key: loss(*model, batch, key)[0])(keys).mean()

        return jax.vmap(of_image)(images, labels)

    losses = np.empty(len(images), np.float32)
    with progress("losses", len(images)) as advance:
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            losses[part] = measure(model, jnp.asarray(images[part]), jnp.asarray(labels[part]))
            advance(len(losses[part]))
    return losses


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive score exceeds a negative one, ties counting half.

    This is the area under the ROC curve, and the U of Mann and Whitney over the number of pairs.
    """
    counts = [np.searchsorted(np.sort(negative), positive, side) for side in ("left", "right")]
    return float(np.mean(counts) / len(negative))
