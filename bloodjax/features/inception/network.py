"""InceptionV3 as FID uses it: the TensorFlow graph of 2015-12-05, after Szegedy et al. (2016).

It differs from torchvision's `inception_v3`: padding does not count in average pools, the last
block pools by maximum, BatchNorm (folded into the kernels here) has ε = 0.001, and there are 1008
classes. Layers are named as in pytorch-fid's weight file.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

TAPS = (64, 192, 768, 2048)
EXACT = lax.Precision.HIGHEST  # no TF32, no bfloat16: the same features on every backend
Params = Mapping[str, Array]


def forward(params: Params, x: Array) -> dict[str, Array]:
    """Compute the features of images at every tap.

    Args:
        params: "<layer>.kernel" [kh, kw, in, out] and "<layer>.bias" [out], see `weights.fold`.
        x: [N, 299, 299, 3], scaled by a protocol; float32, or float64 like the parameters.

    Returns:
        The means over positions, [N, 64] and so on: "64" of the first pooling's output, "192" of
        the second's, "768" of Mixed_6e's, "2048" of Mixed_7c's; and "logits", [N, 1008]. Under
        `jax.jit`, outputs that the caller does not use are not computed.
    """
    taps: dict[str, Array] = {}
    x = conv(params, "Conv2d_1a_3x3", x, 2, "VALID")
    x = conv(params, "Conv2d_2a_3x3", x, 1, "VALID")
    x = conv(params, "Conv2d_2b_3x3", x)
    x = max_pool(x, 2)
    taps["64"] = x.mean((1, 2))
    x = conv(params, "Conv2d_3b_1x1", x)
    x = conv(params, "Conv2d_4a_3x3", x, 1, "VALID")
    x = max_pool(x, 2)
    taps["192"] = x.mean((1, 2))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = mixed_5(within(params, name), x)
    x = mixed_6a(within(params, "Mixed_6a"), x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = mixed_6(within(params, name), x)
    taps["768"] = x.mean((1, 2))
    x = mixed_7a(within(params, "Mixed_7a"), x)
    x = mixed_7b(within(params, "Mixed_7b"), x)
    x = mixed_7c(within(params, "Mixed_7c"), x)
    taps["2048"] = x.mean((1, 2))
    logits = jnp.matmul(taps["2048"], params["fc.kernel"], precision=EXACT) + params["fc.bias"]
    return {**taps, "logits": logits}


def mixed_5(p: Params, x: Array) -> Array:
    """Map [N, 35, 35, 192 to 288] to [N, 35, 35, 256 or 288]."""
    single, five, double, pooled = heads(p, x, "branch1x1", "branch5x5_1", "branch3x3dbl_1")
    five = conv(p, "branch5x5_2", five)
    double = conv(p, "branch3x3dbl_3", conv(p, "branch3x3dbl_2", double))
    return jnp.concatenate([single, five, double, pooled], axis=-1)


def mixed_6a(p: Params, x: Array) -> Array:
    """Map [N, 35, 35, 288] to [N, 17, 17, 768]."""
    double = conv(p, "branch3x3dbl_2", conv(p, "branch3x3dbl_1", x))
    double = conv(p, "branch3x3dbl_3", double, 2, "VALID")
    three = conv(p, "branch3x3", x, 2, "VALID")
    return jnp.concatenate([three, double, max_pool(x, 2)], axis=-1)


def mixed_6(p: Params, x: Array) -> Array:
    """Map [N, 17, 17, 768] to the same shape."""
    single, seven, double, pooled = heads(p, x, "branch1x1", "branch7x7_1", "branch7x7dbl_1")
    seven = conv(p, "branch7x7_3", conv(p, "branch7x7_2", seven))
    for i in (2, 3, 4, 5):
        double = conv(p, f"branch7x7dbl_{i}", double)
    return jnp.concatenate([single, seven, double, pooled], axis=-1)


def mixed_7a(p: Params, x: Array) -> Array:
    """Map [N, 17, 17, 768] to [N, 8, 8, 1280]."""
    three, seven = map(jax.nn.relu, pointwise(p, x, "branch3x3_1", "branch7x7x3_1"))
    three = conv(p, "branch3x3_2", three, 2, "VALID")
    seven = conv(p, "branch7x7x3_3", conv(p, "branch7x7x3_2", seven))
    seven = conv(p, "branch7x7x3_4", seven, 2, "VALID")
    return jnp.concatenate([three, seven, max_pool(x, 2)], axis=-1)


def mixed_7b(p: Params, x: Array) -> Array:
    """Map [N, 8, 8, 1280] to [N, 8, 8, 2048]."""
    single, three, double, pooled = heads(p, x, "branch1x1", "branch3x3_1", "branch3x3dbl_1")
    return jnp.concatenate([single, *crosses(p, three, double), pooled], axis=-1)


def mixed_7c(p: Params, x: Array) -> Array:
    """Map [N, 8, 8, 2048] to the same shape; pools by maximum, as the graph of 2015."""
    names = "branch1x1", "branch3x3_1", "branch3x3dbl_1"
    single, three, double = map(jax.nn.relu, pointwise(p, x, *names))
    pooled = conv(p, "branch_pool", max_pool(x, 1))
    return jnp.concatenate([single, *crosses(p, three, double), pooled], axis=-1)


def crosses(p: Params, three: Array, double: Array) -> list[Array]:
    """Return the branches of Mixed_7b and 7c that end in a row and a column side by side."""
    double = conv(p, "branch3x3dbl_2", double)
    ends = (("branch3x3_2", three), ("branch3x3dbl_3", double))
    return [conv(p, name + end, x) for name, x in ends for end in "ab"]


# ---- layers ------------------------------------------------------------------------------------


def within(params: Params, block: str) -> Params:
    """Select the parameters of one block, under the names of its layers."""
    return {k.removeprefix(f"{block}."): v for k, v in params.items() if k.startswith(f"{block}.")}


def conv(p: Params, name: str, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
    """Apply convolution, bias and ReLU."""
    return jax.nn.relu(convolve(x, p[f"{name}.kernel"], stride, padding) + p[f"{name}.bias"])


def convolve(x: Array, kernel: Array, stride: int = 1, padding: str = "SAME") -> Array:
    """Convolve NHWC images with an HWIO kernel, in full float32."""
    order = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=order, precision=EXACT
    )


def pointwise(p: Params, x: Array, *names: str) -> list[Array]:
    """Apply the 1×1 convolutions `names` to one input as one, which reads x once; no ReLU."""
    kernels, biases = ([p[f"{name}.{kind}"] for name in names] for kind in ("kernel", "bias"))
    y = convolve(x, jnp.concatenate(kernels, axis=-1)) + jnp.concatenate(biases)
    widths = [len(b) for b in biases]
    return jnp.split(y, [sum(widths[:i]) for i in range(1, len(widths))], axis=-1)


def heads(p: Params, x: Array, *names: str) -> list[Array]:
    """Return the first layers of most blocks: 1×1 convolutions, the last one after a 3×3 average.

    The average follows its convolution, with which it commutes: it has fewer channels there.
    """
    *branches, pooled = pointwise(p, x, *names, "branch_pool")
    return [*map(jax.nn.relu, branches), jax.nn.relu(average_pool(pooled))]


def max_pool(x: Array, stride: int) -> Array:
    """Return the maximum of 3×3 pixels: stride 1 within borders of -inf, stride 2 without."""
    return pool(x, jnp.maximum, stride, -jnp.inf)


def average_pool(x: Array) -> Array:
    """Average 3×3 pixels; at the border, those inside the image."""
    counts = pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), jnp.add, 1, 0.0)
    return pool(x, jnp.add, 1, 0.0) / counts


def pool(x: Array, merge: Callable[[Array, Array], Array], stride: int, border: float) -> Array:
    """Pool 3×3 pixels, rows and then columns, by shifted slices.

    XLA:CPU fuses those; `lax.reduce_window` takes five times as long there.
    """
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
    for axis in (1, 2):
        size = (x.shape[axis] - 3) // stride * stride + 1
        a, b, c = (lax.slice_in_dim(x, i, i + size, stride, axis) for i in range(3))
        x = merge(merge(a, b), c)
    return x
