"""The boundary between stored and computed pixels."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.images import as_uint8, scale_min_max, to_float, to_uint8


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_every_pixel_comes_back(run):
    x = np.arange(256, dtype=np.uint8)
    floats = run(to_float)(x)
    back = run(to_uint8)(floats)
    assert floats.dtype == jnp.float32 and back.dtype == jnp.uint8
    np.testing.assert_array_equal(back, x)


def test_pixels_are_spread_evenly_from_minus_one_to_one():
    x = np.arange(256, dtype=np.uint8)
    floats = np.asarray(to_float(x))
    assert (floats[0], floats[-1]) == (-1, 1)
    np.testing.assert_allclose(floats, np.linspace(-1, 1, 256), atol=1e-7)


def test_halves_go_to_the_even_neighbour():
    x = np.float32(2 * np.arange(255) + 1) / np.float32(255) - np.float32(1)
    scaled = (x + np.float32(1)) * np.float32(127.5)
    half = scaled % 1 == 0.5  # those that float32 hits exactly
    below = np.floor(scaled[half]).astype(int)
    assert {0, 1} == set(below % 2)  # both kinds, so that neither up, down nor away passes
    np.testing.assert_array_equal(to_uint8(x[half]), below + below % 2)


def test_between_two_pixels_the_nearer_one_is_taken():
    pixels = np.array([0, 3, 100, 254])[:, None]
    floats = (pixels + [0.49, 0.51]) / 127.5 - 1
    np.testing.assert_array_equal(to_uint8(floats.astype(np.float32)), pixels + [0, 1])


def test_what_is_out_of_range_is_clipped():
    x = np.array([-np.inf, -7, -1.0001, 1.0001, 1.01, 3, np.inf], np.float32)
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 255, 255, 255, 255])


# ---- what is taken for an image


def test_uint8_images_are_left_alone():
    images = np.arange(120, dtype=np.uint8).reshape(2, 5, 4, 3)
    np.testing.assert_array_equal(as_uint8(images), images)
    assert np.shares_memory(as_uint8(images), images)
    np.testing.assert_array_equal(as_uint8(jnp.asarray(images)), images)


def test_grey_is_repeated_to_rgb():
    levels = np.arange(0, 256, 51, dtype=np.uint8).reshape(1, 2, 3, 1)
    for images in (levels, levels / 255):
        np.testing.assert_array_equal(as_uint8(images), levels.repeat(3, axis=3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_stored_images_come_back_from_floats(dtype):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = as_uint8((images / 255).astype(dtype))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, images.repeat(3, axis=3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_halves_go_to_the_even_level(dtype):
    images = (np.arange(255) + 0.5).astype(dtype) / dtype(255)
    even = [level + level % 2 for level in range(255)]  # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2
    np.testing.assert_array_equal(as_uint8(images.reshape(1, 1, 255, 1))[0, 0, :, 0], even)


def test_float16_is_rounded_once():
    images = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # every one of [0, 1]
    exact = [round(255 * float(x)) for x in images]  # Python's round is half to even
    np.testing.assert_array_equal(as_uint8(images.reshape(1, 1, -1, 1))[0, 0, :, 0], exact)


def test_floats_may_miss_the_range_by_rounding():
    images = np.array([-1e-3, 1 + 1e-3], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(as_uint8(images)[0, 0, :, 0], [0, 255])
    assert as_uint8(np.zeros((0, 28, 28, 3), np.float32)).shape == (0, 28, 28, 3)


LOOK = "look at what made"


@pytest.mark.parametrize("low, high, actual, remedy", [
    (-1, 1, "from -1.0 to 1.0", r"from \[-1, 1\]: \(images \+ 1\) / 2$"),
    (0, 255, "from 0.0 to 255.0", r"from 0..255: images.round\(\).astype\(np.uint8\)$"),
    (-0.0011, 1, "from -0.0011", LOOK),
    (0, 1.0011, "to 1.0011", LOOK),
    (-3, 3, "from -3.0 to 3.0", LOOK),
    (0, np.inf, "to inf", LOOK),
    (0, np.nan, "to nan", LOOK),
])  # fmt: skip
def test_floats_of_another_range_are_refused_with_the_remedy(low, high, actual, remedy):
    images = np.array([low, 0.5, high, 0.5]).reshape(1, 2, 2, 1)
    with pytest.raises(ValueError, match=rf"{actual}.*expected uint8, or floats in.*{remedy}"):
        as_uint8(images)


@pytest.mark.parametrize(
    ("shape", "dtype", "remedy"),
    [
        ((2, 28, 28, 3), np.int32, "images.astype(np.uint8)"),
        ((2, 28, 28, 3), bool, "images * np.uint8(255)"),
        ((2, 28, 28, 3), np.complex64, LOOK),
        ((2, 28, 28, 3), object, LOOK),
        ((28, 28, 3), np.uint8, LOOK),
        ((28, 28), np.float32, LOOK),
        ((2, 1, 28, 28, 3), np.uint8, LOOK),
        ((2, 28, 28, 2), np.uint8, "transparency: images[..., :-1]"),
        ((2, 28, 28, 4), np.float32, "transparency: images[..., :-1]"),
        ((2, 3, 28, 28), np.uint8, "channels first: images.transpose(0, 2, 3, 1)"),
        ((2, 1, 28, 28), np.float32, "channels first: images.transpose(0, 2, 3, 1)"),
        ((2, 0, 28, 3), np.uint8, LOOK),
        ((2, 28, 0, 3), np.float32, LOOK),
    ],
)
def test_what_is_no_image_is_refused_with_the_remedy(shape, dtype, remedy):
    actual = rf"images are \w+ {re.escape(str(list(shape)))}: expected uint8 \[N, H, W, 1 or 3\]"
    with pytest.raises(ValueError, match=f"{actual}.*; {re.escape(remedy)}"):
        as_uint8(np.zeros(shape, dtype))


def test_each_image_is_scaled_to_its_own_range_and_a_flat_one_is_left():
    pixels = np.array([[3, 5, 13], [0, 128, 255], [7, 7, 7]], np.uint8).reshape(3, 1, 3, 1)
    scaled = scale_min_max(pixels)
    assert scaled.dtype == np.uint8 and scaled.shape == pixels.shape
    assert scaled.reshape(3, 3).tolist() == [[0, 51, 255], [0, 128, 255], [7, 7, 7]]
