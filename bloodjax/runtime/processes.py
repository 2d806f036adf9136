"""Several processes as one run: each holds the state and computes a share, process 0 writes.

All processes run the same program and call the functions here in the same order. A decision comes
from process 0 (`broadcast_from_main`) or from a value that all share (`require_equal`, `largest`).
A value that only one process sees, such as the age of a file or a signal, must never choose what is
computed. With one process the functions cost nothing.
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

from bloodjax.runtime.progress import console, print_line

HEARTBEAT = 30  # seconds of silence after which a process counts as dead; JAX's default is 100
SHUTDOWN = 15  # seconds that an ending process waits for the rest; JAX's default is 300


def initialize(coordinator: str | None, processes: int | None, number: int | None) -> None:
    """Join the other processes of this run, if there are any; call this before JAX computes.

    Without arguments JAX finds the processes if `cluster` knows the launcher; otherwise this
    process is alone.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: the number of processes; 1 without the other two means alone, whatever the
            launcher.
        number: the number of this process, from 0.

    Raises:
        ValueError: some of the three are missing, or the processes do not find each other.
    """
    if coordinator is None and number is None:
        if processes == 1 or (processes is None and not cluster(os.environ)):
            return
    settings: dict[str, Any] = {}
    if (coordinator, processes, number) != (None, None, None):
        if coordinator is None or processes is None or number not in range(processes):
            raise ValueError(
                f"--coordinator={coordinator} --num_processes={processes} --process_id={number}: "
                "expected HOST:PORT of process 0, the number of processes, and the number of this "
                "one, from 0"
            )
        settings = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": number,
            "cluster_detection_method": "deactivate",
        }
    # bloodjax handles signals: JAX's preemption service would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **settings, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
        )
    except (RuntimeError, ValueError) as error:
        name = cluster(os.environ) or coordinator
        raise ValueError(
            f"the processes of {name} do not find each other ({error}): give --coordinator, "
            "--num_processes and --process_id, or --num_processes=1 if this process is alone"
        ) from None
    console.quiet = not is_main()
    barrier()  # connect while all processes wait here: gloo gives up after 30 s
    console.print(f"{count()} processes, {jax.device_count()} devices")


def cluster(environment: Mapping[str, str]) -> str:
    """Return the launcher of several processes that JAX finds by itself, or ""."""
    tasks = {
        "SLURM": "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS"),
        "Open MPI": environment.get("OMPI_COMM_WORLD_SIZE"),
        "Cloud TPU": 1 + environment.get("TPU_WORKER_HOSTNAMES", "").count(","),
        "Kubernetes": 2 * {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"}.issubset(environment),
    }
    return next((name for name, n in tasks.items() if int(n or 0) > 1), "")


def count() -> int:
    """Return the number of processes of this run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is process 0, which writes files and prints."""
    return count() == 1 or jax.process_index() == 0


def kill_process(code: int, message: str) -> None:
    """Print a message and end this process, if it is one of several; alone, do nothing.

    For an error that only this process has met: JAX would wait for the rest, which know nothing.
    """
    if count() == 1:
        return
    console.quiet = False
    print_line(f"process {jax.process_index()}: {message}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- agreement ----


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes pass; takes about 2 ms."""
    if count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def barrier() -> None:
    """Wait for all processes."""
    largest(0)


def require_equal(name: str, value: Any) -> None:
    """Refuse to go on if `value`, anything that JSON can hold, differs between processes.

    Raises:
        ValueError: the values differ; the message calls them `name`. All processes raise it.
    """
    if count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    different = np.flatnonzero((digests != digests[0]).any(axis=1)).tolist()
    if different:
        raise ValueError(
            f"processes {different} have another {name} than process 0: expected the same"
        )


def main_first(make: Callable[[], Any]) -> Any:
    """Return `make()`, called by process 0 before all others, which find its downloads on disk.

    An error of process 0 does not keep the other processes waiting.
    """
    if not is_main():
        barrier()
    try:
        return make()
    finally:
        if is_main():
            barrier()


def broadcast_from_main(make: Callable[[], Any], like: Any) -> Any:
    """Return on every process, bit for bit, the result of `make()` on process 0.

    Process 0 alone calls `make`; `like` has the structure, shapes and dtypes of the result.
    """
    if count() == 1:
        return make()

    # Processes exchange one array of bytes: dtypes survive, also those that JAX would narrow.
    leaves, structure = jax.tree.flatten(like)
    sizes = [np.dtype(x.dtype).itemsize * np.prod(x.shape, dtype=int) for x in leaves]
    raw = np.zeros(sum(sizes), np.uint8)
    if is_main():
        results = zip(structure.flatten_up_to(make()), leaves, strict=True)
        arrays = [np.asarray(x, leaf.dtype).reshape(leaf.shape) for x, leaf in results]
        raw = np.frombuffer(b"".join(x.tobytes() for x in arrays), np.uint8)
    raw = np.asarray(multihost_utils.broadcast_one_to_all(raw)).tobytes()

    arrays, offset = [], 0
    for leaf, size in zip(leaves, sizes, strict=True):
        flat = np.frombuffer(raw, leaf.dtype, np.prod(leaf.shape, dtype=int), offset)
        arrays.append(flat.reshape(leaf.shape))
        offset += size
    return structure.unflatten(arrays)


# ---- arrays ----


def map_rows(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return `function(rows)`, of which each process computes an equal part.

    The first rows fill up the last part.
    """
    if count() == 1:
        return function(rows)
    size = -(-len(rows) // count())
    begin = jax.process_index() * size
    part = rows[np.arange(begin, begin + size) % len(rows)]
    return multihost_utils.process_allgather(function(part), tiled=True)[: len(rows)]


def put(tree: Any, sharding: Sharding) -> Any:
    """Move arrays that every process holds to the devices of all processes."""

    def put_array(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_array, tree) if count() > 1 else jax.device_put(tree, sharding)


def fetch(tree: Any) -> Any:
    """Return arrays on the devices of all processes as whole NumPy arrays on every process."""
    if not all(x.is_fully_replicated or x.is_fully_addressable for x in jax.tree.leaves(tree)):
        tree = _replicate(jax.tree.leaves(tree)[0].sharding.mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def connect(mesh: Mesh) -> Mesh:
    """Return `mesh` after all connections that its programs need are made.

    Otherwise the first run of a program makes them, and gloo waits only 30 s for the other side;
    one host may compile longer than that after another.
    """
    if count() > 1:
        barrier()
        for axes in (*mesh.axis_names, mesh.axis_names):
            total = functools.partial(lax.psum, 1.0, axes)
            total = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=(), out_specs=P()))
            jax.block_until_ready(total())
    return mesh
