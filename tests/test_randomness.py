"""Keys and noise that every published result depends on."""

import jax.numpy as jnp
import numpy as np
from jax import random

from bloodjax.randomness import Purpose, interpolate_normals, key_at, normal_batch


def test_purposes_keep_their_numbers_and_leave_those_below_1000_to_players():
    assert [Purpose.INIT, Purpose.ORDER, Purpose.SAMPLE, Purpose.LOSS] == [0, 1, 2, 3]
    assert all(purpose >= 1000 for purpose in Purpose if purpose > Purpose.LOSS)


def test_keys_differ_by_seed_purpose_and_index():
    keys = [key_at(seed, p, i) for seed in (0, 1) for p in (Purpose.INIT, 4) for i in (0, 7)]
    assert len({tuple(random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_batch_normal_draws_what_random_normal_draws():
    key = random.key(3)
    np.testing.assert_array_equal(normal_batch(key, (4, 5)), random.normal(key, (4, 5)))


def test_interpolation_keeps_the_norm_and_steps_by_equal_angles():
    ends = jnp.array([[3.0, 0, 0], [0, 0, 3.0]])
    points = np.asarray(interpolate_normals(ends, 7))
    np.testing.assert_allclose(points[[0, -1]], ends, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 3, rtol=1e-6)
    np.testing.assert_allclose(np.sum(points[1:] * points[:-1], axis=1), 9 * np.cos(np.pi / 12))
