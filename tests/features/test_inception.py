"""InceptionV3 against pytorch-fid's own module, and what surrounds it."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import torch_reference
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bloodjax import features
from bloodjax.features.inception import conversion, network, weights
from bloodjax.features.inception.extractor import make_programs
from bloodjax.features.inception.network import TAPS, forward
from bloodjax.features.inception.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]


def rng(*seed):
    return np.random.default_rng(seed)


def pictures(n, side=28, seed=3):
    """Smooth colourful images: noise enlarged, uint8 [n, side, side, 3]."""
    coarse = rng(seed).uniform(0, 255, (n, 7, 7, 3))
    grown = coarse.repeat(-(-side // 7), axis=1).repeat(-(-side // 7), axis=2)
    return grown[:, :side, :side].astype(np.uint8)


@pytest.fixture(scope="session")
def params(state):
    return {name: jnp.asarray(a, jnp.float32) for name, a in conversion.fold(state).items()}


@pytest.fixture(scope="session")
def reference(state):
    return torch_reference(state)


def reference_taps(net, x, state):
    """pytorch-fid's features of x [N, 299, 299, 3] in [-1, 1] at every tap, and the logits."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        taps = {}
        for dims, block in zip(TAPS, net.blocks, strict=True):
            x = block(x)
            taps[str(dims)] = x.mean((2, 3)).numpy()
    taps["logits"] = (
        taps["2048"] @ state["fc.weight"].T.astype(taps["2048"].dtype) + state["fc.bias"]
    )
    return taps


def worst(found, expected):
    """The largest relative L2 error over the taps."""
    errors = {
        tap: np.linalg.norm(found[tap] - expected[tap]) / np.linalg.norm(expected[tap])
        for tap in expected
    }
    return max(errors.values())


# ---- the graph ---------------------------------------------------------------------------------


def test_every_tap_is_pytorch_fids_in_float64(state, reference):
    x = rng(1).uniform(-1, 1, (1, 299, 299, 3))
    expected = reference_taps(reference.double(), x, state)
    with jax.enable_x64(True):
        found = jax.jit(forward)(jax.tree.map(jnp.asarray, conversion.fold(state)), jnp.asarray(x))
        found = jax.device_get(found)
    reference.float()
    assert found["2048"].dtype == np.float64 and found["2048"].std() > 0.1
    assert worst(found, expected) < 1e-10


def test_every_tap_is_pytorch_fids_in_float32(state, params, reference):
    x = np.array(PROTOCOLS["pytorch-fid"](pictures(3)))
    found = jax.device_get(jax.jit(forward)(params, x))
    assert worst(found, reference_taps(reference, x, state)) < 1e-5


def test_features_from_pixels_are_pytorch_fids(file, reference):
    import torch

    images = np.concatenate([pictures(2), rng(2).integers(0, 256, (2, 28, 28, 3), np.uint8)])
    with torch.no_grad():
        reference.float()
        blocks = reference(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    for dims, block in zip(TAPS, blocks, strict=True):
        found = features.make("inception", weights=str(file), dims=dims).features(images)
        expected = block.mean((2, 3)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


GOLDEN = os.path.join(os.path.dirname(__file__), "inception_golden.npz")


@pytest.fixture(scope="module")
def golden():
    """What pytorch-fid 0.3.0 on torch 2.13.0 makes of `golden_input` in float64."""
    with np.load(GOLDEN) as content:
        return dict(content)


def golden_input():
    return rng(5).uniform(-1, 1, (1, 299, 299, 3))


def test_golden_is_the_references_own(state, reference, golden):
    expected = reference_taps(reference.double(), golden_input(), state)
    reference.float()
    assert worst(golden, expected) < 1e-6


def test_golden(params, golden):
    found = jax.device_get(jax.jit(forward)(params, np.float32(golden_input())))
    assert found["2048"].shape == (1, 2048) and found["logits"].shape == (1, 1008)
    assert worst(found, golden) < 1e-5


def counting_borders(x):
    return network.pool(x, jnp.add, 1, 0.0) / 9


def borders_count_in_averages(patch, x):
    patch.setattr(network, "average_pool", counting_borders)
    return x


def the_last_block_pools_by_average(patch, x):
    true = network.max_pool

    def mutant(x, stride):
        return true(x, 2) if stride == 2 else network.average_pool(x)

    patch.setattr(network, "max_pool", mutant)
    return x


def flax_s_epsilon(patch, x):
    patch.setattr(conversion, "EPSILON", 1e-5)
    return x


def another_scale(patch, x):
    return ((x + 1) * 127.5 - 128) / 128


MUTATIONS = [
    borders_count_in_averages,
    the_last_block_pools_by_average,
    flax_s_epsilon,
    another_scale,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_golden_catches(mutate, monkeypatch, state, golden):
    x = mutate(monkeypatch, np.float32(golden_input()))
    params = {name: jnp.asarray(a, jnp.float32) for name, a in conversion.fold(state).items()}
    found = jax.device_get(jax.jit(lambda params, x: forward(params, x))(params, x))
    assert worst(found, golden) > 1e-3


def test_what_is_not_asked_for_is_not_computed(params):
    x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    text = jax.jit(lambda params, x: forward(params, x)["64"]).lower(params, x).as_text()
    whole = jax.jit(forward).lower(params, x).as_text()
    assert text.count("stablehlo.convolution") == 3 < whole.count("stablehlo.convolution") == 67


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_exports_with_full_precision(params, platform):
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: params)
    exported = jax.export.export(jax.jit(forward), platforms=[platform])(shapes, x)
    text = exported.mlir_module()
    lines = [line for line in text.splitlines() if "stablehlo.convolution(" in line]
    assert lines and all("precision HIGHEST" in line for line in lines), lines[0]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def for_cuda(jitted, *arguments):
    """The program for an NVIDIA GPU, and those lines of it that multiply."""
    text = jax.export.export(jitted, platforms=["cuda"])(*arguments).mlir_module()
    products = ("stablehlo.convolution(", "stablehlo.dot_general")
    return text, [line for line in text.splitlines() if any(p in line for p in products)]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("size", [(28, 28), (480, 640)])
def test_protocols_can_be_made_for_cuda(mesh, name, size):
    prepare, _ = make_programs(PROTOCOLS[name], 2048, mesh, "XLA")
    spread = NamedSharding(mesh, P("data"))
    images = jax.ShapeDtypeStruct((4, *size, 3), np.uint8, sharding=spread)
    _, products = for_cuda(prepare, images)
    assert len(products) == 2 and all("HIGHEST" in line for line in products)


@pytest.mark.parametrize("dims", TAPS)
def test_the_network_over_devices_can_be_made_for_cuda(mesh, params, dims):
    _, forward_all = make_programs(PROTOCOLS["pytorch-fid"], dims, mesh, "XLA")
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), np.float32)
    text, products = for_cuda(forward_all, jax.eval_shape(lambda: params), x)
    assert len(products) > 2 and all("HIGHEST" in line for line in products)
    assert f"tensor<2x{dims}xf32>" in text


