"""The classes of samples: label i is a function of i, for every count and every seed."""

from collections.abc import Sequence

import numpy as np


def make_labels(
    classes: Sequence[str], frequencies: Sequence[int], choice: str, count: int
) -> np.ndarray:
    """Return the labels of the first `count` samples, int32 [count].

    Args:
        classes: the K class names.
        frequencies: the number of images of each class in the data, int [K].
        choice: "data", with the frequencies of the data; "balanced", all classes in turn; or the
            name or the number of one class.
        count: the number of samples.

    Raises:
        ValueError: the choice is unknown.
    """
    if choice == "data":
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), frequencies)
        labels = np.random.default_rng(0).permutation(labels)
        return labels[np.arange(count) % len(labels)]
    if choice == "balanced":
        return (np.arange(count) % len(classes)).astype(np.int32)
    return np.full(count, find_class(choice, classes), np.int32)


def no_labels(count: int) -> np.ndarray:
    """Return the labels of the first `count` samples of an unconditional method: -1, int32."""
    return np.full(count, -1, np.int32)


def find_class(choice: str, classes: Sequence[str]) -> int:
    """Return the number of a class that is given by its name or its number."""
    if choice in classes:
        return classes.index(choice)
    if choice.isdecimal() and int(choice) < len(classes):
        return int(choice)
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
    raise ValueError(f"class {choice!r}: expected data, balanced, or one of the classes {listed}")
