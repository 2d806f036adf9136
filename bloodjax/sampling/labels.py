"""The classes of samples: label i is a function of i, for every count and every seed."""

import numpy as np

from bloodjax.data import Dataset


def make_labels(dataset: Dataset, choice: str, count: int) -> np.ndarray:
    """Return the labels of the first `count` samples, int32 [count].

    Args:
        dataset: the data that the model was trained on.
        choice: "data", with the frequencies of the data; "balanced", all classes in turn; or the
            name or the number of one class.
        count: the number of samples.

    Raises:
        ValueError: the choice is unknown.
    """
    names = dataset.classes
    if choice == "data":
        order = np.random.default_rng(0).permutation(len(dataset.labels))
        return dataset.labels[order[np.arange(count) % len(order)]].astype(np.int32)
    if choice == "balanced":
        return (np.arange(count) % len(names)).astype(np.int32)
    return np.full(count, find_class(choice, names), np.int32)


def no_labels(count: int) -> np.ndarray:
    """Return the labels of the first `count` samples of an unconditional method: -1, int32."""
    return np.full(count, -1, np.int32)


def find_class(choice: str, names: tuple[str, ...]) -> int:
    """Return the number of a class that is given by its name or its number."""
    if choice in names:
        return names.index(choice)
    if choice.isdecimal() and int(choice) < len(names):
        return int(choice)
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    raise ValueError(
        f"sample.labels={choice!r}: expected data, balanced, or one of the classes {listed}"
    )
