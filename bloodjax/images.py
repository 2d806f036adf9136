"""The one boundary between pixels that are stored (uint8) and pixels that are computed with."""

import jax.numpy as jnp
import numpy as np
from jax import Array

CELL = 84  # pixels: the side of a picture among others
TOLERANCE = 1e-3  # by which floats may leave [0, 1]: rounding, not another range


def to_float(images: Array) -> Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Array) -> Array:
    """Float in [-1, 1] -> uint8 0..255: clipped, rounded half to even; undoes `to_float`."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Images as uint8 RGB [N, H, W, 3]; the argument itself where nothing has to change.

    Args:
        images: [N, H, W, 1 or 3], uint8, or floats in [0, 1], of which 255 x is rounded half to
            even. Grey is repeated to RGB.

    Raises:
        ValueError: another dtype or shape, floats out of [0, 1], or NaN.
    """
    images = np.asarray(images)
    floats = np.issubdtype(images.dtype, np.floating)
    h, w, c = images.shape[1:] if images.ndim == 4 else (0, 0, 0)
    if not (floats or images.dtype == np.uint8) or h * w == 0 or c not in (1, 3):
        found = f"images are {images.dtype} {list(images.shape)}"
        wanted = "uint8 [N, H, W, 1 or 3], or floats in [0, 1] of that shape"
        remedy = "channels first: transpose(0, 2, 3, 1); integers in 0..255: astype(np.uint8)"
        raise ValueError(f"{found}: expected {wanted}; {remedy}")
    if floats:
        images = quantise(images)
    return np.repeat(images, 3, axis=3) if c == 1 else images


def quantise(images: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], else ValueError, as uint8: 255 x, rounded half to even."""
    low, high = images.min(initial=0), images.max(initial=0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # so written, NaN is refused too
        wanted = "expected uint8, or floats in [0, 1]"
        remedy = "from [-1, 1]: (x + 1) / 2; from 0..255: astype(np.uint8); NaN: see what made it"
        raise ValueError(f"images range from {low} to {high}: {wanted}; {remedy}")
    wide = np.result_type(images, np.float32)  # 255 x has more digits than float16
    return np.rint(images.astype(wide) * 255).astype(np.uint8)


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, H, W, C] -> one uint8 RGB image of them in rows, pixels enlarged whole."""
    scale = max(1, CELL // max(images.shape[1:3]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    spare = -len(images) % columns
    images = np.pad(images, ((0, spare), (0, 2), (0, 2), (0, 0)), constant_values=255)
    n, h, w, channels = images.shape
    grid = images.reshape(n // columns, columns, h, w, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(n // columns * h, columns * w, channels)
    return np.broadcast_to(grid, (*grid.shape[:2], 3))
