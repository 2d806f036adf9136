"""Randomness as a function of (seed, purpose, index): no key is carried and none is saved."""

import enum

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.sharding import PartitionSpec as P


class Purpose(enum.IntEnum):
    """The use of a key.

    The numbers are part of every published result: they never change. The loss of player n takes
    LOSS + n, so the numbers from 3 to 999 belong to players, and further purposes count from 1000.
    """

    INIT = 0
    ORDER = 1  # of the images in an epoch
    SAMPLE = 2
    LOSS = 3
    AUGMENT = 1000  # of the images in a step


def key_at(seed: Array, purpose: int, index: Array | int = 0) -> Array:
    """Return the key for `purpose` at step, epoch or image `index`."""
    return random.fold_in(random.fold_in(random.key(seed), purpose), index)


def normal_batch(key: Array, shape: tuple[int, ...]) -> Array:
    """Return N(0, 1) for every row of a batch, float32 of `shape`.

    Losses draw all normal noise with this function, samplers (one image) with `random.normal`.
    Both return the same values. Where a mesh divides the batch along its axis `data`, this function
    divides the noise too. The compiler infers that only where noise meets images; a generator's
    noise never does, and every device would compute all of it.
    """
    noise = random.normal(key, shape)
    divided = "data" in jax.sharding.get_abstract_mesh().axis_names
    return lax.with_sharding_constraint(noise, P("data")) if divided else noise


def interpolate_normals(ends: Array, count: int) -> Array:
    """Return `count` points on the arc between two draws of N(0, 1), [2, Z] -> [count, Z].

    cos² + sin² = 1, so every point is N(0, 1) too.
    """
    angle = jnp.linspace(0.0, jnp.pi / 2, count)[:, None]
    return jnp.cos(angle) * ends[0] + jnp.sin(angle) * ends[1]
