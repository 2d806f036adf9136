"""Compute precision: what is made in bfloat16, what never is, and what a GPU is asked for."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from helpers.tiny import SHAPE, SMALL, cells

from bloodjax import data, methods, workdir
from bloodjax.features.bloodnet import extractor as bloodnet
from bloodjax.features.inception import conversion, network
from bloodjax.features.inception.protocols import PROTOCOLS
from bloodjax.images import to_float
from bloodjax.nets.conv import Decoder, Encoder
from bloodjax.nets.unet import Attention, ResBlock, UNet
from bloodjax.runtime import compilation
from bloodjax.training import step as steps
from bloodjax.training.step import OptimizerConfig

ROOT = Path(__file__).parent.parent
DTYPE = r"tensor<(?:\d+x)*(\w+)>"
RATES = {"vae": 1e-3, "gan": 2e-4, "ddpm": 2e-3, "edm": 2e-3}  # of the configurations
BATCH = np.zeros((4, *SHAPE), np.float32), np.zeros(4, np.int32)
every_method = pytest.mark.parametrize("name", methods.names())


@pytest.fixture
def prepare():
    """`compilation.prepare` for one test."""
    before = jax.config.jax_default_matmul_precision
    yield partial(compilation.configure_jax, False)
    jax.config.update("jax_default_matmul_precision", before)


def made(name, dtype, **changes):
    return methods.make(name, shape=SHAPE, dtype=dtype, classes=2, **SMALL[name] | changes)


def stepped(name, dtype):
    """A training step as a function of state and batch, and the shapes of a state."""
    method, tx = made(name, dtype), steps.make_optimizer(OptimizerConfig())
    state = jax.eval_shape(partial(steps.init_state, method, tx), np.uint32(0))
    return partial(steps.train_step, method, tx, 0.9), state


def for_cuda(function, *arguments):
    """`function` as it is handed to the compiler for an NVIDIA GPU."""
    return jax.export.export(jax.jit(function), platforms=["cuda"])(*arguments).mlir_module()


def lines(text, *operations):
    found = [x for x in text.splitlines() if any(f"stablehlo.{o}" in x for o in operations)]
    assert found, f"no {operations} in\n{text}"
    return found


def each(lines, pattern):
    """All that `pattern` finds, as one set a line."""
    return [set(re.findall(pattern, line)) for line in lines]


# ---- the setting ----


@pytest.mark.parametrize("precision, asked", [("float32", "HIGHEST"), ("tf32", "HIGH")])
@every_method
def test_a_gpu_is_asked_for_float32_or_tensorfloat32(prepare, name, precision, asked):
    dtype = prepare(precision)
    products = lines(for_cuda(*stepped(name, dtype), BATCH), "convolution", "dot")
    assert all(x == {asked} for x in each(products, r"\b(?:DEFAULT|HIGH|HIGHEST)\b"))
    assert all(x == {"f32"} for x in each(products, DTYPE))


@every_method
def test_products_are_of_bfloat16_and_sums_of_float32_forward_and_backward(prepare, name):
    text = for_cuda(*stepped(name, prepare("bfloat16")), BATCH)
    products = lines(text, "convolution", "dot")
    assert all(x == {"bf16"} for x in each(products, DTYPE))
    # Adam's and the normalisations', the images', the times'
    exact = lines(text, "sqrt", "rsqrt", "tanh", "sine", "cosine")
    assert all(x == {"f32"} for x in each(exact, DTYPE))
    for line in lines(text, "reduce("):
        if found := re.search(r"dimensions = \[(.*)\] : \(tensor<(.*)xbf16>,", line):
            axes, shape = (np.array(re.split("x|, ", x), int) for x in found.groups())
            assert np.prod(shape[axes]) <= 4, line  # the gradient of enlarging by two


def test_attention_is_weighted_in_float32():
    x = jnp.zeros((2, 4, 4, 8))
    apply = Attention(jnp.bfloat16).init_with_output
    softmax = lines(for_cuda(apply, jax.random.key(0), x), "exponential", "divide")
    assert any("exponential" in line for line in softmax)
    assert all(x == {"f32"} for x in each(softmax, DTYPE))


def test_a_cpu_computes_float32_and_tf32_as_without_a_setting(prepare):
    step, state = stepped("vae", "float32")
    state = jax.tree.map(lambda x: np.full(x.shape, 0.1).astype(x.dtype), state)
    results = [jax.jit(step)(state, BATCH)]
    for precision in ("float32", "tf32"):
        prepare(precision)
        results.append(jax.jit(step)(state, BATCH))
    jax.tree.map(np.testing.assert_array_equal, *results[:2])
    jax.tree.map(np.testing.assert_array_equal, *results[1:])


def test_an_unknown_precision_is_refused_in_one_line(prepare):
    with pytest.raises(ValueError, match="^precision='half': .* float32, tf32, bfloat16$"):
        prepare("half")


def test_the_command_line_hands_it_to_the_method(tmp_path):
    program = "import launch; launch.run_stages = lambda *arguments: print(arguments[3].dtype)"
    given = ["--config=configs/vae.py:quick", "--config.data.source=synthetic"]
    given += ["--config.precision=bfloat16", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; launch.app.run(launch.cli)", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "bfloat16\n", done.stderr


def test_a_workdir_has_one_precision(tmp_path):
    config = {"optimizer": {}, "precision": "float32"}
    workdir.open_run(tmp_path, config, cells())
    with pytest.raises(ValueError, match="precision was 'float32', now 'bfloat16'"):
        workdir.open_run(tmp_path, config | {"precision": "bfloat16"}, cells(), ["sample"])


# ---- what is in which dtype ----

NETS = [
    (Encoder(5, 4, True, jnp.bfloat16), [(12, 12, 3)], [True]),
    (Decoder((12, 12, 3), 4, False, jnp.bfloat16), [(6,)], [True]),
    (Decoder((12, 12, 3), 4, True, jnp.bfloat16), [(6,)], [True]),
    (UNet((8, 16), 1, 2, jnp.bfloat16), [(8, 8, 3), ()], []),
]


@pytest.mark.parametrize("net, shapes, options", NETS)
def test_activations_are_bfloat16_between_float32_input_output_and_variables(net, shapes, options):
    given = [jnp.zeros((2, *shape)) for shape in shapes]
    output, variables = jax.eval_shape(
        lambda: net.init_with_output(
            jax.random.key(0), *given, *options, mutable=True, capture_intermediates=True
        )
    )
    inner = flatten_dict(variables.pop("intermediates"))
    inner.pop(("__call__",))  # the network's own output
    assert output.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
    # The last of several is the layer's own: those before it are of the class it is made from.
    assert {x[-1].dtype for x in inner.values()} == {np.dtype(jnp.bfloat16)}


@every_method
def test_state_metrics_and_samples_are_float32_as_they_were(name):
    def results(dtype):
        method, (step, state) = made(name, dtype), stepped(name, dtype)
        ddpm = {"steps": 2, "eta": 1.0, "clip": True, "variance": "beta"}
        sample = partial(method.sample, **{"ddpm": ddpm, "edm": {"steps": 2}}.get(name, {}))
        drawn = jax.eval_shape(sample, state.params, state.stats, jax.random.key(0))
        return state, jax.eval_shape(step, state, BATCH), drawn

    found = results("bfloat16")
    assert found == results("float32")
    assert "bfloat16" not in {x.dtype.name for x in jax.tree.leaves(found)}


NORMS = [
    (nn.BatchNorm, partial(Decoder, (8, 8, 3), 8, True), [(5,)], [True]),
    (nn.GroupNorm, partial(ResBlock, 8), [(4, 4, 8), (16,)], []),
]


@pytest.mark.parametrize("norm, net, shapes, options", NORMS)
def test_means_and_variances_are_float32(norm, net, shapes, options):
    """Of 120 to 127, exact in bfloat16: the mean of their squares would be up to 32 off there."""
    rng = np.random.default_rng(0)
    given = [rng.integers(120, 128, (16, *shape)).astype(np.float32) for shape in shapes]
    params = net().init(jax.random.key(0), *given, *options)["params"]
    if norm is nn.BatchNorm:  # what is normalised is then the latents themselves
        params["Dense_0"]["kernel"] = np.eye(5, dtype=np.float32)[np.arange(128) % 5].T

    def first(dtype):
        """The first normalisation's output and, of BatchNorm, its moved statistics."""
        _, found = net(dtype=dtype).apply(
            {"params": params},
            *given,
            *options,
            mutable=True,
            capture_intermediates=lambda module, _: isinstance(module, norm),
        )
        name = f"{norm.__name__}_0"
        return found["intermediates"][name]["__call__"], found.get("batch_stats", {}).get(name, {})

    (rough, moved), (exact, expected) = first(jnp.bfloat16), first(jnp.float32)
    np.testing.assert_allclose(np.float32(rough), exact, rtol=2**-8)
    assert np.std(exact) == pytest.approx(1, rel=0.01)
    assert jax.tree.all(jax.tree.map(partial(np.allclose, rtol=1e-6), moved, expected))


