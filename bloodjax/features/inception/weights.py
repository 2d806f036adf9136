"""The weights of FID's InceptionV3: found on disk or downloaded, checked, and converted once.

They are those of the TensorFlow graph of 2015-12-05 that Heusel et al. (2017) took, in the file
that pytorch-fid (Seitzer, 2020) made of them.
"""

import hashlib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pooch

from bloodjax.features.inception.layers import CONVS
from bloodjax.features.inception.torchfile import read as read_tensors
from bloodjax.runtime import download, npz
from bloodjax.runtime.download import Unavailable
from bloodjax.runtime.files import atomic_write
from bloodjax.runtime.progress import console

FILE = "pt_inception-2015-12-05-6726825d.pth"
MIRRORED = "weights-inception-2015-12-05-6726825d.pth"  # the same file, as torch-fidelity calls it
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its sha256
SIZE = 95_628_359  # its bytes
URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{MIRRORED}",
)
VARIABLE = "BLOODJAX_INCEPTION"
EPSILON = 1e-3  # of the batch normalisation
LAYOUT = 1  # of converted files; with another number they are made again: raise it with `fold`
FC = (1008, 2048)  # classes, features: the classifier's weights
NORM = ("weight", "bias", "running_mean", "running_var")


# ---- finding -----------------------------------------------------------------------------------


def load(path: str = "") -> tuple[str, dict[str, np.ndarray]]:
    """The first file of `places`, else the published one, downloaded: as the network takes it.

    What is converted is kept in bloodjax's cache, and used as long as it is whole.

    Args:
        path: a .pth or .safetensors file; nothing else is then looked at. It may hold other
            weights than the published ones: the digest tells.

    Returns:
        sha256 hex of the source file, and `fold` of its content in float32.

    Raises:
        FileNotFoundError: `path` or BLOODJAX_INCEPTION names a file that does not exist.
        ValueError: the file does not hold the weights; says what was found.
        Unavailable: no file is here and none can be downloaded; says the ways out.
    """
    file, sha256 = _find(path)
    kept = pooch.os_cache("bloodjax") / f"inception-{sha256[:16]}.npz"
    params = _recall(kept, sha256)
    if params is None:
        params = {name: x.astype(np.float32) for name, x in fold(read(file)).items()}
        _keep(kept, sha256, params)
    return sha256, params


def places(path: str = "") -> list[tuple[str, Path, bool]]:
    """Where weights are looked for, in this order: (what says so, the file, whether it is there).

    The first two are there only if set, and then decide, also if their file is missing. The others
    count only as the published file, byte for byte.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch", "hub", "checkpoints")
    known = {
        "weights": path,
        VARIABLE: os.environ.get(VARIABLE, ""),
        "download cache": str(pooch.os_cache("bloodjax") / FILE),
        "pytorch-fid": str(hub / FILE),
        "torch-fidelity": str(hub / MIRRORED),
    }
    files = {label: Path(file).expanduser() for label, file in known.items() if file}
    return [(label, file, file.is_file()) for label, file in files.items()]


def _find(path: str) -> tuple[Path, str]:
    """A file to read, and its sha256."""
    for label, file, there in places(path):
        if label in ("weights", VARIABLE):
            if not file.exists():
                raise FileNotFoundError(f"{file}: no such file; correct {label} or leave it out")
            if not there:
                raise ValueError(f"{file}: a folder; expected a .pth or .safetensors file")
            return file, _sha256(file)
        if there:
            if (sha256 := _sha256(file)) == PUBLISHED:
                return file, sha256
            _say(f"{file}: damaged (sha256 {sha256[:8]}, published {PUBLISHED[:8]}), not used")
    return _fetch(), PUBLISHED


def _fetch() -> Path:
    """The published file, downloaded into bloodjax's cache from the first URL that has it."""
    try:
        return download.fetch(URLS, FILE, f"sha256:{PUBLISHED}", SIZE)
    except OSError as error:
        reason = str(error)
    raise Unavailable(
        f"FID's Inception weights (sha256 {PUBLISHED[:8]}...) are not on this machine and cannot "
        f"be downloaded ({reason}). Download {URLS[0]} elsewhere, then set {VARIABLE}=FILE or put "
        f"it at {pooch.os_cache('bloodjax') / FILE}"
    )


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(what: str) -> None:
    console.print(what, markup=False, soft_wrap=True)


# ---- reading and converting --------------------------------------------------------------------


def read(file: Path) -> dict[str, np.ndarray]:
    """The weights in a .pth (any PyTorch's) or .safetensors file, checked.

    Returns:
        For each of the 94 names N in CONVS float32 N.conv.weight [out, in, kh, kw] and
        N.bn.{weight, bias, running_mean, running_var} [out]; fc.weight [1008, 2048], fc.bias
        [1008]. BatchNorm's counters (N.bn.num_batches_tracked) may be there and are dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else, or numbers that no network has.
    """
    try:
        return _check(file, read_tensors(file))
    except ValueError as error:
        raise ValueError(f"{error}; download it again from {URLS[0]}") from None


def _check(file: Path, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that the network has, in float32; ValueError naming the first that is wrong."""
    expected = {"fc.weight": FC, "fc.bias": FC[:1]}
    for name, shape in CONVS.items():
        expected[f"{name}.conv.weight"] = shape
        expected |= {f"{name}.bn.{part}": shape[:1] for part in NORM}
    counters = {f"{name}.bn.num_batches_tracked" for name in CONVS}
    shapes = {name: x.shape for name, x in found.items() if name not in counters}
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
        state = {name: found[name].astype(np.float32) for name in expected}
    for name, x in state.items():
        if found[name].dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(f"{file}: {name} ({found[name].dtype}) is not all finite floats")
        if name.endswith("running_var") and x.min() < 0:
            raise ValueError(f"{file}: {name} is down to {x.min()}, expected variances, >= 0")
    return state


def fold(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `read` gives as convolutions with a bias: y = gamma (Wx - mean) / sqrt(var + eps) + beta
    (Ioffe & Szegedy, 2015, section 3.1) is linear in x.

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


def _recall(file: Path, source: str) -> dict[str, np.ndarray] | None:
    """What was converted from the file of sha256 `source`; None if it is not there or damaged."""
    if not file.is_file():
        return None
    try:
        params = npz.read(file)
        if str(params.pop("sha256", "")) == _digest(source, params):
            return params
        reason = f"{file}: damaged (another checksum)"
    except (OSError, ValueError) as error:
        reason = f"{error}"
    _say(f"{reason}; converted again")
    return None


def _keep(file: Path, source: str, params: Mapping[str, np.ndarray]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part, part.open("wb") as out:
            np.savez(out, sha256=_digest(source, params), **params)
    except OSError as error:
        _say(f"the converted weights cannot be kept ({error}): the next start converts them again")


def _digest(source: str, params: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(f"{LAYOUT} {source}".encode())
    for name, x in sorted(params.items()):
        sha.update(f"{name} {x.dtype} {x.shape}".encode())
        sha.update(np.ascontiguousarray(x))
    return sha.hexdigest()
