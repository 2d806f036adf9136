"""Every method keeps the one contract; each is what its paper prints."""

import dataclasses
import functools
import importlib
import math
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import random
from scipy import integrate, special
from scipy.stats import kstest, kurtosis, norm

from bloodjax import methods
from bloodjax.methods import ddpm, gan, vae
from bloodjax.model import NOT_THE_SAMPLERS
from bloodjax.randomness import Purpose, key_at
from bloodjax.training import step as steps

CONFIGS = Path(__file__).parents[2] / "configs"
KEY = random.key(3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def jit(function, **options):
    """Compiled without optimization: these programs run once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def a_batch(shape, count=4):
    images = np.random.default_rng(1).uniform(-1, 1, (count, *shape)).astype(np.float32)
    return jnp.asarray(images), jnp.arange(count, dtype=jnp.int32) % 2


def random_state(method):
    """Parameters and statistics that are nowhere zero, so that no part of a network is idle."""

    def draw(seed, leaf):
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        return jnp.asarray(normal(*leaf.shape, seed=seed) / np.float32(np.sqrt(fan_in)))

    params, stats = jax.eval_shape(method.init, KEY)
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [draw(*x) for x in enumerate(leaves)])
    return params, jax.tree.map(lambda x: 0.5 + jnp.abs(normal(*x.shape)), stats)


# ---- the contract ----------------------------------------------------------------------------

# What the tests make small. What a further method adds may stay as its config has it.
SHRUNK = {"width": 4, "discriminator_width": 4, "widths": (8,), "latent": 5, "timesteps": 8}
SHRUNK_SAMPLER = {"steps": 8}
GREY, COLOUR = (12, 12, 1), (20, 24, 3)


def configured(name):
    """The options of the method's own config file: (method, sampler)."""
    file = CONFIGS / f"{name}.py"
    assert file.exists(), f"methods/{name}.py has no configs/{name}.py"
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    sampler = {k: v for k, v in config["sample"].items() if k not in NOT_THE_SAMPLERS}
    assert config["method"].pop("name") == name
    method = {k: SHRUNK.get(k, v) for k, v in config["method"].items()}
    return method, {k: SHRUNK_SAMPLER.get(k, v) for k, v in sampler.items()}


@functools.cache
def built(name, shape):
    """(method, params, stats, sampler's options), small."""
    options, sampler = configured(name)
    method = methods.make(name, shape=shape, **options)
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
    assert fields == {"shape", "dtype", *options}


@every_method
def test_method_is_a_value(name):
    method = built(name, GREY)[0]
    again = methods.make(name, shape=GREY, **configured(name)[0])
    assert method == again and hash(method) == hash(again)
    for value in jax.tree.leaves(dataclasses.asdict(method)):
        assert isinstance(value, (int, float, str))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.shape = COLOUR
    assert method.shape == GREY and len(method.trace_title.split()) == 1


@every_method
def test_init_gives_every_player_finite_parameters(name):
    method = built(name, GREY)[0]
    params, stats = jit(method.init)(KEY)
    assert set(params) == set(method.losses) >= set(stats)
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
        value, (metrics, moved) = compiled(name, shape, player)(a_batch(shape), KEY)
        for number in (value, *metrics.values()):
            assert number.shape == () and number.dtype == jnp.float32 and np.isfinite(number)
        assert signature(moved) == signature(stats)


@every_method
@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 3), (28, 28, 3), (30, 26, 1), (64, 64, 3)])
def test_method_fits_images_of_any_shape(name, shape):
    options, sampler = configured(name)
    method = methods.make(name, shape=shape, **options)
    params, stats = jax.eval_shape(method.init, KEY)
    for loss in method.losses.values():
        value, (_, moved) = jax.eval_shape(loss, params, stats, a_batch(shape), KEY)
        assert value.shape == () and signature(moved) == signature(stats)
    sample = functools.partial(method.sample, **sampler)
    assert jax.eval_shape(sample, params, stats, KEY).shape == shape


