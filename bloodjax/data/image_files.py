"""Images as people keep them, folders and .npz files, read part by part."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bloodjax.data import SPLITS
from bloodjax.images import as_uint8
from bloodjax.runtime import npz

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
ARRAYS = ("images", "seeds", *(f"{split}_images" for split in SPLITS))  # what is looked for


class Source(NamedTuple):
    """Images to be read part by part: uint8 [n, H, W, 3], of one size within a part."""

    count: int
    parts: Iterator[np.ndarray]


def open_images(path: Path, batch: int, workers: int = 1, seed: int | None = None) -> Source:
    """The images of a folder or an .npz file, in parts of at most `batch`.

    Args:
        workers: threads that read a folder's files.
        seed: whose images, if an .npz holds samples of several seeds.

    Raises:
        ValueError: a file that is not an image, or arrays that are not images; names the file. What
            is seen of that in the pixels alone is said while they are read.
        FileNotFoundError: there is no such file.
    """
    if path.is_dir():
        return open_folder(path, batch, workers)
    images = read_images(path, seed)

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch):
            with name_value_errors(path):
                part = as_uint8(images[start : start + batch])
            yield part

    return Source(len(images), parts())


def open_folder(folder: Path, batch: int, workers: int) -> Source:
    """The images in a folder, not in folders below it, those of one size after one another."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder}: no images; expected files ending in {', '.join(SUFFIXES)}")
    sizes: dict[tuple[int, int], list[Path]] = {}
    for file in files:
        with open_image(file) as image:
            sizes.setdefault(image.size, []).append(file)
    batches = [
        group[i : i + batch] for group in sizes.values() for i in range(0, len(group), batch)
    ]

    def parts() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            ahead = [pool.submit(read_image, file) for file in batches[0]]
            for following in [*batches[1:], []]:  # the next batch is read while one is computed
                now, ahead = ahead, [pool.submit(read_image, file) for file in following]
                yield np.stack([reading.result() for reading in now])

    return Source(len(files), parts())


def open_image(file: Path) -> Image.Image:
    """A file whose header could be read; pixels come later."""
    try:
        return Image.open(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable image ({error}); mend or remove it") from None


def read_image(file: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    with open_image(file) as image:
        try:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}, expected 8 bits a channel")
            return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{file}: not a whole image ({error}); mend or remove it") from None


def read_images(file: Path, seed: int | None) -> np.ndarray:
    """[N, H, W, C] of an .npz: a run's samples ("images") or MedMNIST's (all its splits)."""
    found = npz.names(file)
    wanted = [name for name in ARRAYS if name in found]
    if not wanted:
        known = ", ".join(found) or "nothing"
        raise ValueError(f"{file}: {known}: expected images, train_images or mu and sigma")
    arrays = npz.read(file, *wanted)
    seeds = arrays.pop("seeds", None)
    with name_value_errors(file):
        images = arrays["images"] if "images" in arrays else np.concatenate([*arrays.values()])
        if images.ndim == 5 and seeds is not None:
            images = select_seed(images, seeds, seed)
        images = images[..., None] if images.ndim == 3 else images  # MedMNIST's grey ones
        if images.ndim != 4:
            raise ValueError(f"images of shape {images.shape}: expected (N, H, W, C)")
    return images


def select_seed(images: np.ndarray, seeds: np.ndarray, seed: int | None) -> np.ndarray:
    """One seed's images [N, H, W, C] of a run's [S, N, H, W, C]."""
    found = seeds.tolist()
    if seed is None and len(found) > 1 or seed is not None and seed not in found:
        known = ", ".join(map(str, found))
        raise ValueError(f"samples of the seeds {known}: choose one with --seed")
    return images[0 if seed is None else found.index(seed)]


@contextmanager
def name_value_errors(what: Path | str) -> Iterator[None]:
    """Errors about values in the block say whose they are: `what`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
