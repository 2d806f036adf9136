"""A feature space of four numbers, and data and samples to score in it."""

import numpy as np

from bloodjax.data import Dataset
from bloodjax.features import Extractor
from bloodjax.sampling.samples import Samples, write_samples_file
from helpers.features import rng

CLASSES = ("dark", "light")
CALLS = []  # the number of images in each call of `as_features`


def as_features(images):
    CALLS.append(len(images))
    x = images.reshape(len(images), -1) / np.float32(255)
    return np.stack([x.mean(1), x.std(1), x[:, 0], x[:, -1]], axis=1).astype(np.float32)


def as_classes(x):
    return np.stack([1 - x[:, 0], x[:, 0]], axis=1)


def extractor(name, classify=as_classes, classes=CLASSES):
    return Extractor(name, 4, "ab" * 32, "as is", as_features, classify, classes, "w.npz")


def random_images(*shape, seed=2, high=200):
    return rng(seed).integers(0, high, (*shape, 4, 4, 3), dtype=np.uint8)


def dataset_of(images):
    labels = np.arange(len(images), dtype=np.int32) % 2
    return Dataset(images, labels, CLASSES, "bloodmnist", "cd" * 32)


def a_dataset(n=90, shape=(4, 4, 3)):
    return dataset_of(rng(1).integers(0, 256, (n, *shape), dtype=np.uint8))


def put_samples(folder, images, seeds, labels=None):
    trace = images[:, :2, None].repeat(3, axis=2)
    labels = np.full(images.shape[:2], -1, np.int32) if labels is None else labels
    samples = Samples(images, labels, np.array(seeds, np.uint32), 40, trace, "denoising")
    write_samples_file(folder, samples)


def numbers_of(tree):
    """Every number in nested lists and dictionaries, in their order."""
    if isinstance(tree, dict | list):
        items = tree.values() if isinstance(tree, dict) else tree
        return [number for item in items for number in numbers_of(item)]
    return [tree] if isinstance(tree, int | float) else []