@every_method
def test_losses_depend_on_images_and_key_only(name):
    images, labels = a_batch(GREY)
    for number, player in enumerate(built(name, GREY)[0].losses):
        run = compiled(name, GREY, player)
        value, *others = (
            float(run(batch, key)[0])
            for batch, key in (
                ((images, labels), KEY),
                ((images, labels + 1), KEY),
                ((images, labels), random.key(4)),
                ((images / 2, labels), KEY),
            )
        )
        assert value == others[0] != others[1]
        assert number > 0 or value != others[2]  # the GAN's generator sees no image


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


# ---- VAE -------------------------------------------------------------------------------------


def a_vae(shape=(8, 8, 1), **changes):
    return vae.Method(**{"shape": shape, "latent": 3, "width": 4, "sigma": 0.3} | changes)


@pytest.fixture(scope="module")
def vae_terms():
    """(method, params, images, codes, z, decoded images) of one batch with the loss's own noise."""
    method = a_vae()
    params, _ = random_state(method)
    images, _ = a_batch(method.shape)
    code = jit(
        method.encoder.apply,
    )({"params": params["vae"]["encoder"]}, images, True)
    mean, log_var = np.split(np.float64(code), 2, axis=1)
    z = mean + np.exp(log_var / 2) * random.normal(KEY, mean.shape)
    return method, params, images, (mean, log_var), jit(method.decode)(params, jnp.float32(z))


def gaussian_kl(m1, s1, m2=0.0, s2=1.0):
    return np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.7, 0.2), (-3.0, 2.5)])
def test_kl_is_the_integral(mean, deviation):
    p = norm(mean, deviation)
    integral, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - norm.logpdf(x)),
        mean - 12 * deviation,
        mean + 12 * deviation,
    )
    actual = vae.kl_to_standard_normal(jnp.float32(mean), jnp.float32(2 * math.log(deviation)))
    assert actual == pytest.approx(integral, rel=1e-5, abs=1e-6)
    assert gaussian_kl(mean, deviation) == pytest.approx(integral, rel=1e-6, abs=1e-9)


def test_vae_loss_is_the_negative_evidence_lower_bound(vae_terms):
    method, params, images, (mean, log_var), decoded = vae_terms
    density = norm.logpdf(np.float64(images), np.float64(decoded), method.sigma)
    reconstruction = -density.sum((1, 2, 3)).mean()
    kl = gaussian_kl(mean, np.exp(log_var / 2)).sum(1).mean()
    loss, (metrics, _) = jit(method.loss)(params, {}, (images, None), KEY)
    assert loss == pytest.approx(reconstruction + kl, rel=1e-5)
    assert metrics["reconstruction_nats"] == pytest.approx(reconstruction, rel=1e-5)
    assert metrics["reconstruction_per_dim"] == pytest.approx(reconstruction / 64, rel=1e-5)
    assert metrics["kl_nats"] == pytest.approx(kl, rel=1e-5)
    assert metrics["kl_per_dim"] == pytest.approx(kl / 3, rel=1e-5)


def test_vae_gradient_is_that_of_squared_error_and_weighted_kl(vae_terms):
    """The docstring's other name of sigma, and the gradient through z into the encoder."""
    method, params, images, _, _ = vae_terms
    noise = random.normal(KEY, (len(images), method.latent))

    def objective(params):
        code = method.encoder.apply({"params": params["vae"]["encoder"]}, images, True)
        mean, log_var = code[:, :3], code[:, 3:]
        decoded = method.decode(params, mean + jnp.exp(log_var / 2) * noise)
        kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum() / 2
        return (((images - decoded) ** 2).sum() + 2 * method.sigma**2 * kl) / len(images)

    ours = jit(jax.grad(lambda p: method.loss(p, {}, (images, None), KEY)[0]))(params)
    for a, b in zip(*map(jax.tree.leaves, (ours, jit(jax.grad(objective))(params))), strict=True):
        scale = np.abs(b).max()
        assert scale > 0
        np.testing.assert_allclose(2 * method.sigma**2 * a, b, rtol=0, atol=2e-5 * scale)


def test_vae_sample_and_trace_decode_standard_normals(vae_terms):
    method, params = vae_terms[:2]
    decode = jit(functools.partial(method.decode, params))
    one = jit(functools.partial(method.sample, params, {}))(KEY)
    np.testing.assert_allclose(one, decode(random.normal(KEY, (1, 3)))[0], atol=1e-6)
    strip = jit(functools.partial(method.trace, params, {}))(KEY)
    ends = decode(random.normal(KEY, (2, 3)))
    np.testing.assert_allclose(strip[np.array([0, -1])], ends, atol=1e-5)


