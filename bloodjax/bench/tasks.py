"""The tasks of a benchmark: who takes part in each, and the floating-point operations of a unit."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from bloodjax import methods
from bloodjax.bench import inception_weights
from bloodjax.bench.timing import Contestant
from bloodjax.bench.worker import Job
from bloodjax.sampling.draw import CPU_CHUNK
from bloodjax.training.step import OptimizerConfig, init_state, make_optimizer, train_step

MAIN_BATCH = 128  # the study's
DIMS = {"frechet": 2048, "matmul": 4096}
# Images in a unit. Samplers with steps take minutes for more on a CPU; 96 images are three full
# batches of bloodjax's Inception.
COUNT = {"cpu": {"sample": 500, "steps": 100}, "gpu": {"sample": 1000, "steps": 1000}}
FEATURES = 96

TORCH = ("eager", "channels_last", "compile")
VARIANTS = {  # device -> task -> side -> variants
    "cpu": {
        "parity": {"torch": TORCH},
        "matmul": {"jax": ("jit",), "torch": ("eager",)},
        "train": {"jax": ("step",), "torch": TORCH},
        "sample": {"jax": ("jit",), "torch": TORCH},
        # PyTorch trains seeds one after the other; five compilations would tell nothing new.
        "sweep": {"jax": ("loop",), "torch": ("eager", "channels_last")},
        "features": {"jax": ("jit",), "torch": ("eager", "channels_last")},
        "frechet": {"jax": ("eigh", "sqrtm")},
    }
}
VARIANTS["gpu"] = VARIANTS["cpu"] | {
    "parity": {"torch": (*TORCH, "cuda_graphs")},
    "train": {"jax": ("step", "scan"), "torch": (*TORCH, "cuda_graphs")},
    "sample": {"jax": ("jit",), "torch": (*TORCH, "cuda_graphs")},
    "sweep": {"jax": ("loop", "vmap", "map"), "torch": ("channels_last", "cuda_graphs")},
}
# On a GPU, float32 and the main batch size show all variants. Other rows leave out those that lost
# there by a factor of 2 or more, and JAX's single steps: compiling takes most of a benchmark.
FAST = ("jit", "scan", "channels_last", "cuda_graphs", "loop", "vmap", "map")
TAKE_MINUTES = ("compile", "cuda_graphs")


class Task(NamedTuple):
    """A task and its contestants.

    Attributes:
        name: a task of `VARIANTS`, or "time to score".
        batch: images in a unit; 0: none.
        precision: "float32", "tf32" or "bfloat16".
        contestants: the processes that do the task.
        flops: floating-point operations of a unit; 0: not counted.
    """

    name: str
    batch: int
    precision: str
    contestants: list[Contestant]
    flops: float = 0.0

    @property
    def title(self) -> str:
        """Name, batch and precision, without those that go without saying."""
        return title(self.name, self.batch, self.precision)


def title(task: str, batch: int, precision: str) -> str:
    """Return the name of a row: task, batch if there is one, precision unless it is float32."""
    return " ".join(
        filter(None, (task, str(batch or ""), precision if precision != "float32" else ""))
    )


class Plan(NamedTuple):
    """Values that all tasks of one benchmark share.

    Attributes:
        job: values for every contestant: files, method, optimizer, ema_decay, threads.
        sampler: the options of the method's sampler.
        torch_python: the interpreter of PyTorch.
        device: "cpu" or "gpu".
        quick: leave out what takes minutes.
    """

    job: Job
    sampler: dict[str, Any]
    torch_python: str
    device: str
    quick: bool

    def enter(self, task: str, precision: str = "float32", **job: Any) -> list[Contestant]:
        """Return the contestants of a task in a precision."""
        whole = precision == "float32" and job.get("batch", MAIN_BATCH) == MAIN_BATCH
        values = self.job | {"task": task, "precision": precision, "seeds": 1} | job
        pythons = {"jax": sys.executable, "torch": self.torch_python}
        return [
            Contestant(side, variant, values, pythons[side])
            for side, variants in VARIANTS[self.device][task].items()
            for variant in variants
            if not (self.quick and variant in TAKE_MINUTES)
            and (whole or variant in FAST or self.device == "cpu")
        ]


def list_tasks(plan: Plan, folder: Path, batches: Sequence[int]) -> Iterator[Task]:
    """Yield all tasks, the matrix product first, since it bounds the rest.

    Args:
        plan: the values that all tasks share.
        folder: for Inception's random weights.
        batches: images in a training step.
    """
    precisions = ("float32", "tf32", "bfloat16") if plan.device == "gpu" else ("float32",)
    count = COUNT[plan.device]["steps" if "steps" in plan.sampler else "sample"]
    chunk = min(CPU_CHUNK, count) if plan.device == "cpu" else count
    step_flops = functools.cache(functools.partial(count_step, plan.job))
    for precision in precisions:
        # A matrix product
        size = DIMS["matmul"]
        entered = plan.enter("matmul", precision, dims=size)
        yield Task("matmul", 0, precision, entered, 2.0 * size**3)

        # Training steps
        for batch in batches:
            entered = plan.enter("train", precision, batch=batch)
            yield Task("train", batch, precision, entered, step_flops(batch))

        # Sampling
        job = {"options": plan.sampler, "count": count, "chunk": chunk}
        flops = count * count_sample(plan.job, plan.sampler)
        yield Task("sample", count, precision, plan.enter("sample", precision, **job), flops)
    if plan.quick:
        return

    # Five seeds, Inception and the Fréchet distance
    entered = plan.enter("sweep", batch=MAIN_BATCH, seeds=5)
    yield Task("sweep", MAIN_BATCH, "float32", entered, 5 * step_flops(MAIN_BATCH))
    entered = plan.enter("features", count=FEATURES, **inception_weights.write(folder))
    yield Task("features", FEATURES, "float32", entered)
    yield Task("frechet", 0, "float32", plan.enter("frechet", dims=DIMS["frechet"]))


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the floating-point operations of one call, as XLA counts them; 0.0 if it cannot.

    XLA counts programs for CPUs only; on a GPU `Lowered.cost_analysis()` is None.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the GPU alone
        return 0.0
    with jax.default_device(cpu):
        cost = jax.jit(function).lower(*arguments).cost_analysis()
    return cost["flops"] if cost else 0.0


def image_shape(job: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (H, W, C) of the images of a job."""
    return np.load(job["images"], mmap_mode="r").shape[1:]


def count_step(job: Mapping[str, Any], batch: int) -> float:
    """Return the floating-point operations of a training step of one seed."""
    shape = image_shape(job)
    method = methods.make(shape=shape, **job["method"])
    tx = make_optimizer(OptimizerConfig(**job["optimizer"]))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(functools.partial(init_state, method, tx), seed)
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = functools.partial(train_step, method, tx, job["ema_decay"])
    return count_flops(step, state, (images, labels))


def count_sample(job: Mapping[str, Any], sampler: Mapping[str, Any]) -> float:
    """Return the floating-point operations of one image; calls of the network cost the same."""
    method = methods.make(shape=image_shape(job), **job["method"])
    single = dict(sampler) | ({"steps": 1} if "steps" in sampler else {})
    params, stats = jax.eval_shape(method.init, random.key(0))
    key = jax.eval_shape(random.key, 0)
    flops = count_flops(functools.partial(method.sample, **single), params, stats, key)
    steps = sampler.get("steps", 1)
    return flops * (2 * steps - 1 if sampler.get("name") == "heun" else steps)
