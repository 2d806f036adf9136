"""Sampling: image i of seed s is a function of (s, i), whatever the chunk and the devices."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax import hosts, sweep
from bloodjax.images import to_uint8
from bloodjax.methods import Method, Params, Stats, accepts
from bloodjax.progress import console, progress
from bloodjax.randomness import Purpose, key_at
from bloodjax.train import State
from bloodjax.workdir import replacing

TRACES = 4  # how many samples' traces are kept


def images(
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


def check(method: Method, *, count: int, chunk: int, **options: Any) -> None:
    """Refuse, before any work, what `run` could not do: ValueError naming the value."""
    if count < 1 or chunk < 1:
        raise ValueError(f"sample.count={count}, sample.chunk={chunk}: expected at least 1 each")
    accepts(method.sample, "sample", options)
    # Tracing computes nothing, but meets every check that the sampler makes of its options.
    params, stats = jax.eval_shape(method.init, random.key(0))
    jax.eval_shape(functools.partial(method.sample, **options), params, stats, random.key(0))


def run(
    method: Method, state: State, workdir: Path, *, count: int, chunk: int, **options: Any
) -> None:
    """Write `count` images of every seed of `state` to samples.npz, unless they are there.

    Args:
        count: images per seed.
        chunk: images per dispatch and device; no influence on the images.
        options: the sampler's own, see the method's `sample`.
    """
    file = workdir / "samples.npz"
    made_by = {"step": int(state.step[0]), "count": count, "options": options}
    if hosts.from_main(lambda: is_made(file, made_by), np.bool_(False)):
        console.print(f"{file} is there already ({count} images a seed)")
        return

    sample = functools.partial(method.sample, **options)
    draw = sweep.over_devices(functools.partial(images, sample))
    strip = jax.jit(functools.partial(images, functools.partial(method.trace, **options)))
    size = chunk * jax.device_count()
    seeds = len(state.seed)
    out = np.empty((seeds, count, *method.shape), np.uint8)
    trace = []
    with progress("sample", seeds * count) as tell:
        for s in range(seeds):
            params, stats = jax.tree.map(lambda x, s=s: jnp.asarray(x[s]), (state.ema, state.stats))
            seed = jnp.asarray(state.seed[s])
            for start in range(0, count, size):
                indices = jnp.arange(start, start + size)
                stop = min(start + size, count)
                drawn = hosts.fetch(draw(params, stats, seed, indices))
                out[s, start:stop] = drawn[: stop - start]
                tell(stop - start)
            trace.append(np.asarray(strip(params, stats, seed, jnp.arange(TRACES))))
    if hosts.is_main():
        with replacing(file) as part, part.open("wb") as handle:
            np.savez(
                handle,
                images=out,
                labels=np.full((seeds, count), -1, np.int32),
                seeds=np.asarray(state.seed),
                step=state.step[0],
                trace=np.stack(trace),
                trace_name=method.trace_title,
                made_by=json.dumps(made_by),
            )
    hosts.barrier()  # from here on the others may read it


def is_made(file: Path, made_by: dict[str, Any]) -> bool:
    """Whether `file` holds just what is about to be made."""
    if not file.exists():
        return False
    with np.load(file, allow_pickle=False) as content:
        return json.loads(str(content["made_by"])) == made_by
