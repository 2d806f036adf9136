"""Settings of JAX and XLA for this process, and the cache of compiled programs."""

import functools
import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pooch
from jax import lax

from bloodjax.runtime.malloc import keep_freed_memory
from bloodjax.runtime.progress import print_line

# precision -> precision of float32 matrix products and convolutions, dtype of activations
PRECISIONS = {
    "float32": ("highest", "float32"),
    "tf32": ("tensorfloat32", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}
# Settings that change results. JAX reads them from the shell; bloodjax always sets these.
PINNED = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}

# engine -> compiler options of programs that run long: training, sampling, Inception's features.
ENGINES: dict[str, dict[str, Any]] = {
    "XLA": {},
    # jaxlib sends convolutions and products to YNNPACK by default. oneDNN is up to 1.4 times as
    # fast; see docs/benchmark.md.
    "oneDNN": {
        "xla_cpu_experimental_onednn_custom_call": True,
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    },
    # Autotuning Triton products takes most of the time to compile for a GPU.
    "XLA without Triton": {"xla_gpu_enable_triton_gemm": False},
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
    for name, value in PINNED.items():
        jax.config.update(name, value)
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
        print_line(f"compiled programs are not cached: {error}")
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


@functools.cache
def choose_engine() -> str:
    """Return the key of `ENGINES` for programs that run long; XLA_FLAGS of the user decide first.

    oneDNN is chosen where a small convolution reaches it: jaxlib 0.10 and other processors accept
    its options and ignore them.
    """
    backend, flags = jax.default_backend(), os.environ.get("XLA_FLAGS", "")
    if backend == "gpu":
        return "XLA" if "triton_gemm" in flags else "XLA without Triton"
    if backend != "cpu" or "onednn" in flags or "ynn" in flags:
        return "XLA"
    image, kernel = jnp.ones((1, 8, 8, 8)), jnp.ones((3, 3, 8, 8))
    layout = ("NHWC", "HWIO", "NHWC")

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout)

    try:
        with uncached("oneDNN"):
            probe = jax.jit(convolve, compiler_options=ENGINES["oneDNN"])
            text = probe.lower(image, kernel).compile().as_text() or ""
    except jax.errors.JaxRuntimeError:  # a jaxlib without these options
        return "XLA"
    return "oneDNN" if "__onednn$" in text else "XLA"


@contextmanager
def uncached(engine: str) -> Iterator[None]:
    """Keep programs of the block out of the cache if their engine is oneDNN.

    The cache cannot hold calls of oneDNN: JAX would warn and go on.
    """
    if engine != "oneDNN":
        yield
        return
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def precompile(jitted: Any, *arguments: Any) -> float:
    """Compile a long program for these arguments before its first call; return the seconds.

    Raises:
        ValueError: the program would compute wrong values, see `refuse_wrong_fusions`.
    """
    begin = time.perf_counter()
    with uncached(choose_engine()):
        program = jitted.lower(*arguments).compile()
    if jax.default_backend() == "cpu":
        refuse_wrong_fusions(program.as_text() or "")
    return time.perf_counter() - begin


def refuse_wrong_fusions(program: str) -> None:
    """Refuse a compiled program in which oneDNN applies an activation that jaxlib gets wrong.

    jaxlib 0.12 makes SiLU, GELU and ELU a part of the product or convolution before them. All other
    readers of that product, among them the gradient, then get the activation in its place. ReLU,
    tanh and sigmoid become a part only of a product without other readers.

    Args:
        program: the text of the compiled program.

    Raises:
        ValueError: it contains such an activation.
    """
    fusion = re.search(r'"ops":\[[^]]*"(SWISH|GELU_TANH|GELU_ERF|ELU)"', program)
    if fusion:
        raise ValueError(
            f"oneDNN applies {fusion[1]} within a product or convolution, whose gradient is then "
            "wrong: give the activation jax.lax.optimization_barrier(x) in the place of x, or set "
            "XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=false"
        )