def test_arc_keeps_the_norm_and_steps_by_equal_angles():
    ends = jnp.array([[3.0, 0, 0], [0, 0, 3.0]])
    points = np.asarray(vae.arc(ends, 7))
    np.testing.assert_allclose(points[[0, -1]], ends, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 3, rtol=1e-6)
    np.testing.assert_allclose(np.sum(points[1:] * points[:-1], axis=1), 9 * np.cos(np.pi / 12))


# ---- DCGAN -----------------------------------------------------------------------------------


def a_gan(shape=(12, 12, 1)):
    return gan.Method(shape=shape, latent=5, width=4, discriminator_width=4)


REAL = np.array([[-120.0], [-2.0], [0.0], [3.0], [90.0]], np.float32)
FAKE = np.array([[-80.0], [-1.0], [0.5], [2.0], [35.0]], np.float32)


@pytest.fixture
def fixed_logits(monkeypatch):
    """A DCGAN whose discriminator says REAL to images of ones and FAKE to what is generated."""

    def play(self, player, params, stats, x):
        if player == "generator":
            return jnp.zeros((5, 12, 12, 1)), stats
        return jnp.where(x.mean((1, 2, 3))[:, None] > 0.5, REAL, FAKE), stats

    monkeypatch.setattr(gan.Method, "play", play)
    run = {
        p: loss({}, {}, (jnp.ones((5, 12, 12, 1)), None), KEY) for p, loss in a_gan().losses.items()
    }
    return {p: (float(value), metrics) for p, (value, (metrics, _)) in run.items()}


def test_gan_losses_are_cross_entropies_of_the_logits(fixed_logits):
    real, fake = np.float64(REAL), np.float64(FAKE)
    log_d, log_not_d = special.log_expit(real), special.log_expit(-fake)
    expected = -(log_d.mean() + log_not_d.mean())
    assert fixed_logits["discriminator"][0] == pytest.approx(expected, rel=1e-6)
    assert fixed_logits["generator"][0] == pytest.approx(-special.log_expit(fake).mean(), rel=1e-6)
    scores = fixed_logits["discriminator"][1]
    assert scores["real_score"] == pytest.approx(special.expit(real).mean(), rel=1e-6)
    assert scores["fake_score"] == pytest.approx(special.expit(fake).mean(), rel=1e-6)


def test_gan_losses_are_those_of_torch(fixed_logits):
    torch = pytest.importorskip("torch", reason="compares with torch.nn: PyTorch is not installed")
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    real, fake = torch.from_numpy(REAL), torch.from_numpy(FAKE)
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    expected = (bce(real, one) + bce(fake, zero)).item()
    assert fixed_logits["discriminator"][0] == pytest.approx(expected, rel=1e-6)
    assert fixed_logits["generator"][0] == pytest.approx(bce(fake, one).item(), rel=1e-6)


@pytest.fixture(scope="module")
def players():
    """(method, params, stats, batch) of one small DCGAN."""
    method = a_gan()
    return method, *random_state(method), a_batch(method.shape, 8)


@functools.cache
def gan_loss(method, player):
    """loss(params, stats, batch, key), compiled once for all tests."""
    return jit(method.losses[player])


def moved(old, *inputs):
    """Moving statistics after BatchNorm has seen `inputs`: momentum 0.9, biased variance."""
    mean, var = np.float64(old["mean"]), np.float64(old["var"])
    for x in map(np.float64, inputs):
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
        var = 0.9 * var + 0.1 * x.var((0, 1, 2))
    return {"mean": mean, "var": var}


def assert_statistics(actual, expected):
    for name in ("mean", "var"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)


def test_generator_batch_norm_moves_to_the_batch(players):
    method, params, stats, batch = players
    first = params["generator"]["Dense_0"]["kernel"]
    for player in method.losses:
        _, (_, after) = gan_loss(method, player)(params, stats, batch, KEY)
        hidden = random.normal(KEY, (8, 5)) @ first  # one z per real image, no bias
        expected = moved(stats["generator"]["BatchNorm_0"], hidden.reshape(8, 3, 3, 8))
        assert_statistics(after["generator"]["BatchNorm_0"], expected)


