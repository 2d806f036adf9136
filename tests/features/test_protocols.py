"""Resizing and scaling before InceptionV3, against definitions, Pillow and the originals."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bloodjax.features.inception.protocols import PROTOCOLS, SIDE

SIZES = [(28, 28), (45, 30), (480, 640), (333, 500), (28, 640), (299, 299), (1, 1)]
BILINEAR = {"pytorch-fid": 0.5, "torch-fidelity": 0.0, "raw-range": 0.5}  # middle of pixel 0
CLOSE = 1e-3  # of 255 grey levels

sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
protocols = pytest.mark.parametrize("name", PROTOCOLS)


def hard(h, w):
    """Noise, and a checkerboard of another phase and pitch in each channel: uint8 [2, h, w, 3]."""
    noise = np.random.default_rng((h, w)).integers(0, 256, (h, w, 3), dtype=np.uint8)
    i, j = np.indices((h, w))
    boards = [(i + j) % 2, (i + j + 1) % 2, (i // 3 + j // 2) % 2]
    return np.stack([noise, 255 * np.stack(boards, axis=-1).astype(np.uint8)])


def constant(value, h=28, w=28):
    return np.full((1, h, w, 3), value, np.uint8)


def grey(name, out):
    """What a protocol makes of images, brought back to 0..255 in float64."""
    y = np.asarray(out, np.float64)
    if name == "raw-range":
        y = (y + 1) / 2
    return 128 * y + 128 if name in ("torch-fidelity", "clean") else 127.5 * (y + 1)


def neighbours(size, centre):
    """For each of 299 pixels the two it lies between, and how far it is from the first."""
    at = np.maximum((np.arange(SIDE) + centre) * size / SIDE - centre, 0)
    low = np.floor(at).astype(int)
    return low, np.minimum(low + 1, size - 1), at - low


def bilinear(image, centre):
    """One image by the textbook: mix the four neighbours of each pixel, in float64."""
    top, bottom, v = neighbours(image.shape[0], centre)
    left, right, u = neighbours(image.shape[1], centre)
    x, u, v = image.astype(np.float64), u[:, None], v[:, None, None]
    upper = (1 - u) * x[top][:, left] + u * x[top][:, right]
    lower = (1 - u) * x[bottom][:, left] + u * x[bottom][:, right]
    return (1 - v) * upper + v * lower


def bicubic(image):
    """One image by Pillow, each channel on its own as floats, clipped and not rounded."""
    channels = [Image.fromarray(c) for c in np.moveaxis(image.astype(np.float32), 2, 0)]
    resized = [c.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in channels]
    return np.stack([np.asarray(c) for c in resized], axis=2).clip(0, 255)


# ---- the definitions


@sizes
@pytest.mark.parametrize("name", BILINEAR)
def test_bilinear_is_its_definition(name, size):
    images = hard(*size)
    expected = [bilinear(image, BILINEAR[name]) for image in images]
    rounding = 255 * sum(size) * 2**-23  # at most, of ratio and position to float32
    found = grey(name, PROTOCOLS[name](images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE + rounding)


@sizes
def test_clean_is_pillows_bicubic(size):
    images = hard(*size)
    expected = [bicubic(image) for image in images]
    found = grey("clean", PROTOCOLS["clean"](images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name, at_0, at_128, at_255", [
    ("pytorch-fid", -1, 1 / 255, 1),
    ("torch-fidelity", -1, 0, 127 / 128),
    ("clean", -1, 0, 127 / 128),
    ("raw-range", -3, -253 / 255, 1),
])  # fmt: skip
@pytest.mark.parametrize("size", [(28, 28), (45, 30), (480, 640), (1, 1)])
def test_a_constant_image_stays_constant(name, at_0, at_128, at_255, size):
    for value, expected in {0: at_0, 128: at_128, 255: at_255}.items():
        out = PROTOCOLS[name](constant(value, *size))
        np.testing.assert_allclose(out, np.full((1, SIDE, SIDE, 3), expected), atol=2e-6)


@protocols
def test_an_image_of_the_right_size_is_only_scaled(name):
    images = hard(SIDE, SIDE)
    np.testing.assert_allclose(grey(name, PROTOCOLS[name](images)), images, rtol=0, atol=1e-4)


def test_half_the_size_by_hand():
    images = hard(2 * SIDE, 2 * SIDE)
    means = images.astype(np.float64).reshape(2, SIDE, 2, SIDE, 2, 3).mean((2, 4))
    with jax.enable_x64(True):
        for name, expected in {
            "pytorch-fid": means,
            "raw-range": means,
            "torch-fidelity": images[:, ::2, ::2],
        }.items():
            out = PROTOCOLS[name](images)
            assert out.dtype == jnp.float64
            np.testing.assert_allclose(grey(name, out), expected, rtol=0, atol=1e-10)


def test_a_ramp_shows_the_float32_positions_of_the_originals():
    ramp = np.arange(640.0)[None, None, :, None].repeat(3, axis=3)
    positions = np.arange(SIDE, dtype=np.float32) * np.float32(640 / SIDE)  # as TensorFlow 1 does
    with jax.enable_x64(True):
        out = grey("torch-fidelity", PROTOCOLS["torch-fidelity"](ramp))
    np.testing.assert_allclose(out[0, 0, :, 0], positions, rtol=0, atol=1e-9)


def test_only_clean_overshoots_and_is_clipped():
    edge = constant(0)
    edge[:, :, 14:] = 255
    out = np.asarray(PROTOCOLS["clean"](edge))[0, :, :, 0]
    assert out.min() == -1 and out.max() == 127 / 128
    assert len(np.unique(grey("clean", out))) > 20  # between them no rounding to whole levels


@protocols
def test_output_is_finite_and_in_range(name):
    low, high = {"raw-range": (-3, 1), "pytorch-fid": (-1, 1)}.get(name, (-1, 127 / 128))
    for size in SIZES[:3]:
        out = np.asarray(PROTOCOLS[name](hard(*size)))
        assert out.shape == (2, SIDE, SIDE, 3) and out.dtype == np.float32
        assert np.isfinite(out).all() and out.min() >= low - 1e-6 and out.max() <= high + 1e-6


# ---- the originals


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def nchw(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))


@sizes
def test_pytorch_fid_is_torchs_interpolate(torch, size):
    """As in pytorch_fid.inception.InceptionV3.forward, on what ToTensor makes of an image."""
    images = hard(*size)
    x = nchw(torch, images) / 255
    x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    expected = (2 * x - 1).numpy().transpose(0, 2, 3, 1)
    found = PROTOCOLS["pytorch-fid"](images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE / 127.5)


@sizes
def test_raw_range_is_a_tensor_in_the_wrong_range(torch, size):
    images = hard(*size)
    x = nchw(torch, images) / 127.5 - 1
    x = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    expected = (2 * x - 1).numpy().transpose(0, 2, 3, 1)
    found = PROTOCOLS["raw-range"](images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE / 63.75)


@pytest.fixture(scope="module")
def tensorflow_1(torch):
    """torch-fidelity's resizing, without the rest of the package, which needs torchvision."""
    package = importlib.util.find_spec("torch_fidelity")
    if package is None:
        pytest.skip("torch-fidelity is not installed")
    file = Path(package.origin).with_name("interpolate_compat_tensorflow.py")
    spec = importlib.util.spec_from_file_location("interpolate_compat_tensorflow", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.interpolate_bilinear_2d_like_tensorflow1x


@sizes
def test_torch_fidelity_is_torch_fidelity(torch, tensorflow_1, size):
    images = hard(*size)
    x = tensorflow_1(nchw(torch, images), size=(SIDE, SIDE), align_corners=False)
    expected = ((x - 128) / 128).numpy().transpose(0, 2, 3, 1)
    found = PROTOCOLS["torch-fidelity"](images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE / 128)


@sizes
def test_clean_is_clean_fid(torch, size):
    cleanfid = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    images = hard(*size)
    resize = cleanfid.build_resizer("clean")
    expected = (np.stack([resize(image) for image in images]) - 128) / 128
    found = PROTOCOLS["clean"](images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE / 128)


# ---- in JAX


@protocols
def test_jit_and_the_dtype_of_whole_numbers_change_nothing(name):
    images = hard(45, 30)
    out = PROTOCOLS[name](images)
    for dtype in (np.uint8, np.int32, np.float16, np.float32):
        jitted = jax.jit(PROTOCOLS[name])(jnp.asarray(images, dtype))
        assert jitted.dtype == jnp.float32
        np.testing.assert_allclose(jitted, out, rtol=0, atol=2e-6)


@protocols
def test_an_image_does_not_depend_on_its_batch(name):
    images = hard(28, 28)
    alone = PROTOCOLS[name](images[1:])
    np.testing.assert_allclose(PROTOCOLS[name](images)[1:], alone, rtol=0, atol=2e-6)
    assert PROTOCOLS[name](images[:0]).shape == (0, SIDE, SIDE, 3)


@protocols
def test_accelerators_must_not_round_the_products(name):
    program = jax.make_jaxpr(PROTOCOLS[name])(hard(28, 28)).eqns
    inner = [e for q in program if "jaxpr" in q.params for e in q.params["jaxpr"].eqns]
    precisions = [
        e.params["precision"] for e in program + inner if e.primitive.name == "dot_general"
    ]
    assert precisions == [(jax.lax.Precision.HIGHEST,) * 2] * 2
