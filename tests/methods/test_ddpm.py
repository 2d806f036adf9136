"""The DDPM trains and samples by its process, its sampler and its network."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusion import (
    PAPER,
    SHORT,
    algorithm_2,
    fake_noise,
    injected,
    linear_schedule,
    record_noise,
    song_12,
)
from helpers.methods import KEY, batch, random_state
from helpers.nets import jit
from jax import random
from scipy.stats import kstest

from bloodjax.diffusion import samplers
from bloodjax.diffusion.process import LinearBeta
from bloodjax.methods.ddpm import DDPM
from bloodjax.sampling.draw import check_sampler


def a_ddpm(shape=(2, 2, 1), process=PAPER, **changes):
    options = {"shape": shape, "widths": (8,), "blocks": 1, "patch": 1}
    return DDPM(**options | dataclasses.asdict(process) | changes)


def test_the_loss_is_the_squared_error_of_the_noise_at_uniform_times(monkeypatch):
    method = a_ddpm((1, 1, 2), LinearBeta(5, 1e-4, 0.02))
    data = batch(method.shape, 5000)
    calls, corruptions = [], []
    corrupt = LinearBeta.corrupt

    def record(self, images, t, noise):
        corruptions.append((np.asarray(images), np.asarray(t), np.asarray(noise)))
        return corrupt(self, images, t, noise)

    def answer(self, params, x, t, label):
        calls.append((np.asarray(x), np.asarray(t)))
        return 3.0 + jnp.zeros_like(x)

    monkeypatch.setattr(LinearBeta, "corrupt", record)
    monkeypatch.setattr(DDPM, "predict_noise", answer)
    value, _ = method.loss({}, {}, data, KEY)
    ((images, t, noise),), ((x, time),) = corruptions, calls
    np.testing.assert_array_equal(images, data[0])
    np.testing.assert_array_equal(time, t)
    np.testing.assert_allclose(x, corrupt(method.process, images, t, noise), atol=1e-6)
    assert value == pytest.approx(np.mean((3 - np.float64(noise)) ** 2), rel=1e-5)
    counts = np.bincount(t, minlength=6)
    assert (counts[0], len(counts)) == (0, 6)  # 1 to 5, both included
    assert np.abs(counts[1:] - 1000).max() < 4 * math.sqrt(5000 * 0.2 * 0.8)
    assert kstest(noise.ravel(), "norm").pvalue > 0.01


@pytest.fixture
def recorded(monkeypatch):
    """run(method, **options) -> (x_t of every network call, its t, the sample): `fake_noise`."""

    def run(method, **options):
        calls = []
        predict = record_noise(calls)
        monkeypatch.setattr(DDPM, "predict_noise", lambda self, params, x, t, label: predict(x, t))
        with jax.disable_jit():
            image = method.sample({}, {}, KEY, **options)
        return [x for x, _ in calls], [t for _, t in calls], np.asarray(image)

    return run


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_sample_of_all_steps_is_that_of_algorithm_2(recorded, clip, variance):
    method = a_ddpm((3, 4, 2), SHORT)
    xs, _, image = recorded(method, steps=20, eta=1.0, clip=clip, variance=variance)
    expected = algorithm_2(SHORT, method.shape, clip, variance)
    np.testing.assert_allclose([*xs, image], expected, atol=1e-5)


@pytest.mark.parametrize("eta, clip", [(0.0, True), (0.6, False)])
def test_a_sample_of_fewer_steps_is_that_of_ddim(recorded, eta, clip):
    method = a_ddpm((3, 4, 2), SHORT)
    xs, times, image = recorded(method, steps=5, eta=eta, clip=clip, variance="posterior")
    assert times == [20, 16, 12, 8, 4]
    expected = song_12(SHORT, method.shape, [20, 16, 12, 8, 4], eta, clip)
    np.testing.assert_allclose([*xs, image], expected, atol=1e-5)


@pytest.mark.parametrize("steps, kept", [(20, [0, 2, 5, 7, 10, 12, 14, 17, 19]), (3, None)])
def test_trace_shows_the_estimates_and_ends_in_the_sample(recorded, steps, kept):
    method = a_ddpm((3, 4, 2), SHORT)
    options = {"steps": steps, "eta": 0.5, "clip": True, "variance": "posterior"}
    xs, times, image = recorded(method, **options)
    with jax.disable_jit():
        strip = np.asarray(method.trace({}, {}, KEY, **options))
    assert strip.shape == (9, 3, 4, 2)
    np.testing.assert_allclose(strip[-1], image, atol=1e-6)
    abar = linear_schedule(SHORT)[2]
    for picture, i in zip(strip, kept or [0, 0, 0, 1, 1, 1, 2, 2, 2], strict=True):
        x, t = np.float64(xs[i]), int(times[i])
        x0 = (x - np.sqrt(1 - abar[t]) * fake_noise(x, t)) / np.sqrt(abar[t])
        np.testing.assert_allclose(picture, np.clip(x0, -1, 1), atol=1e-5)


def test_trace_ends_in_the_sample_of_the_network():
    method = a_ddpm((12, 12, 1), LinearBeta(8, 1e-4, 0.02))
    params, stats = random_state(method)
    options = {"steps": 8, "eta": 1.0, "clip": True, "variance": "posterior"}
    image, strip = (
        jit(functools.partial(draw, params, stats, **options))(KEY)
        for draw in (method.sample, method.trace)
    )
    np.testing.assert_allclose(strip[-1], image, atol=1e-5)


def test_the_name_chooses_the_sampler(monkeypatch):
    def stop(denoise, x, levels, key, **unused):
        return x, x[None]

    monkeypatch.setitem(samplers.SAMPLERS, "stop", stop)
    options = {"steps": 10, "eta": 0.0, "clip": True, "variance": "posterior", "name": "stop"}
    image = a_ddpm().sample({}, {}, KEY, **options)
    np.testing.assert_array_equal(image, random.normal(random.fold_in(KEY, 0), image.shape))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("steps", 1001, "1 to 1000 "),
        ("steps", -1, "at least 1"),
        ("variance", "learned", "'posterior' or 'beta'"),
        ("variance", "", "'posterior' or 'beta'"),
        ("eta", 1.5, "0 to 1"),
        ("eta", -0.1, "0 to 1"),
        ("name", "dimm", "ddim"),
    ],
)
def test_options_of_the_sampler_that_are_out_of_range_are_refused(name, value, expected):
    options = {"steps": 10, "eta": 1.0, "clip": True, "variance": "beta"} | {name: value}
    with pytest.raises(ValueError, match=rf"sampler\.{name}={value!r}: expected .*{expected}"):
        check_sampler(a_ddpm(), options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("widths", widths, "multiples of 8") for widths in [(), (12,), (16, 20), (4,)]),
        ("widths", (0,), "at least 1"),
        ("timesteps", 0, "at least 1"),
        ("beta_first", 0.0, "0 < value < 1"),
        ("beta_last", 1.0, "0 < value < 1"),
        ("dtype", "float16", "'float32' or 'bfloat16'"),
    ],
)
def test_hyper_parameters_that_are_out_of_range_are_refused(name, value, expected):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(a_ddpm(), **{name: value})
    assert str(error.value).startswith(f"method.{name}={value!r}: expected ")
    assert expected in str(error.value)


def test_classes_add_an_embedding_and_change_no_other_parameter():
    plain, conditional = (jit(a_ddpm(classes=c).init)(KEY)[0]["ddpm"] for c in (0, 3))
    assert conditional.pop("Embed_0")["embedding"].shape == (4, 32)  # three, and the unknown one
    jax.tree.map(np.testing.assert_array_equal, plain, conditional)


def test_the_loss_of_the_unknown_class_is_the_unconditional_one_at_the_same_noise():
    """With all labels dropped and an embedding of 0, of which the network sees nothing."""
    plain, conditional = a_ddpm(), a_ddpm(classes=3, label_drop=1.0)
    params, stats = random_state(conditional)
    params["ddpm"]["Embed_0"]["embedding"] *= 0
    without = {"ddpm": {k: v for k, v in params["ddpm"].items() if k != "Embed_0"}}
    data = batch((2, 2, 1))
    losses = [
        jit(method.loss)(p, stats, data, KEY)[0]
        for method, p in ((plain, without), (conditional, params))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_guidance_extrapolates_the_noise_from_that_of_the_unknown_class(monkeypatch):
    """One step to the image: x_0 = (x - σ (u + w (c - u))) / α, with the noises c and u."""
    noises = jnp.array([0.1, 0.2, 0.3, 0.7])  # of three classes and the unknown one

    def predict(self, params, x, t, label=None):
        return 0 * x + noises[label][:, None, None, None]

    monkeypatch.setattr(DDPM, "predict_noise", predict)
    method = a_ddpm((3, 4, 2), SHORT, classes=3)
    options = {"steps": 1, "eta": 0.0, "clip": False, "variance": "posterior"}
    alpha, sigma = (values[0] for values in SHORT.levels(1)[1:])
    for guidance, noise in ((1.0, 0.2), (2.0, 0.7 + 2 * (0.2 - 0.7))):
        image = method.sample({}, {}, KEY, jnp.int32(1), guidance=guidance, **options)
        expected = (injected(method.shape, 0) - sigma * noise) / alpha
        np.testing.assert_allclose(image, expected, atol=1e-4)
