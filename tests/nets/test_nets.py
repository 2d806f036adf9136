"""Layers and networks against loops, PyTorch and what their docstrings promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.nets import assert_near, jit, normal, random_variables, shapes

from bloodjax.nets import layers
from bloodjax.nets.conv import Decoder, Encoder
from bloodjax.nets.layers import ConvTranspose, depth_to_space, space_to_depth, upsample
from bloodjax.nets.unet import Attention, ResBlock, UNet, time_embedding

# ---- layers ----------------------------------------------------------------------------------


def scatter(x, w, bias, g):
    """The definition in loops: the output, and the gradients of sum(output * g) by x and w."""
    b, height, width, _ = x.shape
    y = np.zeros((b, 2 * height, 2 * width, w.shape[-1])) + bias
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for m, n, i, j in np.ndindex(height, width, 4, 4):
        row, column = 2 * m - 1 + i, 2 * n - 1 + j
        if 0 <= row < 2 * height and 0 <= column < 2 * width:
            y[:, row, column] += x[:, m, n] @ w[i, j]
            dx[:, m, n] += g[:, row, column] @ w[i, j].T
            dw[i, j] += x[:, m, n].T @ g[:, row, column]
    return y, dx, dw


def by_bloodjax(x, w, bias, g):
    """Output and gradients by x, kernel and bias of ConvTranspose, for the output gradient g."""

    @jit
    def run(x, params, g):
        forward = ConvTranspose(w.shape[-1]).apply
        y, vjp = jax.vjp(lambda x, params: forward({"params": params}, x), x, params)
        return y, *vjp(g)

    y, dx, grads = run(x, {"kernel": w, "bias": bias}, g)
    return y, dx, grads["kernel"], grads["bias"]


SIZES = [(4, 4, 3, 5), (1, 1, 2, 2), (3, 5, 1, 4), (6, 2, 7, 1)]  # H, W, C, features


def transposed(height, width, c, f):
    """x, kernel, bias and output gradient of a batch of two."""
    shape = (2, height, width, c), (4, 4, c, f), (f,), (2, 2 * height, 2 * width, f)
    return [normal(*s, seed=i) for i, s in enumerate(shape)]


@pytest.mark.parametrize("size", SIZES)
def test_conv_transpose_adds_each_pixel_times_the_kernel(size):
    x, w, bias, g = transposed(*size)
    y, dx, dw = scatter(*(np.float64(a) for a in (x, w, bias, g)))
    for actual, expected in zip(
        by_bloodjax(x, w, bias, g), (y, dx, dw, g.sum((0, 1, 2))), strict=True
    ):
        assert_near(actual, expected)


@pytest.mark.parametrize("size", SIZES)
def test_conv_transpose_is_that_of_torch(size):
    torch = pytest.importorskip("torch", reason="compares with torch.nn: PyTorch is not installed")
    x, w, bias, g = transposed(*size)
    there = torch.nn.ConvTranspose2d(size[2], size[3], 4, 2, 1)
    with torch.no_grad():
        there.weight.copy_(torch.from_numpy(w.transpose(2, 3, 0, 1).copy()))
        there.bias.copy_(torch.from_numpy(bias))
    x_there = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    y_there = there(x_there)
    y_there.backward(torch.from_numpy(g.transpose(0, 3, 1, 2).copy()))
    y, dx, dw, db = by_bloodjax(x, w, bias, g)
    assert_near(y.transpose(0, 3, 1, 2), y_there.detach().numpy())
    assert_near(dx.transpose(0, 3, 1, 2), x_there.grad.numpy())
    assert_near(dw.transpose(2, 3, 0, 1), there.weight.grad.numpy())
    assert_near(db, there.bias.grad.numpy())


@pytest.mark.parametrize("size", [(4, 4, 6, 5), (1, 3, 2, 3), (5, 2, 1, 1)])
def test_every_backend_s_form_of_the_transposed_convolution_is_the_same(size):
    height, width, c, f = size
    x = np.random.default_rng(0).normal(size=(2, height, width, c)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(4, 4, c, f)).astype(np.float32)
    by_product = layers.transposed_conv_by_product(x, kernel)
    np.testing.assert_allclose(layers.transposed_conv_by_dilation(x, kernel), by_product, atol=2e-5)
    # <strided_conv(y), x> = <y, transposed_conv(x)>: what a transpose is
    y = np.random.default_rng(2).normal(size=by_product.shape).astype(np.float32)
    inner = np.vdot(layers.strided_conv(y, kernel), x)
    assert np.vdot(y, by_product) == pytest.approx(inner, rel=1e-4, abs=1e-3)


CONVS = {  # strides, padding, shape of the kernel, size of an image
    "3x3": ((1, 1), "SAME", (3, 3, 2, 5), (6, 4)),
    "strided": ((2, 2), ((1, 1), (1, 1)), (4, 4, 2, 5), (6, 4)),
    "strided, odd height": ((2, 2), ((1, 1), (1, 1)), (4, 4, 2, 5), (7, 4)),
    "strided, odd width": ((2, 2), ((1, 1), (1, 1)), (4, 4, 2, 5), (6, 5)),
    "strided, no padding": ((2, 2), ((0, 0), (0, 0)), (4, 4, 2, 5), (6, 4)),
}


@pytest.mark.parametrize("part", [3, 128])
@pytest.mark.parametrize("name", CONVS)
def test_gradients_are_those_of_the_convolution(name, part, monkeypatch):
    """Seven images in parts of three, and at once; and so for two kernels at once."""
    monkeypatch.setattr(layers, "PART", part)
    strides, padding, shape, size = CONVS[name]
    options = {"dimension_numbers": layers.LAYOUT}
    x, kernels = normal(7, *size, 2), normal(2, *shape, seed=1)

    def run(function):
        def forward(x, kernel):
            return function(x, kernel, strides, padding, **options)

        y = jax.eval_shape(forward, x, kernels[0])
        g = normal(*y.shape, seed=2)
        return jit(jax.vmap(lambda k: (forward(x, k), *jax.vjp(forward, x, k)[1](g))))(kernels)

    for actual, expected in zip(run(layers.conv), run(jax.lax.conv_general_dilated), strict=True):
        assert_near(actual, expected)


def test_a_cpu_takes_kernel_gradients_of_128_images_at_once():
    x, layer = jax.ShapeDtypeStruct((300, 6, 6, 2), jnp.float32), layers.Conv(5, (3, 3))
    params = shapes(layer, jnp.zeros((1, 6, 6, 2)))[1]
    gradient = jax.jit(jax.grad(lambda params, x: layer.apply(params, x).sum()))
    for platform, images in {"cpu": {128, 44}, "cuda": {300}}.items():
        text = gradient.trace(params, x).lower(lowering_platforms=(platform,)).as_text()
        found = {
            int(batch)
            for line in text.splitlines()
            if "stablehlo.convolution" in line and "-> tensor<3x3x2x5xf32>" in line
            for batch in re.findall(r"\(tensor<(\d+)x6x6x2xf32>", line)
        }
        assert found == images, platform


@pytest.mark.parametrize("layer", [layers.Conv(5, (4, 4), (2, 2), 1), ConvTranspose(5)])
def test_a_cpu_takes_products_for_dilated_convolutions(layer):
    """oneDNN takes products, but no dilated convolution; cuDNN has kernels for the latter."""
    x = jax.ShapeDtypeStruct((4, 6, 6, 2), jnp.float32)
    params = shapes(layer, jnp.zeros((1, 6, 6, 2)))[1]
    both = jax.value_and_grad(lambda params, x: layer.apply(params, x).sum(), argnums=(0, 1))
    for platform, dilated in {"cpu": False, "cuda": True}.items():
        text = jax.jit(both).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
        assert ("lhs_dilate = [2, 2]" in text) == dilated, platform
        # The taps are added once, whatever reads them.
        assert ("optimization_barrier" in text) != dilated, platform


def test_conv_transpose_without_bias_has_none():
    y, variables = shapes(ConvTranspose(5, use_bias=False), jnp.zeros((2, 3, 4, 6)))
    assert y.shape == (2, 6, 8, 5)
    assert {name: x.shape for name, x in variables["params"].items()} == {"kernel": (4, 4, 6, 5)}


@pytest.mark.parametrize("block", [1, 2, 3])
def test_space_to_depth_puts_each_block_into_the_channels_of_a_pixel(block):
    x = normal(2, 6, 12, 5)
    y = np.asarray(space_to_depth(x, block))
    assert y.shape == (2, 6 // block, 12 // block, block**2 * 5)
    for m, n in np.ndindex(y.shape[1:3]):
        square = x[:, m * block : (m + 1) * block, n * block : (n + 1) * block]
        np.testing.assert_array_equal(y[:, m, n], square.reshape(2, -1))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_to_space_undoes_space_to_depth(block):
    x = normal(2, 6, 12, 5)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, block), block), x)


def test_upsample_repeats_every_pixel():
    x = normal(2, 3, 5, 4)
    np.testing.assert_array_equal(upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))


# ---- encoder and decoder ---------------------------------------------------------------------

IMAGES = [(h, w, c) for h, w in ((28, 28), (32, 32), (64, 64), (30, 26), (5, 9)) for c in (1, 3)]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", IMAGES)
def test_encoder_and_decoder_fit_the_image(shape, norm):
    y, encoder = shapes(Encoder(7, 2, norm), jnp.zeros((3, *shape)), True)
    assert y.shape == (3, 7) and y.dtype == jnp.float32
    x, decoder = shapes(Decoder(shape, 2, norm), jnp.zeros((3, 6)), True)
    assert x.shape == (3, *shape) and x.dtype == jnp.float32
    assert ("batch_stats" in encoder, "batch_stats" in decoder) == (norm and max(shape) > 8, norm)


@pytest.mark.parametrize("size, levels", [(8, 1), (9, 2), (16, 2), (28, 3), (32, 3), (64, 4)])
def test_networks_halve_down_to_at_most_4_and_double_the_channels(size, levels):
    params = shapes(Encoder(1, 3, False), jnp.zeros((1, size, size, 1)), True)[1]["params"]
    channels = [1] + [3 * 2**level for level in range(levels)]
    assert len(params) == levels + 1
    for i in range(levels):
        assert params[f"Conv_{i}"]["kernel"].shape == (4, 4, channels[i], channels[i + 1])
    rows = -(-size // 2**levels)
    assert 2 < rows <= 4 and params["Dense_0"]["kernel"].shape == (
        rows**2 * 3 * 2 ** (levels - 1),
        1,
    )
    params = shapes(Decoder((size, size, 1), 3, False), jnp.zeros((1, 6)), True)[1]["params"]
    assert len(params) == levels + 1
    assert params["Dense_0"]["kernel"].shape == (6, rows**2 * 3 * 2 ** (levels - 1))
    assert params[f"ConvTranspose_{levels - 1}"]["kernel"].shape == (4, 4, 3, 1)


def test_decoder_cuts_what_is_too_much_off_all_around():
    """28×28 is the middle of the 32×32 that the same weights make."""
    z = normal(2, 6)
    variables = random_variables(Decoder((32, 32, 1), 2, True), z, True)
    large, small = (
        jit(Decoder((n, n, 1), 2, True).apply, static_argnums=2)(variables, z, False)
        for n in (32, 28)
    )
    np.testing.assert_array_equal(small, large[:, 2:30, 2:30])


def test_decoder_stays_inside_the_image_range():
    z = 1000 * normal(4, 6)
    decoder = Decoder((8, 8, 3), 4, False)
    x = np.asarray(decoder.apply(random_variables(decoder, z, True), z, False))
    assert x.min() == -1 and x.max() == 1


def test_encoder_sees_every_pixel_of_an_odd_image():
    x = normal(1, 9, 11, 1)
    encoder = Encoder(1, 2, False)
    variables = random_variables(encoder, x, True)
    slope = jit(jax.grad(lambda x: encoder.apply(variables, x, True).sum()))(x)
    assert np.all(np.asarray(slope) != 0)


# ---- U-Net -----------------------------------------------------------------------------------

SMALL = UNet((8, 16), 1, 2)


@pytest.fixture(scope="module")
def random_unet():
    """(variables, apply) of SMALL for one channel, compiled."""
    variables = random_variables(SMALL, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
    return variables, jit(SMALL.apply)


@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28, 1), (30, 26, 3), (7, 9, 1)])
@pytest.mark.parametrize("net", [SMALL, UNet((8, 8, 16), 2, 1), UNet((16,), 1, 4)])
def test_unet_keeps_the_shape(net, shape):
    y, _ = shapes(net, jnp.zeros((2, *shape)), jnp.zeros(2))
    assert y.shape == (2, *shape) and y.dtype == jnp.float32


def test_unet_predicts_exactly_zero_at_first():
    x, t = normal(2, 8, 8, 3), jnp.array([1.0, 900.0])
    net = UNet((8,), 1, 2)
    y, variables = jit(net.init_with_output)(jax.random.key(0), x, t)
    np.testing.assert_array_equal(y, np.zeros_like(x))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(variables))


@pytest.mark.parametrize("block", [ResBlock(8), Attention()])
def test_residual_blocks_do_nothing_at_first(block):
    x, time = normal(2, 3, 4, 8), normal(2, 16)
    args = (x, time) if isinstance(block, ResBlock) else (x,)
    y, _ = jit(block.init_with_output)(jax.random.key(0), *args)
    np.testing.assert_array_equal(y, x)


def test_unet_fills_up_with_zeros_and_cuts_off_again(random_unet):
    variables, apply = random_unet
    x, t = normal(1, 10, 7, 1), jnp.array([5.0])
    padded = np.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)))
    expected = np.asarray(apply(variables, padded, t))[:, :10, :7]
    assert_near(apply(variables, x, t), expected)


def test_unet_depends_on_the_time(random_unet):
    variables, apply = random_unet
    x = normal(1, 8, 8, 1).repeat(3, axis=0)
    y = np.asarray(apply(variables, x, jnp.array([1.0, 2.0, 900.0])))
    assert np.abs(y[0] - y[1]).max() > 1e-3 < np.abs(y[1] - y[2]).max()


def test_unet_takes_each_image_and_time_by_itself(random_unet):
    variables, apply = random_unet
    x, t = normal(3, 8, 8, 1), jnp.array([1.0, 500.0, 1000.0])
    y = apply(variables, x, t)
    other = apply(variables, np.concatenate([x[:1], 50 * x[1:]]), t.at[1:].set(7.0))
    np.testing.assert_allclose(other[0], y[0], atol=1e-5)
    assert np.abs(other[1] - y[1]).max() > 0.1
    swapped = apply(variables, x[::-1], t[::-1])
    np.testing.assert_allclose(swapped[::-1], y, atol=1e-5)


def test_unet_takes_none_for_the_unknown_class_and_tells_classes_apart():
    net = UNet((8,), 1, 2, classes=3)
    x, t = normal(1, 8, 8, 1).repeat(4, axis=0), jnp.full(4, 5.0)
    variables = random_variables(net, x, t)
    apply = jit(net.apply)
    y = np.asarray(apply(variables, x, t, jnp.arange(4)))
    np.testing.assert_allclose(apply(variables, x, t), np.repeat(y[3:], 4, axis=0), atol=1e-5)
    distances = np.abs(y[:, None] - y[None]).max(axis=(2, 3, 4))
    assert np.all(distances[~np.eye(4, dtype=bool)] > 1e-3)


def test_unet_drops_activations_only_where_it_gets_a_key():
    plain, net = UNet((8,), 1, 2), UNet((8,), 1, 2, dropout=0.5)
    x, t = normal(2, 8, 8, 1), jnp.array([1.0, 5.0])
    variables = random_variables(plain, x, t)
    expected = jit(plain.apply)(variables, x, t)
    np.testing.assert_array_equal(jit(net.apply)(variables, x, t), expected)
    apply = jit(lambda key: net.apply(variables, x, t, rngs={"dropout": key}))
    draws = [apply(jax.random.key(seed)) for seed in (0, 1)]
    assert np.abs(draws[0] - expected).max() > 1e-2
    assert np.abs(draws[0] - draws[1]).max() > 1e-2


@pytest.mark.parametrize(
    "widths, blocks, size", [((8, 16), 1, 7), ((8, 8, 16), 2, 4), ((8,), 1, 14)]
)
def test_attention_sits_at_the_lowest_resolution_only(widths, blocks, size):
    seen = {Attention: [], ResBlock: []}

    def record(call, args, kwargs, context):
        if type(context.module) in seen and context.method_name == "__call__":
            seen[type(context.module)].append(args[0].shape[1:3])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(UNet(widths, blocks, 2), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))
    assert seen[Attention] == [(size, size)] * (2 * blocks + 1)
    assert seen[ResBlock].count((size, size)) == 2 * blocks + 2  # one more in the middle
    assert len(seen[ResBlock]) == len(widths) * (2 * blocks + 1) + 1


def test_attention_mixes_all_pixels():
    x = normal(1, 3, 4, 128)  # two heads
    variables = random_variables(Attention(), x)
    slope = jit(jax.grad(lambda x: Attention().apply(variables, x)[0, 2, 3].sum()))(x)
    assert np.all(np.abs(slope).max(-1) > 1e-6)


def test_attention_is_softmax_of_the_scaled_products():
    x = normal(2, 3, 2, 128)
    variables = random_variables(Attention(), x)
    p = jax.tree.map(np.float64, variables["params"])
    groups = x.reshape(2, 6, 8, 16).astype(np.float64)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(2, 6, 128)
    normed = normed * p["GroupNorm_0"]["scale"] + p["GroupNorm_0"]["bias"]
    qkv = normed @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    mixed = np.zeros((2, 6, 128))
    for image, head in np.ndindex(2, 2):
        q, k, v = (qkv[image, :, 128 * i + 64 * head :][:, :64] for i in range(3))
        weight = np.exp(q @ k.T / 8)
        mixed[image, :, 64 * head :][:, :64] = weight / weight.sum(1, keepdims=True) @ v
    expected = x.reshape(2, 6, 128) + mixed @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    assert_near(Attention().apply(variables, x), expected.reshape(x.shape))


@pytest.mark.parametrize("dims", [4, 16, 128])
def test_time_embedding_is_sines_and_cosines_from_frequency_1_to_1e_4(dims):
    times = np.array([0.0, 1, 2, 9, 1000])
    half = dims // 2
    expected = np.zeros((5, dims))
    for i, t in enumerate(times):
        for k in range(half):
            angle = t * 1e4 ** (-k / (half - 1))
            expected[i, k], expected[i, half + k] = np.sin(angle), np.cos(angle)
    actual = time_embedding(jnp.asarray(times, jnp.float32), dims)
    np.testing.assert_allclose(actual[:-1], expected[:-1], atol=1e-5)
    np.testing.assert_allclose(actual[-1], expected[-1], atol=1e-3)  # float32 angles near 1000
