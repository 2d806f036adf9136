"""Noise levels, corruption and parametrisation as the papers print them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusion import PAPER, SHORT, linear_schedule
from helpers.nets import normal
from jax import random

from bloodjax.diffusion.process import (
    KarrasLevels,
    Levels,
    LinearBeta,
    clip_image,
    estimate_from_image,
    estimate_from_noise,
    precondition,
)


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


def test_an_alpha_that_is_0_in_float32_is_refused():
    with pytest.raises(ValueError, match=r"beta_last=0\.5: α is 0 in float32 after 1000 steps"):
        LinearBeta(1000, 1e-4, 0.5).levels(50)


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


# ---- Karras et al. (2022) --------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 18])
def test_karras_levels_are_those_of_eq_5(steps):
    t, alpha, sigma = KarrasLevels(0.002, 80.0, 7.0).levels(steps)
    first, last = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(first + i / (steps - 1) * (last - first)) ** 7 for i in range(steps)]
    np.testing.assert_allclose(sigma, [*expected, 0.0], rtol=1e-12)
    np.testing.assert_array_equal(t, range(steps, -1, -1))
    np.testing.assert_array_equal(alpha, np.ones(steps + 1))


def test_one_karras_step_goes_from_the_largest_level_to_the_image():
    assert KarrasLevels(0.002, 80.0, 7.0).levels(1).sigma == pytest.approx([80.0, 0.0])


def test_karras_levels_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match=r"sampler\.sigma_min=2\.0: expected less than 1\.0 "):
        KarrasLevels(2.0, 1.0, 7.0).levels(5)


def table_1(sigma, sigma_data):
    """c_skip, c_out, c_in of EDM's column in table 1, float64."""
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma_data**2 + sigma**2)
    return c_skip, c_out, 1 / np.sqrt(sigma**2 + sigma_data**2)


SIGMAS = np.array([0.002, 0.1, 0.5, 3.0, 80.0])


def test_preconditioning_is_table_1():
    c = precondition(jnp.float32(SIGMAS), 0.4)
    for actual, expected in zip(c[:3], table_1(SIGMAS, 0.4), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(c.c_noise, 80 * (np.log(SIGMAS) + 6.5), rtol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_preconditioning_gives_input_and_target_of_the_network_unit_variance(sigma):
    """Eqs. 114 and 117 there, on data of the standard deviation 0.4."""
    rng = np.random.default_rng(0)
    data, noise = rng.normal(scale=0.4, size=100_000), sigma * rng.normal(size=100_000)
    c_skip, c_out, c_in, _ = (float(x[0]) for x in precondition(jnp.float32([sigma]), 0.4))
    bound = 4 * np.sqrt(2 / 100_000)
    assert np.var(c_in * (data + noise)) == pytest.approx(1, abs=bound)
    # The target is (y - c_skip x) / c_out; in float64 from the exact c_skip, since at small σ
    # float32 leaves few digits of 1 - c_skip.
    assert np.var((data - table_1(sigma, 0.4)[0] * (data + noise)) / c_out) == pytest.approx(
        1, abs=bound
    )
    assert c_skip == pytest.approx(table_1(sigma, 0.4)[0], rel=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_c_skip_amplifies_errors_of_the_network_least(sigma):
    """Eq. 120 there: c_out, the deviation of y - c_skip x, is smallest at this c_skip."""
    c = precondition(jnp.float32([sigma]), 0.4)

    def deviation(c_skip):
        return np.sqrt((1 - c_skip) ** 2 * 0.4**2 + c_skip**2 * sigma**2)

    c_skip, c_out = float(c.c_skip[0]), float(c.c_out[0])
    assert deviation(c_skip) == pytest.approx(c_out, rel=1e-5)
    assert min(deviation(c_skip - 0.02), deviation(c_skip + 0.02)) > deviation(c_skip)


def test_estimates_from_the_image_undo_the_corruption():
    image, noise = np.clip(normal(2, 3, 1), -1, 1), normal(2, 3, 1, seed=1)
    level = Levels(3, 0.6, 0.8)
    estimate = estimate_from_image(0.6 * image + 0.8 * noise, image, level)
    np.testing.assert_array_equal(estimate.image, image)
    np.testing.assert_allclose(estimate.noise, noise, atol=1e-6)
