"""oneDNN computes what XLA's own engine computes. The rest of the suite keeps it off."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from helpers.methods import KEY, batch, random_state
from helpers.nets import normal

from bloodjax import methods
from bloodjax.runtime import compilation

COUNT = 256  # images: smaller products do not reach oneDNN
DIFFUSION = {"widths": (64,), "blocks": 1}
COURSE = {"net": "course_unet", "widths": (20,), "blocks": 2, "patch": 1}
BETAS = {"timesteps": 20, "beta_first": 1e-4, "beta_last": 0.02}
EDM = {"sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2, "conditional": True}
CASES = {
    "vae": ("vae", {"latent": 8, "width": 16, "sigma": 0.2}),
    "gan": ("gan", {"latent": 8, "width": 16, "discriminator_width": 16}),
    "ddpm": ("ddpm", DIFFUSION | BETAS | {"patch": 2}),
    "edm": ("edm", DIFFUSION | EDM | {"patch": 2}),
    "course": ("ddpm", COURSE | BETAS),
}
ACTIVATIONS = {
    "SWISH": nn.silu,
    "GELU_TANH": nn.gelu,
    "ELU": lambda x: jnp.where(x > 0, x, jnp.expm1(x)),
}


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # of the suite, which XLA has read; the choice would obey it
    if compilation.choose_engine.__wrapped__() != "oneDNN":
        pytest.skip("this jaxlib or processor does not reach oneDNN")
    with compilation.uncached("oneDNN"):
        yield


def compiled(function, engine, *arguments):
    options = compilation.ENGINES[engine]
    return jax.jit(function, compiler_options=options).lower(*arguments).compile()


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_equal(case):
    """Most agree to 3e-6. A value at the kink of LeakyReLU costs a thousandth; wrong is a tenth."""
    name, options = CASES[case]
    method = methods.make(
        name, shape=(12, 12, 3) if name == "gan" else (7, 7, 3), classes=2, **options
    )
    params, stats = random_state(method)
    for player, loss in method.losses.items():

        def objective(own, images, labels, player=player, loss=loss):
            return loss({**params, player: own}, stats, (images, labels), KEY)[0]

        arguments = params[player], *batch(method.shape, COUNT)
        differentiate = jax.value_and_grad(objective)
        programs = {e: compiled(differentiate, e, *arguments) for e in ("XLA", "oneDNN")}
        assert "__onednn$" in (programs["oneDNN"].as_text() or "")
        (loss_a, a), (loss_b, b) = (program(*arguments) for program in programs.values())
        assert float(loss_b) == pytest.approx(float(loss_a), rel=1e-5)
        apart = jax.tree.map(lambda x, y: jnp.linalg.norm(x - y) / jnp.linalg.norm(x), a, b)
        assert max(jax.tree.leaves(apart)) < 0.01, apart


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_wrong_fusion_is_refused_and_a_barrier_prevents_it(name):
    def network(x, kernel, hide=lambda x: x):
        y = x @ kernel
        return y + ACTIVATIONS[name](hide(y))

    arguments = jnp.asarray(normal(COUNT, COUNT)), jnp.asarray(normal(COUNT, COUNT, seed=1))
    program = compiled(network, "oneDNN", *arguments)
    assert jnp.abs(program(*arguments) - network(*arguments)).max() > 1  # else no need to refuse
    with pytest.raises(ValueError, match=f"{name}.*optimization_barrier"):
        compilation.refuse_wrong_fusions(program.as_text() or "")
    hidden = functools.partial(network, hide=jax.lax.optimization_barrier)
    program = compiled(hidden, "oneDNN", *arguments)
    compilation.refuse_wrong_fusions(program.as_text() or "")
    assert jnp.allclose(program(*arguments), network(*arguments), rtol=1e-4, atol=1e-3)


def test_a_long_program_is_checked_as_it_is_compiled():
    def network(x):
        return x @ x + nn.silu(x @ x)

    jitted = jax.jit(network, compiler_options=compilation.ENGINES["oneDNN"])
    with pytest.raises(ValueError, match="SWISH"):
        compilation.precompile(jitted, jnp.ones((COUNT, COUNT)))
