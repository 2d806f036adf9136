"""The one boundary between stored pixels (uint8) and pixels in computations (floats)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

CELL = 84  # pixels: the side of a picture in a grid
TOLERANCE = 1e-3  # by which floats may leave [0, 1]: rounding, not another range


def to_float(images: Array) -> Array:
    """Scale uint8 0..255 to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Array) -> Array:
    """Clip floats in [-1, 1] and round half to even to uint8 0..255; the inverse of `to_float`."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Return images as uint8 RGB [N, H, W, 3]; no copy where nothing has to change.

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
    """Round floats in [0, 1] to uint8: 255 x, half to even.

    Raises:
        ValueError: values out of [0, 1] by more than `TOLERANCE`, or NaN.
    """
    low, high = images.min(initial=0), images.max(initial=0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # in this form, NaN is refused too
        wanted = "expected uint8, or floats in [0, 1]"
        remedy = "from [-1, 1]: (x + 1) / 2; from 0..255: astype(np.uint8); NaN: see what made it"
        raise ValueError(f"images range from {low} to {high}: {wanted}; {remedy}")
    wide = np.result_type(images, np.float32)  # 255 x has more digits than float16
    return np.rint(images.astype(wide) * 255).astype(np.uint8)


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Arrange uint8 [N, H, W, C] in rows of one uint8 RGB image; pixels are enlarged whole."""
    scale = max(1, CELL // max(images.shape[1:3]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    spare = -len(images) % columns
    images = np.pad(images, ((0, spare), (0, 2), (0, 2), (0, 0)), constant_values=255)
    n, h, w, channels = images.shape
    grid = images.reshape(n // columns, columns, h, w, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(n // columns * h, columns * w, channels)
    return np.broadcast_to(grid, (*grid.shape[:2], 3))
