"""Tests that need a GPU: pytest -m gpu. Each runs in processes of its own, at full optimization."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU that JAX can use"),
]
METHODS = ("vae", "gan", "ddpm")


def run(*arguments, platform="", code=0):
    """Run Python in the checkout, without the suite's XLA flags; return what it prints."""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    if platform:
        environment["JAX_PLATFORMS"] = platform
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def quick(name, workdir, *flags):
    """Return the arguments of a quick job on synthetic cells."""
    config = f"--config=configs/{name}.py:quick"
    return ["launch.py", config, f"--workdir={workdir}", "--config.data.source=synthetic", *flags]


@pytest.mark.parametrize("name", METHODS)
def test_quick_job_ends_with_a_report(tmp_path, name):
    run(*quick(name, tmp_path / name))
    device = json.loads((tmp_path / name / "config.json").read_text())["environment"]["device"]
    assert "(gpu)" in device or "(cuda)" in device
    (score,) = json.loads((tmp_path / name / "scores.json").read_text())["scores"]
    assert 0 < score["value"] < 100
    assert (tmp_path / name / "report/index.html").exists()


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_run_that_was_killed_resumes_to_the_same_bits(tmp_path, name):
    flags = ["--config.deterministic=True", "--config.train.epochs=2"]
    straight, killed = (quick(name, tmp_path / x, *flags) for x in ("straight", "killed"))
    run(*straight, "--mode=train")
    run(*straight, "--mode=sample")
    stop = ["tests/helpers/stop_itself.py", f"checkpoint:2:0:{int(signal.SIGKILL)}"]
    run(*stop, *killed[1:], "--mode=train", code=-signal.SIGKILL)
    run(*killed, "--mode=train")
    run(*killed, "--mode=sample")
    files = [np.load(tmp_path / folder / "samples.npz") for folder in ("straight", "killed")]
    for key in ("images", "step", "seeds"):
        np.testing.assert_array_equal(files[0][key], files[1][key])


PRECISION = """
import sys
import jax, jax.numpy as jnp, numpy as np
from bloodjax.runtime import compilation
dtype = compilation.configure_jax(False, sys.argv[1])
a, b = np.random.default_rng(0).normal(size=(2, 512, 512))
product = jax.jit(jnp.matmul)(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
print(np.linalg.norm(np.float64(product) - a @ b) / np.linalg.norm(a @ b))
"""


def test_products_have_the_precision_that_was_asked_for():
    errors = {p: float(run("-c", PRECISION, p)) for p in ("float32", "tf32", "bfloat16")}
    assert errors["float32"] < 2e-6
    assert errors["float32"] <= errors["tf32"] < 2e-3, "GPUs before Ampere have no tf32"
    assert 1e-3 < errors["bfloat16"] < 2e-2


FEATURES = """
import sys
import numpy as np
from bloodjax import data
from bloodjax.features.inception import make_extractor
from bloodjax.runtime import compilation
compilation.configure_jax(False, "float32")
images = data.load("synthetic", split="val").images[:40]
np.save(sys.argv[2], make_extractor(weights=sys.argv[1]).features(images))
"""


def test_inception_features_are_those_of_a_cpu(tmp_path, file):
    for platform in ("cuda", "cpu"):
        run("-c", FEATURES, file, tmp_path / f"{platform}.npy", platform=platform)
    gpu, cpu = (np.load(tmp_path / f"{platform}.npy") for platform in ("cuda", "cpu"))
    assert np.linalg.norm(gpu - cpu) < 1e-4 * np.linalg.norm(cpu)
