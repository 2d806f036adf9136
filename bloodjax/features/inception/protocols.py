"""The resizing and scaling of images before InceptionV3, by protocol.

The same images score differently under different protocols, so every result names its own. All
resizing here is separable and linear: two small matrices per image size, one for each axis.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SIDE = 299


def pytorch_fid(x: Array) -> Array:
    """Prepare images as pytorch-fid 0.3: torch's bilinear, [0, 255] -> [-1, 1]."""
    return 2 * resample(x, half_pixel) / 255 - 1


def torch_fidelity(x: Array) -> Array:
    """Prepare images as torch-fidelity 0.4 and the graph of 2015-12-05: TF1's resizing."""
    return (resample(x, asymmetric) - 128) / 128


def clean(x: Array) -> Array:
    """Prepare images as clean-fid's `clean` (Parmar et al., 2022).

    Pillow's bicubic on floats, clipped but not rounded, (x - 128)/128.
    """
    return (jnp.clip(resample(x, bicubic), 0, 255) - 128) / 128


def raw_range(x: Array) -> Array:
    """Prepare images in [-1, 1] as pytorch-fid, which takes them for [0, 1] and yields [-3, 1].

    A common mistake, here only to explain numbers published with it.
    """
    return 2 * (resample(x, half_pixel) / 127.5 - 1) - 1


# name -> (images [N, H, W, 3] of whole numbers 0..255, any dtype -> the network's input,
# [N, 299, 299, 3] float32, or float64 where x64 is enabled)
PROTOCOLS: Mapping[str, Callable[[Array], Array]] = {
    "pytorch-fid": pytorch_fid,
    "torch-fidelity": torch_fidelity,
    "clean": clean,
    "raw-range": raw_range,
}


def resample(x: Array, matrix: Callable[[int], np.ndarray]) -> Array:
    """Resize [N, H, W, C] to [N, 299, 299, C] by matrix(H) along rows, matrix(W) along columns."""
    x = jnp.asarray(x, float)
    rows, columns = (jnp.asarray(matrix(size), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision=lax.Precision.HIGHEST)


def bilinear(size: int, centre: float) -> np.ndarray:
    """Return [299, size]: weights of the two nearest pixels; pixel i has its middle at i + centre.

    The originals keep ratio and positions in float32. At 640 pixels that is worth 0.02 of 255
    grey levels, so it is kept here.
    """
    ratio = float(np.float32(size / SIDE))
    place = ((np.arange(SIDE) + centre) * ratio - centre).astype(np.float32).clip(0, size - 1)
    return np.maximum(0, 1 - abs(place.astype(np.float64)[:, None] - np.arange(size)))


# torch's bilinear, align_corners=False, no antialiasing when shrinking
half_pixel = partial(bilinear, centre=0.5)
# TensorFlow 1's, corner on corner: enlarged images move up and left by nearly half a pixel
asymmetric = partial(bilinear, centre=0.0)


def bicubic(size: int) -> np.ndarray:
    """Return [299, size]: Pillow's bicubic, Keys (1981) with a = -1/2, widened when shrinking."""
    ratio = size / SIDE
    place = (np.arange(SIDE) + 0.5) * ratio - 0.5
    x = abs(place[:, None] - np.arange(size)) / max(ratio, 1)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)
