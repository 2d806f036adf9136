"""The PyTorch twin repeats what bloodjax computes, and what it does not repeat is noticed."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import SMALL

from bloodjax import images as jax_images
from bloodjax import methods
from bloodjax.bench import parity
from bloodjax.diffusion import samplers
from bloodjax.nets.unet import Attention

PAPER, ODD = (28, 28, 3), (15, 9, 1)
OPTIONS = {  # the players of different widths, as many steps as the paper's
    "vae": SMALL["vae"],
    "gan": SMALL["gan"] | {"discriminator_width": 6},
    "ddpm": SMALL["ddpm"] | {"timesteps": 1000, "widths": (16, 32)},
}
ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999}
DECAY = {PAPER: 0.998, ODD: 0.0}
BATCH = 5
GROUPS = {"losses", "parameters", "statistics", "samples"}

every_case = pytest.mark.parametrize(
    "name, shape", [(name, shape) for name in OPTIONS for shape in (PAPER, ODD)]
)
every_method = pytest.mark.parametrize(
    "name", ["vae", "gan", pytest.param("ddpm", marks=pytest.mark.slow)]
)


def options(name, shape):
    """One resolution is enough for the odd images' U-Net: it compiles for long."""
    return OPTIONS[name] | ({"widths": (16,)} if (name, shape) == ("ddpm", ODD) else {})


def method(name, shape=PAPER):
    return methods.make(name, shape=shape, **options(name, shape))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(name, shape) -> the file that JAX wrote of it."""

    @functools.cache
    def write(name, shape=PAPER):
        file = tmp_path_factory.mktemp("parity") / f"{name}.npz"
        images = np.random.default_rng(1).integers(0, 256, (BATCH, *shape), np.uint8)
        of = {"name": name, **options(name, shape)}
        parity.write(file, images, method=of, optimizer=ADAM, ema_decay=DECAY[shape], seed=5)
        return file

    return write


def read(file):
    with np.load(file) as content:
        return dict(content)


def tree(stored, path):
    """What is stored below a path, as nested dictionaries."""
    nested = {}
    for name, array in stored.items():
        if name.startswith(f"{path}/"):
            *folders, last = name.removeprefix(f"{path}/").split("/")
            functools.reduce(lambda d, key: d.setdefault(key, {}), folders, nested)[last] = array
    return nested


# ---- what JAX writes -----------------------------------------------------------------------------


@pytest.mark.slow
@every_case
def test_file_holds_a_step_from_a_state_in_which_nothing_is_idle(written, name, shape):
    stored = read(written(name, shape))
    for path, array in stored.items():
        if np.issubdtype(array.dtype, np.number):
            assert np.isfinite(array).all(), path
        if path.split("/")[0] in ("before", "after"):
            assert np.any(array != 0), path
    assert stored["before/step"] + 1 == stored["after/step"] == parity.STEPS + 1
    parameters = [path for path in stored if path.startswith("before/params/")]
    for path in parameters:
        assert np.any(stored[path] != stored[path.replace("before", "after")]), path
        averaged = np.any(stored[path] != stored[path.replace("params", "ema")])
        assert averaged == (shape == PAPER), path
    expected = jax.eval_shape(method(name, shape).init, jax.random.key(0))[0]
    assert len(parameters) == len(jax.tree.leaves(expected))
    assert stored["images"].shape == (BATCH, *shape)


def loss_of(name, model, params, stats, images, noise):
    """The losses as the methods' docstrings have them, of the noise that is in the file."""
    if name == "vae":
        code = model.encoder.apply({"params": params["vae"]["encoder"]}, images, True)
        mean, log_var = jnp.split(code, 2, axis=1)
        decoded = model.decode(params, mean + jnp.exp(log_var / 2) * noise["z"])
        log_p = jax.scipy.stats.norm.logpdf(images, decoded, model.sigma).sum((1, 2, 3))
        kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(1) / 2
        return {"vae": (kl - log_p).mean()}
    if name == "ddpm":
        x = model.process.corrupt(images, noise["t"], noise["epsilon"])
        error = model.predict_noise(params, x, noise["t"].astype(jnp.float32)) - noise["epsilon"]
        return {"ddpm": (error**2).mean()}

    def score(x):
        return model.play("discriminator", params, stats, x)[0]

    def fakes(player):
        return model.play("generator", params, stats, noise[player])[0]

    real, fake = score(images), score(fakes("discriminator"))
    return {
        "discriminator": -(jax.nn.log_sigmoid(real).mean() + jax.nn.log_sigmoid(-fake).mean()),
        "generator": -jax.nn.log_sigmoid(score(fakes("generator"))).mean(),
    }