def discriminate(players, images):
    """What goes into the discriminator's BatchNorm."""
    method, params, stats, _ = players
    variables = {"params": params["discriminator"], "batch_stats": stats["discriminator"]}
    _, seen = method.discriminator.apply(
        variables,
        images,
        True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    return seen["intermediates"]["Conv_1"]["__call__"][0]


def test_discriminator_batch_norm_sees_real_and_generated_apart(players):
    method, params, stats, (images, labels) = players
    fakes, _ = jit(functools.partial(method.play, "generator"))(
        params, stats, random.normal(KEY, (8, 5))
    )
    real, fake = (discriminate(players, x) for x in (images, fakes))
    old = stats["discriminator"]["BatchNorm_0"]
    after = {}
    for player in method.losses:
        _, (_, statistics) = gan_loss(method, player)(params, stats, (images, labels), KEY)
        after[player] = statistics["discriminator"]["BatchNorm_0"]
    assert_statistics(after["discriminator"], moved(old, real, fake))
    assert_statistics(after["generator"], moved(old, fake))


def test_gan_training_does_not_look_at_the_moving_averages(players):
    method, params, stats, batch = players
    other = jax.tree.map(lambda x: 100 * x + 7, stats)
    for player in method.losses:
        run = gan_loss(method, player)
        assert run(params, stats, batch, KEY)[0] == run(params, other, batch, KEY)[0]


def test_gan_sample_is_the_generator_by_its_moving_averages(players):
    """The generator in NumPy: dense, BatchNorm, LeakyReLU, scatter, and at the end tanh."""
    method, params, stats, _ = players
    p, s = (jax.tree.map(np.float64, tree["generator"]) for tree in (params, stats))
    x = (random.normal(KEY, (1, 5)) @ p["Dense_0"]["kernel"]).reshape(3, 3, 8)
    for level in (0, 1):
        average, scaled = s[f"BatchNorm_{level}"], p[f"BatchNorm_{level}"]
        x = (x - average["mean"]) / np.sqrt(average["var"] + 1e-5)
        x = x * scaled["scale"] + scaled["bias"]
        x = np.where(x > 0, x, 0.2 * x)
        kernel, (height, width, _) = p[f"ConvTranspose_{level}"]["kernel"], x.shape
        y = np.zeros((2 * height + 2, 2 * width + 2, kernel.shape[-1]))
        for m, n, i, j in np.ndindex(height, width, 4, 4):
            y[2 * m + i, 2 * n + j] += x[m, n] @ kernel[i, j]
        x = y[1:-1, 1:-1]
    expected = np.tanh(x + p["ConvTranspose_1"]["bias"])
    sample = jit(functools.partial(method.sample, params))(stats, KEY)
    np.testing.assert_allclose(sample, expected, atol=1e-5)


def test_gan_trace_ends_are_samples(players):
    method, params, stats, _ = players
    strip = jit(functools.partial(method.trace, params))(stats, KEY)
    ends = jit(functools.partial(method.generate, params))(stats, random.normal(KEY, (2, 5)))
    np.testing.assert_allclose(strip[np.array([0, -1])], ends, atol=1e-5)


RATE = 0.5  # of plain gradient descent: steps so large that their order shows


def one_step(method, params, stats, batch, losses):
    """`train_step` with some of the losses, by gradient descent."""
    tx = optax.sgd(RATE)
    part = types.SimpleNamespace(losses=losses)
    opt = {player: tx.init(params[player]) for player in losses}
    state = steps.State(jnp.uint32(7), jnp.int32(0), params, stats, params, opt)
    return jit(functools.partial(steps.train_step, part, tx, 0.0))(state, batch)[0]


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    "player, other", [("discriminator", "generator"), ("generator", "discriminator")]
)
def test_gan_player_moves_itself_only(players, player, other):
    method, params, stats, batch = players
    after = one_step(*players, {player: method.losses[player]})
    assert distance(after.params[other], params[other]) == 0
    assert distance(after.params[player], params[player]) > 1e-3
    moves = distance(after.stats["generator"], stats["generator"])
    assert moves > 1e-3 < distance(after.stats["discriminator"], stats["discriminator"])


