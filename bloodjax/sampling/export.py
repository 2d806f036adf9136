"""Samples as other programs take them: a folder of PNG files, a grid, an .npz."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bloodjax.images import tile
from bloodjax.runtime.files import atomic_write, name_errors
from bloodjax.sampling.samples import read_samples

FORMATS = ("png", "grid")
SIDE = 8  # a grid shows so many images squared


def check(formats: Sequence[str]) -> list[str]:
    """The names in `formats`, of which a flag's "a,b" arrives as one.

    Raises:
        ValueError: there is no such format.
    """
    names = list(filter(None, ",".join(formats).split(",")))
    if unknown := [name for name in names if name not in FORMATS]:
        raise ValueError(f"sample.export={','.join(unknown)}: expected {' or '.join(FORMATS)}")
    return names


def export_run(workdir: Path, formats: Sequence[str], classes: Sequence[str]) -> None:
    """Write a run's samples once more, each seed's by themselves.

    "png" writes samples/seedS/000000.png and so on, and "grid" samples-seedS.png. What is there of
    an earlier command is replaced.

    Args:
        workdir: with samples.npz.
        formats: as `check` takes them.
        classes: of the data; samples that have a label lie in a folder of their class.
    """
    if not (formats := check(formats)):
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
    **about: object,
) -> None:
    """Write images to `out`: NAME.npz, NAME.png (all in one grid), or else a folder of PNG files.

    The folder appears when it is whole.

    Args:
        images: uint8 [N, H, W, 1 or 3].
        labels: int [N] or None; -1 says that an image has none. Those that have one lie in a folder
            of its class, and are `labels` of an .npz.
        classes: names of the classes.
        about: what else an .npz is to say, as JSON.

    Raises:
        FileExistsError: there is a folder of that name already.
    """
    if labels is None:
        labels = np.full(len(images), -1, np.int32)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        with atomic_write(out) as part, part.open("wb") as file:
            np.savez(file, images=images, labels=labels, about=json.dumps(about))
    elif out.suffix == ".png":
        columns = int(np.ceil(np.sqrt(len(images))))
        with atomic_write(out) as part:
            Image.fromarray(tile(images, columns)).save(part, "png")
    else:
        write_folder(out, images, labels, classes)


def write_folder(
    folder: Path, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """000000.png and so on, those with a label in a folder of its class."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another name, or move it away")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # a killed process left it
    with name_errors(part):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            where = part / classes[label] if label >= 0 else part
            where.mkdir(parents=True, exist_ok=True)
            grey = image.shape[2] == 1
            Image.fromarray(image[..., 0] if grey else image).save(where / f"{i:06}.png")
        part.rename(folder)