# ---- what it does to results ----


@pytest.fixture(scope="module")
def small_cells():
    """Every second pixel of the middle of synthetic cells, float32 [N, 8, 8, 3] in [-1, 1]."""
    return np.asarray(to_float(data.load("synthetic", split="val").images[:512, 6:22:2, 6:22:2]))


def losses(method, rate, images):
    """Each player's loss, the mean over the last 20 of 200 steps."""
    tx = steps.make_optimizer(OptimizerConfig(learning_rate=rate, beta1=0.5, beta2=0.999))
    step = jax.jit(partial(steps.train_step, method, tx, 0.0))
    state = jax.jit(partial(steps.init_state, method, tx))(np.uint32(0))
    seen = []
    for rows in np.arange(200 * 32).reshape(200, 32) % len(images):
        state, found = step(state, (images[rows], np.zeros(32, np.int32)))
        seen.append([found[f"{player}_loss"] for player in method.losses])
    return np.mean(seen[-20:], axis=0)


@pytest.mark.slow
@every_method
def test_loss_in_bfloat16_is_that_of_float32_within_2_percent(prepare, name, small_cells):
    # σ = (2π)^-½ is where the Gaussian's constant, the same in both, is 0 and hides nothing.
    changes = {"vae": {"sigma": (2 * np.pi) ** -0.5}, "ddpm": {"widths": (8,)}}.get(name, {})
    exact, rough = (
        losses(made(name, prepare(precision), **changes), RATES[name], small_cells)
        for precision in ("float32", "bfloat16")
    )
    assert np.all(exact != rough)
    np.testing.assert_allclose(rough, exact, rtol=0.02)


# ---- scores ----


def inception(state):
    params = jax.eval_shape(lambda: jax.tree.map(jnp.float32, conversion.fold(state)))
    return jax.jit(network.forward), params, jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)


def embedder(state):
    return bloodnet.forward, bloodnet.read(bloodnet.WEIGHTS)[1], np.zeros((2, 64, 64, 3), np.uint8)


def resizer(protocol, state):
    return jax.jit(PROTOCOLS[protocol]), np.zeros((2, 28, 28, 3), np.uint8)


@pytest.mark.parametrize(
    "program", [inception, embedder, *(partial(resizer, p) for p in PROTOCOLS)]
)
def test_features_are_the_same_program_with_any_precision(prepare, program, state):
    def lowered(precision):
        prepare(precision)
        jitted, *given = program(state)
        return jitted.trace(*given).lower(lowering_platforms=("cuda",)).as_text()

    text = lowered("float32")
    assert all(lowered(precision) == text for precision in ("tf32", "bfloat16"))
