"""The proof that the twin computes the same: it repeats a step and samples from `parity.write`."""

import json
import os
from collections.abc import Mapping

import numpy as np
import torch

from bloodjax.bench.torch_training import Twin, to_uint8
from bloodjax.bench.torch_twin import make

BOUND = 1e-5  # of every array: the norm of the difference over the norm of the expected array
GROUPS = {
    "metrics": "losses",
    "params": "parameters",
    "ema": "parameters",
    "stats": "statistics",
    "samples": "samples",
}

Stored = Mapping[str, np.ndarray]


def check(file: str | os.PathLike[str], *, mode: str = "", **variant: object) -> dict[str, float]:
    """Return the largest relative errors of the twin in one variant.

    Args:
        file: as `bloodjax.bench.parity.write` makes it.
        mode: of `Twin.compile`; empty: not compiled.
        variant: fused, channels_last, device.

    Returns:
        An error each for the losses, the parameters after the step, the statistics after it, and
        the samples.

    Raises:
        ValueError: an error exceeds 1e-5; the message names the array.
    """
    twin, stored = load(file, **variant)
    if mode:
        twin.compile(mode)
    relative_errors = errors(twin, stored)
    worst = max(relative_errors, key=lambda name: np.nan_to_num(relative_errors[name], nan=np.inf))
    if not relative_errors[worst] <= BOUND:
        raise ValueError(
            f"{worst} of the PyTorch twin is off by {relative_errors[worst]:.1e} of its norm, "
            f"expected at most {BOUND:.0e}: it does not compute the same"
        )
    groups = {group: 0.0 for group in GROUPS.values()}
    for name, error in relative_errors.items():
        group = GROUPS[name.split("/")[0]]
        groups[group] = max(groups[group], error)
    return groups


def load(file: str | os.PathLike[str], **variant: object) -> tuple[Twin, Stored]:
    """Return the twin in the state before the step, and the content of the file."""
    with np.load(file) as content:
        stored = dict(content)
    settings = json.loads(str(stored["settings"]))
    return make(weights=below(stored, "before"), **settings, **variant), stored


def below(stored: Stored, path: str) -> dict[str, np.ndarray]:
    """Return the arrays below a path, by the rest of their names."""
    return {k.removeprefix(f"{path}/"): v for k, v in stored.items() if k.startswith(f"{path}/")}


def errors(twin: Twin, stored: Stored) -> dict[str, float]:
    """Sample, make the step, and return the relative error of every array of the file.

    Raises:
        ValueError: the twin rounds an image to other bytes.
    """
    # Samples
    expected, actual = {}, {}
    for i in range(len({name.split("/")[1] for name in stored if name.startswith("samples/")})):
        sample = below(stored, f"samples/{i}")
        floats, noise = sample["floats"], as_torch(sample["noise"], twin)
        if not np.array_equal(to_uint8(as_torch(floats, twin)).cpu(), sample["images"]):
            raise ValueError("the PyTorch twin makes other uint8 images of the same floats")
        images = twin.sample_floats(len(floats), noise, **json.loads(str(sample["options"])))
        expected[f"samples/{i}"] = floats
        actual[f"samples/{i}"] = images.permute(0, 2, 3, 1).cpu().numpy()

    # A training step
    twin.hold(stored["images"])
    noise = {name: as_torch(x, twin) for name, x in below(stored, "noise").items()}
    rows = torch.arange(len(stored["images"]), device=twin.device)
    metrics = twin.train_step(twin.batch(rows), noise)
    actual |= {f"metrics/{name}": value.cpu().numpy() for name, value in metrics.items()}
    actual |= twin.weights()
    expected |= {f"metrics/{name}": value for name, value in below(stored, "metrics").items()}
    expected |= below(stored, "after")
    compared = [name for name in expected if name.split("/")[0] in GROUPS]
    return {name: relative(actual[name], expected[name]) for name in compared}


def as_torch(array: np.ndarray, twin: Twin) -> torch.Tensor:
    """Return an array on the twin's device; images as [..., C, H, W] in its memory format."""
    tensor = torch.tensor(array, device=twin.device)
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2).contiguous(memory_format=twin.format)
    return tensor.permute(0, 1, 4, 2, 3) if tensor.ndim == 5 else tensor


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference over the norm of `expected`."""
    difference = np.float64(actual) - np.float64(expected)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.float64(expected)))