def test_generator_answers_the_discriminator_already_updated(players):
    method, params, stats, batch = players
    assert list(method.losses) == ["discriminator", "generator"]

    @functools.partial(jit, static_argnums=(0, 1))
    def descend(player, number, params, stats):
        """The player's parameters after its own update, and all statistics."""

        def objective(own):
            key = key_at(jnp.uint32(7), Purpose.LOSS + number, 0)
            return method.losses[player]({**params, player: own}, stats, batch, key)

        grads, (_, stats) = jax.grad(objective, has_aux=True)(params[player])
        return jax.tree.map(lambda p, g: p - RATE * g, params[player], grads), stats

    first, between = descend("discriminator", 0, params, stats)
    second, last = descend("generator", 1, {**params, "discriminator": first}, between)
    at_once, _ = descend("generator", 1, params, stats)
    after = one_step(*players, method.losses)
    assert distance(after.params["discriminator"], first) < 1e-5
    assert distance(after.params["generator"], second) < 1e-5
    assert distance(after.params["generator"], at_once) > 1e-3
    assert distance(after.stats, last) < 1e-5


# ---- DDPM ------------------------------------------------------------------------------------


def a_ddpm(shape=(2, 2, 1), **changes):
    values = {"timesteps": 1000, "beta_first": 1e-4, "beta_last": 0.02}
    net = {"widths": (8,), "blocks": 1, "patch": 1}
    return ddpm.Method(**{"shape": shape} | values | net | changes)


SHORT = {"timesteps": 20, "beta_first": 0.01, "beta_last": 0.4}  # ends in noise after 20 steps


def linear_schedule(method):
    """β, α and ᾱ with indices 1..T as in the paper, by a loop; ᾱ[0] = 1."""
    t = method.timesteps
    slope = (method.beta_last - method.beta_first) / (t - 1)
    beta = [math.nan] + [method.beta_first + slope * i for i in range(t)]
    alpha_bar = [1.0]
    for b in beta[1:]:
        alpha_bar.append(alpha_bar[-1] * (1 - b))
    return np.array(beta), 1 - np.array(beta), np.array(alpha_bar)


@pytest.mark.parametrize("options", [{}, SHORT])
def test_alpha_bar_is_the_product_of_all_alphas(options):
    method = a_ddpm(**options)
    beta, _, alpha_bar = linear_schedule(method)
    assert beta[-1] == pytest.approx(method.beta_last)
    np.testing.assert_allclose(method.alpha_bar, alpha_bar, rtol=1e-12)


def test_alpha_bar_of_the_paper_ends_in_noise():
    assert a_ddpm().alpha_bar[-1] == pytest.approx(4.04e-5, rel=0.01)


def test_corrupted_images_have_the_moments_of_eq_4():
    method = a_ddpm((1, 1, 1), **SHORT)
    count, x0 = 40_000, 0.7
    alpha_bar = linear_schedule(method)[2]
    for t in (1, 7, 20):
        noise = random.normal(random.key(t), (count, 1, 1, 1))
        x = np.float64(method.corrupt(jnp.full_like(noise, x0), jnp.full(count, t), noise))
        var = 1 - alpha_bar[t]
        assert abs(x.mean() - math.sqrt(alpha_bar[t]) * x0) < 4 * math.sqrt(var / count)
        assert abs(x.var() - var) < 4 * var * math.sqrt(2 / count)


def test_corruption_takes_each_image_at_its_own_time():
    method = a_ddpm((2, 3, 1), **SHORT)
    images, noise = normal(3, 2, 3, 1), normal(3, 2, 3, 1, seed=1)
    t = np.array([20, 1, 7])
    abar = linear_schedule(method)[2][t][:, None, None, None]
    expected = np.sqrt(abar) * images + np.sqrt(1 - abar) * noise
    np.testing.assert_allclose(method.corrupt(images, jnp.asarray(t), noise), expected, atol=1e-6)


