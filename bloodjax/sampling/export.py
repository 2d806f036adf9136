"""Samples for other programs: a folder of PNG files, a grid, an .npz."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bloodjax.images import tile
from bloodjax.runtime import npz
from bloodjax.runtime.files import atomic_write, name_errors
from bloodjax.sampling.samples import read_samples

SIDE = 8  # images along a side of a grid


def export_run(workdir: Path, formats: Sequence[str], classes: Sequence[str]) -> None:
    """Write the samples of a run in further formats, each seed by itself, over earlier files.

    "png" writes samples/seedS/000000.png and so on, images with a label in a folder of their class;
    "grid" writes samples-seedS.png.
    """
    if not formats:
        return
    samples = read_samples(workdir)
    for seed, images, labels in zip(samples.seeds, samples.images, samples.labels, strict=True):
        if "grid" in formats:
            write_images(workdir / f"samples-seed{seed}.png", images[: SIDE**2])
        if "png" in formats:
            folder = workdir / "samples" / f"seed{seed}"
            if folder.exists():
                shutil.rmtree(folder)
            write_images(folder, images, labels, classes)


def write_images(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    **origin: object,
) -> None:
    """Write images to NAME.npz, to NAME.png as one grid, or to a folder of PNG files.

    The folder appears when it is complete.

    Args:
        out: the file or the folder.
        images: uint8 [N, H, W, 1 or 3].
        labels: int [N], -1 for no label; None for no labels. Images with a label go into a folder
            of their class. An .npz holds the labels.
        classes: the names of the classes.
        origin: further values for an .npz, written as JSON under "about".

    Raises:
        FileExistsError: the folder exists.
    """
    if labels is None:
        labels = np.full(len(images), -1, np.int32)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        npz.write(out, {"images": images, "labels": labels, "about": json.dumps(origin)})
    elif out.suffix == ".png":
        columns = int(np.ceil(np.sqrt(len(images))))
        with atomic_write(out) as part:
            Image.fromarray(tile(images, columns)).save(part, "png")
    else:
        write_folder(out, images, labels, classes)


def check_class_names(names: Iterable[str]) -> None:
    """Refuse names of classes that no folder can have: ValueError."""
    for name in names:
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(
                f"class {name!r}: no name of a folder, as PNG files need; write a grid or an .npz"
            )


def write_folder(
    folder: Path, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write 000000.png and so on, images with a label in a folder of their class.

    Raises:
        FileExistsError: the folder exists.
        ValueError: a class has a name that no folder can have.
    """
    check_class_names(classes[int(label)] for label in np.unique(labels[labels >= 0]))
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another name, or move it away")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # a killed process left it
    with name_errors(part):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            parent = part / classes[int(label)] if label >= 0 else part
            parent.mkdir(parents=True, exist_ok=True)
            grey = image.shape[2] == 1
            Image.fromarray(image[..., 0] if grey else image).save(parent / f"{i:06}.png")
        part.rename(folder)
