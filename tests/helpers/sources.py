"""Small data in the layouts that sources read."""

import hashlib
import pathlib

import numpy as np
import pytest
from PIL import Image

from helpers.tiny import torch_with_torchvision

NOWHERE = "http://127.0.0.1:9/bloodmnist.npz"  # the discard port: refused at once
SIZES = {"train": 24, "val": 8, "test": 16}


def arrays(shape=(28, 28, 3), classes=8, seed=0, **changes):
    """What a small MedMNIST file holds; `changes` replace arrays, None drops one."""
    rng = np.random.default_rng(seed)
    held = {}
    for split, count in SIZES.items():
        held[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        held[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return {key: x for key, x in (held | changes).items() if x is not None}


def write(file, **held):
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **(held or arrays()))
    return file


def write_folder(folder, classes="ab", suffix=".png", **held):
    """FOLDER/SPLIT/CLASS/NUMBER.png, for every image of MedMNIST's arrays."""
    held = held or arrays(classes=len(classes))
    for split, count in SIZES.items():
        for i in range(count):
            label = classes[int(held[f"{split}_labels"][i, 0])]
            file = folder / split / label / f"{i:03}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(held[f"{split}_images"][i]).save(file)
    return folder


def medmnist_at(home, monkeypatch, stem="bloodmnist", **held):
    """The medmnist package keeps its files in `home`, and takes this small one for published."""
    medmnist = pytest.importorskip("medmnist", reason="MedMNIST's own package is not installed")
    torch_with_torchvision()  # by which the package compares checksums
    file = write(home / ".medmnist" / f"{stem}.npz", **held)
    init = medmnist.dataset.MedMNIST.__init__
    root = {medmnist.info.DEFAULT_ROOT: str(file.parent)}
    defaults = tuple(root.get(value, value) for value in init.__defaults__)
    monkeypatch.setattr(init, "__defaults__", defaults)
    monkeypatch.setattr(medmnist.info, "DEFAULT_ROOT", str(file.parent))
    flag, _, size = stem.partition("_")
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    monkeypatch.setitem(medmnist.INFO[flag], f"MD5_{size}" if size else "MD5", md5)
    return medmnist


def tfds_at(home, monkeypatch):
    """TFDS keeps its sets in `home`."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed")
    pytest.importorskip("array_record", reason="array_record is not installed")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(home / "tensorflow_datasets"))
    return tfds


def ready(source, home, monkeypatch):
    """Something small for any source to read; the path that it needs."""
    write(home / ".medmnist" / "bloodmnist.npz")
    if source == "medmnist":
        medmnist_at(home, monkeypatch)
    if source == "tfds":
        tfds_at(home, monkeypatch)
    return str(write_folder(home / "cells")) if source == "folder" else ""
