"""The JAX side of the comparison: bloodjax itself, run as its users run it."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from bloodjax import methods
from bloodjax.bench.serve import Work, host_peak, serve
from bloodjax.features.inception import make_extractor
from bloodjax.runtime import compilation
from bloodjax.sampling import draw as sample
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.training import strategies
from bloodjax.training.step import (
    OptimizerConfig,
    advance,
    epoch_orders,
    init_states,
    make_optimizer,
    train_step,
)

Job = dict[str, Any]
SCAN = 10  # steps in a dispatch of the variant "scan"


def train(job: Job) -> Work:
    """A unit is a step of every seed, on the images that `launch.py` would train on."""
    length = SCAN if job["variant"] == "scan" else 1
    images, seeds = np.load(job["images"]), range(job["seeds"])
    method = make(job, images)
    step = functools.partial(
        train_step, method, make_optimizer(OptimizerConfig(**job["optimizer"])), job["ema_decay"]
    )
    program = strategies.Loop(functools.partial(advance, step))
    state = program.put(
        init_states(method, make_optimizer(OptimizerConfig(**job["optimizer"])), seeds)
    )
    order = program.put(epoch_orders(seeds, len(images), job["batch"])(0))
    data = program.put_shared(images), program.put_shared(np.zeros(len(images), np.int32))

    def work(units: int) -> int:
        nonlocal state
        dispatches = -(-units // length)
        for _ in range(dispatches):
            state, metrics = program(length, state, order, *data)
        jax.block_until_ready((state, metrics))
        return dispatches * length

    return work


def draw(job: Job) -> Work:
    """A unit is `count` images, in chunks."""
    method = make(job, np.load(job["images"], mmap_mode="r"))
    state = init_states(method, make_optimizer(OptimizerConfig(**job["optimizer"])), [0])
    model = jax.tree.map(lambda x: jnp.asarray(x[0]), (state.ema, state.stats, state.seed))
    one = functools.partial(method.sample, **job["options"])
    program = strategies.spread_over_devices(functools.partial(sample.draw_images, one))
    chunks = [jnp.arange(i, i + job["chunk"]) for i in range(0, job["count"], job["chunk"])]
    return repeated(lambda: [program(*model, chunk) for chunk in chunks])


def features(job: Job) -> Work:
    """A unit is `count` images through InceptionV3 with the weights in a file."""
    embed = make_extractor(weights=job["weights"]).features
    images = np.load(job["images"])[: job["count"]]
    return repeated(lambda: embed(images))


def distance(job: Job) -> Work:
    """A unit is one Fréchet distance in `dims` dimensions."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, job["dims"], job["dims"])) * job["dims"] ** -0.5
    a, b = (Moments.of(rng.standard_normal((2 * job["dims"], job["dims"])) @ m) for m in mix)
    if job["variant"] == "sqrtm":
        return repeated(lambda: linalg.sqrtm(a.cov @ b.cov))
    return repeated(lambda: frechet(replace(a), b))  # without the root that `a` would keep


def matmul(job: Job) -> Work:
    """A unit is a product of two square matrices, the bound of everything else."""
    x = jnp.ones((job["dims"], job["dims"]), job["dtype"])
    program = jax.jit(jnp.matmul)
    return repeated(lambda: program(x, x))


def make(job: Job, images: np.ndarray) -> methods.Method:
    return methods.make(shape=images.shape[1:], **job["method"], dtype=job["dtype"])


def repeated(once: Callable[[], Any]) -> Work:
    """The work of calling `once` so often and waiting for the last."""

    def work(units: int) -> int:
        for _ in range(units):
            result = once()
        jax.block_until_ready(result)
        return units

    return work


def peak() -> int:
    """The most memory held so far, in bytes: the accelerator's, or this process's on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", host_peak())


TASKS = {
    "train": train,
    "sweep": train,
    "sample": draw,
    "features": features,
    "frechet": distance,
    "matmul": matmul,
}


def prepare(job: Job) -> tuple[Work, dict[str, Any]]:
    """The work of a job and the versions that do it."""
    job["dtype"] = compilation.configure_jax(deterministic=False, precision=job["precision"])
    device = jax.devices()[0]
    about = {"version": f"jax {jax.__version__}", "device": device.device_kind, "peak": peak}
    return TASKS[job["task"]](job), about


if __name__ == "__main__":
    serve(prepare)
