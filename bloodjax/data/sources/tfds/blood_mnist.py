"""BloodMNIST as a data set of TFDS: `tfds.builder("blood_mnist")` once this file is imported.

Source: MedMNIST v2 (Yang et al., Scientific Data 10, 2023, 41), CC BY 4.0.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds  # pyright: ignore # optional
from PIL import Image

from bloodjax.data.sources import bloodmnist

SHAPE = (28, 28, 3)
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # TFDS's names -> ours


class BloodMNIST(tfds.core.GeneratorBasedBuilder):
    """The images and labels of `bloodmnist.load` at the time of preparation, in its order.

    Raises:
        ValueError, OSError: as `bloodmnist.load`; ValueError also if it finds another of MedMNIST's
            sets or sizes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=SHAPE)
        label = tfds.features.ClassLabel(names=bloodmnist.CLASSES)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Microscope images of single blood cells of eight classes.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://medmnist.com",
            license="CC BY 4.0",
            disable_shuffling=True,  # images stay in the order of the .npz
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(split) for name, split in SPLITS.items()}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        cells = bloodmnist.load(split=split)
        if (cells.name, cells.images.shape[1:]) != ("bloodmnist", SHAPE):
            actual = f"{cells.name} of {cells.images.shape[1:]}"
            raise ValueError(f"BLOODJAX_DATA is {actual}; blood_mnist needs BloodMNIST of {SHAPE}")
        for i, (image, label) in enumerate(zip(cells.images, cells.labels, strict=True)):
            # as an array, TFDS would encode it by TensorFlow
            yield i, {"image": Image.fromarray(image), "label": int(label)}
