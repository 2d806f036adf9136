"""Every method keeps the one contract."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.methods import KEY, batch, random_state
from helpers.nets import jit
from jax import random

from bloodjax import methods

CONFIGS = Path(__file__).parents[2] / "configs"
# Smaller values for these tests. The options of a further method may stay as in its config.
SHRUNK = {"width": 4, "discriminator_width": 4, "widths": (8,), "latent": 5, "timesteps": 8}
SHRUNK_SAMPLER = {"steps": 8}
GREY, COLOUR = (12, 12, 1), (20, 24, 3)


def configured(name):
    """The options of the method's own config file: (method, sampler)."""
    file = CONFIGS / f"{name}.py"
    assert file.exists(), f"methods/{name}.py has no configs/{name}.py"
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    assert config["method"].pop("name") == name
    method = {k: SHRUNK.get(k, v) for k, v in config["method"].items()}
    return method, {k: SHRUNK_SAMPLER.get(k, v) for k, v in config["sampler"].items()}


@functools.cache
def built(name, shape):
    """(method, params, stats, sampler's options), small."""
    options, sampler = configured(name)
    method = methods.make(name, shape=shape, classes=2, **options)
    return method, *random_state(method), sampler


@functools.cache
def compiled(name, shape, function):
    """A function of the small method with its parameters and statistics filled in."""
    method, params, stats, options = built(name, shape)
    if function in method.losses:
        return jit(functools.partial(method.losses[function], params, stats))
    return jit(functools.partial(getattr(method, function), params, stats, **options))


@pytest.fixture(scope="module", autouse=True)
def root():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CONFIGS.parent))
        yield


every_method = pytest.mark.parametrize("name", methods.names())


def signature(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_paper_s_methods_are_there():
    assert {"vae", "gan", "ddpm"} <= set(methods.names())


@every_method
def test_config_names_every_hyper_parameter(name):
    options, _ = configured(name)
    fields = {f.name for f in dataclasses.fields(built(name, GREY)[0])}
    assert fields - {"classes"} == {"shape", "dtype", *options} - {"conditional"}


@every_method
def test_method_is_a_value(name):
    method = built(name, GREY)[0]
    again = methods.make(name, shape=GREY, classes=2, **configured(name)[0])
    assert method == again
    assert hash(method) == hash(again)
    for value in jax.tree.leaves(dataclasses.asdict(method)):
        assert isinstance(value, int | float | str)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.shape = COLOUR
    assert method.shape == GREY
    assert len(method.trace_title.split()) == 1
    assert isinstance(method.classes, int)


@every_method
def test_init_gives_every_player_finite_parameters(name):
    method = built(name, GREY)[0]
    params, stats = jit(method.init)(KEY)
    assert set(params) == set(method.losses)
    assert set(stats) <= set(params)
    for leaf in jax.tree.leaves((params, stats)):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
    other, _ = jit(method.init)(random.key(4))
    assert all(
        any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in ((params[p], other[p]) for p in params)
    )


@every_method
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_losses_are_finite_numbers_and_keep_the_statistics_form(name, shape):
    method, _, stats, _ = built(name, shape)
    for player in method.losses:
        value, (metrics, moved) = compiled(name, shape, player)(batch(shape), KEY)
        for number in (value, *metrics.values()):
            assert number.shape == () and number.dtype == jnp.float32 and np.isfinite(number)
        assert signature(moved) == signature(stats)


@every_method
@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 3), (28, 28, 3), (30, 26, 1), (64, 64, 3)])
def test_method_fits_images_of_any_shape(name, shape):
    options, sampler = configured(name)
    method = methods.make(name, shape=shape, classes=2, **options)
    params, stats = jax.eval_shape(method.init, KEY)
    for loss in method.losses.values():
        value, (_, moved) = jax.eval_shape(loss, params, stats, batch(shape), KEY)
        assert value.shape == () and signature(moved) == signature(stats)
    sample = functools.partial(method.sample, **sampler)
    assert jax.eval_shape(sample, params, stats, KEY).shape == shape


@every_method
def test_losses_depend_on_images_and_key_and_on_labels_only_if_there_are_classes(name):
    images, labels = batch(GREY)
    method = built(name, GREY)[0]
    for number, player in enumerate(method.losses):
        run = compiled(name, GREY, player)
        value = float(run((images, labels), KEY)[0])
        assert (value == run((images, labels + 1), KEY)[0]) == (method.classes == 0)
        assert value != run((images, labels), random.key(4))[0]
        if number == 0:  # the GAN's generator sees no image
            assert value != run((images / 2, labels), KEY)[0]


@every_method
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_sample_is_one_image_and_a_function_of_the_key(name, shape):
    run = compiled(name, shape, "sample")
    image = run(KEY)
    assert image.shape == shape and image.dtype == jnp.float32
    assert np.abs(image).max() <= 1 + 1e-6 and np.std(image) > 0.01
    np.testing.assert_array_equal(image, run(KEY))
    assert np.abs(image - run(random.key(4))).max() > 0.01


@every_method
def test_a_batch_of_samples_holds_the_same_images(name):
    method, params, stats, options = built(name, GREY)
    sample = functools.partial(method.sample, params, stats, **options)
    images = jit(jax.vmap(sample))(random.split(KEY, 3))
    one = compiled(name, GREY, "sample")(random.split(KEY, 3)[2])
    np.testing.assert_allclose(images[2], one, atol=1e-4)


@every_method
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_trace_is_a_strip_of_images(name, shape):
    strip = compiled(name, shape, "trace")(KEY)
    assert strip.shape == (len(strip), *shape) and len(strip) > 1
    assert strip.dtype == jnp.float32 and np.abs(strip).max() <= 1 + 1e-6
    assert np.abs(strip[0] - strip[-1]).max() > 0.01


@every_method
def test_a_method_with_classes_draws_another_image_for_another_label(name):
    method, params, stats, options = built(name, GREY)
    run = jit(functools.partial(method.sample, params, stats, **options))
    images = [run(KEY, jnp.int32(label)) for label in (0, 1)]
    assert (np.abs(images[0] - images[1]).max() > 0.01) == (method.classes > 0)


def test_make_gives_classes_to_conditional_methods_only():
    options, _ = configured("ddpm")
    assert options.pop("conditional") is False
    assert methods.make("ddpm", shape=GREY, classes=5, **options).classes == 0
    assert methods.make("ddpm", shape=GREY, classes=5, conditional=True, **options).classes == 5
    with pytest.raises(ValueError, match="method.conditional=True: vae ignores labels"):
        methods.make("vae", shape=GREY, classes=5, conditional=True, **configured("vae")[0])
    with pytest.raises(ValueError, match="method.conditional=True: the data have no classes"):
        methods.make("ddpm", shape=GREY, conditional=True, **options)


def test_make_refuses_an_unknown_method_with_those_there_are():
    with pytest.raises(ValueError, match=f"'wgan': expected one of {', '.join(methods.names())}"):
        methods.make("wgan")


@pytest.mark.parametrize("name", ["__init__", "", "VAE"])
def test_make_takes_the_exact_name(name):
    with pytest.raises(ValueError, match="expected one of"):
        methods.make(name)


def test_make_refuses_an_unknown_option_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"method\.latnet: no such .*did you mean method\.latent\?"
    ):
        methods.make("gan", shape=GREY, latnet=5)
    with pytest.raises(ValueError, match=r"method\.zzz: no such option; expected one of .*'sigma'"):
        methods.make("vae", zzz=1)
