"""Features of images, and a cache for the features of a data set."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch

import bloodjax
from bloodjax.data import Dataset
from bloodjax.features import Extractor
from bloodjax.runtime import npz, processes
from bloodjax.runtime.progress import print_line

CHUNK = 512  # images per call of an extractor, the step of the progress bar
BLOCK = 2048  # images per file of the cache, the most that a killed process loses
ORDER_SEED = 0  # every run draws the same real images, so that scores compare
PACKAGE = Path(bloodjax.__file__).parent


def embed(extractor: Extractor, images: np.ndarray, advance: Callable[..., None]) -> np.ndarray:
    """Return the features of images, float32 [N, d].

    Several processes compute a part of each chunk, and all of them get all features. `images` are
    uint8 [N, H, W, C]; `advance` takes the number of images and the space's name after each chunk.
    """
    size = CHUNK * processes.count()
    features = np.empty((len(images), extractor.dims), np.float32)
    for start in range(0, len(images), size):
        part = images[start : start + size]
        features[start : start + size] = processes.map_rows(extractor.features, part)
        advance(len(part), extractor.name)
    return features


def shuffled_rows(dataset: Dataset) -> np.ndarray:
    """Return the rows of all images in the order in which real images are drawn, int [N]."""
    return np.random.default_rng(ORDER_SEED).permutation(len(dataset.images))


def embed_dataset(
    extractor: Extractor, dataset: Dataset, n: int, advance: Callable[..., None]
) -> np.ndarray:
    """Return the features of the first `n` images of `shuffled_rows`, float32 [n, d].

    The user's cache keeps them in files of `BLOCK` images, so that a later call computes only
    the images that earlier calls did not need.
    """
    rows = shuffled_rows(dataset)[:n]
    folder = cache_folder(extractor, dataset)
    features = np.empty((n, extractor.dims), np.float32)
    for start in range(0, n, BLOCK):
        part, file = rows[start : start + BLOCK], folder / f"{start}.npz"
        block = read_block(file, len(part), extractor.dims)
        missing = processes.largest(block is None)  # on any process: all of them embed together
        if block is None or missing:
            block = embed(extractor, dataset.images[part], advance)
            write_block(file, block)
        else:
            advance(len(part), extractor.name)
        features[start : start + len(part)] = block[: len(part)]
    return features


def cache_folder(extractor: Extractor, dataset: Dataset) -> Path:
    """Return the folder of the cache for this data set, order, extractor, protocol and code."""
    identity = (dataset.digest, extractor.name, extractor.sha256, extractor.protocol, ORDER_SEED)
    space = extractor.name.partition("-")[0]  # a name begins with that of its module
    key = json.dumps([*identity, code_digest(PACKAGE, space)])
    return pooch.os_cache("bloodjax") / "features" / hashlib.sha256(key.encode()).hexdigest()[:32]


@functools.cache
def code_digest(package: Path, space: str) -> str:
    """Return the sha256 of the code that computes the features of one space, in hex."""
    folder = package / "features"
    files = [package / "images.py", folder / "__init__.py", folder / f"{space}.py"]
    files += sorted((folder / space).rglob("*.py"))
    sha = hashlib.sha256()
    for file in filter(Path.exists, files):
        sha.update(f"{file.relative_to(package)} {file.stat().st_size} ".encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()


def read_block(file: Path, n: int, dims: int) -> np.ndarray | None:
    """Return float32 [at least n, dims]; None if the file is missing, damaged or too short."""
    try:
        block = npz.read(file, "features")["features"]
    except (OSError, ValueError):
        return None
    valid = block.ndim == 2 and block.dtype == np.float32 and block.shape[1] == dims
    return block if valid and len(block) >= n else None


def write_block(file: Path, block: np.ndarray) -> None:
    """Write a block to the cache; if that fails, print the reason and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        npz.write(file, {"features": block})
    except OSError as error:
        print_line(f"features are not kept for the next run: {error}")
