"""The versions and the machine that made a result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

import bloodjax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Return versions, device and git commit, which are written beside every result."""
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(bloodjax.__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=False,
    ).stdout.strip()
    return {
        "bloodjax": bloodjax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git_commit": commit or "unknown",
    }
