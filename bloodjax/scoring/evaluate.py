"""How good a model is while it trains: the Fréchet distance of a few samples, by BloodNet."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bloodjax import features
from bloodjax.data import Dataset
from bloodjax.methods import Method
from bloodjax.runtime import processes
from bloodjax.runtime.progress import console
from bloodjax.sampling import sample
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.scoring.embedding import embed, embed_dataset
from bloodjax.scoring.score import JUDGE, SUBSET_SEED
from bloodjax.training.step import State


def check(count: int, checkpoint: str) -> None:
    """Refuse, before any work, what cannot be done: ValueError naming the value.

    Args:
        count: images per seed, as `evaluator` gets it.
        checkpoint: which one is to be sampled from, as `train.restore` gets it.
    """
    if count < 0 or count == 1:
        raise ValueError(f"train.evaluate={count}: expected 0 or at least 2, to have a covariance")
    if checkpoint not in ("newest", "best"):
        raise ValueError(f"sample.checkpoint={checkpoint!r}: expected newest or best")
    if checkpoint == "best" and not count:
        raise ValueError(
            "sample.checkpoint='best', but train.evaluate=0 finds none: expected some images to "
            "evaluate by, e.g. --config.train.evaluate=1000, or sample.checkpoint=newest"
        )


def make_evaluator(
    method: Method,
    dataset: Dataset,
    *,
    count: int,
    chunk: int,
    weights: str = "ema",
    show: Callable[[int, int, np.ndarray], None] | None = None,
    **options: Any,
) -> Callable[[State], dict[str, Any]] | None:
    """What `train.run` evaluates its checkpoints by; None if `count` is 0.

    The samples are those that `sample.run` makes first of the same state, and the real images those
    that `score.run` compares as many with, so that the values are those of the scores.

    Args:
        count: images per seed, and real ones as far as there are so many.
        chunk, weights, options: as in `sample.run`.
        show: called with each seed, the step, and the images, uint8 [count, H, W, C].

    Returns:
        The function state -> {"name": "fd_bloodnet", "values": the Fréchet distance of each seed's
        images, how many there were, their weights and the sampler's options}; it says the mean.
    """
    if not count:
        return None
    space, draw = features.make(JUDGE), sample.make_sampler(method, options)
    size = chunk * jax.device_count()

    @functools.cache
    def real() -> Moments:
        n = min(count, len(dataset.images))
        return Moments.of(embed_dataset(space, dataset, SUBSET_SEED, n, quietly))

    def of_seed(state: State, s: int) -> float:
        own, starts = sample.select_seed(state, s, weights), range(0, count, size)
        chunks = [processes.fetch(draw(*own, jnp.arange(at, at + size))) for at in starts]
        images = np.concatenate(chunks)[:count]
        if show:
            show(int(state.seed[s]), int(state.step[s]), images)
        return frechet(real(), Moments.of(embed(space, images, quietly)))

    def evaluate(state: State) -> dict[str, Any]:
        values = [of_seed(state, s) for s in range(len(state.seed))]
        console.print(f"step {state.step[0]}: {space.distance} {np.mean(values):.2f}")
        about = {"n_real": real().n, "n_fake": count, "weights": weights, "sampler": options}
        return {"name": space.distance, "values": values, **about}

    return evaluate


def quietly(*_: Any) -> None:
    """No bar: that of training is on the screen."""
