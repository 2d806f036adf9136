"""Every value of every key is taken and allowed, or refused by key, value and range."""

import functools
import importlib
import math

import numpy as np
import pytest
from helpers.tiny import cells
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from bloodjax import options
from bloodjax.bench.benchmark import BenchConfig
from bloodjax.runtime.files import flatten


def whole(low, high=math.inf):
    return lambda x: type(x) is int and low <= x <= high


def real(low, high=math.inf, open_low=False, open_high=False):
    def allowed(x):
        if type(x) not in (int, float) or not math.isfinite(x):
            return False
        return (low < x if open_low else low <= x) and (x < high if open_high else x <= high)

    return allowed


def of(*choices):
    return lambda x: any(type(x) is type(choice) and x == choice for choice in choices)


def each(allowed, at_least=0):
    def every(x):
        items = tuple(x) if isinstance(x, tuple | list) else None
        return items is not None and len(items) >= at_least and all(map(allowed, items))

    return every


def different_seeds(x):
    return each(whole(0, 2**32 - 1), 1)(x) and len(set(x)) == len(x)


def text(x):
    return isinstance(x, str)


def strategy(x):
    names = {"loop", "vmap", "map", "sharded", "sharded-vmap", "sharded-map"}
    return text(x) and (x == "auto" or bool(x) and set(x.split(",")) <= names)


ALLOWED = {  # written by hand, from configs/ and the papers, beside the annotations
    "deterministic": of(True, False),
    "precision": of("float32", "tf32", "bfloat16"),
    "seeds": different_seeds,
    "optimizer.learning_rate": real(0, open_low=True),
    "optimizer.beta1": real(0, 1, open_high=True),
    "optimizer.beta2": real(0, 1, open_high=True),
    "optimizer.warmup_steps": whole(0),
    "optimizer.decay": of("none", "cosine"),
    "optimizer.clip_norm": real(0),
    "train.epochs": whole(1),
    "train.batch_size": whole(1),
    "train.augment": of(True, False),
    "train.ema_decay": real(0, 1, open_high=True),
    "train.ema_decay_long": real(0, 1, open_high=True),
    "train.scan_steps": whole(0),
    "train.strategy": strategy,
    "train.checkpoint_epochs": whole(1),
    "train.keep": whole(1),
    "train.evaluate_count": lambda x: whole(0)(x) and x != 1,
    "sample.count": whole(2),
    "sample.labels": text,  # of a conditional method; classes are known with the data
    "sample.model": text,
    "sample.checkpoint": of("newest"),  # "best" needs an evaluation, see below
    "sample.weights": of("ema", "raw"),  # "ema_long" needs an average, see below
    "sample.chunk": whole(0),
    "sample.export": each(of("png", "grid")),
    "score.features": each(text),
    "score.count": whole(2),
    "score.draws": whole(1),
    "score.sample_sets": of(1),  # more need more samples than the default
    "log.tensorboard": of(True, False),
    "method.name": of("vae", "gan", "ddpm"),
    "method.latent": whole(1),
    "method.width": whole(1),
    "method.sigma": real(0, open_low=True),
    "method.discriminator_width": whole(1),
    "method.timesteps": whole(20),  # as the sampler takes 20 steps
    "method.beta_first": real(0, 1, True, True),
    "method.beta_last": real(0, 1, True, True),
    "method.blocks": whole(1),
    "method.patch": of(1, 2),  # 4 leaves two pixels for two halvings
    "method.widths": each(lambda x: whole(8)(x) and x % 8 == 0, 1),
    "method.net": of("unet"),
    "sampler.name": of("ddim"),
    "sampler.steps": whole(1, 20),
    "sampler.eta": real(0, 1),
    "sampler.clip": of(True, False),
    "sampler.variance": of("posterior", "beta"),
    "method.conditional": of(True, False),
    "method.label_drop": real(0, 1),
    "sampler.guidance": real(1, 1),  # of a method without classes
    "sampler.guidance_low": real(0),
    "sampler.guidance_high": real(0, open_low=True),
    "bench.torch_python": of(""),
    "bench.batches": each(whole(1), 1),
    "bench.repeats": whole(5),
    "bench.quick": of(True, False),
}
BASE = {
    "vae": {"method": {"latent": 4, "width": 4}},
    "gan": {"method": {"latent": 4, "width": 4, "discriminator_width": 4}},
    "ddpm": {
        "method": {"timesteps": 20, "widths": (8, 16), "net": "unet"},
        "sampler": {"steps": 10},
    },
}
NUMBERS = [0, -1, 1, 2, 20, 1000, 2**32, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-9, 1e300]
NUMBERS += [math.nan, math.inf, -math.inf]
OTHERS = [True, False, None, "", "x", "0-4", "3", "nan", "loop,vmap", "auto", "ema", "png", "best"]
OTHERS += ["ema_long", b"x", {"a": 1}, np.float32(1), np.int64(2), [], [1], ["png", "x"], {3}]
VALUES = [*NUMBERS, *OTHERS, (), (0,), (1, 1), (0, -1), (0, 0.5), (0, "1"), (8, 16), (8, None)]
VALUES += [("png", "grid"), ("png", 1), ((0,),), (math.nan,), (True, False)]

