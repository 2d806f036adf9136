"""BloodMNIST, or any other file in MedMNIST's layout: found on disk, else downloaded once.

Source: MedMNIST v2 (Yang et al., Scientific Data 10, 2023, 41), CC BY 4.0.
"""

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import pooch

from bloodjax.data.dataset import SPLITS, Dataset, join, name_data
from bloodjax.data.file_kinds import list_arrays
from bloodjax.runtime import download, npz
from bloodjax.runtime.download import UnavailableError
from bloodjax.runtime.files import digest_file
from bloodjax.runtime.progress import print_line

URL = "https://zenodo.org/records/10519652/files/bloodmnist.npz?download=1"
MD5 = "7053d0359d879ad8a5505303e11de1dc"
FILE = "bloodmnist.npz"
HOME = "~/.medmnist/bloodmnist.npz"  # where the medmnist package keeps it
MOST_CLASSES = 1000  # larger numbers are no class labels
CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
KEYS = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
REMEDY = "give another MedMNIST .npz as data.path or BLOODJAX_DATA, or neither to use BloodMNIST"


def load(path: str = "", split: str = "all") -> Dataset:
    """Read the first file of `places`, else download the published one.

    Args:
        path: an .npz of any MedMNIST flag and size, read instead of all other places.
        split: see `data.load`; "all" are those that the file has.

    Returns:
        images uint8 [N, H, W, C] (grey: C = 1) and labels int32 [N], in the order of the file.

    Raises:
        FileNotFoundError: `path` or BLOODJAX_DATA names a file that does not exist.
        ValueError: the file is not in MedMNIST's layout; names what was expected.
        UnavailableError: there is no file and none can be downloaded; names the remedies.
    """
    file = _find(path)
    parts = _read(file)
    if split not in (*parts, "all"):
        _refuse(file, f"the splits {', '.join(parts)}, no {split}", f"{split}_images")
    count = 1 + max(int(labels.max()) for _, labels in parts.values())
    is_blood = "bloodmnist" in file.stem.lower() and count == len(CLASSES)
    if is_blood and digest_file(file, "md5") != MD5:
        print_line(f"{file}: not the published checksum; used as it is")
    wanted = [part for name, part in parts.items() if split in (name, "all")]
    classes = CLASSES if is_blood else [f"class {k}" for k in range(count)]
    shape = wanted[0][0].shape[1:]
    name = "bloodmnist" if shape == (28, 28, 3) else f"bloodmnist_{shape[0]}"  # as MedMNIST does
    return join(wanted, classes, name if is_blood else name_data("file", file.stem))


def places(path: str = "") -> list[tuple[str, Path, bool]]:
    """List where a file is looked for, in order: (label, file, whether it exists).

    `data.path` and BLOODJAX_DATA are listed if set; the first of them decides, even if its file is
    missing.
    """
    candidates = {
        "data.path": path,
        "BLOODJAX_DATA": os.environ.get("BLOODJAX_DATA", ""),
        "medmnist": HOME,
        "download cache": str(pooch.os_cache("bloodjax") / FILE),
    }
    files = {label: Path(file).expanduser() for label, file in candidates.items() if file}
    return [(label, file, file.is_file()) for label, file in files.items()]


def _find(path: str) -> Path:
    """Return the file to read; the published one is downloaded if missing or damaged."""
    for label, file, exists in places(path):
        if label in ("data.path", "BLOODJAX_DATA") or (label == "medmnist" and exists):
            return file
    try:
        return download.fetch((URL,), FILE, f"md5:{MD5}")
    except OSError as error:
        reason = str(error)
    raise UnavailableError(
        f"BloodMNIST is not on this machine and cannot be downloaded ({reason}). Three ways out: "
        "(1) data.path=FILE or BLOODJAX_DATA=FILE with any MedMNIST-style .npz; "
        f"(2) download {URL} elsewhere and put it at {HOME}; "
        "(3) --config.data.source=synthetic for the built-in synthetic cells"
    )


def _read(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read and check images and labels of each split; nothing is unpickled."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file; {REMEDY}")
    if file.is_dir():
        _refuse(file, "a folder", "an .npz file, or data.source=folder for a folder of images")
    try:
        keys = list_arrays(file)
        splits = [name for name in SPLITS if {f"{name}_images", f"{name}_labels"} <= set(keys)]
        half = [key for key in keys if key in KEYS and key.partition("_")[0] not in splits]
        arrays = npz.read(file, *(key for key in KEYS if key.partition("_")[0] in splits))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; {REMEDY}") from None
    if half or not splits:
        pairs = {"images": "labels", "labels": "images"}
        split, _, kind = half[0].partition("_") if half else ("", "", "")
        actual = f"{half[0]} without {split}_{pairs[kind]}" if half else f"arrays {keys}"
        _refuse(file, actual, "pairs of arrays such as train_images and train_labels")

    labels = {split: _labels(file, split, arrays[f"{split}_labels"]) for split in splits}
    images = {split: _images(file, split, arrays[f"{split}_images"]) for split in splits}
    shapes = {images[split].shape[1:] for split in splits}
    if len(shapes) > 1:
        _refuse(file, f"image shapes {sorted(shapes)}", "one shape in all splits")
    for split in splits:
        n, m = len(images[split]), len(labels[split])
        if n != m:
            _refuse(file, f"{split} {n} images and {m} labels", "one label for each image")
    return {split: (images[split], labels[split]) for split in splits}


def _images(file: Path, split: str, x: np.ndarray) -> np.ndarray:
    shape = x.shape
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        actual = f"{split}_images {x.dtype} {list(shape)}"
        _refuse(file, actual, "uint8 [N, H, W] or [N, H, W, 1 or 3], N > 0")
    return x


def _labels(file: Path, split: str, x: np.ndarray) -> np.ndarray:
    actual = f"{split}_labels {x.dtype} {list(x.shape)}"
    if x.ndim == 2 and x.shape[1] > 1:
        _refuse(file, f"{actual}, several labels an image", "one label an image")
    if x.dtype.kind not in "iu" or x.ndim not in (1, 2) or x.size == 0:
        _refuse(file, actual, "integers [N] or [N, 1], N > 0")
    if x.min() < 0 or x.max() >= MOST_CLASSES:
        actual = f"{actual} from {x.min()} to {x.max()}"
        _refuse(file, actual, f"class numbers 0 to {MOST_CLASSES - 1}")
    return x.reshape(-1).astype(np.int32)


def _refuse(file: Path, actual: str, expected: str) -> NoReturn:
    raise ValueError(f"{file}: {actual}; expected {expected}; {REMEDY}") from None
