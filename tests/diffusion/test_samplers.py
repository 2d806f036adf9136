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

from bloodjax.diffusion.process import (
    KarrasLevels,
    clip_image,
    estimate_from_image,
    estimate_from_noise,
)
from bloodjax.diffusion.samplers import (
    SAMPLERS,
    ddim,
    ddim_coefficients,
    draw,
    select,
)

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


DDIM = [
    {"steps": 1000, "eta": 1.0, "variance": "posterior"},
    {"steps": 1000, "eta": 1.0, "variance": "beta"},
    {"steps": 250, "eta": 0.0, "variance": "posterior"},
    {"steps": 50, "eta": 0.0, "variance": "posterior"},
]


@pytest.mark.parametrize("options", DDIM)
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


@pytest.mark.parametrize("options", DDIM)
def test_sampler_with_the_true_noise_of_two_points_draws_them(options):
    x = pixels(noise_of_two_points, **options)
    distances = np.abs(x[:, None] - POINTS)
    assert np.quantile(distances.min(1), 0.99) < 0.01
    assert np.mean(distances.argmin(1) == 0) == pytest.approx(WEIGHTS[0], abs=0.012)  # 3 σ


# ---- of second order, and other processes ----------------------------------------------------

KARRAS = KarrasLevels(0.002, 80.0, 7.0)
DETERMINISTIC = "ddim", "heun", "dpm_solver_pp_2m"


def image_of_x(x, sigma):
    """In place of a denoiser: smooth, bounded, neither constant nor linear."""
    return np.tanh(x / np.sqrt(1 + sigma**2)) + 0.2 * np.sin(3 * sigma)


def recorded_walk(name, levels, x, **options):
    """(x of every network call, σ of every call, the sample, the estimates) with `image_of_x`."""
    calls = []

    def denoise(x, level):
        calls.append((np.asarray(x), float(level.sigma)))
        image = jnp.asarray(image_of_x(calls[-1][0], calls[-1][1]), jnp.float32)
        return estimate_from_image(x, image, level)

    with jax.disable_jit():
        y, estimates = SAMPLERS[name](denoise, jnp.float32(x), levels, KEY, eta=0.0, **options)
    return [x for x, _ in calls], [sigma for _, sigma in calls], np.asarray(y), estimates


