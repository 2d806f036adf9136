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
    """Return images as uint8 RGB [N, H, W, 3], see `as_pixels`; grey is repeated."""
    images = as_pixels(images)
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Return images as uint8 [N, H, W, 1 or 3]; no copy where nothing has to change.

    Args:
        images: [N, H, W, 1 or 3], uint8, or floats in [0, 1], of which 255 x is rounded half to
            even.

    Raises:
        ValueError: another dtype or shape, floats out of [0, 1], or NaN.
    """
    images = np.asarray(images)
    floats = np.issubdtype(images.dtype, np.floating)
    h, w, c = images.shape[1:] if images.ndim == 4 else (0, 0, 0)
    if not (floats or images.dtype == np.uint8) or h * w == 0 or c not in (1, 3):
        actual = f"images are {images.dtype} {list(images.shape)}"
        wanted = "uint8 [N, H, W, 1 or 3], or floats in [0, 1] of that shape"
        raise ValueError(f"{actual}: expected {wanted}; {_remedy(images)}")
    return quantise(images) if floats else images


def scale_min_max(images: np.ndarray) -> np.ndarray:
    """Scale each image to 0..255 by its own minimum and maximum, as uint8 [N, H, W, 1 or 3].

    An image of one value is left as it is. The arguments and errors are those of `as_pixels`.
    """
    pixels = as_pixels(images)
    low, high = (np.float32(f(pixels, axis=(1, 2, 3), keepdims=True)) for f in (np.min, np.max))
    flat = high == low
    low, high = np.where(flat, 0, low), np.where(flat, 255, high)
    return np.rint((pixels - low) * 255 / (high - low)).astype(np.uint8)


def _remedy(images: np.ndarray) -> str:
    """Return the expression that makes images of these, as far as it can be known."""
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        return "channels first: images.transpose(0, 2, 3, 1)"
    if images.ndim == 4 and images.shape[3] in (2, 4):
        return "transparency: images[..., :-1], if all is opaque"
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0:
        return "look at what made this array"
    if images.dtype == bool:
        return "images * np.uint8(255)"
    if images.dtype.kind in "iu" and images.min() >= 0:
        fits = images.max() <= 255
        return "images.astype(np.uint8)" if fits else "scale them to 0..255, then astype(np.uint8)"
    return "look at what made this array"


def quantise(images: np.ndarray) -> np.ndarray:
    """Round floats in [0, 1] to uint8: 255 x, half to even.

    Raises:
        ValueError: values out of [0, 1] by more than `TOLERANCE`, or NaN.
    """
    low, high = images.min(initial=0), images.max(initial=0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # in this form, NaN is refused too
        remedy = "look at what made them"
        if -1 - TOLERANCE <= low < -0.1 and high <= 1 + TOLERANCE:
            remedy = "from [-1, 1]: (images + 1) / 2"
        elif low >= 0 and 2 <= high <= 255:
            remedy = "from 0..255: images.round().astype(np.uint8)"
        raise ValueError(
            f"images range from {low} to {high}: expected uint8, or floats in [0, 1]; {remedy}"
        )
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