def test_ddpm_loss_is_the_squared_error_of_the_noise_at_uniform_times(monkeypatch):
    method = a_ddpm((1, 1, 2), timesteps=5)
    batch = a_batch(method.shape, 5000)
    asked, given = [], []
    corrupt = ddpm.Method.corrupt

    def record(self, images, t, noise):
        given.append((np.asarray(images), np.asarray(t), np.asarray(noise)))
        return corrupt(self, images, t, noise)

    def answer(self, params, x, t):
        asked.append((np.asarray(x), np.asarray(t)))
        return 3.0 + jnp.zeros_like(x)

    monkeypatch.setattr(ddpm.Method, "corrupt", record)
    monkeypatch.setattr(ddpm.Method, "noise", answer)
    value, _ = method.loss({}, {}, batch, KEY)
    ((images, t, noise),), ((x, time),) = given, asked
    np.testing.assert_array_equal(images, batch[0])
    np.testing.assert_array_equal(time, t)
    np.testing.assert_allclose(x, corrupt(method, images, t, noise), atol=1e-6)
    assert value == pytest.approx(np.mean((3 - np.float64(noise)) ** 2), rel=1e-5)
    counts = np.bincount(t, minlength=6)
    assert counts[0] == 0 and len(counts) == 6  # 1 to 5, both included
    assert np.abs(counts[1:] - 1000).max() < 4 * math.sqrt(5000 * 0.2 * 0.8)
    assert kstest(noise.ravel(), "norm").pvalue > 0.01


def fake_noise(x, t, lib=np):
    """In place of a network: smooth, neither 0 nor linear."""
    return 0.8 * lib.tanh(1.5 * x) + 0.3 * lib.sin(t)


@pytest.fixture
def recorded(monkeypatch):
    """run(method, **options) -> (x_t of every network call, its t, the sample): `fake_noise`."""

    def run(method, **options):
        calls = []

        def noise(self, params, x, t):
            calls.append((np.asarray(x[0]), float(t[0])))
            return fake_noise(x, t[:, None, None, None], jnp)

        monkeypatch.setattr(ddpm.Method, "noise", noise)
        with jax.disable_jit():
            image = method.sample({}, {}, KEY, **options)
        return [x for x, _ in calls], [t for _, t in calls], np.asarray(image)

    return run


def injected(shape, t):
    """The noise that the step from time t adds; at t = 0 x_T itself."""
    return np.float64(random.normal(random.fold_in(KEY, t), shape))


def algorithm_2(method, clip, variance):
    """x_T to x_0 of Ho et al.'s algorithm 2; with clipping, its mean in the form of eq. 7."""
    beta, alpha, abar = linear_schedule(method)
    xs = [injected(method.shape, 0)]
    for t in range(method.timesteps, 0, -1):
        x = xs[-1]
        epsilon = fake_noise(x, t)
        if clip:
            x0 = np.clip((x - np.sqrt(1 - abar[t]) * epsilon) / np.sqrt(abar[t]), -1, 1)
            mean = (np.sqrt(abar[t - 1]) * beta[t] * x0) / (1 - abar[t])
            mean += np.sqrt(alpha[t]) * (1 - abar[t - 1]) / (1 - abar[t]) * x
        else:
            mean = (x - beta[t] / np.sqrt(1 - abar[t]) * epsilon) / np.sqrt(alpha[t])
        smaller = (1 - abar[t - 1]) / (1 - abar[t]) * beta[t]
        z = injected(method.shape, t) if t > 1 else 0.0
        xs.append(mean + np.sqrt({"posterior": smaller, "beta": beta[t]}[variance]) * z)
    return xs


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("clip", [False, True])
def test_ancestral_sampling_is_algorithm_2(recorded, clip, variance):
    method = a_ddpm((3, 4, 2), **SHORT)
    options = {"steps": 20, "eta": 1.0, "clip": clip, "variance": variance}
    xs, times, image = recorded(method, **options)
    assert times == list(range(20, 0, -1))
    np.testing.assert_allclose([*xs, image], algorithm_2(method, clip, variance), atol=1e-5)


