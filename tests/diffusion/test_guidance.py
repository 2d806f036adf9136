"""Labels that are dropped in training, and guidance by labels in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import normal
from jax import random

from bloodjax.diffusion.guidance import drop_labels, guide
from bloodjax.diffusion.process import Levels

CLASSES, SHAPE = 3, (2, 3, 1)


def test_labels_are_dropped_at_the_rate_and_otherwise_kept():
    labels = jnp.arange(30_000) % CLASSES
    kept = np.asarray(drop_labels(random.key(0), labels, CLASSES, 0.1))
    dropped = kept == CLASSES
    assert abs(dropped.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 30_000)
    np.testing.assert_array_equal(kept[~dropped], labels[~dropped])
    for label in range(CLASSES):  # each class alike
        assert abs(dropped[label::CLASSES].mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 10_000)


def test_a_rate_of_0_keeps_all_labels_and_1_none():
    labels = jnp.arange(100) % CLASSES
    np.testing.assert_array_equal(drop_labels(random.key(0), labels, CLASSES, 0.0), labels)
    assert np.all(drop_labels(random.key(0), labels, CLASSES, 1.0) == CLASSES)


ALL = Levels(np.arange(4.0)[::-1], np.full(4, 0.8), 0.8 * np.array([80, 1, 0.1, 0]))


def make_guided(label, guidance=2.5, interval=(0.5, 2.0)):
    """(the guided output, the number of images in each call of the network)."""
    calls = []

    def predict(x, level, labels):
        calls.append(len(x))
        return jnp.sin(x + level.sigma) * (1.0 + labels[:, None, None, None]) ** 2

    return guide(predict, CLASSES, label, guidance, interval, ALL), calls


def level(ratio, alpha=0.8):
    return Levels(jnp.float32(5), jnp.float32(alpha), jnp.float32(alpha * ratio))


def expected(x, ratio, label, guidance):
    base = np.sin(x + 0.8 * ratio)
    conditional, unknown = base * (1 + label) ** 2, base * (1 + CLASSES) ** 2
    return unknown + guidance * (conditional - unknown)


@pytest.mark.parametrize("label", [0, 2])
@pytest.mark.parametrize("ratio, guidance, images", [(0.51, 2.5, 2), (1.99, 2.5, 2)])
@pytest.mark.parametrize("jitted", [False, True])
def test_inside_the_interval_the_output_is_extrapolated(label, ratio, guidance, images, jitted):
    x = normal(*SHAPE)
    output, calls = make_guided(label)
    with jax.disable_jit(not jitted):
        actual = output(x, level(ratio))
    np.testing.assert_allclose(actual, expected(x, ratio, label, guidance), rtol=1e-5, atol=1e-5)
    assert jitted or calls == [images]


@pytest.mark.parametrize("ratio", [0.01, 0.49, 2.01, 80.0])
def test_outside_the_interval_the_label_alone_counts_and_costs_one_image(ratio):
    x = normal(*SHAPE)
    output, calls = make_guided(2)
    with jax.disable_jit():
        actual = output(x, level(ratio))
    np.testing.assert_allclose(actual, expected(x, ratio, 2, 1.0), rtol=1e-5, atol=1e-5)
    assert calls == [1]


@pytest.mark.parametrize("label, guidance", [(1, 1.0), (None, 2.5)])
def test_without_guidance_or_label_there_is_one_image_a_call(label, guidance):
    x = normal(*SHAPE)
    output, calls = make_guided(label, guidance)
    actual = output(x, level(1.0))
    label = CLASSES if label is None else label
    np.testing.assert_allclose(actual, expected(x, 1.0, label, 1.0), rtol=1e-5, atol=1e-5)
    assert calls == [1]


@pytest.mark.parametrize("interval, images", [((0.0, 80.0), [2]), ((0.0, 79.0), [2, 1])])
def test_one_network_is_compiled_where_all_levels_are_guided(interval, images):
    x = normal(*SHAPE)
    output, calls = make_guided(2, interval=interval)
    actual = jax.jit(output)(x, level(1.0))
    assert calls == images
    np.testing.assert_allclose(actual, expected(x, 1.0, 2, 2.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interval", [(5.0, 1.0), (1.0, 1.0)])
def test_an_empty_interval_is_refused(interval):
    with pytest.raises(ValueError, match=f"guidance_low={interval[0]}: expected less than"):
        make_guided(1, interval=interval)


def test_a_batch_of_labels_is_guided_image_by_image():
    x = normal(4, *SHAPE)
    labels = jnp.array([0, 2, 1, 0])

    def one(x, label):
        return make_guided(label)[0](x, level(1.0))

    actual = jax.jit(jax.vmap(one))(x, labels)
    for i, label in enumerate([0, 2, 1, 0]):
        np.testing.assert_allclose(actual[i], expected(x[i], 1.0, label, 2.5), rtol=1e-5, atol=1e-5)


def test_a_method_without_classes_ignores_labels_and_refuses_guidance():
    x = normal(*SHAPE)
    output = guide(lambda x, level, labels: 2 * x if labels is None else x, 0, 1, 1.0, (0, 9), ALL)
    np.testing.assert_array_equal(output(x, level(1.0)), 2 * x)
    with pytest.raises(ValueError, match=r"sampler\.guidance=1\.5: expected 1 "):
        guide(lambda x, level, labels: x, 0, None, 1.5, (0, 9), ALL)
