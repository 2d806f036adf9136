"""The proof that the twin is one: it repeats a step and some samples that `parity` wrote."""

import json
import os
from collections.abc import Mapping

import numpy as np
import torch

from bloodjax.bench.torch_training import Twin, to_uint8
from bloodjax.bench.torch_twin import make

BOUND = 1e-5  # on every array: the norm of the difference over that of what it should be
GROUPS = {
    "metrics": "losses",
    "params": "parameters",
    "ema": "parameters",
    "stats": "statistics",
    "samples": "samples",
}

Stored = Mapping[str, np.ndarray]


def check(file: str | os.PathLike[str], *, mode: str = "", **variant: object) -> dict[str, float]:
    """The largest relative error among the losses, the parameters after the step, the statistics
    after it, and the samples, of the twin in one variant.

    Args:
        file: as `bloodjax.bench.parity.write` makes it.
        mode: what `Twin.compile` takes; not compiled if empty.
        variant: fused, channels_last, device.

    Raises:
        ValueError: one of them is more than 1e-5; names the array.
    """
    twin, stored = load(file, **variant)
    if mode:
        twin.compile(mode)
    found = errors(twin, stored)
    worst = max(found, key=lambda name: np.nan_to_num(found[name], nan=np.inf))
    if not found[worst] <= BOUND:
        what = f"{worst} of the PyTorch twin is off by {found[worst]:.1e} of its norm"
        raise ValueError(f"{what}, expected at most {BOUND:.0e}: it does not compute the same")
    groups = {group: 0.0 for group in GROUPS.values()}
    for name, error in found.items():
        group = GROUPS[name.split("/")[0]]
        groups[group] = max(groups[group], error)
    return groups


def load(file: str | os.PathLike[str], **variant: object) -> tuple[Twin, Stored]:
    """The twin in the state before the step, and all that the file holds."""
    with np.load(file) as content:
        stored = dict(content)
    about = json.loads(str(stored["about"]))
    return make(weights=below(stored, "before"), **about, **variant), stored


def below(stored: Stored, path: str) -> dict[str, np.ndarray]:
    """What is stored under a path, by the rest of its name."""
    return {k.removeprefix(f"{path}/"): v for k, v in stored.items() if k.startswith(f"{path}/")}


def errors(twin: Twin, stored: Stored) -> dict[str, float]:
    """The relative error of every array that the file holds: sample, make the step, compare.

    Raises:
        ValueError: the twin rounds an image to other bytes.
    """
    expected, actual = {}, {}
    for i in range(len({name.split("/")[1] for name in stored if name.startswith("samples/")})):
        one = below(stored, f"samples/{i}")
        floats = one["floats"]
        if not np.array_equal(to_uint8(as_torch(floats, twin)).cpu(), one["images"]):
            raise ValueError("the PyTorch twin makes other uint8 images of the same floats")
        drawn = twin.sample_floats(
            len(floats), as_torch(one["noise"], twin), **json.loads(str(one["options"]))
        )
        expected[f"samples/{i}"] = floats
        actual[f"samples/{i}"] = drawn.permute(0, 2, 3, 1).cpu().numpy()

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
    """On the twin's device; images, or stacks of them, as [..., C, H, W] in its memory format."""
    tensor = torch.tensor(array, device=twin.device)
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2).contiguous(memory_format=twin.format)
    return tensor.permute(0, 1, 4, 2, 3) if tensor.ndim == 5 else tensor


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    difference = np.float64(actual) - np.float64(expected)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.float64(expected)))
