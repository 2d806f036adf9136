"""Image data sets; a further source is a module of this folder that exports `load(path, split)`."""

import difflib
import hashlib
import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bloodjax.runtime.download import Unavailable
from bloodjax.runtime.progress import console

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Labelled images in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], in 0..K-1.
        classes: the K class names.
        name: what results are said to be about, e.g. "bloodmnist".
        digest: sha256 hex of shape and bytes of images and labels.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    digest: str


def names() -> tuple[str, ...]:
    """The sources there are: the modules of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(source: str = "bloodmnist", path: str = "", split: str = "all") -> Dataset:
    """Load a data set into memory.

    Args:
        source: one of `names()`, or "auto": bloodmnist if it is at hand or can be downloaded, else
            synthetic, which is then said on the console.
        path: what the source is to read: a file, a folder or a name; see its own `load`.
        split: "all" (train, val, test in this order), "train", "val" or "test".

    Raises:
        ValueError: an unknown source or split, or data that are not what they should be.
        FileNotFoundError: `path` or BLOODJAX_DATA names a file that does not exist.
        Unavailable: the data are neither here nor to be downloaded (never with "auto"), or the
            source needs a package that is not installed.
    """
    _expect("data.source", source, (*names(), "auto"))
    _expect("split", split, (*SPLITS, "all"))
    if source != "auto":
        return importlib.import_module(f"{__name__}.{source}").load(path, split)
    try:
        return load("bloodmnist", path, split)
    except Unavailable:
        console.print(
            "[bold]BloodMNIST is not here and cannot be downloaded: using SYNTHETIC cells[/bold] "
            "(--config.data.source=bloodmnist says how to get the real ones)",
            soft_wrap=True,
        )
        return load("synthetic", "", split)


def join(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], classes: Sequence[str], name: str
) -> Dataset:
    """A Dataset of (uint8 [N, H, W, C], integers [N]) pairs, one after the other."""
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images, labels = np.ascontiguousarray(images), labels.astype(np.int32)
    sha = hashlib.sha256()
    for array in (images, labels):
        sha.update(str(array.shape).encode())
        sha.update(array)
    return Dataset(images, labels, tuple(classes), name, sha.hexdigest())


def _expect(key: str, value: str, known: Sequence[str]) -> None:
    if value in known:
        return
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{key}={value!r}, expected one of {', '.join(known)}{hint}")
