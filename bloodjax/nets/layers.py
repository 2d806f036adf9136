"""Layers in the form that XLA runs fast on every backend; mathematically the textbook ones."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def upsample(x: Array) -> Array:
    """Nearest neighbour, twice the size: [B, H, W, C] -> [B, 2H, 2W, C].

    By broadcasting: the gradient of `jax.image.resize` is a scatter, 20 times slower on CPU.
    """
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Array, block: int) -> Array:
    """[B, H, W, C] -> [B, H/block, W/block, block² C]; H and W divisible by block."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int) -> Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // block**2)


def cast_all_but_bias(
    x: Array, kernel: Array, bias: Array | None, *, dtype: DTypeLike
) -> tuple[Array, Array, Array | None]:
    """What flax's layers cast to their `dtype`, which is all if they are not told otherwise.

    The gradient of a bias is a sum over all pixels of a batch, in the dtype in which it is added,
    and in bfloat16 such a sum stops growing: it gave the last bias of a VAE's decoder 0.6 times its
    gradient from 512 images of 8×8.
    """
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), bias


class Conv(nn.Conv):
    """`flax.linen.Conv` that adds its bias in float32."""

    dtype: DTypeLike = jnp.float32
    promote_dtype: Callable[..., tuple[Array, Array, Array | None]] = cast_all_but_bias

    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(self.dtype)


class Dense(nn.Dense):
    """`flax.linen.Dense` that adds its bias in float32."""

    dtype: DTypeLike = jnp.float32
    promote_dtype: Callable[..., tuple[Array, Array, Array | None]] = cast_all_but_bias

    def __call__(self, x: Array) -> Array:
        return super().__call__(x).astype(self.dtype)


class ConvTranspose(nn.Module):
    """Transposed convolution, 4×4, stride 2, padding 1: [B, H, W, C] -> [B, 2H, 2W, features].

    Equal to `torch.nn.ConvTranspose2d(C, features, 4, 2, 1)`, kernel[i, j] = weight[:, :, i, j]:
    input pixel m adds x[m] w[i] to output row 2m - 1 + i, and likewise along columns. Written as
    just that, with i = 2k + p: one matrix product, then the four 2×2 blocks of taps (k, n) added
    one pixel apart, then pixels (p, q) out of the channels. No multiplication by inserted zeros,
    and a gradient of two matrix products, where XLA:CPU takes 8 to 20 times longer for the
    gradient of a dilated convolution.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, f = x.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, (4, 4, c, f)).astype(self.dtype)
        taps = kernel.reshape(2, 2, 2, 2, c, f).transpose(4, 0, 2, 1, 3, 5).reshape(c, 16 * f)
        y = (x.astype(self.dtype) @ taps).reshape(*x.shape[:3], 2, 2, 4 * f)
        shifted = [
            jnp.pad(y[:, :, :, k, n], ((0, 0), (k, 1 - k), (n, 1 - n), (0, 0)))
            for k in (0, 1)
            for n in (0, 1)
        ]
        y = depth_to_space(sum(shifted), 2)[:, 1:-1, 1:-1]
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (f,))
        return y.astype(self.dtype)
