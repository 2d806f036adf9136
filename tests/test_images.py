"""The boundary between stored and computed pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.images import to_float, to_uint8


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
