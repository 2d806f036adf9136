"""Randomness as a function of (seed, purpose, index): no key is carried and none is saved."""

import enum

import jax
from jax import Array, lax, random
from jax.sharding import PartitionSpec as P


class Purpose(enum.IntEnum):
    """What a key is for; the numbers are part of every published result, so never renumber."""

    INIT = 0
    ORDER = 1  # of the images in an epoch
    SAMPLE = 2
    LOSS = 3  # the first player's; the second's is 4, and so on: keep this the last


def key_at(seed: Array, purpose: int, index: Array | int = 0) -> Array:
    """The key for `purpose` at step, epoch or image `index`."""
    return random.fold_in(random.fold_in(random.key(seed), purpose), index)


def batch_normal(key: Array, shape: tuple[int, ...]) -> Array:
    """N(0, 1) for every row of a batch, float32 of `shape`.

    Where the batch is divided among devices, along a mesh axis `data`, these rows are too. The
    compiler sees that by itself only where noise meets images; a generator's never does, and would
    be computed whole on every device. The values are the same either way.
    """
    noise = random.normal(key, shape)
    divided = "data" in jax.sharding.get_abstract_mesh().axis_names
    return lax.with_sharding_constraint(noise, P("data")) if divided else noise
