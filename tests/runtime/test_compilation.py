"""Where compiled programs are kept, and flags of XLA that come in time."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import pytest

from bloodjax.runtime import compilation

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME")
PROGRAM = """
import json, os, sys
import launch  # all that a run imports, before any flag is set
from bloodjax.runtime import compilation
compilation.configure_jax(sys.argv[1] == "deterministic", "float32")
import jax, jax.numpy as jnp, numpy as np
jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()
found = {
    "folder": jax.config.jax_compilation_cache_dir,
    "flags": os.environ["XLA_FLAGS"],
    "dtype": str(jnp.ones(1).dtype),
    "key": str(jax.random.key(0).aval.str_short()),
}
print(json.dumps(found))
"""


@pytest.fixture
def start(tmp_path):
    def start(deterministic="", **environment):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, deterministic],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
            | environment,
            capture_output=True,
            text=True,
        )
        return done, json.loads(done.stdout) if done.returncode == 0 else None

    return start


def entries(folder):
    return {p.name: p.read_bytes() for p in Path(folder).glob("*-cache")}


@linux
def test_programs_are_kept_in_the_users_cache_and_found_again(start, tmp_path):
    _, first = start()
    assert Path(first["folder"]) == tmp_path / "cache" / "bloodjax" / "xla"
    kept = entries(first["folder"])
    assert any(name.startswith("jit__lambda") for name in kept), "small programs are kept, too"
    start()
    assert entries(first["folder"]) == kept


@linux
def test_what_a_kill_or_a_full_disk_left_is_replaced(start, tmp_path):
    _, first = start()
    kept = entries(first["folder"])
    for name, content in kept.items():
        Path(first["folder"], name).write_bytes(content[: len(content) // 2])
    done, _ = start()
    assert "Error reading" not in done.stderr
    sizes = {name: len(content) for name, content in entries(first["folder"]).items()}
    assert sizes.keys() == kept.keys()
    assert all(size > 0.9 * len(kept[name]) for name, size in sizes.items())


def test_a_folder_that_the_user_chose_is_taken(start, tmp_path):
    _, found = start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert found["folder"] == str(tmp_path / "own")
    assert not (tmp_path / "cache" / "bloodjax").exists()


def test_without_a_place_to_write_it_works_and_says_so(start, tmp_path):
    (tmp_path / "cache").write_text("")
    done, found = start()
    assert found["folder"] is None
    assert "compiled programs are not cached" in done.stderr and "cache/bloodjax" in done.stderr


def test_flags_are_read_after_everything_is_imported(start):
    _, found = start("deterministic", XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    flags = ["--xla_cpu_enable_fast_math=false", "--xla_gpu_deterministic_ops=true"]
    assert found["flags"].split() == flags
    # XLA ends the process over a flag that it does not know: it would over one set at this point.
    program = PROGRAM.replace(
        "compilation.configure_jax", "os.environ['XLA_FLAGS'] = '--xla_no_flag'; ("
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ""],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "xla_no_flag" in done.stderr


CONVOLUTIONS = """
import warnings
import jax, jax.numpy as jnp, numpy as np
from bloodjax.runtime import compilation
from bloodjax.training.strategies import Loop
warnings.simplefilter("error")  # JAX warns where it cannot write a program to its cache
compilation.configure_jax(False, "float32")

def advance(length, state, order, kernel):
    image = jax.lax.conv_general_dilated(
        state, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return image, {"loss": image.sum()[None]}

program = Loop(advance)
state, kernel = program.put(jnp.ones((1, 2, 8, 8, 8))), jnp.ones((3, 3, 8, 8))
program.compile(state, program.put(jnp.zeros((1, 1))), kernel)
text = program.compiled.lower(np.int32(1), state[0], jnp.zeros(1), kernel).compile().as_text()
program(1, state, program.put(jnp.zeros((1, 1))), kernel)
print(compilation.choose_engine(), "__onednn$" in text)
"""


@pytest.mark.parametrize("flags", ["", "--xla_cpu_experimental_onednn_custom_call=false"])
def test_training_reaches_onednn_where_it_can_and_the_user_does_not_forbid_it(tmp_path, flags):
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", CONVOLUTIONS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    engine, reached = done.stdout.split()
    assert (engine == "oneDNN") == (reached == "True")
    x86 = platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"
    if flags or jaxlib.__version__.startswith("0.10"):
        assert engine == "XLA"
    elif x86:
        assert engine == "oneDNN"


def test_a_gpu_compiles_without_triton_unless_the_user_says_otherwise(monkeypatch):
    choose = compilation.choose_engine.__wrapped__
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    assert choose() == "XLA without Triton"
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    assert choose() == "XLA"


def test_settings_of_the_shell_do_not_change_results(start):
    """The shell asks for float64, another generator and no compilation."""
    _, found = start("plain", JAX_ENABLE_X64="1", JAX_DEFAULT_PRNG_IMPL="rbg", JAX_DISABLE_JIT="1")
    assert found["dtype"] == "float32" and found["key"] == "key<fry>[]"
