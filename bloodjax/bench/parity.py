"""The reference for the PyTorch twin: one step and some samples of bloodjax, with all noise."""

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
from bloodjax.randomness import Purpose, key_at, normal_batch
from bloodjax.training import step as steps
from bloodjax.training.step import OptimizerConfig

STEPS = 3  # before the compared one
MANY = 1_000_000  # steps after which Adam corrects nothing: β^n is 0 in float32
SAMPLES = 4
SAMPLERS = {  # method -> options of the compared samplers
    "ddpm": [
        {"steps": 4, "eta": 0.0, "clip": False, "variance": "posterior"},
        {"steps": 4, "eta": 1.0, "clip": True, "variance": "posterior"},
    ]
}


def check_twin(method: Mapping[str, Any]) -> None:
    """Refuse a method that has no PyTorch twin.

    Raises:
        ValueError: the method, or its network, is unknown to the twin.
    """
    if method["name"] not in NOISE:
        names = ", ".join(NOISE)
        raise ValueError(f"method.name={method['name']!r}: a PyTorch twin exists of {names} only")
    if method.get("conditional"):
        raise ValueError("method.conditional=True: the PyTorch twin ignores labels; expected False")
    if method.get("net", "unet") != "unet":
        raise ValueError(f"method.net={method['net']!r}: the PyTorch twin has 'unet' only")


