"""The U-Net of the course in which the study was made, to separate its effect on the results.

LayerNorm over whole images, no residual, three levels of ten to forty channels: 28×28 to 3×3.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from bloodjax.nets.layers import Conv, ConvTranspose, Dense, silu
from bloodjax.options import PositiveInt

EMBEDDING = 100  # dimensions of the embedded time


def time_embedding(t: Array) -> Array:
    """Return fixed sinusoids of t float [B] >= 1, float [B, 100].

    The rates fall to 1e-8, where the embedding of Vaswani et al. (2017) ends at 1e-4: half of the
    sinusoids are too slow to distinguish any two times.
    """
    angles = (t - 1)[:, None] * 1e4 ** (-4 * jnp.arange(EMBEDDING // 2) / EMBEDDING)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def uniform(fan_in: int) -> nn.initializers.Initializer:
    """Return U(-1, 1) / √fan_in, PyTorch's default for kernels and biases."""
    return partial(random.uniform, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)


class Block(nn.Module):
    """LayerNorm over [H, W, C], with a gain and bias for each element, then 3×3 and SiLU twice.

    Without `norm` the block still has the parameters of the LayerNorm, as in the course.
    """

    width: int
    norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to [B, H, W, width]."""
        axes = (-3, -2, -1)
        norm = nn.LayerNorm(1e-5, self.dtype, reduction_axes=axes, feature_axes=axes)(x)
        x = norm if self.norm else x
        for _ in range(2):
            init = uniform(9 * x.shape[-1])
            conv = Conv(self.width, (3, 3), dtype=self.dtype, kernel_init=init, bias_init=init)
            x = silu(conv(x))
        return x


class Stage(nn.Module):
    """A shift of each channel by the time, then blocks.

    Attributes:
        widths: channels after each block.
        last_norm: the last block uses its norm.
        dtype: of activations.
    """

    widths: tuple[int, ...]
    last_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        """Map x [B, H, W, C], time [B, 100] to [B, H, W, widths[-1]]."""
        channels = x.shape[-1]

        def dense(fan_in: int) -> Dense:
            init = uniform(fan_in)
            return Dense(channels, dtype=self.dtype, kernel_init=init, bias_init=init)

        shift = silu(dense(EMBEDDING)(time))
        shift = dense(channels)(shift)  # a statement of its own: flax names layers in this order
        # In float32, as a bias: its gradient is a sum over all pixels.
        x = (x + shift.astype(jnp.float32)[:, None, None]).astype(self.dtype)
        for width in self.widths[:-1]:
            x = Block(width, dtype=self.dtype)(x)
        return Block(self.widths[-1], self.last_norm, self.dtype)(x)


class CourseUNet(nn.Module):
    """Output of the shape of x, for the images that `make` accepts.

    Attributes:
        widths: channels per resolution, from the finest; each resolution is half the one before.
        blocks: per resolution, on the way down and on the way up.
        dtype: of activations; the output is float32.
    """

    widths: tuple[int, ...] = (10, 20, 40)
    blocks: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """Map x float [B, H, W, C], t float [B] >= 1 to float32 [B, H, W, C]."""
        time, channels, rest = time_embedding(t), x.shape[-1], self.blocks - 1
        *finer, lowest = self.widths
        stage = partial(Stage, dtype=self.dtype)

        def conv(x: Array, width: int, size: int, stride: int = 1, padding: int = 1) -> Array:
            init = uniform(size**2 * x.shape[-1])
            layer = partial(Conv, width, (size, size), stride, padding, dtype=self.dtype)
            return layer(kernel_init=init, bias_init=init)(x)

        def up(x: Array) -> Array:
            width, init = x.shape[-1], uniform(16 * x.shape[-1])
            return ConvTranspose(width, kernel_init=init, dtype=self.dtype, bias_init=init)(x)

        # Down
        skips = []
        for width in self.widths:
            x = conv(x, x.shape[-1], 4, stride=2) if skips else x
            x = stage((width,) * self.blocks)(x, time)
            skips.append(x)

        # The lowest resolution, from odd sides by way of even ones: 7 to 6 to 3, and back. The
        # course's transposed convolution of stride 1 is here a padded one of the flipped kernel.
        x = conv(silu(conv(x, lowest, 2, padding=0)), lowest, 4, stride=2)
        x = stage(((finer or self.widths)[-1],) * rest + (lowest,))(x, time)
        x = conv(silu(up(x)), lowest, 2)

        # Up
        for width, narrow in zip(reversed(self.widths), [*reversed(finer), None], strict=True):
            x = jnp.concatenate([skips.pop(), x], axis=-1)
            x = stage((width,) + (narrow or width,) * rest, last_norm=bool(narrow))(x, time)
            x = up(x) if narrow else x
        return conv(x, channels, 3).astype(jnp.float32)


def make(
    *,
    shape: tuple[int, int, int],
    widths: tuple[PositiveInt, ...],
    blocks: PositiveInt,
    patch: Literal[1] = 1,
    dtype: str = "float32",
    classes: Literal[0] = 0,
) -> CourseUNet:
    """Return the course's U-Net; see `CourseUNet` for the hyper-parameters.

    Raises:
        ValueError: the widths are empty, or do not fit the sides of the images.
    """
    if not widths:
        raise ValueError("method.widths=(): expected at least one width")
    multiple = 2 ** (len(widths) - 1)
    if any(side % (2 * multiple) != multiple or side == multiple for side in shape[:2]):
        raise ValueError(
            f"images of {shape[0]}×{shape[1]}: expected sides of {multiple} × 3, 5, 7, ... for "
            f"method.net='course_unet' with {len(widths)} widths; method.net='unet' takes any sides"
        )
    return CourseUNet(widths, blocks, jnp.dtype(dtype))
