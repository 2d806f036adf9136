"""--mode=benchmark: bloodjax and its PyTorch twin, task by task, each in processes of its own."""

import functools
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from bloodjax import methods
from bloodjax.bench import inception_weights, parity, quick_job, results
from bloodjax.bench.contest import Contestant, Failed, compare
from bloodjax.data import Dataset
from bloodjax.runtime.progress import console, progress
from bloodjax.training.step import OptimizerConfig, abstract_states, make_optimizer, train_step

PRECISIONS = ("float32", "tf32", "bfloat16")  # the last two where there is a GPU
# Images in a unit, of samplers with steps fewer; of features three full batches of JAX's.
COUNT = {"sample": 500, "steps": 100, "features": 96}
CHUNK = 250  # of them in a dispatch when sampling, or all where there are fewer
DIMS = {"frechet": 2048, "matmul": 4096}
TORCH = ("eager", "channels_last", "compile", "cuda_graphs")
VARIANTS = {  # task -> side -> how
    "parity": {"torch": TORCH},
    "matmul": {"jax": ("jit",), "torch": ("eager",)},
    "train": {"jax": ("step", "scan"), "torch": TORCH},
    "sample": {"jax": ("jit",), "torch": TORCH},
    "sweep": {"jax": ("step",), "torch": TORCH},
    "features": {"jax": ("jit",), "torch": ("eager", "channels_last")},
    "frechet": {"jax": ("eigh", "sqrtm")},
}
ON_GPU = {"scan", "cuda_graphs"}
TAKE_MINUTES = {"compile", "cuda_graphs"}


class Task(NamedTuple):
    """What contestants do, to how many images in a unit (0: none), and the floating-point
    operations of a unit (0: not counted).
    """

    name: str
    batch: int
    precision: str
    contestants: list[Contestant]
    flops: float = 0.0


class Bench(NamedTuple):
    """What all tasks have in common.

    Attributes:
        job: what every contestant is told.
        options: the sampler's own.
        python: PyTorch's interpreter.
        quick: the few tasks that take a minute.
    """

    job: dict[str, Any]
    options: dict[str, Any]
    python: str
    quick: bool

    @property
    def gpu(self) -> bool:
        return jax.default_backend() == "gpu"

    def enter(self, task: str, precision: str = "float32", **job: Any) -> list[Contestant]:
        """Every contestant of a task in that precision."""
        left_out = (set() if self.gpu else ON_GPU) | (TAKE_MINUTES if self.quick else set())
        told = self.job | {"task": task, "precision": precision, "seeds": 1} | job
        pythons = {"jax": sys.executable, "torch": self.python}
        return [
            Contestant(side, variant, told, pythons[side])
            for side, own in VARIANTS[task].items()
            for variant in own
            if variant not in left_out
        ]


def check(*, torch_python: str, batches: Sequence[int], repeats: int, quick: bool) -> None:
    """Refuse, before any work, what `run` could not do: ValueError naming the value."""
    if not batches or min(batches) < 1:
        raise ValueError(f"bench.batches={tuple(batches)}: expected sizes of at least 1")
    if repeats < 5:
        raise ValueError(f"bench.repeats={repeats}: expected at least 5")
    if torch_python and not Path(torch_python).is_file():
        raise ValueError(f"bench.torch_python={torch_python}: no such file, expected a python")


def run(
    workdir: Path,
    dataset: Dataset,
    *,
    method: Mapping[str, Any],
    train: Mapping[str, Any],
    sampler: Mapping[str, Any],
    job: Sequence[str],
    torch_python: str,
    batches: Sequence[int],
    repeats: int,
    quick: bool,
) -> list[dict[str, Any]]:
    """Time everything and write speed.json, speed.md and speed.png to `workdir`.

    Args:
        dataset: the images to train on.
        method, train: as in the configuration.
        sampler: the options of the method's `sample`.
        job: the command of the whole quick job, without its --workdir.
        torch_python: PyTorch's interpreter; empty: this one.
        batches: sizes of the training step.
        repeats: windows of each contestant.
        quick: batches of 128 only, not what takes minutes.

    Raises:
        ValueError: the twin does not have the network, or does not compute what bloodjax does.
    """
    if method.get("net", "residual") != "residual":
        raise ValueError(f"method.net={method['net']!r}: its PyTorch twin has residual, time that")
    workdir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}" for name in ("images.npy", "parity.npz")}
        np.save(files["images.npy"], dataset.images)
        settings = {
            "optimizer": {name: train[name] for name in ("learning_rate", "beta1", "beta2")},
            "ema_decay": train["ema_decay"],
            "method": dict(method),
        }
        parity.write(Path(files["parity.npz"]), dataset.images[:8], **settings)
        told = {"images": files["images.npy"], "parity": files["parity.npz"], **settings}
        linux = hasattr(os, "sched_getaffinity")  # where a process may have some cores only
        threads = len(os.sched_getaffinity(0)) if linux else os.cpu_count()
        told |= {"threads": threads, "cache": f"{folder}/inductor"}
        bench = Bench(told, dict(sampler), torch_python or sys.executable, quick)
        missing = prove(bench)
        for task in tasks(bench, folder, [128] if quick else batches):
            rows += measure(task, repeats, missing)
            results.write(workdir, results.complete(rows))  # all so far, whatever comes
        if not quick and not missing:
            rows += quick_job.compare(job, bench.python, told["threads"], dataset, Path(folder))
    rows += [] if bench.gpu else unmeasured(rows)
    results.write(workdir, results.complete(rows))
    results.show(workdir, rows)
    return rows


