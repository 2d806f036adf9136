"""Samplers against the algorithms of their papers, and with the true noise of known data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusion import (
    PAPER,
    SHORT,
    algorithm_2,
    injected,
    linear_schedule,
    record_noise,
    song_12,
)
from helpers.methods import KEY
from jax import random
from scipy.stats import kurtosis

from bloodjax.diffusion.process import clip_image, estimate_from_noise
from bloodjax.diffusion.samplers import ddim, ddim_coefficients

SHAPE = 3, 4, 2


def make_denoise(predict, clip=False):
    """The estimates of a network that predicts ε for batches."""

    def denoise(x, level):
        estimate = estimate_from_noise(x, predict(x[None], level.t[None])[0], level)
        return clip_image(x, estimate, level) if clip else estimate

    return denoise


def walk(steps, clip, **options):
    """(x_t of every network call and x_0, t of every call, the estimates of x_0)."""
    calls = []
    denoise, x = make_denoise(record_noise(calls), clip), jnp.float32(injected(SHAPE, 0))
    with jax.disable_jit():
        image, estimates = ddim(denoise, x, SHORT.levels(steps), KEY, **options)
    return [*(x for x, _ in calls), np.asarray(image)], [t for _, t in calls], estimates


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_sampling_is_algorithm_2(clip, variance):
    xs, times, _ = walk(20, clip, eta=1.0, variance=variance)
    assert times == list(range(20, 0, -1))
    np.testing.assert_allclose(xs, algorithm_2(SHORT, SHAPE, clip, variance), atol=1e-5)


@pytest.mark.parametrize("eta, clip", [(0.0, False), (0.0, True), (0.6, True), (1.0, False)])
@pytest.mark.parametrize(
    "steps, times", [(20, range(20, 0, -1)), (5, [20, 16, 12, 8, 4]), (3, [20, 13, 7]), (1, [20])]
)
def test_fewer_steps_are_ddim(steps, times, eta, clip):
    xs, asked, _ = walk(steps, clip, eta=eta, variance="posterior")
    assert asked == list(times)
    np.testing.assert_allclose(xs, song_12(SHORT, SHAPE, list(times), eta, clip), atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_the_estimates_of_all_steps_come_with_the_sample(clip):
    xs, times, estimates = walk(5, clip, eta=0.5)
    abar = linear_schedule(SHORT)[2]
    for x, t, estimate in zip(xs[:-1], times, estimates, strict=True):
        noise = record_noise([])(x[None], jnp.array([t]))[0]
        x0 = (x - np.sqrt(1 - abar[int(t)]) * noise) / np.sqrt(abar[int(t)])
        np.testing.assert_allclose(estimate, np.clip(x0, -1, 1) if clip else x0, atol=1e-5)
    np.testing.assert_allclose(estimates[-1], xs[-1], atol=1e-6)


@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_coefficients_are_the_gaussian_posterior(steps):
    """q(x_s | x_t, x_0) by Bayes: q(x_s | x_0) times q(x_t | x_s), two Gaussians of x_s."""
    levels = PAPER.levels(steps)
    image, noise, added = (c[:-1] for c in ddim_coefficients(levels, 1.0, "posterior"))
    t, s = levels.t[:-2], levels.t[1:-1]  # without the last step, to x_0 itself
    abar = linear_schedule(PAPER)[2]
    alpha = abar[t] / abar[s]
    precision = 1 / (1 - abar[s]) + alpha / (1 - alpha)
    of_x0 = np.sqrt(abar[s]) / (1 - abar[s]) / precision
    of_xt = np.sqrt(alpha) / (1 - alpha) / precision
    ours = noise / np.sqrt(1 - abar[t])
    np.testing.assert_allclose(ours, of_xt, atol=1e-5)
    np.testing.assert_allclose(image - ours * np.sqrt(abar[t]), of_x0, atol=1e-5)
    np.testing.assert_allclose(added**2, 1 / precision, rtol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_returns_the_image_and_adds_nothing(eta, variance):
    for steps in range(1, 21):
        coefficients = ddim_coefficients(SHORT.levels(steps), eta, variance)
        assert [c[-1] for c in coefficients] == [1, 0, 0]
        assert np.all(np.isfinite(coefficients))


# ---- with the true ε of known data -----------------------------------------------------------

MEAN, DEVIATION = 0.3, 0.4


def noise_of_a_gaussian(x, abar):
    """E[ε | x_t] if every pixel of x_0 is N(MEAN, DEVIATION²)."""
    return jnp.sqrt(1 - abar) * (x - jnp.sqrt(abar) * MEAN) / (abar * DEVIATION**2 + 1 - abar)


POINTS, WEIGHTS = np.array([-0.8, 0.5]), np.array([0.3, 0.7])


def noise_of_two_points(x, abar):
    """E[ε | x_t] if every pixel of x_0 is one of POINTS with WEIGHTS."""
    far = (x[..., None] - jnp.sqrt(abar) * POINTS) ** 2 / (2 * (1 - abar))
    x0 = jax.nn.softmax(jnp.log(WEIGHTS) - far, axis=-1) @ POINTS
    return (x - jnp.sqrt(abar) * x0) / jnp.sqrt(1 - abar)


def pixels(true_noise, steps, **options):
    """16,000 independent pixels of 4,000 images."""
    table = jnp.asarray(linear_schedule(PAPER)[2], jnp.float32)
    denoise = make_denoise(lambda x, t: true_noise(x, table[t.astype(int)][0]))

    def sample(key):
        x = random.normal(random.fold_in(key, 0), (2, 2, 1))
        return ddim(denoise, x, PAPER.levels(steps), key, **options)[0]

    return np.float64(jax.jit(jax.vmap(sample))(random.split(KEY, 4000))).ravel()


SAMPLERS = [
    {"steps": 1000, "eta": 1.0, "variance": "posterior"},
    {"steps": 1000, "eta": 1.0, "variance": "beta"},
    {"steps": 250, "eta": 0.0, "variance": "posterior"},
    {"steps": 50, "eta": 0.0, "variance": "posterior"},
]


@pytest.mark.parametrize("options", SAMPLERS)
def test_sampler_with_the_true_noise_of_a_gaussian_draws_it(options):
    x = pixels(noise_of_a_gaussian, **options)
    shrunk = 0.9312 if options["steps"] == 50 else 1.0  # the effect of so long steps: see below
    assert x.mean() == pytest.approx(MEAN, rel=0.03)
    assert x.std() == pytest.approx(shrunk * DEVIATION, rel=0.03)
    assert kurtosis(x) == pytest.approx(0, abs=0.15)


def test_fifty_ddim_steps_shrink_a_gaussian_by_7_percent():
    """With this ε each step is linear in x_t: the factors multiply to the deviation of x_0."""
    abar = linear_schedule(PAPER)[2]
    factor = 1.0
    for t in range(1000, 0, -20):
        alpha_t, alpha_s = abar[t], abar[t - 20]
        epsilon = np.sqrt(1 - alpha_t) / (alpha_t * DEVIATION**2 + 1 - alpha_t)  # of x_t = 1
        x0 = (1 - np.sqrt(1 - alpha_t) * epsilon) / np.sqrt(alpha_t)
        factor *= np.sqrt(alpha_s) * x0 + np.sqrt(1 - alpha_s) * epsilon
    assert factor == pytest.approx(0.9312 * DEVIATION, rel=1e-4)


@pytest.mark.parametrize("options", SAMPLERS)
def test_sampler_with_the_true_noise_of_two_points_draws_them(options):
    x = pixels(noise_of_two_points, **options)
    distances = np.abs(x[:, None] - POINTS)
    assert np.quantile(distances.min(1), 0.99) < 0.01
    assert np.mean(distances.argmin(1) == 0) == pytest.approx(WEIGHTS[0], abs=0.012)  # 3 σ
