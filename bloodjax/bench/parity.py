"""What the PyTorch twin has to reproduce: one step and some samples of bloodjax, with all noise."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax import methods
from bloodjax.images import to_float, to_uint8
from bloodjax.methods import Method
from bloodjax.randomness import Purpose, batch_normal, key_at
from bloodjax.training import step as steps

STEPS = 3  # before the one that is compared
MANY = 1_000_000  # after which Adam corrects nothing: β^n is 0 to float32
SAMPLES = 4
SAMPLERS = {  # name -> the options of every sampler that is compared, if it has any
    "ddpm": [
        {"steps": 4, "eta": 0.0, "clip": False, "variance": "posterior"},
        {"steps": 4, "eta": 1.0, "clip": True, "variance": "posterior"},
    ]
}


def write(
    file: Path,
    images: np.ndarray,
    *,
    method: Mapping[str, Any],
    optimizer: Mapping[str, float],
    ema_decay: float,
    seed: int = 0,
) -> None:
    """Write one training step and some samples of a method to an .npz that needs no JAX to read.

    It holds, by path: "about" (JSON: name, shape and hyper-parameters), "images" (the batch),
    "before/..." and "after/..." (the State, by its own paths), "noise/..." and "metrics/..." (of
    the step), "samples/N/..." ("noise", "floats", "images" and the sampler's "options").

    Args:
        file: ends in .npz.
        images: the batch, uint8 [B, H, W, C]. Let it be small, 8 or so: the more activations there
            are, the likelier does one lie so near to LeakyReLU's kink that rounding decides on its
            slope, and what then differs by more than rounding is nobody's fault.
        method: its name and its hyper-parameters.
        optimizer: learning_rate, beta1, beta2.
        ema_decay: of the moving average of the parameters.
    """
    options = dict(method)
    name = options.pop("name")
    model = methods.make(name, shape=images.shape[1:], **options)
    with jax.default_matmul_precision("highest"):
        tx = steps.make_optimizer(steps.OptimizerConfig(**optimizer))
        step = jax.jit(functools.partial(steps.train_step, model, tx, ema_decay))
        batch = to_float(jnp.asarray(images)), jnp.zeros(len(images), jnp.int32)
        state = drawn(model, tx, seed)
        for _ in range(STEPS):
            state, _ = step(state, batch)
        state = settled(jax.device_get(state), optimizer["beta1"], optimizer["beta2"])
        after, metrics = step(state, batch)
        samples = [sample(model, name, state, sampler) for sampler in SAMPLERS.get(name, [{}])]
    about = {"name": name, "shape": images.shape[1:], "ema_decay": ema_decay, **optimizer}
    content = {
        "about": json.dumps(about | options),
        "images": images,
        "before": state,
        "after": after,
        "noise": NOISE[name](model, state, len(images)),
        "metrics": metrics,
        "samples": samples,
    }
    np.savez(file, **flatten(content))


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Path, joined by "/", -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


# ---- the state -----------------------------------------------------------------------------------


def drawn(method: Method, tx: Any, seed: int) -> steps.State:
    """A state in which nothing is idle, as some layers are at first, before any step.

    Activations shrink a little from layer to layer: they are large enough to matter, and small
    enough for a normalisation's ε to.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
            return np.float32(centre + rng.uniform(0.05, 0.15, leaf.shape))
        fan_in = leaf.size / leaf.shape[-1]
        return np.float32(rng.normal(0.0, 0.7 * fan_in**-0.5, leaf.shape))

    first = jax.eval_shape(functools.partial(steps.init_state, method, tx), np.uint32(seed))
    params, stats = jax.tree_util.tree_map_with_path(draw, (first.params, first.stats))
    opt = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), first.opt)
    return steps.State(np.uint32(seed), np.int32(0), params, stats, params, opt)


def settled(state: steps.State, beta1: float, beta2: float) -> steps.State:
    """The state with Adam's moments as after many steps, so that all it divides by is exact.

    That is, without the corrections for its first steps: float32 keeps β2 = 0.999 to eight digits,
    but of the divisor 1 - β2^n only five. And with second moments raised by a little of their mean:
    what has no gradient, as the bias of the keys in attention, gets one from rounding, which would
    be divided by itself: a step as large as any other, and another on every machine.
    """

    def later(adam: Any) -> Any:
        if not hasattr(adam, "nu"):
            return adam
        mu = jax.tree.map(lambda x: x / (1 - beta1**STEPS), adam.mu)
        nu = jax.tree.map(lambda x: x / (1 - beta2**STEPS), adam.nu)
        leaves = jax.tree.leaves(nu)
        mean = sum(x.sum() for x in leaves) / sum(x.size for x in leaves)
        nu = jax.tree.map(lambda x: x + 1e-4 * mean, nu)
        return adam._replace(count=np.int32(MANY), mu=mu, nu=nu)

    return state._replace(opt={p: tuple(map(later, chain)) for p, chain in state.opt.items()})


# ---- the noise, as the losses and samplers draw it -----------------------------------------------


def loss_key(state: steps.State, number: int) -> Array:
    """The key of the loss of player `number` in the step after `state`."""
    return key_at(state.seed, Purpose.LOSS + number, state.step)


def vae_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    return {"z": random.normal(loss_key(state, 0), (count, method.latent))}


def gan_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    shape = count, method.latent
    return {p: batch_normal(loss_key(state, i), shape) for i, p in enumerate(method.losses)}


def ddpm_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    key_t, key_noise = random.split(loss_key(state, 0))
    t = random.randint(key_t, (count,), 1, method.timesteps + 1)
    return {"t": t, "epsilon": random.normal(key_noise, (count, *method.shape))}


NOISE = {"vae": vae_noise, "gan": gan_noise, "ddpm": ddpm_noise}


def sample(
    method: Method, name: str, state: steps.State, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The first images of the state, and what they are made of: [draws, SAMPLES, ...]."""
    keys = jax.vmap(functools.partial(key_at, state.seed, Purpose.SAMPLE))(jnp.arange(SAMPLES))
    draw = functools.partial(method.sample, state.ema, state.stats, **options)
    floats = jax.jit(jax.vmap(draw))(keys)
    return {
        "options": json.dumps(options),
        "noise": jnp.stack(sampler_noise(method, name, keys, options)),
        "floats": floats,
        "images": to_uint8(floats),
    }


def sampler_noise(
    method: Any, name: str, keys: Array, options: Mapping[str, Any]
) -> Sequence[Array]:
    """What the sampler draws for the images of these keys, one batch after the other."""
    if name != "ddpm":
        return [jax.vmap(lambda key: random.normal(key, (method.latent,)))(keys)]

    def at(t: Array) -> Array:
        return jax.vmap(lambda k: random.normal(random.fold_in(k, t), method.shape))(keys)

    times = method.schedule(options["steps"], options["eta"], options["variance"])["t"]
    return [at(jnp.int32(0)), *map(at, times.astype(jnp.int32))]