def adam_numbers(optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return learning_rate, beta1 and beta2, all that the optimizer of the PyTorch twin has.

    Raises:
        ValueError: the optimizer has more, such as a warm-up.
    """
    numbers = {name: getattr(optimizer, name) for name in ("learning_rate", "beta1", "beta2")}
    if optimizer != OptimizerConfig(**numbers):
        raise ValueError(
            "optimizer: the PyTorch twin has a constant learning rate and no clipping: expected "
            "warmup_steps=0, decay='none', clip_norm=0"
        )
    return numbers


def write(
    file: Path,
    images: np.ndarray,
    *,
    method: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    ema_decay: float,
    seed: int = 0,
) -> None:
    """Write one training step and some samples of a method to an .npz that needs no JAX to read.

    It holds by path: "settings" (JSON: the options of `torch_twin.make`), "images" (the batch),
    "before/..." and "after/..." (the State, by its own paths), "noise/..." and "metrics/..." (of
    the step), "samples/N/..." ("noise", "floats", "images" and the sampler's "options").

    Args:
        file: ends in .npz.
        images: the batch, uint8 [B, H, W, C], of about 8 images. With more activations, one lies
            so near to LeakyReLU's kink that rounding decides on its slope, and both sides differ
            by more than rounding.
        method: name and hyper-parameters.
        optimizer: learning_rate, beta1, beta2.
        ema_decay: of the moving average of the parameters.
        seed: of the state and the noise.

    Raises:
        ValueError: the method has no PyTorch twin.
    """
    check_twin(method)
    name, shape = method["name"], images.shape[1:]
    model = methods.make(shape=shape, **method)
    with jax.default_matmul_precision("highest"):
        tx = steps.make_optimizer(OptimizerConfig(**optimizer))
        step = jax.jit(functools.partial(steps.train_step, model, tx, ema_decay))
        batch = to_float(jnp.asarray(images)), jnp.zeros(len(images), jnp.int32)

        # Steps before the compared one, that step, and samples
        state = draw_state(model, tx, seed)
        for _ in range(STEPS):
            state, _ = step(state, batch)
        state = age_moments(jax.device_get(state), optimizer["beta1"], optimizer["beta2"])
        after, metrics = step(state, batch)
        samples = [sample(model, name, state, sampler) for sampler in SAMPLERS.get(name, [{}])]
    settings = {"shape": shape, "ema_decay": ema_decay, "optimizer": dict(optimizer), **method}
    content = {
        "settings": json.dumps(settings),
        "images": images,
        "before": state,
        "after": after,
        "noise": NOISE[name](model, state, len(images)),
        "metrics": metrics,
        "samples": samples,
    }
    np.savez(file, **flatten(content))  # type: ignore[arg-type] its stub has options only


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of a tree by their paths, joined by "/"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


# ---- the state -----------------------------------------------------------------------------------


def draw_state(method: Method, tx: Any, seed: int) -> steps.State:
    """Return a random state before any step, in which no layer is idle, as some are at first.

    Activations shrink slightly from layer to layer: large enough to matter, and small enough to
    make the ε of a normalisation matter.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            centre = 1.0 if path[-1].key in ("scale", "var") else 0.0
            return (centre + rng.uniform(0.05, 0.15, leaf.shape)).astype(np.float32)
        fan_in = leaf.size / leaf.shape[-1]
        return rng.normal(0.0, 0.7 * fan_in**-0.5, leaf.shape).astype(np.float32)

    init = functools.partial(steps.init_state, method, tx)
    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
    params, stats = jax.tree_util.tree_map_with_path(draw, (shapes.params, shapes.stats))
    opt = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt)
    return steps.State(jnp.uint32(seed), jnp.int32(0), params, stats, params, opt)


def age_moments(state: steps.State, beta1: float, beta2: float) -> steps.State:
    """Return the state with Adam's moments as after many steps.

    Adam then divides without the corrections of its first steps: float32 keeps β2 = 0.999 to eight
    digits, but the divisor 1 - β2^n to five. Second moments are raised by a fraction of their mean:
    a parameter without a gradient, such as the bias of the keys in attention, gets one from
    rounding. Divided by itself, it would make a full step, and another on every machine.
    """

    def age(adam: Any) -> Any:
        if not hasattr(adam, "nu"):
            return adam
        mu = jax.tree.map(lambda x: x / (1 - beta1**STEPS), adam.mu)
        nu = jax.tree.map(lambda x: x / (1 - beta2**STEPS), adam.nu)
        leaves = jax.tree.leaves(nu)
        mean = sum(x.sum() for x in leaves) / sum(x.size for x in leaves)
        nu = jax.tree.map(lambda x: x + 1e-4 * mean, nu)
        return adam._replace(count=np.int32(MANY), mu=mu, nu=nu)

    return state._replace(opt={p: tuple(map(age, chain)) for p, chain in state.opt.items()})


# ---- the noise, drawn as losses and samplers draw it ---------------------------------------------


def loss_key(state: steps.State, number: int) -> Array:
    """Return the key of the loss of player `number` in the step after `state`."""
    return key_at(state.seed, Purpose.LOSS + number, state.step)


def vae_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    """Draw the noise of the latents."""
    return {"z": random.normal(loss_key(state, 0), (count, method.latent))}


def gan_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    """Draw the latents of each player's step."""
    shape = count, method.latent
    return {p: normal_batch(loss_key(state, i), shape) for i, p in enumerate(method.losses)}


def ddpm_noise(method: Any, state: steps.State, count: int) -> dict[str, Array]:
    """Draw times and noise."""
    key_t, key_noise = random.split(loss_key(state, 0))
    t = random.randint(key_t, (count,), 1, method.timesteps + 1)
    return {"t": t, "epsilon": random.normal(key_noise, (count, *method.shape))}


NOISE = {"vae": vae_noise, "gan": gan_noise, "ddpm": ddpm_noise}


def sample(
    method: Method, name: str, state: steps.State, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the first images of the state, and their noise [draws, SAMPLES, ...]."""
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
    """Return the batches that a sampler draws for the images of these keys, in order."""
    if name != "ddpm":
        return [jax.vmap(lambda key: random.normal(key, (method.latent,)))(keys)]

    def draw(t: Array) -> Array:
        return jax.vmap(lambda k: random.normal(random.fold_in(k, t), method.shape))(keys)

    times = method.process.levels(options["steps"]).t[:-1]
    return [draw(jnp.int32(0)), *map(draw, jnp.asarray(times, jnp.int32))]
