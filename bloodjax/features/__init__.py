"""Feature spaces in which images are compared; a further one is a further file in this folder."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Protocols of every space, here only to explain numbers that were published with them: images in
# [-1, 1] given to a network that takes [0, 1], all of them or real ones alone.
MISTAKES = ("raw-range", "raw-reals")


class Extractor(NamedTuple):
    """A fixed map from images to features, with what a reader needs to name its results.

    Attributes:
        name: what results are called after, e.g. "bloodnet"; "inception" means the published
            weights and nothing else.
        dims: d, the number of features.
        sha256: hex digest of the weight file.
        protocol: how images are scaled and resized before the network.
        features: [N, H, W, C] of any N, H, W and C in {1, 3}, uint8 or floats in [0, 1], which are
            rounded to uint8 first -> float32 [N, d].
        classify: float32 [N, d] features -> float32 [N, K] class probabilities; None if the
            space has no classes of the data's own kind.
        classes: the K class names, () where classify is None.
        generated: what generated images go through where that is something else.
    """

    name: str
    dims: int
    sha256: str
    protocol: str
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None
    classes: tuple[str, ...]
    generated: "Extractor | None" = None

    @property
    def distance(self) -> str:
        """What the Fréchet distance in this space is called."""
        return distance_name(self.name)


def distance_name(space: str) -> str:
    """What the Fréchet distance in the space of that name is called: "fid" for one space alone."""
    return "fid" if space == "inception" else f"fd_{space}"


def mistaken(right: Extractor, mistake: str, raw: Callable[[np.ndarray], np.ndarray]) -> Extractor:
    """`right` with one of `MISTAKES`, in name and protocol, and without classes.

    Args:
        raw: as `right.features`, but of images in [-1, 1] where those are in [0, 1].
    """
    return right._replace(
        name=f"{right.name}-{mistake}",
        protocol=mistake,
        features=raw,
        classify=None,
        classes=(),
        generated=right if mistake == "raw-reals" else None,
    )


def names() -> list[str]:
    """The feature spaces in this folder: what exports `extractor()`."""
    return [m.name for m in pkgutil.iter_modules(__path__)]


def make(name: str, **options: object) -> Extractor:
    """The extractor called `name`, or "name:protocol" where there are several; options are its own.

    Raises:
        ValueError: no such feature space or protocol.
        download.Unavailable: its weights are neither here nor to be downloaded.
    """
    space, _, protocol = name.partition(":")
    if space not in names():
        raise ValueError(f"features={name!r}: expected one of {', '.join(names())}")
    extractor = importlib.import_module(f"{__name__}.{space}").extractor
    if protocol:
        options["protocol"] = protocol
    return extractor(**options)
