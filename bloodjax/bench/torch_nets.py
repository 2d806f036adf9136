"""The networks of `bloodjax.nets` in PyTorch, NCHW: the same maths, in PyTorch's idiom.

Runs where there is no JAX. Layers of a kind are registered in the order in which flax calls them,
from which `torch_weights` derives JAX's names.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU
EPSILON = 1e-6  # of GroupNorm, as in flax; torch's own is 1e-5

Shape = tuple[int, int, int]  # (H, W, C) of the images


def depth(height: int, width: int) -> int:
    """Return how often an image is halved until its longer side is at most 4."""
    return max(math.ceil(math.log2(max(height, width) / 4)), 1)


def folded(layer: nn.Module, inputs: int = 1, outputs: int = 1) -> nn.Module:
    """Return `layer`, with the number of pixels that each channel comes from or becomes.

    Torch's flattened and unshuffled channels are ordered (channel, pixel), JAX's (pixel, channel).
    """
    layer.folds = (inputs, outputs)
    return layer


# ---- encoder and decoder: the DCGAN's players and the halves of the VAE ------------------------


def activation(channels: int, pixels: int, norm: bool) -> list[nn.Module]:
    """Return [BatchNorm,] LeakyReLU; BatchNorm keeps the number of pixels that it averages over."""
    layers: list[nn.Module] = [nn.LeakyReLU(SLOPE, inplace=True)]
    if norm:
        layers.insert(0, nn.BatchNorm2d(channels))
        layers[0].pixels = pixels
    return layers


class Encoder(nn.Sequential):
    """Image [B, C, H, W] -> [B, outputs]; see `bloodjax.nets.conv.Encoder`."""

    def __init__(self, shape: Shape, outputs: int, width: int, norm: bool) -> None:
        rows, columns, into = shape
        layers: list[nn.Module] = []
        for level in range(depth(rows, columns)):
            if rows % 2 or columns % 2:
                layers.append(nn.ZeroPad2d((0, columns % 2, 0, rows % 2)))
            rows, columns = -(-rows // 2), -(-columns // 2)
            out, normed = width * 2**level, norm and level > 0
            layers.append(nn.Conv2d(into, out, 4, 2, 1, bias=not normed))
            layers += activation(out, rows * columns, normed)
            into = out
        dense = nn.Linear(into * rows * columns, outputs)
        super().__init__(*layers, nn.Flatten(), folded(dense, inputs=rows * columns))


class Crop(nn.Module):
    """The middle of an image."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """Return the middle of x [B, C, H, W]."""
        row, column = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        return x[:, :, row : row + self.height, column : column + self.width]


class Decoder(nn.Sequential):
    """Latent [B, Z] -> image in [-1, 1] [B, C, H, W]; see `bloodjax.nets.conv.Decoder`."""

    def __init__(self, shape: Shape, latent: int, width: int, norm: bool) -> None:
        height, wide, channels = shape
        levels = depth(height, wide)
        rows, columns = -(-height // 2**levels), -(-wide // 2**levels)
        into = width * 2 ** (levels - 1)
        dense = nn.Linear(latent, into * rows * columns, bias=not norm)
        layers = [folded(dense, outputs=rows * columns), nn.Unflatten(1, (into, rows, columns))]
        layers += activation(into, rows * columns, norm)
        for _ in range(levels - 1):
            rows, columns, out = 2 * rows, 2 * columns, into // 2
            layers.append(nn.ConvTranspose2d(into, out, 4, 2, 1, bias=not norm))
            layers += activation(out, rows * columns, norm)
            into = out
        super().__init__(
            *layers, nn.ConvTranspose2d(into, channels, 4, 2, 1), Crop(height, wide), nn.Tanh()
        )


# ---- U-Net ---------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """A residual block, modulated by time; see `bloodjax.nets.unet.ResBlock`."""

    def __init__(self, into: int, width: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, into, EPSILON)
        self.conv1 = nn.Conv2d(into, width, 3, padding=1)
        self.modulate = nn.Linear(time, 2 * width)
        self.norm2 = nn.GroupNorm(8, width, EPSILON)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(into, width, 1) if into != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return x + f(x, time), [B, width, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(time)[:, :, None, None].chunk(2, dim=1)
        y = self.conv2(F.silu(torch.addcmul(shift, self.norm2(y), 1 + scale)))
        return y + self.skip(x)


class Attention(nn.Module):
    """Self-attention over all pixels, one head per 64 channels, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.norm = nn.GroupNorm(8, channels, EPSILON)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + attention(x), [B, C, H, W]."""
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        y = self.out(y.transpose(1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).view(b, c, h, w)


class Stage(nn.Module):
    """A residual block, followed by attention if asked for."""

    def __init__(self, into: int, width: int, time: int, attend: bool = False) -> None:
        super().__init__()
        self.block = ResBlock(into, width, time)
        self.attention = Attention(width) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the features [B, width, H, W]."""
        return self.attention(self.block(x, time))


class UNet(nn.Module):
    """ε(x [B, C, H, W], t float [B]); see `bloodjax.nets.unet.UNet`."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, patch: int) -> None:
        super().__init__()
        time, last = 4 * widths[0], len(widths) - 1
        self.patch, self.multiple = patch, patch * 2**last
        rates = torch.exp(-math.log(1e4) * torch.arange(widths[0]) / (widths[0] - 1))
        self.register_buffer("rates", rates, persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(2 * widths[0], time), nn.SiLU(), nn.Linear(time, time), nn.SiLU()
        )
        stem = nn.Conv2d(patch**2 * channels, widths[0], 3, padding=1)
        self.stem = folded(stem, inputs=patch**2)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        into, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            if level:
                # XLA's SAME pads even sizes at a stride of 2 on the right and below only.
                self.shrink.append(
                    nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(into, width, 3, 2))
                )
                into = width
                skips.append(width)
            self.down.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[-1].append(Stage(into, width, time, level == last))
                into = width
                skips.append(width)
        self.middle = Stage(into, into, time)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            if level < last:
                self.grow.append(
                    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(into, width, 3, padding=1))
                )
                into = width
            self.up.append(nn.ModuleList())
            for _ in range(blocks + 1):
                self.up[-1].append(Stage(into + skips.pop(), width, time, level == last))
                into = width
        self.norm = nn.GroupNorm(8, into, EPSILON)
        out = nn.Conv2d(into, patch**2 * channels, 3, padding=1)
        self.out = folded(out, outputs=patch**2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ε, of the shape of x."""
        height, width = x.shape[2:]
        if height % self.multiple or width % self.multiple:
            x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        angles = t[:, None] * self.rates
        time = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))

        y = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = [y]
        for level, stages in enumerate(self.down):
            if level:
                y = self.shrink[level - 1](y)
                skips.append(y)
            for stage in stages:
                y = stage(y, time)
                skips.append(y)
        y = self.middle(y, time)
        for level, stages in enumerate(self.up):
            y = self.grow[level - 1](y) if level else y
            for stage in stages:
                y = stage(torch.cat([y, skips.pop()], dim=1), time)
        y = self.out(F.silu(self.norm(y)))
        return F.pixel_shuffle(y, self.patch)[:, :, :height, :width]
