"""Class-conditioning of a diffusion model: labels dropped in training, and guidance by them.

Classifier-free guidance: Ho and Salimans (2022); its interval of noise levels: Kynkäänniemi et al.
(2024).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax, random

from bloodjax.diffusion.process import Levels

Predict = Callable[[Array, Levels, Array | None], Array]


def drop_labels(key: Array, labels: Array, classes: int, rate: float) -> Array:
    """Replace labels int [B] by the unknown class, `classes`, with probability `rate`."""
    return jnp.where(random.bernoulli(key, rate, labels.shape), classes, labels)


def guide(
    predict: Predict,
    classes: int,
    label: Array | None,
    guidance: float,
    interval: tuple[float, float],
    levels: Levels,
) -> Callable[[Array, Levels], Array]:
    """Return the guided output of a network for one image, as a function of (x, level).

    u + w (c - u) at the noise levels low < σ / α <= high, and c elsewhere, of the outputs c for the
    label and u for the unknown class. Image and noise are linear in the output, so that guidance of
    the one is guidance of the other.

    Args:
        predict: the output [B, H, W, C] for x [B, H, W, C], a level, and labels int [B] or None.
        classes: of the method; 0 if it is unconditional.
        label: int scalar, or None for the unknown class; ignored without classes.
        guidance: w; 1 is none.
        interval: (low, high).
        levels: all noise levels of the sampler, on the host; the last is the image's.

    Raises:
        ValueError: an empty interval, or guidance of a method without classes.
    """
    if interval[0] >= interval[1]:
        raise ValueError(
            f"sampler.guidance_low={interval[0]}: expected less than guidance_high={interval[1]}"
        )
    if not classes:
        if guidance != 1:
            raise ValueError(
                f"sampler.guidance={guidance}: expected 1 for a method without classes; train one "
                "with method.conditional=True"
            )
        return lambda x, level: predict(x[None], level, None)[0]
    unknown = jnp.full((), classes, jnp.int32)
    wanted = unknown if label is None else jnp.asarray(label, jnp.int32)

    def conditional(x: Array, level: Levels) -> Array:
        return predict(x[None], level, wanted[None])[0]

    def guided(x: Array, level: Levels) -> Array:
        pair = predict(jnp.stack([x, x]), level, jnp.stack([wanted, unknown]))
        return pair[1] + guidance * (pair[0] - pair[1])

    def inside(level: Levels) -> Any:
        ratio = level.sigma / level.alpha
        return (ratio > interval[0]) & (ratio <= interval[1])

    if guidance == 1 or label is None:
        return conditional
    if inside(levels)[:-1].all():  # one network to compile, not two
        return guided
    return lambda x, level: lax.cond(inside(level), guided, conditional, x, level)