LARGE = ("20", "1000", "4294967296", "1e+300")  # networks of that size take minutes to trace
SMALL = [x for x in VALUES if repr(x) not in LARGE]


@functools.cache
def configuration(name):
    config = importlib.import_module(f"configs.{name}").get_config("").to_dict()
    for group, changes in BASE[name].items():
        config[group] |= changes
    return config


def build(config):
    """All that a run builds of its configuration before it looks at the data."""
    options.build(BenchConfig, "bench", config["bench"])
    return options.build(launch.RunConfig, "", config)


def build_method(config):
    """All that a run builds for its data before any work."""
    launch.make_method(build(config), cells(), "float32")


def with_value(config, key, value):
    group, _, name = key.rpartition(".")
    return config | ({group: config[group] | {name: value}} if group else {name: value})


def check(build, config, key, value):
    """`build` takes a value exactly if it is allowed, and names key, value and range if not."""
    changed = with_value(config, key, value)
    if ALLOWED[key](value):
        build(changed)
        return
    with pytest.raises(ValueError) as error:
        build(changed)
    message = str(error.value)
    assert key in message and "expected" in message and "\n" not in message
    values = (value, tuple(value)) if isinstance(value, list) else (value,)
    assert any(form(x) in message for form in (repr, str) for x in values)


def keys(name):
    flat = flatten(configuration(name))
    return [key for key in flat if not key.startswith(("data.", "name"))]


@pytest.mark.parametrize("name", BASE)
def test_the_table_knows_every_key_and_allows_the_defaults(name):
    for key in keys(name):
        assert ALLOWED[key](flatten(configuration(name))[key]), key
    build_method(configuration(name))


COMMON = [key for key in keys("vae") if not key.startswith("method.")]
OWN = [
    (name, key)
    for name in BASE
    for key in keys(name)
    if key.startswith(("method.", "sampler.")) and key != "method.name"
]


@pytest.mark.parametrize("key", COMMON)
def test_every_value_of_a_group(key):
    for value in VALUES:
        check(build, configuration("vae"), key, value)


@pytest.mark.parametrize(("name", "key"), OWN)
def test_every_value_of_a_method_and_its_sampler(name, key):
    for value in SMALL:
        check(build_method, configuration(name), key, value)


scalars = st.one_of(st.sampled_from(NUMBERS + OTHERS), st.integers(), st.floats(), st.text())
values = st.one_of(scalars, st.lists(scalars, max_size=3).map(tuple))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(key=st.sampled_from(COMMON), value=values)
def test_any_value_of_a_group(key, value):
    check(build, configuration("vae"), key, value)


def test_the_best_checkpoint_needs_an_evaluation():
    best = with_value(configuration("vae"), "sample.checkpoint", "best")
    with pytest.raises(ValueError, match="sample.checkpoint='best', but train.evaluate_count=0"):
        build(best)
    build(with_value(best, "train.evaluate_count", 2))


def test_the_longer_average_needs_a_decay():
    longer = with_value(configuration("vae"), "sample.weights", "ema_long")
    with pytest.raises(ValueError, match="sample.weights='ema_long', but train.ema_decay_long=0"):
        build(longer)
    build(with_value(longer, "train.ema_decay_long", 0.9995))


@pytest.mark.parametrize(
    "key",
    ["optimizer.beta1", "train.epochs", "sample.count", "score.draws", "log.tensorboard"]
    + ["bench.batches", "method.timesteps", "sampler.steps"],
)
def test_a_mistyped_key_gets_the_nearest_name(key):
    group, _, name = key.partition(".")
    typo = f"{group}.{name[:-1]}x{name[-1]}"
    with pytest.raises(ValueError, match=f"{typo}: no such option; did you mean {key}"):
        build_method(with_value(configuration("ddpm"), typo, 1))
