"""EDM computes what its paper prints, by class and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import KEY, batch, random_state
from helpers.nets import jit, normal
from jax import random
from scipy.stats import kstest

from bloodjax.methods.edm import EDM
from bloodjax.sampling.draw import check_sampler

SHAPE = 8, 8, 1


def an_edm(shape=SHAPE, **changes):
    options = {"sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2}
    network = {"widths": (8,), "blocks": 1, "patch": 2}
    return EDM(**{"shape": shape} | options | network | changes)


def denoised_by_hand(method, params, x, sigma, label=None):
    """Eq. 7 with table 1, in float64 but for the network."""
    sigma = np.float64(sigma)[:, None, None, None]
    total = np.sqrt(sigma**2 + method.sigma_data**2)
    c_noise = 80 * (np.log(sigma[:, 0, 0, 0]) + 6.5)
    inputs = jnp.float32(x / total), jnp.float32(c_noise)
    inputs += (label,) if method.classes else ()
    output = jit(method.network.apply)({"params": params["edm"]}, *inputs)
    c_out = sigma * method.sigma_data / total
    return (method.sigma_data / total) ** 2 * x + c_out * np.float64(output)


@pytest.mark.parametrize("classes", [0, 3])
def test_denoise_is_eq_7(classes):
    method = an_edm(classes=classes)
    params, _ = random_state(method)
    x, sigma = normal(4, *SHAPE), np.float32([0.01, 0.3, 2.0, 40.0])
    x *= 1 + sigma[:, None, None, None]
    label = jnp.array([0, 2, 3, 1]) if classes else None
    actual = jit(method.denoise)(params, x, sigma, label)
    expected = denoised_by_hand(method, params, x, sigma, label)
    for image, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(image, reference, atol=2e-5 * np.abs(reference).max())
    assert np.abs(expected).min(axis=(1, 2, 3)).max() > 0


def record_loss(method, monkeypatch, data, answer):
    """(loss, x, σ, labels and keys that the denoiser gets), which answers `answer(x)`."""
    calls = []

    def denoise(self, params, x, sigma, label, rngs=None):
        calls.append((np.float64(x), np.float64(sigma), label, rngs))
        return answer(x)

    monkeypatch.setattr(EDM, "denoise", denoise)
    value, _ = method.loss({}, {}, data, KEY)
    return float(value), *calls[0]


def test_the_loss_is_the_weighted_error_at_log_normal_noise(monkeypatch):
    """λ(σ) = (σ² + σ_data²) / (σ σ_data)²: table 1; ln σ ~ N(P_mean, P_std²)."""
    method = an_edm((1, 1, 2), sigma_data=0.4, p_mean=-0.7, p_std=0.9)
    data = batch(method.shape, 5000)
    value, x, sigma, *_ = record_loss(method, monkeypatch, data, lambda x: 0.1 + 0 * x)
    noise = (x - np.float64(data[0])) / sigma[:, None, None, None]
    weight = (sigma**2 + 0.4**2) / (sigma * 0.4) ** 2
    error = ((0.1 - np.float64(data[0])) ** 2).mean(axis=(1, 2, 3))
    assert value == pytest.approx((weight * error).mean(), rel=1e-5)
    assert kstest((np.log(sigma) + 0.7) / 0.9, "norm").pvalue > 0.01
    assert kstest(noise.ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(np.log(sigma), noise[:, 0, 0, 0])[0, 1]) < 4 / np.sqrt(5000)


def test_the_loss_before_training_is_the_unit_variance_of_the_target():
    """λ c_out² = 1: F = 0 leaves the variance of its target at every σ, which is 1."""
    method = an_edm((8, 8, 1))
    params, stats = jit(method.init)(KEY)
    images = 0.5 * jnp.asarray(normal(512, 8, 8, 1))
    loss = jit(method.loss)(params, stats, (images, jnp.zeros(512, jnp.int32)), KEY)[0]
    assert loss == pytest.approx(1, abs=4 * np.sqrt(2 / images.size))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_labels_are_dropped_in_training(monkeypatch, rate):
    method = an_edm((1, 1, 1), classes=2, label_drop=rate)
    images, labels = batch(method.shape, 5000)
    _, _, _, given, _ = record_loss(method, monkeypatch, (images, labels), lambda x: x)
    given = np.asarray(given)
    assert abs((given == 2).mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / 5000)
    np.testing.assert_array_equal(given[given != 2], np.asarray(labels)[given != 2])


def test_without_classes_labels_do_not_matter():
    method = an_edm()
    params, stats = random_state(method)
    images, labels = batch(SHAPE)
    loss = jit(functools.partial(method.loss, params, stats))
    assert loss((images, labels), KEY)[0] == loss((images, labels + 1), KEY)[0]
    sample = jit(functools.partial(method.sample, params, stats, steps=3))
    np.testing.assert_array_equal(sample(KEY), sample(KEY, jnp.int32(1)))


def test_dropout_acts_in_training_only():
    plain, dropped = an_edm(), an_edm(dropout=0.5)
    params, stats = random_state(plain)
    data = batch(SHAPE)
    losses = [jit(m.loss)(params, stats, data, KEY)[0] for m in (plain, dropped)]
    assert abs(losses[0] - losses[1]) > 1e-3
    draws = [
        jit(functools.partial(m.sample, steps=3))(params, stats, KEY) for m in (plain, dropped)
    ]
    np.testing.assert_array_equal(*draws)


MEANS = np.array([-0.5, 0.1, 0.6])  # of the images of each class
DEVIATION = 0.1


@pytest.fixture
def true_denoiser(monkeypatch):
    """Pixels of class k are N(MEANS[k], DEVIATION²); of an unknown class, with the mean 0."""

    def denoise(self, params, x, sigma, label, rngs=None):
        gain = DEVIATION**2 / (DEVIATION**2 + sigma**2)[:, None, None, None]
        means = jnp.append(jnp.asarray(MEANS, jnp.float32), 0.0)
        mean = means[label][:, None, None, None] if self.classes else 0.0
        return mean + gain * (x - mean)

    monkeypatch.setattr(EDM, "denoise", denoise)


def pixels(method, label, **sampler):
    """2,048 images of 8 × 8 independent pixels, flat."""
    sample = functools.partial(method.sample, {}, {}, label=label, **sampler)
    return np.float64(jax.jit(jax.vmap(sample))(random.split(KEY, 2048))).ravel()


@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "heun", "steps": 40},
        {"name": "dpm_solver_pp_2m", "steps": 60},
        {"name": "ddim", "steps": 200},
        {"name": "ddim", "steps": 200, "eta": 1.0},
    ],
)
@pytest.mark.parametrize("label", [None, 0, 2])
def test_samples_of_a_class_are_those_of_its_distribution(true_denoiser, label, sampler):
    x = pixels(an_edm(classes=3), label, **sampler)
    mean = 0.0 if label is None else MEANS[label]
    assert x.mean() == pytest.approx(mean, abs=0.005)
    assert x.std() == pytest.approx(DEVIATION, rel=0.05)


def test_guidance_moves_samples_away_from_the_unknown_class(true_denoiser):
    """All gains are equal, so that u + w (c - u) is the denoiser of the mean w MEANS[k]."""
    x = pixels(an_edm(classes=3), 0, steps=40, guidance=1.5)
    assert x.mean() == pytest.approx(1.5 * MEANS[0], abs=0.005)
    assert x.std() == pytest.approx(DEVIATION, rel=0.05)
    outside = pixels(an_edm(classes=3), 0, steps=40, guidance=1.5, guidance_low=90.0)
    assert outside.mean() == pytest.approx(MEANS[0], abs=0.005)


def test_samples_stay_in_the_range_of_images(true_denoiser):
    x = pixels(an_edm(classes=3), 2, steps=40, guidance=3.0)  # the mean 1.8
    assert (x.min(), x.max()) == (1.0, 1.0)


def test_the_levels_are_those_of_the_options(monkeypatch):
    sigmas = []

    def denoise(self, params, x, sigma, label, rngs=None):
        sigmas.append(float(sigma[0]))
        return 0 * x

    monkeypatch.setattr(EDM, "denoise", denoise)
    with jax.disable_jit():
        an_edm().sample({}, {}, KEY, steps=3, name="ddim", sigma_min=0.5, sigma_max=8.0, rho=1.0)
    np.testing.assert_allclose(sigmas, [8.0, 4.25, 0.5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, r"sampler\.steps=0"),
        ({"name": "euler"}, r"sampler\.name='euler': expected ddim or .* or heun"),
        ({"sigma_min": 0.0}, r"sampler\.sigma_min=0\.0: expected .*more than 0"),
        ({"sigma_min": 90.0}, r"sampler\.sigma_min=90\.0: expected less than 80\.0"),
        ({"eta": 0.5}, r"sampler\.eta=0\.5"),
        ({"guidance": -1.0}, r"sampler\.guidance=-1\.0: expected .*at least 0"),
        ({"guidance": 2.0}, r"sampler\.guidance=2\.0: expected 1 for a method without classes"),
        ({"sigma": 1.0}, r"sampler\.sigma: no such option"),
    ],
)
def test_options_of_the_sampler_that_are_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_sampler(an_edm(), {"steps": 5} | options)
