"""Labelled images in memory."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Labelled images in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], in 0..K-1.
        classes: the K class names.
        name: the name of the data in results, e.g. "bloodmnist".
        digest: sha256 hex of shape and bytes of images and labels.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    digest: str

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of images of each class."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())


def name_data(kind: str, name: str) -> str:
    """Return the name of data in a file or folder: its own, unless a source has that name.

    The report gives the study's scores beside "bloodmnist", and marks "synthetic" as such.
    """
    return f"{kind} {name}" if name in ("bloodmnist", "synthetic") else name


def join(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], classes: Sequence[str], name: str
) -> Dataset:
    """Concatenate pairs of uint8 [N, H, W, C] and integers [N] to one Dataset."""
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images, labels = np.ascontiguousarray(images), labels.astype(np.int32)
    sha = hashlib.sha256()
    for array in (images, labels):
        sha.update(str(array.shape).encode())
        sha.update(array)
    return Dataset(images, labels, tuple(classes), name, sha.hexdigest())
