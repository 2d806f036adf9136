"""Sampling: image i of seed s is a function of (s, i), whatever the chunk and the devices."""

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax.images import to_uint8
from bloodjax.methods import Method, Params, Stats, accepts
from bloodjax.randomness import Purpose, key_at
from bloodjax.runtime import compilation, processes
from bloodjax.runtime.files import atomic_write
from bloodjax.runtime.progress import console, progress
from bloodjax.runtime.signals import defer_signals, exit_with_signal
from bloodjax.sampling.samples import NAME, Samples, read_made_by, write_samples_file
from bloodjax.training import strategies
from bloodjax.training.step import State

WEIGHTS = ("ema", "raw")  # what images are drawn with: the moving average, or the parameters
TRACES = 4  # how many samples' traces are kept
PARTS = ".samples-"  # what the folders of chunks are called before samples.npz is whole


def draw_images(
    draw: Callable[..., Array], params: Params, stats: Stats, seed: Array, indices: Array
) -> Array:
    """What `draw(params, stats, key)` gives for the images of one seed at `indices` [N].

    Args:
        draw: a method's `sample` or `trace`, with its options filled in.

    Returns:
        uint8 [N, H, W, C], or [N, K, H, W, C] of a trace.
    """

    def one(index: Array) -> Array:
        return draw(params, stats, key_at(seed, Purpose.SAMPLE, index))

    return to_uint8(jax.vmap(one)(indices))


def make_sampler(method: Method, options: dict[str, Any]) -> Callable[..., Array]:
    """(params, stats, seed, indices) of one seed -> `images`, the indices spread over all devices.

    Args:
        options: the sampler's own, see the method's `sample`.
    """
    draw = functools.partial(method.sample, **options)
    return strategies.spread_over_devices(functools.partial(draw_images, draw))


def select_seed(state: State, s: int, weights: str) -> tuple[Params, Stats, Array]:
    """What the s-th seed's images are drawn with, on the device: parameters, statistics, seed."""
    params = {"ema": state.ema, "raw": state.params}[weights]
    return jax.tree.map(lambda x: jnp.asarray(x[s]), (params, state.stats, state.seed))


def check(method: Method, *, count: int, chunk: int, weights: str = "ema", **options: Any) -> None:
    """Refuse, before any work, what `run` could not do: ValueError naming the value."""
    if count < 1 or chunk < 1:
        raise ValueError(f"sample.count={count}, sample.chunk={chunk}: expected at least 1 each")
    if weights not in WEIGHTS:
        raise ValueError(f"sample.weights={weights!r}: expected {' or '.join(WEIGHTS)}")
    accepts(method.sample, "sample", options)
    # Tracing computes nothing, but meets every check that the sampler makes of its options.
    params, stats = jax.eval_shape(method.init, random.key(0))
    jax.eval_shape(functools.partial(method.sample, **options), params, stats, random.key(0))


def write_samples(
    method: Method,
    state: State,
    workdir: Path,
    *,
    count: int,
    chunk: int,
    weights: str = "ema",
    **options: Any,
) -> None:
    """Write `count` images of every seed of `state` to samples.npz, unless they are there.

    Chunks go into a hidden folder of `workdir` first, so that sampling goes on where it stopped.

    Args:
        count: images per seed.
        chunk: images per dispatch and device. Another one is another program, whose rounding may
            change a pixel by a grey level, and nothing else.
        weights: "ema", the moving average of the parameters, or "raw", the parameters themselves.
        options: the sampler's own, see the method's `sample`.

    Raises:
        ValueError: the samples.npz that is there is of a later step or another training.
        SystemExit: SIGINT or SIGTERM; the chunk was finished and saved first.
    """
    file, size = workdir / NAME, chunk * jax.device_count()
    # The digest tells one training from another, so it is that of the average for both weights.
    model = {"step": int(state.step[0]), "sha256": digest((state.seed, state.ema, state.stats))}
    made_by = {**model, "count": count, "weights": weights, "options": options}
    if processes.broadcast_from_main(lambda: is_made(file, made_by), np.bool_(False)):
        console.print(f"{file} is there already ({count} images a seed)")
    else:
        # Chunks are named by all that they depend on; `count` is nothing of it.
        name = hashlib.sha256(json.dumps([model, weights, options, size]).encode()).hexdigest()
        parts = workdir / f"{PARTS}{name[:16]}"
        parts.mkdir(exist_ok=True)
        draw_chunks(method, state, parts, size, made_by)
        if processes.is_main():
            out = np.empty((len(state.seed), count, *method.shape), np.uint8)
            samples = Samples(
                images=join_chunks(parts, out, size),
                labels=np.full(out.shape[:2], -1, np.int32),
                seeds=state.seed,
                step=state.step[0],
                trace=np.stack([read(parts / f"{s}-trace.npy") for s in range(len(out))]),
                trace_name=method.trace_title,
            )
            write_samples_file(workdir, samples, made_by)
    processes.barrier()  # from here on the others may read it
    if processes.is_main():
        for parts in workdir.glob(f"{PARTS}*"):
            shutil.rmtree(parts)


