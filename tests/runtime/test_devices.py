"""Devices that are not on this machine are refused in a line, however they are asked for."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bloodjax.runtime import devices

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocm", "nonsense"])
def test_a_platform_of_the_shell_that_is_not_here_is_named(platform):
    """From the start of a process, as JAX chooses its devices once."""
    if platform in {device.platform for device in jax.devices()}:
        pytest.skip("it is here")
    environment = os.environ | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "launch.py", "--mode=doctor"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: there is no such device")
    assert line.endswith("unset it, or set it to cpu")


def test_the_device_that_is_in_use_may_be_asked_for():
    before = jax.config.jax_platforms
    try:
        for name in ("", "cpu", "cpu:0"):
            devices.select_device(name)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "tpu", "rocm"])
def test_a_device_that_is_not_here_is_refused_and_nothing_changes(name):
    before = jax.config.jax_platforms
    with pytest.raises(ValueError, match=f"--device {name}: there is no such device"):
        devices.select_device(name)
    assert jax.config.jax_platforms == before


@pytest.mark.parametrize("name", ["gpu2", "cuda:", "cuda:x", ":0", "CPU", "mps", "cpu,cuda"])
def test_a_name_that_no_device_has_is_refused(name):
    with pytest.raises(ValueError, match="expected cpu, cuda, cuda:N, rocm or tpu"):
        devices.select_device(name)
