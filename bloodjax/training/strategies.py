"""Strategies: how the training of S seeds is spread over devices.

    loop            one program for each seed, dispatched one after the other, on one device
    vmap, map       one program for all seeds on one device, by jax.vmap or jax.lax.map
    sharded         one program for all seeds on all devices: seeds along a mesh axis `seed`,
                    without communication, the batch of each seed along an axis `data`; several
                    seeds of one device run one after the other
    sharded-vmap, sharded-map    sharded, with the seeds of one device under vmap or map

The function that is spread trains one seed and knows of neither seeds nor devices.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bloodjax.runtime import processes
from bloodjax.runtime.compilation import ENGINES, choose_engine, precompile
from bloodjax.runtime.progress import console

STRATEGIES = ("loop", "vmap", "map", "sharded", "sharded-vmap", "sharded-map")

# (length, state, order, images, labels) of one seed -> (state, metrics): see `step.advance`.
Advance = Callable[..., tuple[Any, Any]]


class Program(Protocol):
    """Training of all seeds, compiled once for every dispatch length.

    `put` and `__call__` return trees in the program's own layout, which `fetch` turns back into
    NumPy arrays with a leading seed axis.
    """

    def put(self, tree: Any, *axes: str | None) -> Any:
        """Move arrays with a leading seed axis to the devices; `axes` shard their further axes."""

    def put_shared(self, array: np.ndarray) -> Array:
        """Move an array that all seeds read to the devices."""
        ...

    def compile(self, state: Any, order: Any, *data: Array) -> float:
        """Compile the program; return the seconds, 0 if it was compiled before."""
        ...

    def __call__(self, length: int, state: Any, order: Any, *data: Array) -> tuple[Any, Any]:
        """Take `length` steps of every seed, which uses up `state`; return state and metrics.

        The first `length` rows of the metrics are filled.
        """
        ...

    def fetch(self, tree: Any) -> Any:
        """Return a tree of `put` or of a call as NumPy arrays with a leading seed axis."""


class Loop:
    """A `Program` that dispatches each seed alone: bitwise the run of that seed."""

    def __init__(self, advance: Advance) -> None:
        options = ENGINES[choose_engine()]
        self.compiled = jax.jit(advance, donate_argnums=1, compiler_options=options)
        self.is_compiled = False

    def put(self, tree: Any, *axes: str | None) -> list[Any]:
        seeds = range(len(jax.tree.leaves(tree)[0]))
        trees = [jax.tree.map(operator.itemgetter(s), tree) for s in seeds]
        return [jax.tree.map(jnp.asarray, tree) for tree in trees]

    def put_shared(self, array: np.ndarray) -> Array:
        return jnp.asarray(array)

    def compile(self, state: list[Any], order: list[Array], *data: Array) -> float:
        if self.is_compiled:
            return 0.0
        self.is_compiled = True
        return precompile(self.compiled, np.int32(1), state[0], order[0], *data)

    def __call__(
        self, length: int, state: list[Any], order: list[Array], *data: Array
    ) -> tuple[list[Any], list[Any]]:
        pairs = zip(state, order, strict=True)
        results = [self.compiled(np.int32(length), *pair, *data) for pair in pairs]
        return [state for state, _ in results], [metrics for _, metrics in results]

    def fetch(self, tree: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *xs: np.stack(xs), *jax.device_get(list(tree)))


def unroll(function: Callable[..., Any], state: Any, order: Array) -> Any:
    """Call `function(state, order)` for seed after seed in one program."""
    seeds = [jax.tree.map(operator.itemgetter(s), (state, order)) for s in range(len(order))]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(function(*seed) for seed in seeds))


PER_DEVICE: dict[str, Callable[..., Any]] = {  # the seeds of one device
    "unroll": unroll,
    "vmap": lambda function, *seeds: jax.vmap(function)(*seeds),
    "map": lambda function, *seeds: lax.map(lambda seed: function(*seed), seeds),
}


class Batched:
    """A `Program` with all seeds in one program, on a mesh `seed` × `data`.

    Seeds are divided by shard_map: plain jit over a sharded seed axis gathers whole arrays,
    shard_map none. The batch is divided along the automatic axis `data`: sharding the order is
    enough, and losses, BatchNorm and gradients stay those of the whole batch. Where the number of
    seeds does not divide by the axis, the last seed is computed again and dropped.
    """

    def __init__(self, advance: Advance, per_device: str, mesh: Mesh, seeds: int) -> None:
        self.mesh, self.seeds = mesh, seeds
        spread = PER_DEVICE[per_device]

        def advance_device(length: Array, state: Any, order: Array, *data: Array) -> Any:
            return spread(lambda *seed: advance(length, *seed, *data), state, order)

        def advance_all(length: Array, state: Any, order: Array, *data: Array) -> tuple[Any, Any]:
            return jax.shard_map(
                advance_device,
                mesh=mesh,
                in_specs=(P(), P("seed"), P("seed"), *[P()] * len(data)),
                out_specs=P("seed"),
                axis_names={"seed"},
            )(length, state, order, *data)

        # The step itself makes metrics whole: fetching those of one need not wait for the next.
        shardings = (None, NamedSharding(mesh, P())) if processes.count() > 1 else None
        self.compiled = jax.jit(
            advance_all,
            donate_argnums=1,
            out_shardings=shardings,
            compiler_options=ENGINES[choose_engine()],
        )
        self.is_compiled = False

    def put(self, tree: Any, *axes: str | None) -> Any:
        sharding = NamedSharding(self.mesh, P("seed", *axes))
        rows = np.arange(self.seeds + -self.seeds % self.mesh.shape["seed"])
        if len(rows) > self.seeds:
            tree = jax.tree.map(lambda x: x[np.minimum(rows, self.seeds - 1)], tree)
        return processes.put(tree, sharding)

    def put_shared(self, array: np.ndarray) -> Array:
        return processes.put(array, NamedSharding(self.mesh, P()))

    def compile(self, state: Any, order: Array, *data: Array) -> float:
        if self.is_compiled:
            return 0.0
        self.is_compiled = True
        return precompile(self.compiled, np.int32(1), state, order, *data)

    def __call__(self, length: int, state: Any, order: Array, *data: Array) -> tuple[Any, Any]:
        return self.compiled(np.int32(length), state, order, *data)

    def fetch(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[: self.seeds], processes.fetch(tree))


def make_program(strategy: str, advance: Advance, seeds: int, batch: int) -> Program:
    """Return the program of one of `STRATEGIES`."""
    if strategy == "loop":
        return Loop(advance)
    devices = jax.devices() if strategy.startswith("sharded") else jax.devices()[:1]
    per_device = "unroll" if strategy == "sharded" else strategy.removeprefix("sharded-")
    return Batched(advance, per_device, make_mesh(seeds, batch, tuple(devices)), seeds)


def mesh_shape(seeds: int, batch: int, devices: int) -> tuple[int, int]:
    """Return the numbers of devices along `seed` and along `data`.

    A device computes as few seeds as possible. Each seed then gets as many devices as remain and
    divide its batch.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    rows = min(divisors, key=lambda n: (-(-seeds // n), n))
    return rows, max(n for n in range(1, devices // rows + 1) if batch % n == 0)


@functools.cache  # prints its message once
def make_mesh(seeds: int, batch: int, devices: tuple[Any, ...]) -> Mesh:
    """Return the mesh of `mesh_shape`; print a message if it leaves devices idle.

    Raises:
        ValueError: devices are left idle and there are several processes, one of which might have
            no work.
    """
    rows, columns = mesh_shape(seeds, batch, len(devices))
    if rows * columns < len(devices):
        message = (
            f"{rows * columns} of {len(devices)} devices are used: a batch of {batch} cannot be "
            f"divided by {len(devices) // rows}; choose another train.batch_size"
        )
        if processes.count() > 1:
            raise ValueError(message)
        console.print(message)
    mesh = jax.make_mesh(
        (rows, columns),
        ("seed", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: rows * columns],
    )
    return processes.connect(mesh)


def spread_over_devices(function: Callable[..., Any], engine: str) -> Callable[..., Any]:
    """Jit a seed's `function(params, stats, seed, indices, labels)`, its images over all devices.

    `engine` is a key of `compilation.ENGINES`; "XLA" compiles programs that the cache can hold.
    """
    mesh = make_mesh(1, jax.device_count(), tuple(jax.devices()))
    specs = (P(), P(), P(), P("data"), P("data"))
    spread = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data"))
    return jax.jit(spread, compiler_options=ENGINES[engine])