@every_method
def test_noise_is_what_the_losses_drew(written, name):
    stored, model = read(written(name, ODD)), method(name, ODD)
    images = jax_images.to_float(jnp.asarray(stored["images"]))
    run = jax.jit(functools.partial(loss_of, name, model))
    params, stats = tree(stored, "before/params"), tree(stored, "before/stats")
    for number, player in enumerate(model.losses):
        losses = run(params, stats, images, tree(stored, "noise"))
        assert losses[player] == pytest.approx(stored[f"metrics/{player}_loss"], rel=1e-5)
        params[player] = tree(stored, f"after/params/{player}")  # seen by the next player
        assert number == 0 or name == "gan"


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_latents_are_those_of_the_samples(written, name):
    stored, model = read(written(name)), method(name)
    params, stats = tree(stored, "before/ema"), tree(stored, "before/stats")
    (z,) = stored["samples/0/noise"]
    images = model.decode(params, z) if name == "vae" else model.generate(params, stats, z)
    np.testing.assert_allclose(stored["samples/0/floats"], images, atol=1e-5)
    np.testing.assert_array_equal(stored["samples/0/images"], jax_images.to_uint8(images))


@pytest.mark.slow
def test_ddpm_samples_start_from_their_noise(written):
    stored = read(written("ddpm"))
    for i, options in enumerate(parity.SAMPLERS["ddpm"]):
        assert json.loads(str(stored[f"samples/{i}/options"])) == options
        drawn = stored[f"samples/{i}/noise"]
        assert drawn.shape == (1 + options["steps"], parity.SAMPLES, *PAPER)
        assert len(np.unique(drawn)) > 0.99 * drawn.size
    floats = [stored[f"samples/{i}/floats"] for i in (0, 1)]
    assert np.abs(floats[0] - floats[1]).max() > 0.1


# ---- the twin ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="the twin is PyTorch, which is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, several wait for one another
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def twins(torch):
    """The module with `check`; it and what it imports need torch."""
    from bloodjax.bench import torch_parity

    return torch_parity


@every_case
@pytest.mark.parametrize("tuned", [False, True])
def test_twin_repeats_step_and_samples(written, twins, name, shape, tuned):
    worst = twins.check(written(name, shape), fused=tuned, channels_last=tuned)
    assert set(worst) == GROUPS and max(worst.values()) <= twins.BOUND == 1e-5
    assert worst["parameters"] > 0, "of other sums: not the same bits"
    assert (worst["statistics"] > 0) == (name == "gan")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@every_method
def test_compiled_twin_repeats_step_and_samples(written, twins, name):
    assert set(twins.check(written(name), mode="default")) == GROUPS


@every_case
def test_weights_come_out_as_they_went_in(written, twins, name, shape):
    twin, stored = twins.load(written(name, shape), channels_last=True)
    before = twins.below(stored, "before")
    after = twin.weights()
    assert set(after) == set(before)
    for path, array in before.items():
        assert after[path].dtype == array.dtype or path == "seed", path
        np.testing.assert_array_equal(after[path], array, err_msg=path)


def test_a_counter_on_the_device_is_read(written, twins, torch):
    """The fused Adam of a GPU counts its steps on the device, where NumPy cannot read them."""

    class OnDevice(torch.Tensor):
        def __array__(self, *args, **kwargs):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    twin, stored = twins.load(written("gan"), fused=True)
    for adam in twin.optimizers.values():
        for values in adam.state.values():
            values["step"] = values["step"].as_subclass(OnDevice)
            with pytest.raises(TypeError, match="can't convert"):
                np.asarray(values["step"])
    counts = [array for path, array in twin.weights().items() if path.endswith("/count")]
    assert [int(count) for count in counts] == [parity.MANY] * 2


@every_case
def test_twin_has_as_many_parameters(written, twins, name, shape):
    twin, _ = twins.load(written(name, shape))
    params, _ = jax.eval_shape(method(name, shape).init, jax.random.key(0))
    assert list(twin.players) == list(method(name, shape).losses)
    for player, net in twin.players.items():
        expected = sum(leaf.size for leaf in jax.tree.leaves(params[player]))
        assert sum(p.numel() for p in net.parameters()) == expected


def altered(file, folder, path, change):
    """A copy of the file with one array changed."""
    stored = read(file)
    stored[path] = change(stored[path])
    np.savez(folder / "altered.npz", **stored)
    return folder / "altered.npz"


