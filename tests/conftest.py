"""The suite compiles more than it computes, so: without optimization, and each program once."""

import os

flags = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import jax  # noqa: E402 after the flags
import pytest  # noqa: E402
from small import inception_state, write_safetensors  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What bloodjax keeps for its user is neither read nor written by tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def state():
    """Random weights of InceptionV3 in torch's layout."""
    return inception_state()


@pytest.fixture(scope="session")
def file(state, tmp_path_factory):
    """A file of them."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    write_safetensors(path, state)
    return path
