"""A residual U-Net for diffusion: GroupNorm, time embedding, attention at the lowest resolution."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from bloodjax.nets.layers import depth_to_space, space_to_depth, upsample


def time_embedding(t: Array, dims: int) -> Array:
    """Sinusoids of t [B] at `dims` / 2 geometric frequencies from 1 to 1e-4 -> [B, dims]."""
    rates = jnp.exp(-jnp.log(1e4) * jnp.arange(dims // 2) / (dims // 2 - 1))
    angles = t[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3×3 twice around a shift and scale by the time; the last one starts at 0."""

    width: int

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        y = nn.silu(nn.GroupNorm(num_groups=8)(x))
        y = nn.Conv(self.width, (3, 3))(y)
        scale, shift = jnp.split(nn.Dense(2 * self.width)(time)[:, None, None], 2, axis=-1)
        y = nn.silu(nn.GroupNorm(num_groups=8)(y) * (1 + scale) + shift)
        y = nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.zeros)(y)
        return y + (x if x.shape[-1] == self.width else nn.Dense(self.width)(x))


class Attention(nn.Module):
    """Self-attention over all pixels, one head per 64 channels, residual, starting at 0."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        heads = max(c // 64, 1)
        y = nn.Dense(3 * c)(nn.GroupNorm(num_groups=8)(x)).reshape(b, h * w, 3, heads, c // heads)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        weight = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * (c // heads) ** -0.5)
        y = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(b, h, w, c)
        return x + nn.Dense(c, kernel_init=nn.initializers.zeros)(y)


class UNet(nn.Module):
    """ε(x, t) for images of any size and channel count.

    The image is folded into `patch` × `patch` blocks of channels first: convolutions over 14 × 14
    with 64 channels run nearer to the machine's peak than over 28 × 28 with 32.

    Attributes:
        widths: channels per resolution, from the finest, each half the size of the one before;
            multiples of 8, GroupNorm's groups.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        patch: size of the blocks that are folded into channels.
    """

    widths: Sequence[int] = (64, 128)
    blocks: int = 1
    patch: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """x float [B, H, W, C], t float [B] -> float [B, H, W, C]."""
        _, height, width, channels = x.shape
        multiple = self.patch * 2 ** (len(self.widths) - 1)
        x = jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))
        time = nn.Dense(4 * self.widths[0])(time_embedding(t, 2 * self.widths[0]))
        time = nn.silu(nn.Dense(4 * self.widths[0])(nn.silu(time)))

        y = nn.Conv(self.widths[0], (3, 3))(space_to_depth(x, self.patch))
        skips = [y]
        for level, features in enumerate(self.widths):
            lowest = level == len(self.widths) - 1
            for _ in range(self.blocks):
                y = ResBlock(features)(y, time)
                y = Attention()(y) if lowest else y
                skips.append(y)
            if not lowest:
                y = nn.Conv(self.widths[level + 1], (3, 3), (2, 2))(y)
                skips.append(y)
        y = ResBlock(self.widths[-1])(y, time)
        for level, features in reversed(list(enumerate(self.widths))):
            lowest = level == len(self.widths) - 1
            for _ in range(self.blocks + 1):
                y = ResBlock(features)(jnp.concatenate([y, skips.pop()], axis=-1), time)
                y = Attention()(y) if lowest else y
            if level:
                y = nn.Conv(self.widths[level - 1], (3, 3))(upsample(y))
        y = nn.silu(nn.GroupNorm(num_groups=8)(y))
        y = nn.Conv(self.patch**2 * channels, (3, 3), kernel_init=nn.initializers.zeros)(y)
        return depth_to_space(y, self.patch)[:, :height, :width]
