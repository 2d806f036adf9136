"""Sampling: image i of seed s is a function of (s, i), for every chunk size and device count."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax import options
from bloodjax.images import to_uint8
from bloodjax.methods import Method, Params, Stats
from bloodjax.options import Count, Interval
from bloodjax.randomness import Purpose, key_at
from bloodjax.runtime import compilation, processes
from bloodjax.runtime.command import defer_signals, exit_with_signal
from bloodjax.runtime.progress import console, progress
from bloodjax.sampling import samples as files
from bloodjax.sampling.labels import no_labels
from bloodjax.sampling.samples import Samples, read_array, write_array
from bloodjax.training.averages import Weights
from bloodjax.training.step import State
from bloodjax.training.strategies import spread_over_devices

Labels = Callable[[int], np.ndarray]  # count -> int32 [count], the class of each sample or -1
Draw = Callable[..., tuple[Array, Array]]
TRACES = 4  # samples whose traces are kept
PARTS = ".samples-"  # prefix of the hidden folders with chunks
CPU_CHUNK, CHUNK = 250, 2500  # images per dispatch and device, on a CPU and on accelerators


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The options of sampling.

    Attributes:
        count: images per seed.
        chunk: images per dispatch and device; 0: `CPU_CHUNK` or `CHUNK`, or all if they are
            fewer. Another chunk is another program, which may round a pixel to the next grey level.
        labels: the classes to draw with a conditional method, see `labels.make_labels`.
        weights: "ema", the moving average of the parameters; "ema_long", the longer one, of
            `train.ema_decay_long`; or "raw", the parameters.
        checkpoint: "newest", or "best" of those that `train.evaluate_count` evaluated.
        model: the name of the folder beside this run's whose model is sampled; "" for this run's.
        export: further formats to write, see `export.export_run`.
    """

    count: Annotated[int, Interval(2)] = 10_000  # a score needs a covariance
    chunk: Count = 0
    labels: str = "data"
    weights: Weights = "ema"
    checkpoint: Literal["newest", "best"] = "newest"
    model: str = ""
    export: tuple[Literal["png", "grid"], ...] = ()

    def __post_init__(self) -> None:
        options.check(type(self), "sample", vars(self))


def check_sampler(method: Method, sampler: dict[str, Any]) -> None:
    """Refuse options that the method's sampler does not take: ValueError."""
    options.check(method.sample, "sampler", sampler)
    # Tracing computes nothing but runs every check of the sampler.
    params, stats = jax.eval_shape(method.init, random.key(0))
    jax.eval_shape(functools.partial(method.sample, **sampler), params, stats, random.key(0))


def draw_images(
    draw: Callable[..., Array],
    conditional: bool,
    params: Params,
    stats: Stats,
    seed: Array,
    indices: Array,
    labels: Array,
) -> tuple[Array, Array]:
    """Draw the images of one seed at `indices`, int [N], with `labels`, int32 [N].

    `draw` is a method's `sample` or `trace` with its options; `conditional`: it takes a label.

    Returns:
        uint8 [N, H, W, C], of a trace [N, K, H, W, C]; and which of them are finite, bool [N].
    """

    def draw_image(index: Array, label: Array) -> Array:
        key = key_at(seed, Purpose.SAMPLE, index)
        return draw(params, stats, key, label) if conditional else draw(params, stats, key)

    images = jax.vmap(draw_image)(indices, labels)
    return to_uint8(images), jnp.isfinite(images).all(axis=range(1, images.ndim))


def fetch_images(output: tuple[Array, Array]) -> np.ndarray:
    """Fetch the images of `draw_images`; FloatingPointError if not all are finite."""
    images, finite = processes.fetch(output)
    if not finite.all():
        count = f"{np.sum(~finite)} of {len(finite)}"
        raise FloatingPointError(f"{count} samples have NaN or infinite values: check the sampler")
    return images


def make_sampler(method: Method, sampler: dict[str, Any], engine: str) -> Draw:
    """Return the jitted function (params, stats, seed, indices, labels) -> `draw_images`.

    The images are spread over all devices; `engine` is a key of `compilation.ENGINES`.
    """
    draw = functools.partial(method.sample, **sampler)
    return spread_over_devices(functools.partial(draw_images, draw, method.classes > 0), engine)


def select_seed(state: State, s: int, weights: Weights) -> tuple[Params, Stats, Array]:
    """Return the parameters, statistics and seed of the s-th seed, on the device."""
    params = state.params if weights == "raw" else state.ema
    if weights == "ema_long":  # the last of the optimizer's transformations holds it
        params = {player: opt[-1].ema for player, opt in state.opt.items()}
    return jax.tree.map(lambda x: jnp.asarray(x[s]), (params, state.stats, state.seed))


