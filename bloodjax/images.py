"""The one boundary between pixels that are stored (uint8) and pixels that are computed with."""

import jax.numpy as jnp
from jax import Array


def to_float(images: Array) -> Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Array) -> Array:
    """float in [-1, 1] -> uint8 0..255: clipped, rounded half to even; undoes `to_float`."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
