"""Sets of images to compare: folders and .npz files, checked whole, then read part by part."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bloodjax.data import image_files as files
from bloodjax.data.dataset import SPLITS
from bloodjax.data.file_kinds import list_arrays
from bloodjax.data.image_files import name_value_errors, read_image
from bloodjax.images import as_pixels, as_uint8
from bloodjax.runtime import npz
from bloodjax.runtime.progress import progress

EXPECTED = "a folder of images, or an .npz of images or of statistics"
# Arrays of images: of a run's samples.npz, of MedMNIST, of improved-diffusion's samples.
ARRAYS = ("images", *(f"{split}_images" for split in SPLITS), "arr_0")
MAX_CHANNELS = 4  # an axis of no more is channels, not images


class ImageSet(NamedTuple):
    """A set of images, all of them checked.

    Attributes:
        size: the number of images.
        read: returns them in parts, uint8 [n, H, W, 3], of one size within a part.
    """

    size: int
    read: Callable[[], Iterator[np.ndarray]]


def open_images(path: Path, batch: int, workers: int = 1, seed: int | None = None) -> ImageSet:
    """Check the images of a folder or an .npz file, and return them for reading.

    Args:
        path: a folder with images, or an .npz with one of `ARRAYS`.
        batch: images of a part, at most.
        workers: threads that read a folder's files.
        seed: the seed whose images are read, if an .npz holds samples of several seeds.

    Raises:
        ValueError: a file that is not an image, or arrays that are not images; names the file.
        FileNotFoundError: there is no such file.
    """
    if path.is_dir():
        return open_folder(path, batch, workers)
    arrays = read_arrays(path)
    with name_value_errors(path):
        images = as_pixels(select_images(arrays, seed))
    files.report_dark(path, images.max(initial=0))

    def read() -> Iterator[np.ndarray]:
        return (as_uint8(images[i : i + batch]) for i in range(0, len(images), batch))

    return ImageSet(len(images), read)


def open_folder(folder: Path, batch: int, workers: int) -> ImageSet:
    """Check the images in a folder, not in folders below it; sizes are read one after another."""
    contents = files.list_folder(folder)
    files.refuse_imageless(folder, contents)
    files.report_unread(folder, contents.other_files, "other files")
    files.report_unread(folder, contents.folders, "folders")

    # Decode every file once before any is embedded: damage is found now, not after minutes.
    images, notes, brightest = contents.images, [], 0
    sizes: dict[tuple[int, ...], list[Path]] = {}
    with ThreadPoolExecutor(max(workers, 1)) as pool, progress("check", len(images)) as advance:
        for file, picture in zip(images, pool.map(read_image, images), strict=True):
            sizes.setdefault(picture.pixels.shape[:2], []).append(file)
            notes += picture.notes
            brightest = max(brightest, picture.pixels.max())
            advance()
    files.report_notes(folder, notes)
    files.report_dark(folder, brightest)

    parts = [group[i : i + batch] for group in sizes.values() for i in range(0, len(group), batch)]
    return ImageSet(len(images), lambda: read_parts(parts, workers))


def read_parts(parts: Sequence[Sequence[Path]], workers: int) -> Iterator[np.ndarray]:
    """Yield the images of each list of files; the next list is read while one is in use."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        pending = [pool.submit(read_image, file) for file in parts[0]]
        for following in [*parts[1:], []]:
            current, pending = pending, [pool.submit(read_image, file) for file in following]
            pictures = (reading.result().pixels for reading in current)
            yield np.stack([np.broadcast_to(x, (*x.shape[:2], 3)) for x in pictures])


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz that hold images, and their seeds."""
    names = list_arrays(file, EXPECTED)
    images = [name for name in ARRAYS if name in names]
    if not images:
        listing = ", ".join(names) or "nothing"
        raise ValueError(f"{file}: {listing}: expected images, train_images or mu and sigma")
    if images[0] in ("images", "arr_0"):
        images = images[:1]
    return npz.read(file, *images, *(["seeds"] if "seeds" in names else []))


def select_images(arrays: dict[str, np.ndarray], seed: int | None) -> np.ndarray:
    """Return [N, H, W, C]: one seed's samples, or MedMNIST's splits one after another."""
    seeds = arrays.pop("seeds", None)
    for name, x in arrays.items():
        # Grey images have no channel axis in MedMNIST; one picture has no image axis.
        if x.ndim == 3 and min(x.shape[0], x.shape[2]) <= MAX_CHANNELS:
            shape = f"{name} has the shape {x.shape}"
            raise ValueError(f"{shape}, one picture or a few grey ones: expected (N, H, W, C)")
    images = np.concatenate([*arrays.values()]) if len(arrays) > 1 else next(iter(arrays.values()))
    if images.ndim == 5 and seeds is not None:
        images = select_seed(images, seeds, seed)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(f"images of shape {images.shape}: expected (N, H, W, C)")
    return images


def select_seed(images: np.ndarray, seeds: np.ndarray, seed: int | None) -> np.ndarray:
    """Return one seed's images [N, H, W, C] of a run's [S, N, H, W, C]."""
    if seeds.shape != images.shape[:1]:
        raise ValueError(f"seeds of shape {seeds.shape}: expected {images.shape[:1]}, as images")
    choices = seeds.tolist()
    if (seed is None and len(choices) > 1) or (seed is not None and seed not in choices):
        listing = ", ".join(map(str, choices))
        raise ValueError(f"samples of the seeds {listing}: choose one with --seed")
    return images[0 if seed is None else choices.index(seed)]