def ddim(method, times, eta, clip):
    """x_T to x_0 by eq. 12 of Song et al. with σ of eq. 16, through `times` down to 0."""
    abar = linear_schedule(method)[2]
    xs = [injected(method.shape, 0)]
    for t, s in zip(times, [*times[1:], 0], strict=True):
        x, now, then = xs[-1], abar[t], abar[s]
        sigma = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
        epsilon = fake_noise(x, t)
        x0 = (x - np.sqrt(1 - now) * epsilon) / np.sqrt(now)
        if clip:
            x0 = np.clip(x0, -1, 1)
            epsilon = (x - np.sqrt(now) * x0) / np.sqrt(1 - now)
        z = injected(method.shape, t)
        xs.append(np.sqrt(then) * x0 + np.sqrt(1 - then - sigma**2) * epsilon + sigma * z)
    return xs


@pytest.mark.parametrize("eta, clip", [(0.0, False), (0.0, True), (0.6, True), (1.0, False)])
@pytest.mark.parametrize(
    "steps, times", [(20, range(20, 0, -1)), (5, [20, 16, 12, 8, 4]), (3, [20, 13, 7]), (1, [20])]
)
def test_fewer_steps_are_ddim(recorded, steps, times, eta, clip):
    method = a_ddpm((3, 4, 2), **SHORT)
    xs, asked, image = recorded(method, steps=steps, eta=eta, clip=clip, variance="posterior")
    assert asked == list(times)
    np.testing.assert_allclose([*xs, image], ddim(method, list(times), eta, clip), atol=1e-5)


@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_schedule_is_the_gaussian_posterior(steps):
    """q(x_s | x_t, x_0) by Bayes: q(x_s | x_0) times q(x_t | x_s), two Gaussians of x_s."""
    method = a_ddpm()
    a = {k: np.float64(v) for k, v in method.schedule(steps, 1.0, "posterior").items()}
    t = a["t"].astype(int)[:-1]  # without the last step, to x_0 itself
    s = a["t"].astype(int)[1:]
    a = {name: value[:-1] for name, value in a.items()}
    abar = linear_schedule(method)[2]
    alpha = abar[t] / abar[s]
    precision = 1 / (1 - abar[s]) + alpha / (1 - alpha)
    of_x0 = np.sqrt(abar[s]) / (1 - abar[s]) / precision
    of_xt = np.sqrt(alpha) / (1 - alpha) / precision
    ours = a["next_scale"] / a["scale"]
    np.testing.assert_allclose(ours, of_xt, atol=1e-5)
    np.testing.assert_allclose(a["next_signal"] - ours * a["signal"], of_x0, atol=1e-5)
    np.testing.assert_allclose(a["added"] ** 2, 1 / precision, rtol=1e-5)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_schedule_falls_from_t_to_zero_and_adds_nothing_last(eta, variance):
    method = a_ddpm(timesteps=23)
    for count in range(1, 24):
        a = method.schedule(count, eta, variance)
        t = np.append(np.asarray(a["t"]), 0)
        assert (len(t), t[0]) == (count + 1, 23) and np.all(np.diff(t) < 0)
        assert np.ptp(np.diff(t)) <= 1  # equal distances, but for rounding
        last = (a["added"][-1], a["next_signal"][-1], a["next_scale"][-1])
        assert last == (0, 1, 0) and np.all(np.isfinite(list(a.values())))


# ---- DDPM with the true ε of data that are known


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


@pytest.fixture
def pixels(monkeypatch):
    """draw(noise, **options) -> 16,000 independent pixels of 4,000 images."""

    def draw(of_data, **options):
        method = a_ddpm((2, 2, 1))
        table = jnp.asarray(linear_schedule(method)[2], jnp.float32)
        noise = lambda self, params, x, t: of_data(x, table[t.astype(int)][0])  # noqa: E731
        monkeypatch.setattr(ddpm.Method, "noise", noise)
        keys = random.split(KEY, 4000)
        sample = functools.partial(method.sample, {}, {}, clip=False, **options)
        return np.float64(jax.jit(jax.vmap(sample))(keys)).ravel()

    return draw


SAMPLERS = [
    {"steps": 1000, "eta": 1.0, "variance": "posterior"},
    {"steps": 1000, "eta": 1.0, "variance": "beta"},
    {"steps": 250, "eta": 0.0, "variance": "posterior"},
    {"steps": 50, "eta": 0.0, "variance": "posterior"},
]


