"""Layers in the form that XLA runs fast on every backend; mathematically the textbook ones."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


def upsample(x: Array) -> Array:
    """Double the size by nearest neighbours: [B, H, W, C] -> [B, 2H, 2W, C].

    By broadcasting: the gradient of `jax.image.resize` is a scatter, 20 times slower on CPU.
    """
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x: Array, block: int) -> Array:
    """Fold blocks into channels: [B, H, W, C] -> [B, H/block, W/block, block² C].

    H and W are multiples of `block`.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int) -> Array:
    """Unfold channels into blocks of pixels; the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // block**2)


def cast_all_but_bias(
    x: Array, kernel: Array, bias: Array | None, *, dtype: DTypeLike
) -> tuple[Array, Array, Array | None]:
    """Cast input and kernel to `dtype`, but not the bias, which flax's layers cast too.

    The gradient of a bias is a sum over all pixels of a batch, in the dtype in which it is added,
    and in bfloat16 such a sum stops growing: it gave the last bias of a VAE's decoder 0.6 times its
    gradient from 512 images of 8×8.
    """
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), bias


def silu(x: Array) -> Array:
    """Apply SiLU to the output of a convolution or product.

    The barrier keeps oneDNN from applying it there: see `compilation.refuse_wrong_fusions`.
    """
    return nn.silu(lax.optimization_barrier(x))


PART = 128  # images per part of a kernel gradient
HALVING = ((4, 4), (2, 2), ((1, 1), (1, 1)))  # kernel, stride and padding that halve an image


def conv(x: Array, kernel: Array, strides: Any, padding: Any, **options: Any) -> Array:
    """Compute `lax.conv_general_dilated`, with gradients that are fast on a CPU."""
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    halves = even and (kernel.shape[:2], tuple(strides), tuple(padding)) == HALVING

    def plain(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def backward(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        x, kernel = residuals
        if halves:  # oneDNN does not take the convolution that JAX derives
            dx = transposed_conv(dy, kernel.swapaxes(2, 3))
        else:
            dx = jax.vjp(lambda x: plain(x, kernel), x)[1](dy)[0]
        return dx, kernel_gradient(plain, x, kernel, dy)

    if len(x) <= PART and not halves:
        return plain(x, kernel)
    with_gradients = jax.custom_vjp(plain)
    with_gradients.defvjp(lambda x, kernel: (plain(x, kernel), (x, kernel)), backward)
    return with_gradients(x, kernel)


def kernel_gradient(
    convolve: Callable[[Array, Array], Array], x: Array, kernel: Array, dy: Array
) -> Array:
    """Return the gradient of `convolve`(x, kernel) by the kernel; on a CPU, sum it over parts.

    A CPU goes through all images for every entry of the gradient, and its caches do not hold 512:
    without parts, a step of the DDPM with so many takes 1.25 times as long.
    """

    def whole(x: Array, dy: Array) -> Array:
        return jax.vjp(functools.partial(convolve, x), kernel)[1](dy)[0]

    def in_parts(x: Array, dy: Array) -> Array:
        starts = range(0, len(x), PART)
        parts = [whole(x[i : i + PART], dy[i : i + PART]) for i in starts]
        return functools.reduce(jnp.add, parts)

    if len(x) <= PART:
        return whole(x, dy)
    return lax.platform_dependent(x, dy, cpu=in_parts, default=whole)


class Conv(nn.Conv):
    """`flax.linen.Conv` that adds its bias in float32, by `conv`."""

    dtype: DTypeLike = jnp.float32
    conv_general_dilated_cls: Any = lambda: conv
    promote_dtype: Any = cast_all_but_bias  # flax's type for it does not fit flax's calls

    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to [B, H', W', features] of `dtype`."""
        return super().__call__(x).astype(self.dtype)


class Dense(nn.Dense):
    """`flax.linen.Dense` that adds its bias in float32.

    It joins all leading axes: XLA:CPU takes up to twice as long for the kernel gradient of a
    product with several.
    """

    dtype: DTypeLike = jnp.float32
    promote_dtype: Any = cast_all_but_bias  # flax's type for it does not fit flax's calls

    def __call__(self, x: Array) -> Array:
        """Map x [..., C] to [..., features] of `dtype`."""
        y = super().__call__(x.reshape(-1, x.shape[-1])).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


LAYOUT = ("NHWC", "HWIO", "NHWC")


def strided_conv(y: Array, kernel: Array) -> Array:
    """Convolve y [B, 2H, 2W, F] by kernel [4, 4, C, F], stride 2, padding 1 -> [B, H, W, C]."""
    kernel = kernel.swapaxes(2, 3)
    return lax.conv_general_dilated(y, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


@jax.custom_vjp
def transposed_conv(x: Array, kernel: Array) -> Array:
    """Apply the transpose of `strided_conv`: x [B, H, W, C] -> [B, 2H, 2W, F].

    Input pixel m adds x[m] kernel[i] to output row 2m - 1 + i, and likewise along columns.
    """
    return lax.platform_dependent(
        x, kernel, cpu=transposed_conv_by_product, default=transposed_conv_by_dilation
    )


def transposed_conv_by_dilation(x: Array, kernel: Array) -> Array:
    """Compute `transposed_conv` as a dilated convolution: cuDNN has a kernel for it."""
    kernel, border = kernel[::-1, ::-1], ((2, 2), (2, 2))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), border, lhs_dilation=(2, 2), dimension_numbers=LAYOUT
    )


def transposed_conv_by_product(x: Array, kernel: Array) -> Array:
    """Compute `transposed_conv` as one matrix product.

    With i = 2k + p, the four 2×2 blocks of taps (k, n) are added one pixel apart, and then pixels
    (p, q) are taken out of the channels. XLA:CPU takes up to three times as long otherwise. The
    barrier keeps it from adding the taps again in each reader: BatchNorm has several.
    """
    c, f = kernel.shape[2:]
    taps = kernel.reshape(2, 2, 2, 2, c, f).transpose(4, 0, 2, 1, 3, 5).reshape(c, 16 * f)
    y = (x @ taps).reshape(*x.shape[:3], 2, 2, 4 * f)
    shifted = [
        jnp.pad(y[:, :, :, k, n], ((0, 0), (k, 1 - k), (n, 1 - n), (0, 0)))
        for k in (0, 1)
        for n in (0, 1)
    ]
    y = depth_to_space(functools.reduce(jnp.add, shifted), 2)[:, 1:-1, 1:-1]
    return lax.optimization_barrier(y)


def transposed_conv_backward(residuals: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
    """Return the gradients by x and kernel: those of `strided_conv` with x and y exchanged.

    JAX would derive equal ones from the dilated convolution, but XLA:CPU takes 50 times longer for
    that kernel gradient.
    """
    x, kernel = residuals
    return strided_conv(y, kernel), kernel_gradient(strided_conv, y, kernel, x)


transposed_conv.defvjp(
    lambda x, kernel: (transposed_conv(x, kernel), (x, kernel)), transposed_conv_backward
)


class ConvTranspose(nn.Module):
    """Transposed convolution, 4×4, stride 2, padding 1.

    Equal to `torch.nn.ConvTranspose2d(C, features, 4, 2, 1)`, kernel[i, j] = weight[:, :, i, j].
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    bias_init: Callable[..., Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to [B, 2H, 2W, features] of `dtype`."""
        f = self.features
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], f))
        y = transposed_conv(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (f,))
        return y.astype(self.dtype)
