"""Image classification sets of TensorFlow Datasets, read from array_record without TensorFlow.

BloodMNIST is prepared from its .npz on first use. Other sets have to be prepared already: most of
them take TensorFlow for that, and some are hundreds of gigabytes.
"""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bloodjax.data.dataset import SPLITS, Dataset, join
from bloodjax.data.image_files import name_value_errors
from bloodjax.runtime.download import UnavailableError
from bloodjax.runtime.progress import progress

# TFDS's names of the splits -> ours
NAMES = {"train": "train", "validation": "val", "val": "val", "test": "test"}
MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels


def load(path: str = "", split: str = "all") -> Dataset:
    """Read a prepared set into memory.

    Args:
        path: NAME[/CONFIG][:VERSION], which TFDS looks for in TFDS_DATA_DIR or else in
            ~/tensorflow_datasets; or the folder of a prepared set, the one with dataset_info.json.
            Empty: "blood_mnist", prepared on first use from the file that `bloodmnist.load` finds;
            later uses ignore BLOODJAX_DATA.
        split: see `data.load`; "all" are those that the set has. val is TFDS's "validation".

    Returns:
        images uint8 [N, H, W, 1 or 3] and labels int32 [N], in the set's order; named NAME or
        NAME/CONFIG, blood_mnist "bloodmnist".

    Raises:
        ValueError: no such split, other features than an image of 8 bits and its class, images of
            two shapes or without a class, or damaged files; also the errors of `bloodmnist.load`.
        UnavailableError: no TFDS, or no such set that can be read; names the remedies.
    """
    try:
        import tensorflow_datasets as tfds  # pyright: ignore # optional
    except ImportError as error:
        raise UnavailableError(
            f"data.source=tfds needs TensorFlow Datasets ({error}): pip install -e '.[tfds]', "
            "which brings no TensorFlow"
        ) from None
    path = path or "blood_mnist"
    builder = _make_builder(tfds, path)
    with name_value_errors(f"data.path={path!r}"):
        image, label, mode = _find_features(tfds, builder.info)
        try:
            source = builder.as_data_source(decoders={image: tfds.decode.SkipDecoding()})
        except Exception as error:  # prepared in another format
            raise _unavailable(path, error) from None
        parts = _select(source, split)
        try:
            pair = _read(parts, image, label, mode)
        except (RuntimeError, OSError) as error:  # array_record's, Pillow's
            reason = textwrap.shorten(str(error), 150)
            raise ValueError(f"damaged ({reason}); prepare the set again") from None
    name = builder.info.full_name.rpartition("/")[0]  # without the version
    title = "bloodmnist" if name == "blood_mnist" else name
    return join([pair], builder.info.features[label].names, title)


def _make_builder(tfds: Any, path: str) -> Any:
    """Return the reader of a prepared set; blood_mnist is prepared first if needed."""
    if path.partition(":")[0] == "blood_mnist":
        from bloodjax.data.sources.tfds.blood_mnist import BloodMNIST

        BloodMNIST().download_and_prepare(file_format="array_record")
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_info.json").is_file():
            return tfds.builder_from_directory(folder)
        return tfds.core.read_only_builder.builder_from_files(path)
    except Exception as error:  # any error that a name or foreign files cause in TFDS
        raise _unavailable(path, error) from None


def _unavailable(path: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"data.path={path!r}: no prepared set that can be read "
        f"({textwrap.shorten(str(error), 150)}); expected the name of one that is prepared as "
        "array_record, or its folder. Where TensorFlow is: tfds build NAME "
        "--file_format=array_record; then copy the folder NAME into ~/tensorflow_datasets or "
        "TFDS_DATA_DIR here, or give NAME/VERSION as data.path"
    )


def _find_features(tfds: Any, info: Any) -> tuple[str, str, str]:
    """Return the names of image and label among the features, and Pillow's mode of the image."""
    features: dict[str, Any] = dict(info.features.items())
    image_name, label_name = (str(x) for x in (info.supervised_keys or ("image", "label"))[:2])
    image: Any = features.get(image_name)
    label: Any = features.get(label_name)
    fits = isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)
    if not fits or image.np_dtype != np.uint8 or image.shape[-1] not in MODES:
        raise ValueError(
            f"the features are {textwrap.shorten(str(features), 300)}; expected an Image of uint8 "
            "with 1 or 3 channels and a ClassLabel, as supervised keys or called image and label"
        )
    return image_name, label_name, MODES[image.shape[-1]]


def _select(source: Mapping[str, Any], split: str) -> list[Any]:
    """Return the examples of each split asked for, in order."""
    splits = {NAMES[name]: part for name, part in source.items() if name in NAMES and len(part)}
    wanted = [splits[name] for name in SPLITS if name in splits and split in (name, "all")]
    if not wanted:
        raise ValueError(f"no split {split!r}; the set has {', '.join(source)}")
    return wanted


def _read(parts: Sequence[Any], image: str, label: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images [N, H, W, C] and labels [N] of all parts, decoded by Pillow.

    TFDS would take OpenCV where that is installed, and a JPEG's pixels depend on the decoder.
    """
    images, labels = [], []
    with progress("read images", sum(map(len, parts))) as advance:
        for example in itertools.chain.from_iterable(parts):
            with Image.open(io.BytesIO(example[image])) as picture:
                images.append(np.asarray(picture.convert(mode)))
            labels.append(example[label])
            first, last = images[0].shape, images[-1].shape
            if first != last:
                raise ValueError(f"images of {first} and {last}; expected one shape")
            if labels[-1] < 0:
                raise ValueError(f"image {len(labels) - 1} has no class; choose another split")
            advance()
    pixels = np.stack(images)
    return pixels if pixels.ndim == 4 else pixels[..., None], np.array(labels)
