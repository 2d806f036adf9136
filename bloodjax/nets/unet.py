"""A residual U-Net for diffusion: GroupNorm, time embedding, attention at the lowest resolution."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bloodjax.nets.layers import Conv, Dense, depth_to_space, silu, space_to_depth, upsample
from bloodjax.options import Count, PositiveInt, UnitInterval

GROUPS = 8  # of GroupNorm


def time_embedding(t: Array, dims: int) -> Array:
    """Return sines and cosines of t [B] at geometric rates from 1 to 1e-4, [B, dims]."""
    rates = jnp.exp(-jnp.log(1e4) * jnp.arange(dims // 2) / (dims // 2 - 1))
    angles = t[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResBlock(nn.Module):
    """Twice GroupNorm, SiLU and 3×3, with a shift and scale by the time; starts as the identity.

    Attributes:
        width: channels of the output.
        dtype: of activations.
        dropout: rate before the second convolution; active where `apply` gets a key "dropout".
    """

    width: int
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, time: Array) -> Array:
        """Map x [B, H, W, C], time [B, T] to [B, H, W, width]."""
        norm = partial(nn.GroupNorm, num_groups=GROUPS, dtype=self.dtype)
        conv = partial(Conv, self.width, (3, 3), dtype=self.dtype)
        dense = partial(Dense, dtype=self.dtype)
        y = conv()(nn.silu(norm()(x)))
        # In float32, as biases: their gradients are sums over all pixels.
        both = dense(2 * self.width)(time).astype(jnp.float32)
        scale, shift = jnp.split(both[:, None, None], 2, axis=-1)
        y = nn.silu((norm()(y) * (1 + scale) + shift).astype(self.dtype))
        y = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(y)
        y = conv(kernel_init=nn.initializers.zeros)(y)
        return y + (x if x.shape[-1] == self.width else dense(self.width)(x))


class Attention(nn.Module):
    """Residual self-attention over all pixels, one head per 64 channels; starts as the identity."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map x [B, H, W, C] to [B, H, W, C]."""
        norm = partial(nn.GroupNorm, num_groups=GROUPS, dtype=self.dtype)
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
    """Output of the shape of x, for images of any size and channel count.

    `patch` × `patch` blocks of pixels are folded into channels first: convolutions over 14 × 14
    with 64 channels run nearer to the machine's peak than over 28 × 28 with 32.

    Attributes:
        widths: channels per resolution, from the finest; each resolution is half the one before.
            Multiples of 8, the number of GroupNorm's groups.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        patch: side of the blocks of pixels that are folded into channels.
        classes: number of classes; with 0 the network takes no labels.
        dropout: rate in each residual block, see `ResBlock`.
        dtype: of activations; the output is float32.
    """

    widths: tuple[int, ...] = (64, 128)
    blocks: int = 1
    patch: int = 2
    dtype: DTypeLike = jnp.float32
    classes: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None) -> Array:
        """Map x float [B, H, W, C], t float [B] and label int [B] to float32 [B, H, W, C].

        The label `classes` stands for an unknown class, and so does None.
        """
        conv = partial(Conv, kernel_size=(3, 3), dtype=self.dtype)
        dense = partial(Dense, 4 * self.widths[0], dtype=self.dtype)
        block = partial(ResBlock, dtype=self.dtype, dropout=self.dropout)
        attention = partial(Attention, dtype=self.dtype)
        _, height, width, channels = x.shape
        multiple = self.patch * 2 ** (len(self.widths) - 1)
        x = jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))

        # Time and class
        time = dense()(time_embedding(t, 2 * self.widths[0]))
        time = dense()(silu(time))
        if self.classes:
            label = jnp.full(len(x), self.classes) if label is None else label
            rows = nn.Embed(self.classes + 1, 4 * self.widths[0]).embedding.astype(self.dtype)
            # A product: the gradient of a lookup would collect the batch on every device.
            time += nn.one_hot(label, len(rows), dtype=self.dtype) @ rows
        time = silu(time)

        # Down
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

        # Up
        y = block(self.widths[-1])(y, time)
        for level, features in reversed(list(enumerate(self.widths))):
            lowest = level == len(self.widths) - 1
            for _ in range(self.blocks + 1):
                y = block(features)(jnp.concatenate([y, skips.pop()], axis=-1), time)
                y = attention()(y) if lowest else y
            if level:
                y = conv(self.widths[level - 1])(upsample(y))

        # Output
        y = nn.silu(nn.GroupNorm(num_groups=GROUPS, dtype=self.dtype)(y))
        y = conv(self.patch**2 * channels, kernel_init=nn.initializers.zeros)(y)
        return depth_to_space(y.astype(jnp.float32), self.patch)[:, :height, :width]


def make(
    *,
    shape: tuple[int, int, int],
    widths: tuple[PositiveInt, ...],
    blocks: PositiveInt,
    patch: PositiveInt,
    dtype: str = "float32",
    classes: Count = 0,
    dropout: UnitInterval = 0.0,
) -> UNet:
    """Return the U-Net for images of any `shape`; see `UNet` for the hyper-parameters.

    Raises:
        ValueError: GroupNorm cannot divide a width into groups.
    """
    if not widths or any(width % GROUPS for width in widths):
        raise ValueError(f"method.widths={widths}: expected multiples of {GROUPS}")
    return UNet(widths, blocks, patch, jnp.dtype(dtype), classes, dropout)
