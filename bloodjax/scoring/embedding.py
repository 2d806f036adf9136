"""Features of images, and those of a data set kept from one run to the next."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch

from bloodjax import features
from bloodjax.data import Dataset
from bloodjax.features import Extractor
from bloodjax.runtime import npz, processes
from bloodjax.runtime.files import atomic_write
from bloodjax.runtime.progress import console

CHUNK = 512  # images per call of an extractor: how often the bar moves
BLOCK = 2048  # images per file of the cache: what a kill can cost


def embed(extractor: Extractor, images: np.ndarray, advance: Callable[..., None]) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, d], chunk by chunk; `advance(n, note)` moves a bar.

    Several processes compute a part of each chunk; all of them get all features.
    """
    size = CHUNK * processes.count()
    out = np.empty((len(images), extractor.dims), np.float32)
    for start in range(0, len(images), size):
        part = images[start : start + size]
        out[start : start + size] = processes.map_rows(extractor.features, part)
        advance(len(part), extractor.name)
    return out


def shuffled_rows(dataset: Dataset, seed: int) -> np.ndarray:
    """Int [N], the order in which a data set's images are drawn."""
    return np.random.default_rng(seed).permutation(len(dataset.images))


def embed_dataset(
    extractor: Extractor, dataset: Dataset, seed: int, n: int, advance: Callable[..., None]
) -> np.ndarray:
    """The features of the first `n` images of `shuffled(dataset, seed)`, float32 [n, d].

    They are kept in the user's cache, in files of `BLOCK` images named by what made them, and read
    from there as far as they are in it: what was computed for fewer images serves for more.
    """
    rows = shuffled_rows(dataset, seed)[:n]
    folder = cache_folder(extractor, dataset, seed)
    out = np.empty((n, extractor.dims), np.float32)
    for start in range(0, n, BLOCK):
        part, file = rows[start : start + BLOCK], folder / f"{start}.npz"
        block = read_block(file, len(part), extractor.dims)
        if processes.largest(block is None):  # a process without it cannot compute it alone
            block = embed(extractor, dataset.images[part], advance)
            write_block(file, block)
        else:
            advance(len(part), extractor.name)
        out[start : start + len(part)] = block[: len(part)]
    return out


def cache_folder(extractor: Extractor, dataset: Dataset, seed: int) -> Path:
    """A folder for just this data set, extractor, protocol, order and code."""
    what = (dataset.digest, extractor.name, extractor.sha256, extractor.protocol, seed)
    key = json.dumps([*what, code_digest(Path(features.__file__).parent)])
    return pooch.os_cache("bloodjax") / "features" / hashlib.sha256(key.encode()).hexdigest()[:32]


@functools.cache
def code_digest(package: Path) -> str:
    """sha256 hex of the sources of a package: what it computes may change with any of them."""
    sha = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sha.update(f"{file.relative_to(package)} {file.stat().st_size} ".encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()


def read_block(file: Path, n: int, dims: int) -> np.ndarray | None:
    """float32 [n or more, dims]; None if the file is missing, damaged or holds fewer."""
    try:
        block = npz.read(file, "features")["features"]
    except (OSError, ValueError):
        return None
    right = block.ndim == 2 and block.dtype == np.float32 and block.shape[1] == dims
    return block if right and len(block) >= n else None


def write_block(file: Path, block: np.ndarray) -> None:
    """Keep a block; where that is impossible, say so and go on without."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as part, part.open("wb") as out:
            np.savez(out, features=block)
    except OSError as error:
        said = f"features are not kept for the next run: {error}"
        console.print(said, markup=False, soft_wrap=True)
