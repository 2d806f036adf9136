"""How one seed's function is spread over all seeds and devices; the function knows of neither.

A strategy is the name of a way to run training for S seeds:

    loop            each seed dispatched by itself, on one device
    vmap, map       all seeds in one program on one device, by jax.vmap or jax.lax.map
    sharded         all seeds in one program over all devices: the seeds over a mesh axis `seed`,
                    which needs no communication, each seed's batch over an axis `data`; a device's
                    own seeds one after the other
    sharded-vmap, sharded-map    the same, a device's own seeds by vmap or map
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bloodjax.runtime import compilation, processes
from bloodjax.runtime.progress import console

STRATEGIES = ("loop", "vmap", "map", "sharded", "sharded-vmap", "sharded-map")

# (length, state, order, images, labels) of one seed -> (state, metrics): `steps.advance`, and what
# it becomes for all seeds, every array of state, order and metrics with a leading seed axis.
Advance = Callable[..., tuple[Any, Any]]


def unrolled(one: Callable[..., Any], state: Any, order: Array) -> Any:
    """`one(state, order)` for seed after seed in one program."""
    own = [jax.tree.map(lambda x, i=i: x[i], (state, order)) for i in range(len(order))]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(one(*each) for each in own))


WAYS = {
    "loop": unrolled,
    "vmap": lambda one, state, order: jax.vmap(one)(state, order),
    "map": lambda one, state, order: lax.map(lambda own: one(*own), (state, order)),
}


def over_seeds(
    way: str, advance: Advance, length: int, state: Any, order: Array, *data: Any
) -> Any:
    """`advance` of every seed along the leading axis of `state` and `order`."""
    return WAYS[way](lambda *own: advance(length, *own, *data), state, order)


class Loop:
    """Each seed dispatched by itself: one compilation, and bitwise the lone run of that seed."""

    def __init__(self, advance: Advance) -> None:
        every = functools.partial(over_seeds, "loop", advance)
        self.compiled = jax.jit(every, static_argnums=0, donate_argnums=1)

    def put(self, tree: Any, *_: str | None) -> list[Any]:
        """Arrays with a leading seed axis -> one tree per seed, on the device."""
        seeds = range(len(jax.tree.leaves(tree)[0]))
        return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i : i + 1]), tree) for i in seeds]

    def share(self, array: np.ndarray) -> Array:
        """What all seeds read, on the device once."""
        return jnp.asarray(array)

    def compile(self, length: int, states: list[Any], orders: list[Array], *data: Array) -> float:
        """Be ready for this call; the seconds it took."""
        return compilation.precompile(self.compiled, length, states[0], orders[0], *data)

    def __call__(
        self, length: int, states: list[Any], orders: list[Array], *data: Array
    ) -> tuple[list[Any], list[Any]]:
        """`length` steps of every seed; `states` are used up."""
        pairs = zip(states, orders, strict=True)
        results = [self.compiled(length, state, order, *data) for state, order in pairs]
        return [state for state, _ in results], [metrics for _, metrics in results]

    def fetch(self, trees: Sequence[Any]) -> Any:
        """What `put` or a call gave, as NumPy arrays with a leading seed axis."""
        return jax.tree.map(lambda *xs: np.concatenate(xs), *jax.device_get(list(trees)))


class Batched:
    """All seeds in one program on a mesh `seed` × `data`; same methods as `Loop`.

    Seeds by shard_map: plain jit over a seed axis that is sharded gathers whole arrays, this
    nothing. The batch along the automatic axis `data`: it is enough that the order is sharded along
    it, and losses, BatchNorm and gradients stay those of the whole batch. Where seeds do not divide
    by the axis, the last one is computed again and dropped.
    """

    def __init__(self, advance: Advance, way: str, mesh: Mesh, seeds: int) -> None:
        self.mesh, self.seeds = mesh, seeds
        own, shared = P("seed"), P()

        def every(length: int, *arguments: Any) -> tuple[Any, Any]:
            return jax.shard_map(
                functools.partial(over_seeds, way, advance, length),
                mesh=mesh,
                in_specs=(own, own, *[shared] * (len(arguments) - 2)),
                out_specs=own,
                axis_names={"seed"},
            )(*arguments)

        # The step itself makes metrics whole: fetching those of one need not wait for the next.
        where = (None, NamedSharding(mesh, P())) if processes.count() > 1 else None
        self.compiled = jax.jit(every, static_argnums=0, donate_argnums=1, out_shardings=where)

    def put(self, tree: Any, *axes: str | None) -> Any:
        """Arrays with a leading seed axis, on the devices; `axes` shard those behind it."""
        sharding = NamedSharding(self.mesh, P("seed", *axes))
        rows = np.arange(self.seeds + -self.seeds % self.mesh.shape["seed"])
        if len(rows) > self.seeds:
            tree = jax.tree.map(lambda x: x[np.minimum(rows, self.seeds - 1)], tree)
        return processes.put(tree, sharding)

    def share(self, array: np.ndarray) -> Array:
        return processes.put(array, NamedSharding(self.mesh, P()))

    def compile(self, length: int, state: Any, order: Array, *data: Array) -> float:
        return compilation.precompile(self.compiled, length, state, order, *data)

    def __call__(self, length: int, state: Any, order: Array, *data: Array) -> tuple[Any, Any]:
        return self.compiled(length, state, order, *data)

    def fetch(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[: self.seeds], processes.fetch(tree))


def mesh_shape(seeds: int, batch: int, devices: int) -> tuple[int, int]:
    """Devices along `seed` and along `data`: no device computes more seeds than it must.

    First as few seeds one after the other as can be, then as many devices to each seed as are left
    and divide its batch.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    rows = min(divisors, key=lambda n: (-(-seeds // n), n))
    return rows, max(n for n in range(1, devices // rows + 1) if batch % n == 0)


@functools.cache  # what it says is said once
def make_mesh(seeds: int, batch: int, devices: tuple[jax.Device, ...]) -> Mesh:
    """The mesh of `layout`; says so if devices are left over.

    Raises:
        ValueError: so does it with several processes, one of which might have nothing to do.
    """
    rows, columns = mesh_shape(seeds, batch, len(devices))
    if rows * columns < len(devices):
        said = (
            f"{rows * columns} of {len(devices)} devices are used: a batch of {batch} cannot be "
            f"divided by {len(devices) // rows}; another train.batch_size can"
        )
        if processes.count() > 1:
            raise ValueError(said.replace("are used", "could be used"))
        console.print(said)
    mesh = jax.make_mesh(
        (rows, columns),
        ("seed", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: rows * columns],
    )
    return processes.connect(mesh)


def make_program(strategy: str, advance: Advance, seeds: int, batch: int) -> Loop | Batched:
    """The program of one of `STRATEGIES`."""
    if strategy == "loop":
        return Loop(advance)
    devices = jax.devices() if strategy.startswith("sharded") else jax.devices()[:1]
    way = "loop" if strategy == "sharded" else strategy.removeprefix("sharded-")
    return Batched(advance, way, make_mesh(seeds, batch, tuple(devices)), seeds)


def spread_over_devices(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function(params, stats, seed, indices)` of one seed, the indices spread over all devices."""
    mesh = make_mesh(1, jax.device_count(), tuple(jax.devices()))
    specs = (P(), P(), P(), P("data"))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data")))
