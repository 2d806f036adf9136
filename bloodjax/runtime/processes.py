"""Several processes as one run: all have the state and compute a share, 0 writes and reports.

All of them go through the same program and call the functions here in the same order. What they
decide by, process 0 says (`from_main`) or all have in common (`same`, `largest`); a value that only
one of them sees, a file's age or a signal, must never choose what is computed. With one process
every function here does what its name says and costs nothing.
"""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from bloodjax.runtime.progress import console

HEARTBEAT = 30  # seconds of silence after which a process counts as dead; JAX's own is 100
SHUTDOWN = 15  # seconds that a process waits at its end for the others; JAX's own is 300


def initialize(coordinator: str | None, processes: int | None, number: int | None) -> None:
    """Join the other processes of this run, if there are any; before JAX computes anything.

    Args:
        coordinator: HOST:PORT, where process 0 listens.
        processes: how many there are; 1 alone says that there are no others, whatever started it.
        number: which one this is, from 0. With none of the three, JAX finds them where `cluster`
            knows what started this process; else it is alone.

    Raises:
        ValueError: some of the three are missing, or the processes do not find each other.
    """
    given = coordinator, processes, number
    if given == (None, 1, None) or (given == (None, None, None) and not cluster(os.environ)):
        return
    how: dict[str, Any] = {}
    if given != (None, None, None):
        if None in given or not 0 <= number < processes:
            raise ValueError(
                f"--coordinator={coordinator} --num_processes={processes} --process_id={number}: "
                "expected HOST:PORT of process 0, how many there are, and which one this is, from 0"
            )
        how = dict(zip(("coordinator_address", "num_processes", "process_id"), given, strict=True))
        how["cluster_detection_method"] = "deactivate"
    # Signals are ours: JAX's preemption service would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **how, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
        )
    except (RuntimeError, ValueError) as error:
        name = cluster(os.environ) or coordinator
        raise ValueError(
            f"the processes of {name} do not find each other ({error}): give --coordinator, "
            "--num_processes and --process_id, or --num_processes=1 if this one is alone"
        ) from None
    console.quiet = not is_main()
    barrier()  # the first connections are made while all are here: gloo waits 30 s for them
    console.print(f"{count()} processes, {jax.device_count()} devices")


def cluster(environment: Mapping[str, str]) -> str:
    """What started this process as one of several that JAX can find by itself; "" for nothing."""
    tasks = {
        "SLURM": "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS"),
        "Open MPI": environment.get("OMPI_COMM_WORLD_SIZE"),
        "Cloud TPU": 1 + environment.get("TPU_WORKER_HOSTNAMES", "").count(","),
        "Kubernetes": 2 * {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}.issubset(environment),
    }
    return next((name for name, n in tasks.items() if int(n or 0) > 1), "")


def count() -> int:
    """Processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, which writes files and reports."""
    return count() == 1 or jax.process_index() == 0


def kill_process(code: int, said: str) -> None:
    """Where there are other processes, say why, whichever this is, and end it; alone, do nothing.

    For what only this process has met: JAX would wait for the others, which do not know of it.
    """
    if count() == 1:
        return
    console.quiet = False
    console.print(f"process {jax.process_index()}: {said}", markup=False, soft_wrap=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- what all know ----


def largest(number: int) -> int:
    """The largest of the numbers that the processes call this with; about 2 ms."""
    if count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def barrier() -> None:
    """Wait for the other processes."""
    largest(0)


def require_equal(what: str, value: Any) -> None:
    """Refuse to go on with processes that differ in `value`, anything that JSON can hold.

    Raises:
        ValueError: they do; names `what`. All of them raise it.
    """
    if count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if (every != every[0]).any():
        others = [i for i, one in enumerate(every) if (one != every[0]).any()]
        raise ValueError(
            f"processes {others} have another {what} than process 0: expected the same"
        )


def main_first(make: Callable[[], Any]) -> Any:
    """`make()`, by process 0 before all others: what it downloads they find, if they share a disk.

    An error of process 0 does not keep the others waiting.
    """
    if not is_main():
        barrier()
    try:
        return make()
    finally:
        if is_main():
            barrier()


def broadcast_from_main(make: Callable[[], Any], like: Any) -> Any:
    """What `make()` gives on process 0, on every process, bit for bit; the others do not call it.

    Args:
        like: a pytree with the structure, shapes and dtypes of it; only looked at.
    """
    if count() == 1:
        return make()
    leaves, structure = jax.tree.flatten(like)
    raw = np.zeros(
        sum(np.dtype(x.dtype).itemsize * np.prod(x.shape, dtype=int) for x in leaves), np.uint8
    )
    if is_main():
        made = zip(leaves, structure.flatten_up_to(make()), strict=True)
        arrays = [np.asarray(x, own.dtype).reshape(own.shape) for own, x in made]
        raw = np.frombuffer(b"".join(x.tobytes() for x in arrays), np.uint8)
    raw, at, arrays = multihost_utils.broadcast_one_to_all(raw).tobytes(), 0, []
    for own in leaves:
        array = np.frombuffer(raw, own.dtype, np.prod(own.shape, dtype=int), at)
        arrays.append(array.reshape(own.shape))
        at += array.nbytes
    return structure.unflatten(arrays)


# ---- arrays ----


def map_rows(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """`function(rows)`, each process computing as many rows of it, filled up with the first."""
    if count() == 1:
        return function(rows)
    each = -(-len(rows) // count())
    own = rows[np.arange(jax.process_index() * each, (jax.process_index() + 1) * each) % len(rows)]
    return multihost_utils.process_allgather(function(own), tiled=True)[: len(rows)]


def put(tree: Any, sharding: Sharding) -> Any:
    """Arrays that every process has, on the devices of all."""

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree) if count() > 1 else jax.device_put(tree, sharding)


def fetch(tree: Any) -> Any:
    """Arrays on the devices of all, whole on every process, as NumPy arrays."""
    if not all(x.is_fully_replicated or x.is_fully_addressable for x in jax.tree.leaves(tree)):
        tree = _whole(jax.tree.leaves(tree)[0].sharding.mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _whole(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def connect(mesh: Mesh) -> Mesh:
    """`mesh`, with all connections made that its programs need.

    They would be made when a program first runs, and gloo waits 30 s for the other side: less than
    compiling may take longer on one host than on another.
    """
    if count() > 1:
        barrier()
        for axes in (*mesh.axis_names, mesh.axis_names):
            total = functools.partial(lax.psum, 1.0, axes)
            total = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=(), out_specs=P()))
            jax.block_until_ready(total())
    return mesh