def write_samples(
    method: Method,
    state: State,
    workdir: Path,
    config: SampleConfig,
    sampler: dict[str, Any],
    labels: Labels = no_labels,
) -> None:
    """Write the images of every seed to samples.npz, unless they are there.

    Chunks go into a hidden folder of `workdir` first, so that sampling resumes where it stopped.
    `state` is on the host, with a leading seed axis; `sampler` has options of `method.sample`.

    Raises:
        ValueError: samples.npz is there, of a later step or of another training.
        SystemExit: SIGINT or SIGTERM came; the chunk was finished and saved first.
    """
    # The digest tells trainings apart; it covers the average, whichever weights draw.
    file = workdir / files.NAME
    model = {"step": int(state.step[0]), "sha256": digest((state.seed, state.ema, state.stats))}
    made_by = model | made_with(method, config, sampler)
    if processes.broadcast_from_main(lambda: files.is_drawn(file, made_by), np.bool_(False)):
        console.print(f"{file} is there already ({config.count} images per seed)")
    else:
        # The folder of chunks is named after all that a chunk depends on, `count` by its size alone
        size = dispatch_size(config)
        name = json.dumps([model, made_by["labels"], config.weights, sampler, size])
        folder = workdir / f"{PARTS}{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        folder.mkdir(exist_ok=True)
        draw_chunks(method, state, folder, config, sampler, labels)
        if processes.is_main():
            join_chunks(method, state, folder, size, labels, made_by)

    processes.barrier()  # the other processes read the file from here on
    if processes.is_main():
        for parts in workdir.glob(f"{PARTS}*"):
            shutil.rmtree(parts)


def made_with(method: Method, config: SampleConfig, sampler: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that samples depend on."""
    labels = config.labels if method.classes else ""
    return {"count": config.count, "labels": labels, "weights": config.weights, "sampler": sampler}


def dispatch_size(config: SampleConfig) -> int:
    """Return the number of images of a dispatch to all devices."""
    devices, largest = jax.device_count(), CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK
    return (config.chunk or min(largest, -(-config.count // devices))) * devices


def draw_chunks(
    method: Method,
    state: State,
    folder: Path,
    config: SampleConfig,
    sampler: dict[str, Any],
    labels: Labels,
) -> None:
    """Draw the chunks that `folder` lacks: SEED-START.npy, and SEED-trace.npy of each seed."""
    # The chunks, and which of them are missing
    size = dispatch_size(config)
    seeds, starts = range(len(state.seed)), range(0, config.count, size)
    chunks = {(s, start): folder / f"{s}-{start}.npy" for s in seeds for start in starts}
    exists = processes.broadcast_from_main(
        lambda: np.array([file.exists() for file in chunks.values()]), np.zeros(len(chunks), bool)
    )
    missing = [chunk for chunk, done in zip(chunks, exists, strict=True) if not done]

    # The programs
    draw = make_sampler(method, sampler, compilation.choose_engine())
    traced = functools.partial(method.trace, **sampler)
    draw_trace = jax.jit(functools.partial(draw_images, traced, method.classes > 0))
    select = functools.lru_cache(maxsize=1)(lambda s: select_seed(state, s, config.weights))
    classes = labels(-(-config.count // size) * size)
    if missing:
        seconds = compilation.precompile(draw, *select(0), jnp.arange(size), classes[:size])
        console.print(f"sampling compiled in {seconds:.1f} s")

    # Chunk after chunk
    total = len(seeds) * config.count
    left = sum(min(size, config.count - start) for _, start in missing)
    with defer_signals("chunk") as stop, progress("sample", total, total - left) as advance:
        for s, start in missing:
            indices = jnp.arange(start, start + size)
            images = fetch_images(draw(*select(s), indices, classes[start : start + size]))
            write_array(chunks[s, start], images)
            advance(min(size, config.count - start))
            if signal := processes.largest(stop.signal):
                exit_with_signal(signal, "the samples so far are saved")
        for s in seeds:
            file = folder / f"{s}-trace.npy"
            if processes.is_main() and not file.exists():
                trace = draw_trace(*select(s), jnp.arange(TRACES), labels(TRACES))
                write_array(file, fetch_images(trace))


def join_chunks(
    method: Method, state: State, folder: Path, size: int, labels: Labels, made_by: dict[str, Any]
) -> None:
    """Write samples.npz beside `folder` from the chunks of `size` images in it."""
    images = np.empty((len(state.seed), made_by["count"], *method.shape), np.uint8)
    for s, of_seed in enumerate(images):
        for start in range(0, len(of_seed), size):
            chunk = of_seed[start : start + size]
            chunk[:] = read_array(folder / f"{s}-{start}.npy")[: len(chunk)]
    samples = Samples(
        images=images,
        labels=np.tile(labels(made_by["count"]), (len(images), 1)),
        seeds=np.asarray(state.seed),
        step=int(state.step[0]),
        trace=np.stack([read_array(folder / f"{s}-trace.npy") for s in range(len(images))]),
        trace_name=method.trace_title,
    )
    files.write_samples_file(folder.parent, samples, made_by)


def digest(tree: Any) -> str:
    """Return the sha256 hex of the arrays of a pytree."""
    sha = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        sha.update(f"{leaf.dtype}{leaf.shape}".encode())
        sha.update(leaf.tobytes())
    return sha.hexdigest()
