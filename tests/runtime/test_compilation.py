"""Where compiled programs are kept, and flags of XLA that come in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME")
PROGRAM = """
import json, os, sys
import launch  # all that a run imports, before any flag is set
from bloodjax import compilation
compilation.prepare(sys.argv[1] == "deterministic", "float32")
import jax, jax.numpy as jnp
jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()
found = {"folder": jax.config.jax_compilation_cache_dir, "flags": os.environ["XLA_FLAGS"]}
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
    program = PROGRAM.replace("compilation.prepare", "os.environ['XLA_FLAGS'] = '--xla_no_flag'; (")
    done = subprocess.run(
        [sys.executable, "-c", program, ""],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "xla_no_flag" in done.stderr