def unmeasured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that only a GPU could fill, with nothing in them."""
    blank = dict.fromkeys(("median_s", "iqr_s", "compile_s", "peak_bytes", "version", "device"))
    note = {"windows": 0, "note": "not measured: no GPU here"}
    return [
        row | blank | note | {"precision": precision}
        for precision in PRECISIONS[1:]
        for row in rows
        if row["task"] in ("matmul", "train", "sample")
    ]


def prove(bench: Bench) -> str:
    """Have every PyTorch variant repeat a step and some samples; why there is no PyTorch, or "".

    Raises:
        ValueError: one of them does not compute what bloodjax does.
    """
    for contestant in bench.enter("parity"):
        try:
            contestant.start()
        except Failed as error:
            if "ModuleNotFoundError" in str(error):
                return f"not measured: {bench.python}: {error}"
            raise ValueError(f"{contestant.variant}: {error}") from None
        finally:
            contestant.end()
        console.print(f"PyTorch, {contestant.variant}: computes the same")
    return ""


def tasks(bench: Bench, folder: str, batches: Sequence[int]) -> Iterator[Task]:
    """All of them, the bound first."""
    precisions = PRECISIONS if bench.gpu else PRECISIONS[:1]
    for precision in precisions:
        dims = DIMS["matmul"]
        yield Task(
            "matmul", 0, precision, bench.enter("matmul", precision, dims=dims), 2.0 * dims**3
        )
        for batch in batches:
            entered = bench.enter("train", precision, batch=batch)
            yield Task("train", batch, precision, entered, step_flops(bench.job, batch))
        count = COUNT["steps" if "steps" in bench.options else "sample"]
        job = {"options": bench.options, "count": count, "chunk": min(CHUNK, count)}
        flops = count * image_flops(bench.job, bench.options)
        yield Task("sample", count, precision, bench.enter("sample", precision, **job), flops)
    if bench.quick:
        return
    five = bench.enter("sweep", batch=128, seeds=5)
    yield Task("sweep", 128, "float32", five, 5 * step_flops(bench.job, 128))
    weights = inception_weights.write(Path(folder))
    entered = bench.enter("features", count=COUNT["features"], **weights)
    yield Task("features", COUNT["features"], "float32", entered)
    yield Task("frechet", 0, "float32", bench.enter("frechet", dims=DIMS["frechet"]))


def measure(task: Task, repeats: int, missing: str) -> list[dict[str, Any]]:
    """The rows of a task: one per contestant, also of those that could not take part."""
    able = [c for c in task.contestants if c.side == "jax" or not missing]
    title = f"{task.name} {task.batch or ''} {task.precision}".replace("  ", " ")
    with progress(title, repeats * len(able)) as advance:
        failed = compare(able, repeats, advance)
    reasons = {id(able[i]): f"not measured: {why}" for i, why in failed.items()}
    unable = {id(c): missing for c in task.contestants if c not in able}
    about = task.name, task.batch, task.precision
    return [
        results.row(*about, contestant, task.flops, (unable | reasons).get(id(contestant), ""))
        for contestant in task.contestants
    ]


def step_flops(job: Mapping[str, Any], batch: int) -> float:
    """Floating-point operations of a training step of one seed, as XLA counts them."""
    shape = np.load(job["images"], mmap_mode="r").shape[1:]
    method, tx = (
        methods.make(shape=shape, **job["method"]),
        make_optimizer(OptimizerConfig(**job["optimizer"])),
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), abstract_states(method, tx, [0])
    )
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    step = functools.partial(train_step, method, tx, job["ema_decay"])
    return jax.jit(step, donate_argnums=0).lower(state, (images, labels)).cost_analysis()["flops"]


def image_flops(job: Mapping[str, Any], options: Mapping[str, Any]) -> float:
    """Those of one sampled image; of a sampler with steps, so many times those of one step."""
    shape = np.load(job["images"], mmap_mode="r").shape[1:]
    method = methods.make(shape=shape, **job["method"])
    once = dict(options) | ({"steps": 1} if "steps" in options else {})
    params, stats = jax.eval_shape(method.init, random.key(0))
    sample = jax.jit(functools.partial(method.sample, **once))
    flops = sample.lower(params, stats, random.key(0)).cost_analysis()["flops"]
    return flops * options.get("steps", 1)
