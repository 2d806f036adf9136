"""Batches and states for methods."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from helpers.nets import draw_leaves, normal

KEY = random.key(3)


def batch(shape, count=4):
    images = np.random.default_rng(1).uniform(-1, 1, (count, *shape)).astype(np.float32)
    return jnp.asarray(images), jnp.arange(count, dtype=jnp.int32) % 2


def random_state(method):
    """Parameters and statistics that are nowhere zero, so that no part of a network is idle."""
    params, stats = jax.eval_shape(method.init, KEY)
    return draw_leaves(params), jax.tree.map(lambda x: 0.5 + jnp.abs(normal(*x.shape)), stats)
