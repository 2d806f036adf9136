"""The suite compiles more than it computes, so: without optimization, and each program once."""

import os

# Programs for oneDNN cannot be cached: tests that need them ask for them.
flags = "--xla_backend_optimization_level=0 --xla_cpu_experimental_onednn_custom_call=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
# Tests start processes, which need memory of a GPU too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402 after the flags
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from helpers.sources import NOWHERE  # noqa: E402
from helpers.tiny import write_medmnist  # noqa: E402

from bloodjax import data  # noqa: E402
from bloodjax.bench.inception_weights import random_state, write_safetensors  # noqa: E402
from bloodjax.data.sources import bloodmnist  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What bloodjax keeps for its user is neither read nor written by tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, no settings and no network."""
    monkeypatch.delenv("BLOODJAX_DATA", raising=False)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(bloodmnist, "URL", NOWHERE)
    monkeypatch.setattr(bloodmnist.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """A MedMNIST-style file of a few synthetic cells, called what it is."""
    some = data.load("synthetic", split="val")
    file = tmp_path_factory.mktemp("data") / "few-synthetic.npz"
    return write_medmnist(file, some.images, some.labels)


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """The same with smaller images of nothing, which train faster."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (200, 16, 16, 3), np.uint8), rng.integers(0, 2, 200)
    return write_medmnist(tmp_path_factory.mktemp("data") / "noise.npz", images, labels)


@pytest.fixture(scope="session")
def state():
    """Random weights of InceptionV3 in torch's layout."""
    return random_state()


@pytest.fixture(scope="session")
def file(state, tmp_path_factory):
    """A file of them."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    write_safetensors(path, state)
    return path
