"""Noise levels, corruption and parametrisation as the papers print them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusion import PAPER, SHORT, linear_schedule
from helpers.nets import normal
from jax import random

from bloodjax.diffusion.process import Levels, LinearBeta, clip_image, estimate_from_noise


@pytest.mark.parametrize("process", [PAPER, SHORT])
def test_alpha_bar_is_the_product_of_all_alphas(process):
    beta, _, alpha_bar = linear_schedule(process)
    assert beta[-1] == pytest.approx(process.beta_last)
    np.testing.assert_allclose(process.alpha_bar, alpha_bar, rtol=1e-12)


def test_alpha_bar_of_the_paper_ends_in_noise():
    assert PAPER.alpha_bar[-1] == pytest.approx(4.04e-5, rel=0.01)


def test_corrupted_images_have_the_moments_of_eq_4():
    count, x0 = 40_000, 0.7
    alpha_bar = linear_schedule(SHORT)[2]
    for t in (1, 7, 20):
        noise = random.normal(random.key(t), (count, 1, 1, 1))
        x = np.float64(SHORT.corrupt(jnp.full_like(noise, x0), jnp.full(count, t), noise))
        var = 1 - alpha_bar[t]
        assert abs(x.mean() - math.sqrt(alpha_bar[t]) * x0) < 4 * math.sqrt(var / count)
        assert abs(x.var() - var) < 4 * var * math.sqrt(2 / count)


def test_corruption_takes_each_image_at_its_own_time():
    images, noise = normal(3, 2, 3, 1), normal(3, 2, 3, 1, seed=1)
    t = np.array([20, 1, 7])
    abar = linear_schedule(SHORT)[2][t][:, None, None, None]
    expected = np.sqrt(abar) * images + np.sqrt(1 - abar) * noise
    np.testing.assert_allclose(SHORT.corrupt(images, jnp.asarray(t), noise), expected, atol=1e-6)


def test_levels_fall_from_t_to_the_image_at_equal_distances():
    process = LinearBeta(23, 1e-4, 0.02)
    abar = linear_schedule(process)[2]
    for steps in range(1, 24):
        t, alpha, sigma = process.levels(steps)
        assert (len(t), t[0], t[-1]) == (steps + 1, 23, 0)
        assert np.all(np.diff(t) < 0)
        assert np.ptp(np.diff(t)) <= 1  # equal distances, but for rounding
        np.testing.assert_allclose(alpha, np.sqrt(abar[t]), rtol=1e-12)
        np.testing.assert_allclose(sigma, np.sqrt(1 - abar[t]), rtol=1e-9)


@pytest.mark.parametrize("steps", [0, 1001, -1])
def test_more_steps_than_levels_are_refused(steps):
    with pytest.raises(ValueError, match=rf"sampler\.steps={steps}: expected 1 to 1000 "):
        PAPER.levels(steps)


@pytest.mark.parametrize("t", [1, 7, 20])
def test_estimates_from_the_noise_undo_the_corruption(t):
    image, noise = np.clip(normal(2, 3, 1), -1, 1), normal(2, 3, 1, seed=1)
    level = Levels(*(values[20 - t] for values in SHORT.levels(20)))
    x = SHORT.corrupt(image[None], jnp.array([t]), noise[None])[0]
    estimate = estimate_from_noise(x, noise, level)
    np.testing.assert_allclose(estimate.image, image, atol=1e-4)
    np.testing.assert_array_equal(estimate.noise, noise)


def test_a_clipped_estimate_stays_in_range_and_still_explains_x_t():
    level = Levels(*(values[5] for values in SHORT.levels(20)))
    x, noise = 3 * normal(4, 5, 1), normal(4, 5, 1, seed=1)
    free = estimate_from_noise(x, noise, level)
    image, rest = clip_image(x, free, level)
    np.testing.assert_allclose(image, np.clip(free.image, -1, 1), atol=1e-6)
    assert np.abs(free.image).max() > 1.1
    np.testing.assert_allclose(level.alpha * image + level.sigma * rest, x, atol=1e-5)
