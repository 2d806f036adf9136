"""How XLA compiles in this process, and where compiled programs are kept for the next one."""

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

# precision -> how float32 matrix products and convolutions are computed, dtype of activations
PRECISIONS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}


def configure_jax(deterministic: bool, precision: str) -> str:
    """Settings of JAX and XLA for this process; to be called before anything is computed.

    Programs are kept in the user's cache folder unless JAX_COMPILATION_CACHE_DIR says where.

    Args:
        deterministic: use only algorithms that give the same bits each time; a CPU has no others.
        precision: one of `PRECISIONS`; features and scores are in full float32 with any of them.

    Returns:
        The dtype of activations, for `methods.make`.

    Raises:
        ValueError: no such precision.
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

    What one is found by has the program, the versions, XLA_FLAGS and the device in it; of a CPU
    every feature, so that a folder shared by different machines is safe.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        console.print(f"compiled programs are not kept: {error}", soft_wrap=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Also what compiles in less than a second: of such a start has dozens.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    delete_broken_entries(folder)


def delete_broken_entries(folder: Path) -> None:
    """Have programs in `folder` that cannot be read written anew.

    A kill or a full disk leaves them cut short. JAX then warns and compiles, at every start: it
    writes only what is not there.
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
    """Compile `jitted` for these arguments; the seconds it took. A call with them is then ready."""
    begin = time.perf_counter()
    jitted.lower(*arguments).compile()
    return time.perf_counter() - begin
