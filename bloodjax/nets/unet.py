"""A residual U-Net for diffusion: GroupNorm, time embedding, attention at the lowest resolution."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bloodjax.nets.layers import Conv, Dense, depth_to_space, space_to_depth, upsample


def time_embedding(t: Array, dims: int) -> Array:
    """Sinusoids of t [B] at `dims` / 2 geometric frequencies from 1 to 1e-4 -> [B, dims]."""
    rates = jnp.exp(-jnp.log(1e4) * jnp.arange(dims // 2) / (dims // 2 - 1))
    angles = t[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 twice around a shift and scale by the time; the last one starts at 0."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        norm = partial(nn.GroupNorm, num_groups=8, dtype=self.dtype)
        conv = partial(Conv, self.width, (3, 3), dtype=self.dtype)
        dense = partial(Dense, dtype=self.dtype)
        y = conv()(nn.silu(norm()(x)))
        # In float32, as biases: their gradients are sums over all pixels.
        both = dense(2 * self.width)(time).astype(jnp.float32)
        scale, shift = jnp.split(both[:, None, None], 2, axis=-1)
        y = nn.silu((norm()(y) * (1 + scale) + shift).astype(self.dtype))
        y = conv(kernel_init=nn.initializers.zeros)(y)
        return y + (x if x.shape[-1] == self.width else dense(self.width)(x))


class Attention(nn.Module):
    """Self-attention over all pixels, one head per 64 channels, residual, starting at 0."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = partial(nn.GroupNorm, num_groups=8, dtype=self.dtype)
        dense = partial(Dense, dtype=self.dtype)
        b, h, w, c = x.shape
        heads = max(c // 64, 1)
        y = dense(3 * c)(norm()(x)).reshape(b, h * w, 3, heads, c // heads)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        weight = nn.softmax(score * (c // heads) ** -0.5).astype(self.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(b, h, w, c)
        return x + dense(c, kernel_init=nn.initializers.zeros)(y)


class UNet(nn.Module):
    """ε(x, t) for images of any size and channel count.

    The image is folded into `patch` × `patch` blocks of channels first: convolutions over 14 × 14
    with 64 channels run nearer to the machine's peak than over 28 × 28 with 32.

    Attributes:
        widths: channels per resolution, from the finest, each half the size of the one before;
            multiples of 8, GroupNorm's groups.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        patch: size of the blocks that are folded into channels.
        dtype: of activations; the output is float32.
    """

    widths: Sequence[int] = (64, 128)
    blocks: int = 1
    patch: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """X float [B, H, W, C], t float [B] -> float [B, H, W, C]."""
        _, height, width, channels = x.shape
        multiple = self.patch * 2 ** (len(self.widths) - 1)
        x = jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))
        conv = partial(Conv, kernel_size=(3, 3), dtype=self.dtype)
        dense = partial(Dense, 4 * self.widths[0], dtype=self.dtype)
        block = partial(ResBlock, dtype=self.dtype)
        attention = partial(Attention, dtype=self.dtype)
        time = dense()(time_embedding(t, 2 * self.widths[0]))
        time = nn.silu(dense()(nn.silu(time)))

        y = conv(self.widths[0])(space_to_depth(x, self.patch))
        skips = [y]
        for level, features in enumerate(self.widths):
            lowest = level == len(self.widths) - 1
            for _ in range(self.blocks):
                y = block(features)(y, time)
                y = attention()(y) if lowest else y
                skips.append(y)
            if not lowest:
                y = conv(self.widths[level + 1], strides=(2, 2))(y)
                skips.append(y)
        y = block(self.widths[-1])(y, time)
        for level, features in reversed(list(enumerate(self.widths))):
            lowest = level == len(self.widths) - 1
            for _ in range(self.blocks + 1):
                y = block(features)(jnp.concatenate([y, skips.pop()], axis=-1), time)
                y = attention()(y) if lowest else y
            if level:
                y = conv(self.widths[level - 1])(upsample(y))
        y = nn.silu(nn.GroupNorm(num_groups=8, dtype=self.dtype)(y))
        y = conv(self.patch**2 * channels, kernel_init=nn.initializers.zeros)(y)
        return depth_to_space(y.astype(jnp.float32), self.patch)[:, :height, :width]