def one_wrong(array):
    """The array with one of its numbers off by their root mean square."""
    array = array.copy()
    array.flat[array.size // 2] += np.sqrt(np.mean(array**2))
    return array


WRONG = [
    ("vae", "before/params/vae/encoder/Conv_1/kernel"),
    ("vae", "before/params/vae/decoder/Dense_0/bias"),
    ("gan", "before/params/discriminator/BatchNorm_0/scale"),
    ("gan", "before/stats/generator/BatchNorm_2/mean"),
    ("gan", "before/stats/generator/BatchNorm_0/var"),
    ("gan", "before/stats/discriminator/BatchNorm_1/var"),
    ("gan", "before/opt/generator/0/mu/ConvTranspose_1/kernel"),
    ("gan", "noise/discriminator"),
    ("ddpm", "before/ema/ddpm/Dense_1/kernel"),
    ("ddpm", "before/opt/ddpm/0/nu/Conv_0/kernel"),
    ("ddpm", "before/params/ddpm/Attention_2/Dense_0/kernel"),
    ("ddpm", "noise/epsilon"),
    ("ddpm", "samples/1/noise"),
    ("ddpm", "samples/0/floats"),
]


@pytest.mark.parametrize("name, path", WRONG)
def test_one_wrong_number_is_noticed(written, twins, tmp_path, name, path):
    with pytest.raises(ValueError, match="PyTorch twin"):
        twins.check(altered(written(name), tmp_path, path, one_wrong))


def test_refusal_names_the_array_its_error_and_the_bound(written, twins, tmp_path):
    path = "after/params/vae/encoder/Conv_0/kernel"
    file = altered(written("vae"), tmp_path, path, lambda x: x * (1 + 1e-3))
    message = r"params/vae/encoder/Conv_0/kernel .* off by 1\.0e-03 .* at most 1e-05"
    with pytest.raises(ValueError, match=message):
        twins.check(file)
    with pytest.raises(ValueError, match="params/vae/encoder/Conv_0/kernel .* off by nan"):
        twins.check(altered(written("vae"), tmp_path, path, lambda x: x * np.nan))


def worst(twins, file, change=None):
    """The largest error of the twin, after a change to it."""
    twin, stored = twins.load(file)
    if change:
        change(twin)
    return max(twins.errors(twin, stored).values())


@pytest.mark.parametrize(
    "name, constant, value",
    [("vae", "SLOPE", 0.201), ("gan", "SLOPE", 0.201), ("ddpm", "EPSILON", 1e-5)],
)
def test_wrong_constant_is_noticed(written, twins, monkeypatch, name, constant, value):
    from bloodjax.bench import torch_nets

    monkeypatch.setattr(torch_nets, constant, value)
    assert worst(twins, written(name)) > twins.BOUND


def swap_the_players(twin):
    twin.losses = dict(reversed(twin.losses.items()))


def share_the_noise(twin):
    loss = twin.losses["generator"]
    twin.losses["generator"] = lambda x, noise: loss(x, {"generator": noise["discriminator"]})


def keep_the_discriminators_statistics(twin):
    """In the generator's step."""
    loss, net = twin.losses["generator"], twin.players["discriminator"]

    def frozen(images, noise):
        for module in net.modules():
            module.momentum = 0.0
        result = loss(images, noise)
        for module in net.modules():
            module.momentum = 0.1
        return result

    twin.losses["generator"] = frozen


def keep_the_averages(twin):
    twin.move_averages = lambda: None


def sample_the_players(twin):
    twin.averages = twin.players


@pytest.mark.parametrize(
    "change",
    [
        swap_the_players,
        share_the_noise,
        keep_the_discriminators_statistics,
        keep_the_averages,
        sample_the_players,
    ],
)
def test_another_step_is_noticed(written, twins, change):
    assert worst(twins, written("gan")) <= twins.BOUND < worst(twins, written("gan"), change)


def test_unbiased_variances_are_noticed(written, twins, monkeypatch):
    from bloodjax.bench import torch_training

    monkeypatch.setattr(torch_training, "statistics", lambda net: [])
    with pytest.raises(ValueError, match="stats/.*/var of the PyTorch twin"):
        twins.check(written("gan"))


def test_another_rounding_is_noticed(written, twins, monkeypatch):
    to_uint8 = twins.to_uint8
    monkeypatch.setattr(twins, "to_uint8", lambda x: to_uint8(x - 1 / 255))
    with pytest.raises(ValueError, match="other uint8 images"):
        twins.check(written("vae"))


# ---- its parts -----------------------------------------------------------------------------------


def test_statistics_stay_right_over_several_steps(written, twins, torch):
    """The unbiased variances are corrected after any number of steps; against flax by hand."""
    twin, stored = twins.load(written("gan"))
    twin.hold(stored["images"])
    path, norm = "stats/discriminator/BatchNorm_0/var", twin.players["discriminator"][3]
    expected = stored[f"before/{path}"].astype(np.float64)

    def follow(module, args):
        nonlocal expected
        expected = 0.9 * expected + 0.1 * np.var(args[0].detach().numpy(), (0, 2, 3))

    norm.register_forward_pre_hook(follow)
    for _ in range(3):
        twin.train_step(twin.batch(torch.arange(BATCH)), twin.noise(BATCH))
    assert int(norm.num_batches_tracked) == 9
    np.testing.assert_allclose(twin.weights()[path], expected, rtol=1e-5)


def test_attention_with_several_heads_is_that_of_flax(twins, torch):
    """The networks above have one head each; two need 128 channels."""
    from bloodjax.bench import torch_nets, torch_weights

    x = np.random.default_rng(0).normal(size=(2, 3, 4, 128)).astype(np.float32)
    net = torch_nets.Attention(128)
    variables = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.1, leaf.shape),
        jax.eval_shape(Attention().init, jax.random.key(0), x)["params"],
    )
    views = {name: torch_weights.as_jax(*of) for name, *of in torch_weights.parameters(net)}
    torch_weights.load(views, {f"/{name}": a for name, a in parity.flatten(variables).items()})
    y = net(torch.tensor(x).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1)
    expected = Attention().apply({"params": variables}, x)
    assert net.heads == 2 and twins.relative(y, expected) < 1e-6


