"""The U-Net of the course that the study was made in: what of the study's result is the network's.

LayerNorm over whole images, no residual, three levels of ten to forty channels: 28×28 to 3×3.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, random
from jax.typing import DTypeLike

from bloodjax.nets.layers import Conv, ConvTranspose, Dense

TIME = 100  # dimensions of the embedded time


def check(shape: tuple[int, int, int], widths: Sequence[int], blocks: int, patch: int) -> None:
    """Refuse images and hyper-parameters that the network is not made for: ValueError."""
    if not widths or min(widths) < 1 or blocks < 1:
        raise ValueError(f"method.widths={widths}, method.blocks={blocks}: expected at least 1")
    if patch != 1:
        raise ValueError(f"method.patch={patch}: expected 1, method.net='course' folds nothing")
    multiple = 2 ** (len(widths) - 1)
    if any(side % (2 * multiple) != multiple or side == multiple for side in shape[:2]):
        raise ValueError(
            f"images of {shape[0]}×{shape[1]}: method.net='course' with {len(widths)} widths takes "
            f"sides of {multiple} × 3, 5, 7, ...; method.net=residual takes any"
        )


def sinusoids(t: Array) -> Array:
    """Fixed sinusoids of t [B], from 1 on -> [B, 100].

    The rates fall to 1e-8, where the embedding of Vaswani et al. (2017) ends at 1e-4: half of them
    are so slow that they tell no time from another.
    """
    angles = (t - 1)[:, None] * 1e4 ** (-4 * jnp.arange(TIME // 2) / TIME)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def uniform(fan_in: int) -> dict[str, nn.initializers.Initializer]:
    """How PyTorch's layers begin unless told otherwise, kernel and bias: U(-1, 1) / √fan_in."""
    init = partial(random.uniform, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)
    return {"kernel_init": init, "bias_init": init}


class Block(nn.Module):
    """LayerNorm over [H, W, C], each element with its own gain and bias, then 3×3 and SiLU twice.

    A block that does not use its `norm` has one all the same, as in the course: the parameters are
    counted, and stay as they are.
    """

    width: int
    norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = (-3, -2, -1)
        norm = nn.LayerNorm(1e-5, self.dtype, reduction_axes=axes, feature_axes=axes)(x)
        x = norm if self.norm else x
        for _ in range(2):
            init = uniform(9 * x.shape[-1])
            x = nn.silu(Conv(self.width, (3, 3), dtype=self.dtype, **init)(x))
        return x


class Stage(nn.Module):
    """Blocks of these `widths`, after a shift of each channel by the time.

    Attributes:
        widths: channels after each block.
        last_norm: whether the last block uses its norm.
        dtype: of activations.
    """

    widths: Sequence[int]
    last_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        dense = partial(Dense, x.shape[-1], dtype=self.dtype)
        shift = nn.silu(dense(**uniform(TIME))(time))
        shift = dense(**uniform(x.shape[-1]))(shift)
        # In float32, as a bias: its gradient is a sum over all pixels.
        x = (x + shift.astype(jnp.float32)[:, None, None]).astype(self.dtype)
        for width in self.widths[:-1]:
            x = Block(width, dtype=self.dtype)(x)
        return Block(self.widths[-1], self.last_norm, self.dtype)(x)


class CourseUNet(nn.Module):
    """ε(x, t) for images that `check` accepts.

    Attributes:
        widths: channels per resolution, from the finest, each half the size of the one before.
        blocks: per resolution, on the way down and on the way up.
        dtype: of activations; the output is float32.
    """

    widths: Sequence[int] = (10, 20, 40)
    blocks: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """X float [B, H, W, C], t float [B] from 1 on -> float [B, H, W, C]."""
        time, channels, more = sinusoids(t), x.shape[-1], self.blocks - 1
        *finer, lowest = self.widths
        stage = partial(Stage, dtype=self.dtype)

        def conv(x: Array, width: int, size: int, stride: int = 1, padding: int = 1) -> Array:
            init = uniform(size**2 * x.shape[-1])
            return Conv(width, (size, size), stride, padding, dtype=self.dtype, **init)(x)

        def up(x: Array) -> Array:
            width = x.shape[-1]
            return ConvTranspose(width, dtype=self.dtype, **uniform(16 * width))(x)

        skips = []
        for width in self.widths:
            x = conv(x, x.shape[-1], 4, stride=2) if skips else x
            x = stage([width] * self.blocks)(x, time)
            skips.append(x)
        # Down from odd sides, by way of even ones: 7 to 6 to 3, and back. What is a transposed
        # convolution of stride 1 in the course is here a padded one, of the kernel turned round.
        x = conv(nn.silu(conv(x, lowest, 2, padding=0)), lowest, 4, stride=2)
        x = stage([(finer or self.widths)[-1]] * more + [lowest])(x, time)
        x = conv(nn.silu(up(x)), lowest, 2)
        for width, narrow in zip(reversed(self.widths), [*reversed(finer), None], strict=True):
            x = jnp.concatenate([skips.pop(), x], axis=-1)
            x = stage([width] + [narrow or width] * more, last_norm=bool(narrow))(x, time)
            x = up(x) if narrow else x
        return conv(x, channels, 3).astype(jnp.float32)
