"""Evaluation during training: the Fréchet distance of a few samples in BloodNet's features."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from bloodjax import features
from bloodjax.data import Dataset
from bloodjax.methods import Method
from bloodjax.runtime.compilation import choose_engine, uncached
from bloodjax.runtime.progress import console
from bloodjax.sampling.draw import (
    Labels,
    SampleConfig,
    dispatch_size,
    fetch_images,
    made_with,
    make_sampler,
    select_seed,
)
from bloodjax.sampling.labels import no_labels
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.scoring.embedding import embed, embed_dataset
from bloodjax.scoring.score import CLASSIFIER
from bloodjax.training.step import State


def make_evaluator(
    method: Method,
    dataset: Dataset,
    count: int,
    config: SampleConfig,
    sampler: dict[str, Any],
    labels: Labels = no_labels,
    show: Callable[[int, int, np.ndarray], None] | None = None,
) -> Callable[[State], dict[str, Any]] | None:
    """Return the function that evaluates checkpoints; None if `count` is 0.

    It draws the first samples that `write_samples` draws from the same state, and compares them
    with the real images that `write_scores` would, so its values are those of the scores.

    Args:
        method, sampler: the method to draw from, and the options of its `sample`.
        dataset: the real images.
        count: images per seed, and real images as far as there are enough.
        config: of sampling; its count decides the size of a dispatch alone.
        labels: count -> the labels of the first samples.
        show: is called with each seed, the step, and the images, uint8 [count, H, W, C].

    Returns:
        state -> {"name": "fd_bloodnet", "values": the Fréchet distance of each seed, "n_real", and
        `made_with`}. It prints the mean.
    """
    if not count:
        return None
    space, draw = features.make(CLASSIFIER), make_sampler(method, sampler, choose_engine())
    size = dispatch_size(config)
    classes = labels(-(-count // size) * size)

    @functools.cache
    def real() -> Moments:
        n = min(count, len(dataset.images))
        return Moments.of(embed_dataset(space, dataset, n, no_progress))

    def evaluate_seed(state: State, s: int) -> float:
        model = select_seed(state, s, config.weights)
        starts = range(0, count, size)
        with uncached(choose_engine()):
            chunks = [draw(*model, jnp.arange(i, i + size), classes[i : i + size]) for i in starts]
        images = np.concatenate([fetch_images(chunk) for chunk in chunks])[:count]
        if show:
            show(int(state.seed[s]), int(state.step[s]), images)
        return frechet(real(), Moments.of(embed(space, images, no_progress)))

    def evaluate(state: State) -> dict[str, Any]:
        values = [evaluate_seed(state, s) for s in range(len(state.seed))]
        console.print(f"step {state.step[0]}: {space.distance} {np.mean(values):.2f}")
        origin = made_with(method, replace(config, count=count), sampler) | {"n_real": real().n}
        return {"name": space.distance, "values": values, **origin}

    return evaluate


def no_progress(*_: Any) -> None:
    """Show no bar: the bar of training is on the screen."""