@pytest.mark.parametrize("options", SAMPLERS)
def test_sampler_with_the_true_noise_of_a_gaussian_draws_it(pixels, options):
    x = pixels(noise_of_a_gaussian, **options)
    shrunk = 0.9312 if options["steps"] == 50 else 1.0  # what so long steps do: see below
    assert x.mean() == pytest.approx(MEAN, rel=0.03)
    assert x.std() == pytest.approx(shrunk * DEVIATION, rel=0.03)
    assert kurtosis(x) == pytest.approx(0, abs=0.15)


def test_fifty_ddim_steps_shrink_a_gaussian_by_7_percent():
    """With this ε each step is linear in x_t: the factors multiply to the deviation of x_0."""
    abar = linear_schedule(a_ddpm())[2]
    factor = 1.0
    for t in range(1000, 0, -20):
        now, then = abar[t], abar[t - 20]
        epsilon = np.sqrt(1 - now) / (now * DEVIATION**2 + 1 - now)  # of x_t = 1
        x0 = (1 - np.sqrt(1 - now) * epsilon) / np.sqrt(now)
        factor *= np.sqrt(then) * x0 + np.sqrt(1 - then) * epsilon
    assert factor == pytest.approx(0.9312 * DEVIATION, rel=1e-4)


@pytest.mark.parametrize("options", SAMPLERS)
def test_sampler_with_the_true_noise_of_two_points_draws_them(pixels, options):
    x = pixels(noise_of_two_points, **options)
    distances = np.abs(x[:, None] - POINTS)
    assert np.quantile(distances.min(1), 0.99) < 0.01
    assert np.mean(distances.argmin(1) == 0) == pytest.approx(WEIGHTS[0], abs=0.012)  # 3 σ


# ---- DDPM's trace and refusals


@pytest.mark.parametrize("steps, kept", [(20, [0, 2, 5, 7, 10, 12, 14, 17, 19]), (3, None)])
def test_trace_shows_the_estimates_and_ends_in_the_sample(recorded, steps, kept):
    method = a_ddpm((3, 4, 2), **SHORT)
    options = {"steps": steps, "eta": 0.5, "clip": True, "variance": "posterior"}
    xs, times, image = recorded(method, **options)
    with jax.disable_jit():
        strip = np.asarray(method.trace({}, {}, KEY, **options))
    assert strip.shape == (9, 3, 4, 2)
    np.testing.assert_allclose(strip[-1], image, atol=1e-6)
    abar = linear_schedule(method)[2]
    for picture, i in zip(strip, kept or [0, 0, 0, 1, 1, 1, 2, 2, 2], strict=True):
        x, t = np.float64(xs[i]), int(times[i])
        x0 = (x - np.sqrt(1 - abar[t]) * fake_noise(x, t)) / np.sqrt(abar[t])
        np.testing.assert_allclose(picture, np.clip(x0, -1, 1), atol=1e-5)


def test_ddpm_trace_ends_in_the_sample_of_the_network():
    image, strip = (compiled("ddpm", GREY, f)(KEY) for f in ("sample", "trace"))
    np.testing.assert_allclose(strip[-1], image, atol=1e-5)


@pytest.mark.parametrize(
    "steps, eta, variance",
    [
        (0, 1.0, "posterior"),
        (1001, 1.0, "beta"),
        (-1, 1.0, "beta"),
        (10, 1.0, "learned"),
        (10, 1.0, ""),
        (10, 1.5, "posterior"),
        (10, -0.1, "posterior"),
    ],
)
def test_ddpm_refuses_samplers_that_there_are_not(steps, eta, variance):
    said = (
        rf"sample\.steps={steps}, sample\.eta={eta}, sample\.variance='{variance}'.* 1 to 1000 .*"
        "0 <= eta <= 1.*'posterior' or 'beta'"
    )
    with pytest.raises(ValueError, match=said):
        a_ddpm().sample({}, {}, KEY, steps=steps, eta=eta, clip=True, variance=variance)


@pytest.mark.parametrize("widths", [(), (12,), (16, 20), (0,)])
def test_ddpm_refuses_widths_that_groups_do_not_divide(widths):
    with pytest.raises(ValueError, match=r"method\.widths=.*multiples of 8"):
        dataclasses.replace(a_ddpm(), widths=widths)
