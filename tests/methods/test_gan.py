"""The DCGAN computes what its papers print, and each player moves itself only."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.methods import KEY, batch, random_state
from helpers.nets import jit
from jax import random
from scipy import special

from bloodjax.methods.gan import DCGAN
from bloodjax.randomness import Purpose, key_at
from bloodjax.training import step as steps


def a_gan(shape=(12, 12, 1)):
    return DCGAN(shape=shape, latent=5, width=4, discriminator_width=4)


REAL = np.array([[-120.0], [-2.0], [0.0], [3.0], [90.0]], np.float32)
FAKE = np.array([[-80.0], [-1.0], [0.5], [2.0], [35.0]], np.float32)


@pytest.fixture
def fixed_logits(monkeypatch):
    """A DCGAN whose discriminator says REAL to images of ones and FAKE to what is generated."""

    def play(self, player, params, stats, x):
        if player == "generator":
            return jnp.zeros((5, 12, 12, 1)), stats
        return jnp.where(x.mean((1, 2, 3))[:, None] > 0.5, REAL, FAKE), stats

    monkeypatch.setattr(DCGAN, "play", play)
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
    return method, *random_state(method), batch(method.shape, 8)


@functools.cache
def gan_loss(method, player):
    """loss(params, stats, data, key), compiled once for all tests."""
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
    method, params, stats, data = players
    first = params["generator"]["Dense_0"]["kernel"]
    for player in method.losses:
        _, (_, after) = gan_loss(method, player)(params, stats, data, KEY)
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
    method, params, stats, data = players
    other = jax.tree.map(lambda x: 100 * x + 7, stats)
    for player in method.losses:
        run = gan_loss(method, player)
        assert run(params, stats, data, KEY)[0] == run(params, other, data, KEY)[0]


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


def one_step(method, params, stats, data, losses):
    """`train_step` with some of the losses, by gradient descent."""
    tx = optax.sgd(RATE)
    part = types.SimpleNamespace(losses=losses)
    opt = {player: tx.init(params[player]) for player in losses}
    state = steps.State(jnp.uint32(7), jnp.int32(0), params, stats, params, opt)
    return jit(functools.partial(steps.train_step, part, tx, 0.0))(state, data)[0]


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    "player, other", [("discriminator", "generator"), ("generator", "discriminator")]
)
def test_gan_player_moves_itself_only(players, player, other):
    method, params, stats, data = players
    after = one_step(*players, {player: method.losses[player]})
    assert distance(after.params[other], params[other]) == 0
    assert distance(after.params[player], params[player]) > 1e-3
    assert distance(after.stats["generator"], stats["generator"]) > 1e-3
    assert distance(after.stats["discriminator"], stats["discriminator"]) > 1e-3


def test_generator_answers_the_discriminator_already_updated(players):
    method, params, stats, data = players
    assert list(method.losses) == ["discriminator", "generator"]

    @functools.partial(jit, static_argnums=(0, 1))
    def descend(player, number, params, stats):
        """The player's parameters after its own update, and all statistics."""

        def objective(part):
            key = key_at(jnp.uint32(7), Purpose.LOSS + number, 0)
            return method.losses[player]({**params, player: part}, stats, data, key)

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