def draw_chunks(
    method: Method, state: State, parts: Path, size: int, made_by: dict[str, Any]
) -> None:
    """Make what is missing in `parts`: SEED-START.npy of each chunk, and each SEED-trace.npy."""
    count, weights, options = (made_by[name] for name in ("count", "weights", "options"))
    draw = make_sampler(method, options)
    strip = jax.jit(functools.partial(draw_images, functools.partial(method.trace, **options)))
    model = functools.lru_cache(maxsize=1)(functools.partial(select_seed, state, weights=weights))
    seeds, starts = range(len(state.seed)), range(0, count, size)
    chunks = {(s, start): parts / f"{s}-{start}.npy" for s in seeds for start in starts}
    made = processes.broadcast_from_main(
        lambda: np.array([file.exists() for file in chunks.values()]), np.zeros(len(chunks), bool)
    )
    missing = {where: chunks[where] for where, there in zip(chunks, made, strict=True) if not there}
    if missing:
        seconds = compilation.precompile(draw, *model(0), jnp.arange(size))
        console.print(f"sampling compiled in {seconds:.1f} s")
    total = len(seeds) * count
    left = sum(min(size, count - start) for _, start in missing)
    with defer_signals("chunk") as stopped, progress("sample", total, total - left) as tell:
        for (s, start), file in missing.items():
            write(file, processes.fetch(draw(*model(s), jnp.arange(start, start + size))))
            tell(min(size, count - start))
            if leaving := processes.largest(stopped[0] if stopped else 0):
                exit_with_signal(leaving, "the samples so far are saved")
        for s in seeds if processes.is_main() else ():
            if not (file := parts / f"{s}-trace.npy").exists():
                write(file, strip(*model(s), jnp.arange(TRACES)))


def join_chunks(parts: Path, out: np.ndarray, size: int) -> np.ndarray:
    """`out`, uint8 [S, N, H, W, C], filled from the chunks in `parts`."""
    for s, images in enumerate(out):
        for start in range(0, len(images), size):
            here = images[start : start + size]
            here[:] = read(parts / f"{s}-{start}.npy")[: len(here)]
    return out


def write(file: Path, array: Array) -> None:
    """Write an .npy file, whole or not at all; with several processes, process 0 does."""
    if not processes.is_main():
        return
    content = io.BytesIO()  # np.save into a file on a full disk forgets which error it was
    np.save(content, np.asarray(array))
    with atomic_write(file) as part:
        part.write_bytes(content.getbuffer())


def read(file: Path) -> np.ndarray:
    """What `write` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it, and the same command makes it again"
        ) from None


def digest(tree: Any) -> str:
    """sha256 hex of the arrays of a pytree."""
    sha = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        sha.update(f"{leaf.dtype}{leaf.shape}".encode())
        sha.update(leaf.tobytes())
    return sha.hexdigest()


def is_made(file: Path, made_by: dict[str, Any]) -> bool:
    """Whether `file` holds just what is about to be made; if it holds older samples, it may go.

    Raises:
        ValueError: it holds something else, which is not to be lost. Also samples of the newest
            checkpoint, where those of the best are wanted: they may have taken hours.
    """
    if not file.exists():
        return False
    then = read_made_by(file.parent)
    if then["step"] > made_by["step"]:
        what = f"samples after step {then['step']}, and those of step {made_by['step']} are wanted"
    elif then["step"] == made_by["step"] and then["sha256"] != made_by["sha256"]:
        what = "samples of another training"
    else:
        return then == made_by
    raise ValueError(f"{file} holds {what}: move it away, and the same command makes it anew")


def check_made(
    workdir: Path, *, count: int, chunk: int, weights: str = "ema", **options: Any
) -> None:
    """Refuse to go on with samples that other options made: ValueError naming file and options."""
    file = workdir / NAME
    if file.exists():
        then, now = (
            read_made_by(file.parent),
            {"count": count, "weights": weights, "options": options},
        )
        if then | now != then:
            was = {name: then[name] for name in now}
            raise ValueError(f"{file} was made with {was}, now {now}: sample again, --mode=sample")
