"""Image data sets; a further source is one more module in `sources`."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence

from bloodjax.data import sources
from bloodjax.data.dataset import SPLITS, Dataset, join
from bloodjax.runtime.download import UnavailableError
from bloodjax.runtime.progress import console

__all__ = ["SPLITS", "Dataset", "UnavailableError", "join", "load", "names"]


def names() -> tuple[str, ...]:
    """Return the names of the sources: the modules of `sources`."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(sources.__path__)))


def load(source: str = "bloodmnist", path: str = "", split: str = "all") -> Dataset:
    """Load a data set into memory.

    Args:
        source: one of `names()`, or "auto": bloodmnist if it is on this machine or can be
            downloaded, else synthetic, with a note on the console.
        path: the input of the source: a file, a folder or a name; see its own `load`.
        split: "all" (train, val, test in this order), "train", "val" or "test".

    Raises:
        ValueError: an unknown source or split, or data of another layout.
        FileNotFoundError: `path` or BLOODJAX_DATA names a file that does not exist.
        UnavailableError: the data are not on this machine and cannot be downloaded (never with
            "auto"), or the source needs a package that is not installed.
    """
    _check_choice("data.source", source, (*names(), "auto"))
    _check_choice("data.split", split, (*SPLITS, "all"))
    if source != "auto":
        return importlib.import_module(f"{sources.__name__}.{source}").load(path, split)
    try:
        return load("bloodmnist", path, split)
    except UnavailableError:
        console.print(
            "[bold]BloodMNIST is not on this machine and cannot be downloaded: using SYNTHETIC "
            "cells[/bold] (--config.data.source=bloodmnist prints how to get the real ones)",
            soft_wrap=True,
        )
        return load("synthetic", "", split)


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}{hint}")
