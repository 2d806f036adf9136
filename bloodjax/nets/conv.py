"""Strided convolutional encoder and decoder: the DCGAN's players and the two halves of the VAE."""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bloodjax.nets.layers import Conv, ConvTranspose, Dense

SLOPE = 0.2  # of LeakyReLU: Radford et al. (2016), section 3


def depth(height: int, width: int) -> int:
    """Return how many halvings bring the longer side to at most 4: 28 -> 3, 64 -> 4."""
    return max(math.ceil(math.log2(max(height, width) / 4)), 1)


def kernel_init(norm: bool) -> nn.initializers.Initializer:
    """Return N(0, 0.02²), as in the DCGAN, where BatchNorm sets the scale; else He's."""
    return nn.initializers.normal(0.02) if norm else nn.initializers.he_normal()


class Encoder(nn.Module):
    """Image [B, H, W, C] -> [B, outputs]: 4×4 convolutions of stride 2 down to at most 4×4.

    Attributes:
        outputs: numbers per image.
        width: channels after the first convolution; they double with each further one.
        norm: BatchNorm after every convolution but the first.
        dtype: of activations; the output is float32.
    """

    outputs: int
    width: int
    norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map x float32 [B, H, W, C] to float32 [B, outputs].

        `train` selects the batch's statistics for BatchNorm instead of the moving ones.
        """
        conv = partial(Conv, kernel_init=kernel_init(self.norm), dtype=self.dtype)
        for level in range(depth(*x.shape[1:3])):
            # Pad odd sizes: the halves fit, and XLA:CPU is 10 times faster than at 7×7.
            x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
            norm = self.norm and level > 0
            width = self.width * 2**level
            x = conv(width, (4, 4), (2, 2), 1, use_bias=not norm)(x)
            if norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            x = nn.leaky_relu(x, SLOPE)
        init = nn.initializers.normal(0.02)
        x = Dense(self.outputs, kernel_init=init, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Latent [B, Z] -> image [B, H, W, C]: transposed convolutions up from at most 4×4.

    The last one makes the image itself, as in the DCGAN. Where it is too large (32×32 for 28×28),
    it is cropped on all sides.

    Attributes:
        shape: (H, W, C) of the images.
        width: channels at half the resolution; they double with each further halving.
        norm: BatchNorm after every layer but the last.
        dtype: of activations; the output is float32.
    """

    shape: tuple[int, int, int]
    width: int
    norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array, train: bool) -> Array:
        """Map z float32 [B, Z] to images float32 [B, H, W, C] in [-1, 1].

        `train` selects the batch's statistics for BatchNorm instead of the moving ones.
        """
        height, width, channels = self.shape
        init = kernel_init(self.norm)
        levels = depth(height, width)
        rows, columns = -(-height // 2**levels), -(-width // 2**levels)

        def activate(x: Array) -> Array:
            if self.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
            return nn.leaky_relu(x, SLOPE)

        first = self.width * 2 ** (levels - 1)
        dense = partial(Dense, use_bias=not self.norm, kernel_init=init, dtype=self.dtype)
        x = activate(dense(rows * columns * first)(z).reshape(-1, rows, columns, first))
        for level in reversed(range(levels - 1)):
            x = activate(ConvTranspose(self.width * 2**level, not self.norm, init, self.dtype)(x))
        init = nn.initializers.normal(0.02)
        x = ConvTranspose(channels, kernel_init=init, dtype=self.dtype)(x)
        # Cast before tanh: rounding to bfloat16 between 0.5 and 1 costs up to a quarter of a grey
        # level, rounding in front of tanh less than an eighth.
        x = nn.tanh(x.astype(jnp.float32))
        row, column = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
        return x[:, row : row + height, column : column + width]
