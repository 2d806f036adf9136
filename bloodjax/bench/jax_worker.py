"""JAX's contestants: bloodjax itself, run as its users run it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from bloodjax import methods
from bloodjax.bench.worker import Job, Work, host_peak, repeat, serve
from bloodjax.features.inception import make_extractor
from bloodjax.runtime import compilation
from bloodjax.sampling.draw import make_sampler, select_seed
from bloodjax.sampling.labels import no_labels
from bloodjax.scoring.distances import Moments, frechet
from bloodjax.training.step import (
    OptimizerConfig,
    epoch_orders,
    init_states,
    make_advance,
    make_optimizer,
)
from bloodjax.training.strategies import STRATEGIES, make_program

SCAN = 10  # steps in a dispatch of the variant "scan", and of sweeps on a GPU


def train(job: Job) -> Work:
    """Prepare training steps: a unit is a step of every seed, on images as launch.py uses them."""
    # Method, program and state
    images, seeds = np.load(job["images"]), range(job["seeds"])
    method = make_method(job, images)
    tx = make_optimizer(OptimizerConfig(**job["optimizer"]))
    in_scan = job["variant"] == "scan" or (len(seeds) > 1 and jax.default_backend() == "gpu")
    length = SCAN if in_scan else 1
    advance = make_advance(method, tx, job["ema_decay"], False, length)
    strategy = job["variant"] if job["variant"] in STRATEGIES else "loop"
    program = make_program(strategy, advance, len(seeds), job["batch"])
    state = program.put(init_states(method, tx, seeds))

    # Data: one epoch
    orders = epoch_orders(seeds, len(images), job["batch"])(0)
    order = program.put(orders, None, "data")
    data = program.put_shared(images), program.put_shared(np.zeros(len(images), np.int32))

    def work(units: int) -> int:
        nonlocal state
        metrics = None
        dispatches = -(-units // length)
        for _ in range(dispatches):
            state, metrics = program(length, state, order, *data)
        jax.block_until_ready((state, metrics))
        return dispatches * length

    return work


def draw(job: Job) -> Work:
    """Prepare sampling: a unit is `count` images, in chunks."""
    method = make_method(job, np.load(job["images"], mmap_mode="r"))
    tx = make_optimizer(OptimizerConfig(**job["optimizer"]))
    model = select_seed(init_states(method, tx, [0]), 0, "ema")
    engine = compilation.choose_engine()
    sample = make_sampler(method, job["options"], engine)
    chunks = [jnp.arange(i, i + job["chunk"]) for i in range(0, job["count"], job["chunk"])]

    def sample_chunks() -> list[Any]:
        with compilation.uncached(engine):
            return [sample(*model, chunk, no_labels(len(chunk))) for chunk in chunks]

    return repeat(sample_chunks, jax.block_until_ready)


def features(job: Job) -> Work:
    """Prepare features: a unit is `count` images through InceptionV3 with the given weights."""
    embed = make_extractor(weights=job["weights"]).features
    images = np.load(job["images"])[: job["count"]]
    return repeat(lambda: embed(images), jax.block_until_ready)


def distance(job: Job) -> Work:
    """Prepare Fréchet distances: a unit is one, in `dims` dimensions."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, job["dims"], job["dims"])) * job["dims"] ** -0.5
    a, b = (Moments.of(rng.standard_normal((2 * job["dims"], job["dims"])) @ m) for m in mix)
    if job["variant"] == "sqrtm":
        return repeat(lambda: linalg.sqrtm(a.cov @ b.cov), jax.block_until_ready)
    return repeat(lambda: frechet(replace(a), b), jax.block_until_ready)  # `a` would keep its root


def matmul(job: Job) -> Work:
    """Prepare matrix products: a unit is one of two square matrices, the bound of all tasks."""
    x = jnp.ones((job["dims"], job["dims"]), job["dtype"])
    options = compilation.ENGINES[compilation.choose_engine()]
    program = jax.jit(jnp.matmul, compiler_options=options)
    return repeat(lambda: program(x, x), jax.block_until_ready)


def make_method(job: Job, images: np.ndarray) -> methods.Method:
    """Return the method of a job for these images."""
    return methods.make(shape=images.shape[1:], **job["method"], dtype=job["dtype"])


def peak() -> int:
    """Return the peak memory in bytes: the accelerator's, or on a CPU this process's."""
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
    """Return the work of a job, and the versions of what does it."""
    job["dtype"] = compilation.configure_jax(deterministic=False, precision=job["precision"])
    device = jax.devices()[0]
    versions = {"version": f"jax {jax.__version__}", "device": device.device_kind, "peak": peak}
    return TASKS[job["task"]](job), versions


if __name__ == "__main__":
    serve(prepare)
