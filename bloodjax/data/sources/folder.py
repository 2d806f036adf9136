"""A folder of images, the classes in folders of their own: what most tools write and read."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bloodjax.data import SPLITS, Dataset, join
from bloodjax.data.image_files import SUFFIXES, open_image, read_image
from bloodjax.runtime.progress import progress

GREY = ("1", "L", "LA")  # Pillow's modes of one channel of at most 8 bits


def load(path: str = "", split: str = "all") -> Dataset:
    """Read the image files of a folder DIR into memory.

    They lie in DIR/CLASS, or in DIR if there is but one class, which is then called DIR. If DIR
    holds folders train, val or test, these are the splits, and each is laid out like that; else DIR
    as a whole is "all". Classes are sorted by name, images by class, then by file name.

    Args:
        path: DIR.
        split: "all" (train, val, test in this order), "train", "val" or "test".

    Returns:
        images uint8 [N, H, W, C], C = 1 if all files of DIR are grey, else 3, and labels int32 [N];
        called as DIR.

    Raises:
        ValueError: no such folder or split, folders beside images, an empty folder, images of two
            sizes, or a file that is not an image of 8 bits a channel; says the remedy.
    """
    folder = Path(path).expanduser().resolve()
    if not path or not folder.is_dir():
        raise ValueError(f"data.path={path!r}: expected a folder of images for data.source=folder")
    found = list(_files(folder))
    splits = list(dict.fromkeys(name for name, _, _ in found))
    if split not in (*splits, "all"):
        has = f"the splits {', '.join(splits)}" if splits[0] else "no splits"
        raise ValueError(f"{folder}: it has {has}; expected a folder {folder / split}")
    classes = sorted({label for _, label, _ in found})
    channels = _channels([file for _, _, file in found])
    wanted = [(label, file) for name, label, file in found if split in (name, "all")]
    labels = np.array([classes.index(label) for label, _ in wanted])
    return join([(_read([file for _, file in wanted], channels), labels)], classes, folder.name)


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(split, class, file) of every image, in order; the split is "" where there are none."""
    there = [part.name for part in _look(folder)[0]]
    splits = [name for name in SPLITS if name in there]
    if splits and len(splits) < len(there):
        others = ", ".join(name for name in there if name not in splits)
        raise ValueError(
            f"{folder}: folders {others} beside {', '.join(splits)}; expected none but train, val "
            "and test, with the classes in them; if all are classes, move them into train"
        )
    for split in splits or [""]:
        folders, images = _look(folder / split)
        yield from ((split, folder.name, file) for file in images)
        for part in folders:
            deeper, images = _look(part)
            if deeper:
                raise ValueError(f"{part}: holds folders; expected the images of one class")
            yield from ((split, part.name, file) for file in images)


def _look(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder or else its images, sorted; hidden ones do not count."""
    there = sorted(part for part in folder.iterdir() if not part.name.startswith("."))
    folders = [part for part in there if part.is_dir()]
    images = [part for part in there if part.suffix.lower() in SUFFIXES and part not in folders]
    if bool(folders) == bool(images):
        found = f"folders ({folders[0].name}) beside images ({images[0].name})" if images else ""
        raise ValueError(
            f"{folder}: {found or 'neither folders nor images'}; expected one or the other, images "
            f"in files ending in {', '.join(SUFFIXES)}; move or remove what does not belong"
        )
    return folders, images


def _channels(files: Sequence[Path]) -> int:
    """1 if all files are grey, else 3, by their headers alone; refuses images of two sizes."""
    modes, first = set(), None
    for file in files:
        with open_image(file) as image:
            first = first or image.size
            modes.add(image.mode)
            if image.size != first:
                sizes = "{} is {}x{} and {} {}x{}".format(files[0], *first, file, *image.size)
                raise ValueError(f"{sizes}: expected one size; resize all to one and start again")
    return 1 if modes <= set(GREY) else 3


def _read(files: Sequence[Path], channels: int) -> np.ndarray:
    """uint8 [N, H, W, channels]; grey files have three equal channels when read as colour."""
    images = []
    with ThreadPoolExecutor() as pool, progress("read images", len(files)) as advance:
        for image in pool.map(read_image, files):
            images.append(image[..., :channels].copy() if channels == 1 else image)
            advance()
    return np.stack(images)
