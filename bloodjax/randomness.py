"""Randomness as a function of (seed, purpose, index): no key is carried and none is saved."""

import enum

from jax import Array, random


class Purpose(enum.IntEnum):
    """What a key is for; the numbers are part of every published result, so never renumber."""

    INIT = 0
    ORDER = 1  # of the images in an epoch
    SAMPLE = 2
    LOSS = 3  # the first player's; the second's is 4, and so on: keep this the last


def key_at(seed: Array, purpose: int, index: Array | int = 0) -> Array:
    """The key for `purpose` at step, epoch or image `index`."""
    return random.fold_in(random.fold_in(random.key(seed), purpose), index)