# ---- the extractor -----------------------------------------------------------------------------


def test_names_say_what_differs_from_fid(file, monkeypatch):
    plain = features.make("inception", weights=str(file))
    own = f"inception-{plain.sha256[:8]}"
    assert (plain.name, plain.distance) == (own, f"fd_{own}")
    assert features.make("inception:clean", weights=str(file)).name == own
    assert features.make("inception:raw-range", weights=str(file)).name == f"{own}-raw-range"
    assert features.make("inception", weights=str(file), dims=64).name == f"{own}-64"
    monkeypatch.setattr(weights, "TENSORS", plain.sha256)
    assert features.make("inception:torch-fidelity", weights=str(file)).distance == "fid"
    raw = features.make("inception:raw-range", weights=str(file), dims=192)
    assert raw.distance == "fd_inception-192-raw-range"
    reals = features.make("inception:raw-reals", weights=str(file))
    assert reals.distance == "fd_inception-raw-reals" and reals.generated.distance == "fid"


@pytest.mark.parametrize(
    "options, what",
    [
        ({"protocol": "tf"}, "protocol='tf': expected one of pytorch-fid"),
        ({"dims": 2047}, "dims=2047: expected one of 64"),
        ({"batch_size": -1}, "batch_size=-1"),
    ],
)
def test_refuses(file, options, what):
    with pytest.raises(ValueError, match=what):
        features.make("inception", weights=str(file), **options)


def test_batches_and_order_do_not_change_a_feature(file):
    images, order = pictures(5), rng(0).permutation(5)
    make = partial(features.make, "inception", weights=str(file))
    whole = make().features(images)
    parts = make(batch_size=2).features(images[order])
    np.testing.assert_allclose(parts, whole[order], rtol=1e-5, atol=1e-5 * whole.max())


ON_ONEDNN = """
import sys, warnings
import numpy as np
from bloodjax import features
from bloodjax.runtime import compilation
warnings.simplefilter("error")  # JAX warns where it cannot write a program to its cache
compilation.configure_jax(False, "float32")
space = features.make("inception", weights=sys.argv[1], dims=192)
np.save(sys.argv[3], space.features(np.load(sys.argv[2])))
print(compilation.choose_engine())
"""


def test_the_engine_does_not_change_a_feature(file, tmp_path):
    """Where jaxlib reaches oneDNN, which the rest of the suite turns off."""
    np.save(tmp_path / "images.npy", pictures(3))
    arguments = [file, tmp_path / "images.npy", tmp_path / "out.npy"]
    environment = os.environ | {"XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ON_ONEDNN, *map(str, arguments)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = [path for path in (tmp_path / "bloodjax" / "xla").glob("*one_tap*")]
    assert bool(kept) == (done.stdout.split() != ["oneDNN"])
    ours = features.make("inception", weights=str(file), dims=192).features(pictures(3))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), ours, atol=1e-5 * ours.max())


ON_DEVICES = """
import sys
import jax, numpy as np
from bloodjax import features
assert jax.device_count() == 3
space = features.make("inception", weights=sys.argv[1], dims=192)
images = np.load(sys.argv[2])
np.save(sys.argv[3], space.features(images))
"""


def test_devices_do_not_change_a_feature(file, tmp_path):
    images = pictures(5)
    np.save(tmp_path / "images.npy", images)
    flags = "--xla_force_host_platform_device_count=3 --xla_backend_optimization_level=0"
    files = (str(file), str(tmp_path / "images.npy"), str(tmp_path / "out.npy"))
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", ON_DEVICES, *files], check=True, env=environment)
    alone = features.make("inception", weights=str(file), dims=192).features(images)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), alone, rtol=1e-5, atol=1e-5)
