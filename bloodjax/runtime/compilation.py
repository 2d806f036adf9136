"""Settings of JAX and XLA for this process, and the cache of compiled programs."""

import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import pooch

from bloodjax.runtime.malloc import keep_freed_memory
from bloodjax.runtime.progress import console

# precision -> precision of float32 matrix products and convolutions, dtype of activations
PRECISIONS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}


def configure_jax(deterministic: bool, precision: str) -> str:
    """Set up JAX and XLA in this process; call this before JAX computes.

    The user's cache folder keeps compiled programs, unless JAX_COMPILATION_CACHE_DIR names another.

    Args:
        deterministic: use only algorithms that give the same bits each time; a CPU has no others.
        precision: one of `PRECISIONS`. Features and scores are computed in float32 with each.

    Returns:
        The dtype of activations, for `methods.make`.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    products, dtype = PRECISIONS[precision]
    jax.config.update("jax_default_matmul_precision", products)
    keep_freed_memory()
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if jax.config.jax_compilation_cache_dir is None:
        enable_cache(Path(pooch.os_cache("bloodjax"), "xla"))
    return dtype


def enable_cache(folder: Path) -> None:
    """Keep compiled programs in `folder`.

    JAX finds a program by its text, the versions, XLA_FLAGS and the device with all features of a
    CPU, so different machines may share a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        console.print(f"compiled programs are not cached: {error}", soft_wrap=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Cache short compilations as well: a start has dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    delete_broken_entries(folder)


def delete_broken_entries(folder: Path) -> None:
    """Delete an entry of the cache that JAX cannot read, so that JAX writes it again.

    A kill or a full disk leaves an entry cut short. JAX then warns and compiles at every start,
    since it writes only missing entries.
    """
    show = warnings.showwarning

    def showwarning(message: Warning | str, *rest: Any, **options: Any) -> None:
        broken = re.match(
            "Error reading persistent compilation cache entry for '(.+?)'", str(message)
        )
        if broken is None:
            show(message, *rest, **options)
            return
        for entry in folder.glob(f"{broken[1]}-*"):
            entry.unlink(missing_ok=True)

    warnings.showwarning = showwarning


def precompile(jitted: Any, *arguments: Any) -> float:
    """Compile `jitted` for these arguments, which makes its first call fast; return the seconds."""
    begin = time.perf_counter()
    jitted.lower(*arguments).compile()
    return time.perf_counter() - begin