def test_batch_is_that_of_bloodjax(written, twins, torch):
    twin, _ = twins.load(written("vae"), channels_last=True)
    images = np.arange(256, dtype=np.uint8).reshape(8, 4, 4, 2)
    twin.hold(images)
    rows = torch.tensor([7, 0, 0, 1, 2, 3, 4, 5, 6])
    batch = twin.batch(rows)
    assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)
    expected = jax_images.to_float(jnp.asarray(images[rows.numpy()]))
    np.testing.assert_allclose(batch.permute(0, 2, 3, 1), expected, rtol=0, atol=2**-23)


def test_bytes_are_those_of_bloodjax(twins, torch):
    levels = np.concatenate([np.linspace(-1.5, 1.5, 2000), (np.arange(256) + 0.5) / 127.5 - 1])
    images = levels[: 2250 // 15 * 15].astype(np.float32).reshape(-1, 3, 5, 1)
    actual = twins.to_uint8(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(actual, jax_images.to_uint8(jnp.asarray(images)))
    assert len(np.unique(actual)) == 256


@pytest.mark.parametrize("steps, eta", [(1, 0.0), (7, 0.5), (50, 0.0), (1000, 1.0)])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_schedule_is_that_of_bloodjax(written, twins, steps, eta, variance):
    twin, _ = twins.load(written("ddpm"))
    levels = method("ddpm").process.levels(steps)
    rows = *(part[:-1] for part in levels), *samplers.ddim_coefficients(levels, eta, variance)
    table = twin.schedule(steps, eta, variance)
    np.testing.assert_array_equal(table, np.float32(np.stack(rows, axis=1)))


@every_method
def test_twin_draws_its_own_noise(written, twins, torch, name):
    twin, stored = twins.load(written(name, ODD))
    twin.hold(stored["images"])
    sampler = parity.SAMPLERS.get(name, [{}])[-1]
    first, second = (twin.sample(5, **sampler) for _ in range(2))
    assert first.dtype == torch.uint8 and first.shape == (5, *ODD)
    assert (first != second).any() and (first[0] != first[1]).any()
    metrics = [
        twin.train_step(twin.batch(torch.arange(BATCH)), twin.noise(BATCH)) for _ in range(2)
    ]
    assert set(metrics[0]) == set(twins.below(stored, "metrics"))
    for key, value in metrics[0].items():
        assert value.isfinite() and value != metrics[1][key] and not value.requires_grad


def test_noise_is_normal_at_times_from_1_to_t(written, twins):
    noise = twins.load(written("ddpm", ODD))[0].noise(20_000)
    assert noise["t"].min() == 1 and noise["t"].max() == 1000
    assert noise["t"].double().mean() == pytest.approx(500.5, abs=10)
    assert noise["epsilon"].shape == (20_000, 1, 15, 9)
    assert noise["epsilon"].mean() == pytest.approx(0, abs=0.01)
    assert noise["epsilon"].std() == pytest.approx(1, abs=0.01)


def test_nothing_is_drawn_that_deterministic_sampling_does_not_need(written, twins):
    twin, stored = twins.load(written("ddpm", ODD))
    (start,) = (twins.as_torch(stored["samples/0/noise"][:1], twin),)
    twin.sample(parity.SAMPLES, start, steps=4, eta=0.0, clip=True, variance="posterior")
    with pytest.raises(StopIteration):
        twin.sample(parity.SAMPLES, start, steps=4, eta=0.0, clip=True, variance="beta")


def test_no_gradient_is_computed_that_is_not_needed(written, twins, torch):
    twin, stored = twins.load(written("gan"))
    twin.hold(stored["images"])
    seen = []
    for player in twin.players:
        adam = twin.optimizers[player]
        adam.step = lambda: seen.append(
            {p: {x.grad is not None for x in net.parameters()} for p, net in twin.players.items()}
        )
    twin.train_step(twin.batch(torch.arange(BATCH)), twin.noise(BATCH))
    assert seen == [
        {"discriminator": {True}, "generator": {False}},
        {"discriminator": {False}, "generator": {True}},
    ]
    fakes = []
    twin.players["generator"].register_forward_hook(lambda *args: fakes.append(args[-1]))
    twin.train_step(twin.batch(torch.arange(BATCH)), twin.noise(BATCH))
    assert [x.requires_grad for x in fakes] == [False, True]


@pytest.fixture
def precision(torch):
    """Settings of the process are put back."""
    yield
    from bloodjax.bench.torch_training import set_precision

    set_precision("float32")


def test_precision_is_that_of_products_and_convolutions(written, twins, torch, precision):
    settings = {}
    for name in ("float32", "tf32", "bfloat16"):
        twins.load(written("vae"), precision=name)
        settings[name] = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    assert settings["float32"] == ("highest", False)
    assert settings["tf32"] == settings["bfloat16"] == ("high", True)


@every_method
def test_bfloat16_computes_nearly_the_same(written, twins, precision, name):
    found = twins.errors(*twins.load(written(name), precision="bfloat16"))
    losses = {key: value for key, value in found.items() if key.endswith("_loss")}
    assert losses and 1e-6 < max(losses.values()) < 0.05
    twin, stored = twins.load(written(name), precision="bfloat16")
    assert {x.dtype for x in twin.weights().values()} <= {np.dtype(d) for d in "fiI"}


def test_an_unknown_method_or_precision_is_refused(written, twins, tmp_path):
    from bloodjax.bench.torch_twin import make

    with pytest.raises(ValueError, match=r"method\.name='wgan': the twin has vae, gan, ddpm"):
        make("wgan", PAPER, {})
    with pytest.raises(ValueError, match=r"method\.name='edm': a PyTorch twin exists of vae, gan"):
        images = np.zeros((8, *PAPER), np.uint8)
        parity.write(tmp_path / "x", images, method={"name": "edm"}, optimizer=ADAM, ema_decay=0.0)
    with pytest.raises(ValueError, match="precision='half': expected one of float32, tf32"):
        twins.load(written("vae"), precision="half")


def test_weights_of_another_network_are_refused(written, twins, tmp_path):
    path = "before/params/ddpm/Attention_1/Dense_1/bias"
    with pytest.raises(ValueError, match=r"Attention_1/Dense_1/bias has \[31\], 31 .* has 32"):
        twins.check(altered(written("ddpm"), tmp_path, path, lambda x: x[1:]))
    stored = read(written("gan"))
    stored["before/stats/generator/BatchNorm_9/mean"] = np.ones(3)
    np.savez(tmp_path / "more.npz", **stored)
    with pytest.raises(ValueError, match="stats/generator/BatchNorm_9/mean is no part of the twin"):
        twins.check(tmp_path / "more.npz")
    del (
        stored["before/stats/generator/BatchNorm_9/mean"],
        stored["before/params/generator/Dense_0/kernel"],
    )
    np.savez(tmp_path / "fewer.npz", **stored)
    with pytest.raises(ValueError, match="params/generator/Dense_0/kernel is not among"):
        twins.check(tmp_path / "fewer.npz")


WITHOUT_JAX = """
import sys
for name in ("jax", "jaxlib", "flax", "optax", "scipy"):
    sys.modules[name] = None
from bloodjax.bench.torch_parity import check
print(check(sys.argv[1]))
"""


def test_twin_needs_neither_jax_nor_flax(written, twins):
    command = [sys.executable, "-c", WITHOUT_JAX, str(written("gan"))]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'losses': ")
