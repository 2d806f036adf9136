"""States and samples of tiny models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bloodjax.sampling.draw import SampleConfig, made_with, write_samples
from bloodjax.training import step
from bloodjax.training.step import OptimizerConfig
from helpers.tiny import method

OPTIONS = {
    "ddpm": {"steps": 5, "eta": 1.0, "clip": True, "variance": "posterior"},
    "edm": {"steps": 3, "guidance": 1.5},
}


@functools.cache  # tracing the network takes seconds
def state(name, seeds=(0, 7), ema_decay_long=0.0):
    tx = step.make_optimizer(OptimizerConfig(), ema_decay_long=ema_decay_long)
    init = jax.vmap(lambda seed: step.init_state(method(name), tx, seed))
    made = jax.device_get(init(jnp.asarray(seeds, jnp.uint32)))
    # Zero-initialised layers would make every chunking look right.
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(x.dtype), made.ema)
    opt = made.opt
    if ema_decay_long:
        longer = {player: jax.tree.map(lambda x: 1.5 * x, noise[player]) for player in opt}
        opt = {p: (adam, average._replace(ema=longer[p])) for p, (adam, average) in opt.items()}
    return made._replace(ema=noise, opt=opt)


def write(folder, name="vae", model=None, count=11, chunk=4, **changes):
    """Write the samples of a tiny model; `changes` are of the SampleConfig."""
    config = SampleConfig(count=count, chunk=chunk, **changes)
    model = state(name) if model is None else model
    write_samples(method(name), model, folder, config, OPTIONS.get(name, {}))


def made(count, weights):
    """Return what a configuration of the VAE says of its samples."""
    return made_with(method("vae"), SampleConfig(count=count, weights=weights), {})


def draw(folder, name, **changes):
    folder.mkdir()
    write(folder, name, **changes)
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return dict(file)


def near(a, b):
    """Equal to one grey level: another chunk is another program, which may round otherwise."""
    np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)