@pytest.mark.parametrize("steps", [2, 7])
def test_heun_is_algorithm_1_of_karras(steps):
    levels = KarrasLevels(0.1, 10.0, 7.0).levels(steps)
    x = 10 * np.random.default_rng(0).normal(size=SHAPE)
    inputs, sigmas, y, estimates = recorded_walk("heun", levels, x)
    asked, images = [], []
    for i in range(steps):
        t, s = levels.sigma[i], levels.sigma[i + 1]
        images.append(image_of_x(x, t))
        d = (x - images[-1]) / t
        asked.append((x, t))
        after = x + (s - t) * d
        if s != 0:
            asked.append((after, s))
            d_after = (after - image_of_x(after, s)) / s
            after = x + (s - t) * (d / 2 + d_after / 2)
        x = after
    assert len(inputs) == 2 * steps - 1
    np.testing.assert_allclose(sigmas, [sigma for _, sigma in asked], rtol=1e-5)
    for found, (expected, _) in zip(inputs, asked, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(y, x, atol=1e-4)
    np.testing.assert_allclose(estimates, images, atol=1e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_step_of_every_sampler_returns_the_estimate(name):
    levels, x = KARRAS.levels(1), jnp.full(SHAPE, 50.0)
    y, estimates = jax.jit(lambda x: SAMPLERS[name](true_denoise, x, levels, KEY, eta=0.0))(x)
    image = true_denoise(x, select(levels, 0)).image
    np.testing.assert_allclose(y, image, rtol=1e-6)
    np.testing.assert_allclose(estimates, image[None], rtol=1e-6)


@pytest.mark.parametrize("process, steps", [(KARRAS, 1), (KARRAS, 2), (KARRAS, 7), (SHORT, 6)])
def test_dpm_solver_pp_2m_is_algorithm_2_of_lu(process, steps):
    """λ = log α / σ, h and r as in the paper; first order where it has no past, and at the end."""
    levels = process.levels(steps)
    x = levels.sigma[0] * np.random.default_rng(0).normal(size=SHAPE)
    inputs, _, y, estimates = recorded_walk("dpm_solver_pp_2m", levels, x)
    lambdas = np.log(levels.alpha[:-1] / levels.sigma[:-1])
    images = []
    for i in range(steps):
        np.testing.assert_allclose(inputs[i], x, rtol=2e-4, atol=2e-5)
        images.append(image_of_x(x, levels.sigma[i]))
        if i == steps - 1:
            x = images[-1]
            break
        h, combined = lambdas[i + 1] - lambdas[i], images[-1]
        if i > 0:
            r = (lambdas[i] - lambdas[i - 1]) / h
            combined = (1 + 1 / (2 * r)) * images[-1] - 1 / (2 * r) * images[-2]
        x = levels.sigma[i + 1] / levels.sigma[i] * x
        x = x - levels.alpha[i + 1] * np.expm1(-h) * combined
    assert len(inputs) == steps
    np.testing.assert_allclose(y, x, atol=1e-4)
    np.testing.assert_allclose(estimates, images, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_steps_of_karras_levels_split_sigma_as_k_diffusion_does(eta):
    """Its get_ancestral_step: σ_down² + σ_up² = σ_s²; the mean goes to σ_down."""
    levels = KARRAS.levels(12)
    t, s = levels.sigma[:-1], levels.sigma[1:]
    up = np.minimum(s, eta * np.sqrt(s**2 * (t**2 - s**2) / t**2))
    image, noise, added = ddim_coefficients(levels, eta, "posterior")
    np.testing.assert_array_equal(image, np.ones(12))
    np.testing.assert_allclose(added, up, rtol=1e-9)
    np.testing.assert_allclose(noise, np.sqrt(s**2 - up**2), rtol=1e-9)


def true_denoise(x, level):
    """E[x_0 | x_t] if every pixel is N(MEAN, DEVIATION²)."""
    gain = level.alpha * DEVIATION**2 / (level.alpha**2 * DEVIATION**2 + level.sigma**2)
    return estimate_from_image(x, MEAN + gain * (x - level.alpha * MEAN), level)


def error(name, levels):
    """Distance from the exact solution to the last level, and the same last step to the image.

    With the true denoiser, (x - α MEAN) / √(α² DEVIATION² + σ²) stays the same along the ODE.
    """
    x = levels.sigma[0] * np.random.default_rng(0).normal(size=(4, 4, 1))
    walk = jax.jit(lambda x: SAMPLERS[name](true_denoise, x, levels, KEY, eta=0.0)[0])
    alpha, sigma = levels.alpha[[0, -2]], levels.sigma[[0, -2]]
    total = np.sqrt(alpha**2 * DEVIATION**2 + sigma**2)
    last = alpha[1] * MEAN + total[1] / total[0] * (x - alpha[0] * MEAN)
    exact = MEAN + alpha[1] * DEVIATION**2 / total[1] ** 2 * (last - alpha[1] * MEAN)
    return np.abs(walk(jnp.float32(x)) - exact).max()


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpm_solver_pp_2m", 2)])
def test_order_of_convergence(name, order):
    coarse, fine = (error(name, KARRAS.levels(steps)) for steps in (32, 128))
    assert np.log2(coarse / fine) / 2 == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_sampler_solves_the_ode_of_the_paper_s_ddpm(name):
    assert error(name, PAPER.levels(250)) < 0.02


@pytest.mark.parametrize(
    "name, steps, eta, bound",
    [
        ("heun", 40, 0.0, 0.01),
        ("dpm_solver_pp_2m", 80, 0.0, 0.01),
        ("ddim", 400, 0.0, 0.02),
        ("ddim", 400, 1.0, 0.03),
    ],
)
def test_samplers_draw_two_points_from_karras_levels(name, steps, eta, bound):
    levels = KARRAS.levels(steps)

    def denoise(x, level):
        far = (x[..., None] - POINTS) ** 2 / (2 * level.sigma**2)
        image = jax.nn.softmax(jnp.log(WEIGHTS) - far, axis=-1) @ POINTS
        return estimate_from_image(x, image, level)

    def draw(key):
        x = 80.0 * random.normal(random.fold_in(key, 0), (2, 2, 1))
        return SAMPLERS[name](denoise, x, levels, key, eta=eta)[0]

    x = np.float64(jax.jit(jax.vmap(draw))(random.split(KEY, 4000))).ravel()
    distances = np.abs(x[:, None] - POINTS)
    assert np.quantile(distances.min(1), 0.99) < bound
    assert np.mean(distances.argmin(1) == 0) == pytest.approx(WEIGHTS[0], abs=0.015)


@pytest.mark.parametrize("name", ["heun", "dpm_solver_pp_2m"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": 0.5}, r"sampler\.eta=0\.5: expected 0 "),
        ({"eta": 0.0, "variance": "beta"}, r"sampler\.variance='beta': expected 'posterior' "),
    ],
)
def test_a_sampler_that_adds_no_noise_refuses_options_of_noise(name, options, words):
    with pytest.raises(ValueError, match=rf"{words}.*'{name}'"):
        SAMPLERS[name](true_denoise, jnp.zeros(SHAPE), KARRAS.levels(4), KEY, **options)


def draw_sigmas(name, levels, **options):
    """What `draw` returns where the estimated image is everywhere the σ of its level."""
    x = levels.sigma[0] * jnp.ones(SHAPE)
    outputs = (lambda x, level: jnp.full(x.shape, level.sigma), estimate_from_image)
    return np.asarray(draw(name, *outputs, x, levels, KEY, **options))


@pytest.mark.parametrize("steps", [3, 20])
def test_pictures_are_estimates_from_the_first_to_the_last(steps):
    levels = KARRAS.levels(steps)
    pictures = draw_sigmas("ddim", levels, clip=False, pictures=9)
    assert pictures.shape == (9, *SHAPE)
    sigmas = pictures[:, 0, 0, 0]
    np.testing.assert_allclose(sigmas[[0, -1]], levels.sigma[[0, -2]], rtol=1e-6)
    assert np.all(np.diff(sigmas) <= 0)
    image = draw_sigmas("ddim", levels, clip=False, pictures=0)
    np.testing.assert_array_equal(image, pictures[-1])
    assert draw_sigmas("ddim", levels, clip=True, pictures=9).max() == 1


def test_an_unknown_sampler_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"sampler\.name='euler': expected ddim or .* or heun"):
        draw_sigmas("euler", KARRAS.levels(4), clip=False, pictures=0)
