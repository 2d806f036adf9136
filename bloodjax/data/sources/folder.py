"""A folder of images, the classes in folders of their own: the layout of most tools."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bloodjax.data.dataset import SPLITS, Dataset, join, name_data
from bloodjax.data.image_files import SUFFIXES, list_folder, read_image, report_notes, report_unread
from bloodjax.runtime.progress import progress


def load(path: str = "", split: str = "all") -> Dataset:
    """Read the image files of a folder `path`, DIR, into memory.

    They lie in DIR/CLASS, or in DIR if there is one class, which then has DIR's name. If DIR holds
    folders train, val or test, these are the splits, each with that layout; else DIR as a whole is
    "all". Classes are sorted by name, images by class, then by file name.

    Returns:
        images uint8 [N, H, W, C], C = 1 if all files of DIR are grey, else 3, and labels int32 [N];
        the data have the name of DIR, see `name_data`.

    Raises:
        ValueError: no such folder or split, folders beside images, an empty folder, images of two
            sizes, or a file that `read_image` refuses; names the remedy.
    """
    folder = Path(path).expanduser().resolve()
    if not path or not folder.is_dir():
        hint = "; for an .npz, data.source=bloodmnist" if folder.is_file() else ""
        raise ValueError(
            f"data.path={path!r}: expected a folder of images for data.source=folder{hint}"
        )
    unread: set[Path] = set()
    files = list(_list_files(folder, unread))
    report_unread(folder, sorted(unread), "other files")
    splits = list(dict.fromkeys(name for name, _, _ in files))
    if split not in (*splits, "all"):
        has = f"the splits {', '.join(splits)}" if splits[0] else "no splits"
        raise ValueError(f"{folder}: it has {has}; expected a folder {folder / split}")
    classes = sorted({label for _, label, _ in files})
    images = _read(folder, [file for _, _, file in files])
    rows = [i for i, (name, _, _) in enumerate(files) if split in (name, "all")]
    labels = np.array([classes.index(files[i][1]) for i in rows])
    return join([(images[rows], labels)], classes, name_data("folder", folder.name))


def _list_files(folder: Path, unread: set[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield (split, class, file) of every image, in order, and collect other files in `unread`.

    The split is "" if there are none.
    """
    inside = [part.name for part in _look(folder, unread)[0]]
    splits = [name for name in SPLITS if name in inside]
    if splits and len(splits) < len(inside):
        rest = ", ".join(name for name in inside if name not in splits)
        raise ValueError(
            f"{folder}: folders {rest} beside {', '.join(splits)}; expected none but train, val "
            "and test, with the classes in them; if all are classes, move them into train"
        )
    for split in splits or [""]:
        folders, images = _look(folder / split, unread)
        yield from ((split, folder.name, file) for file in images)
        for part in folders:
            deeper, images = _look(part, unread)
            if deeper:
                raise ValueError(f"{part}: holds folders; expected the images of one class")
            yield from ((split, part.name, file) for file in images)


def _look(folder: Path, unread: set[Path]) -> tuple[list[Path], list[Path]]:
    """Return the folders in a folder or else its images."""
    images, folders, other_files = list_folder(folder)
    unread.update(other_files)
    if bool(folders) == bool(images):
        clash = f"folders ({folders[0].name}) beside images ({images[0].name})" if images else ""
        raise ValueError(
            f"{folder}: {clash or 'neither folders nor images'}; expected one or the other, images "
            f"in files ending in {', '.join(SUFFIXES)}; move or remove what does not belong"
        )
    return folders, images


def _read(folder: Path, files: Sequence[Path]) -> np.ndarray:
    """Read images of one size: uint8 [N, H, W, C], C = 1 if all files are grey, else 3."""
    images, notes = [], []
    with ThreadPoolExecutor() as pool, progress("read images", len(files)) as advance:
        for file, picture in zip(files, pool.map(read_image, files), strict=True):
            images.append(picture.pixels)
            notes += picture.notes
            (h, w), (height, width) = images[0].shape[:2], picture.pixels.shape[:2]
            if (h, w) != (height, width):
                raise ValueError(
                    f"{files[0]} is {w}x{h} and {file} {width}x{height}: expected one size; "
                    "resize all to one and start again"
                )
            advance()
    report_notes(folder, notes)
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
