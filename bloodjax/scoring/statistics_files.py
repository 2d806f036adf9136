"""Files of feature statistics, mu and sigma, as pytorch-fid reads and writes them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bloodjax.data.image_files import name_value_errors
from bloodjax.features import Extractor
from bloodjax.runtime import npz
from bloodjax.scoring.distances import Moments

KEY = "bloodjax"  # the array with the origin of statistics, JSON; other programs have none
MADE_BY = ("name", "protocol", "dims", "sha256")  # of an extractor: equal on both sides
TOLERANCE = 1e-4  # of sigma's symmetry and eigenvalues, relative to its largest: float32, rounded


class Statistics(NamedTuple):
    """Statistics of the features of a set of images.

    Attributes:
        moments: of the features.
        n: the number of images; None where a file does not say.
        made_by: `MADE_BY` of the extractor; {} where a file does not say.
    """

    moments: Moments
    n: int | None
    made_by: dict[str, Any]


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """Return the attributes by which statistics are comparable."""
    return {key: getattr(extractor, key) for key in MADE_BY}


def read_statistics(file: Path) -> Statistics:
    """Read mu and sigma, and the origin that bloodjax writes beside them.

    Raises:
        ValueError: damaged, or no mean and covariance that images can have; names the file.
    """
    names = npz.names(file)
    arrays = npz.read(file, "mu", "sigma", *(name for name in names if name == KEY))
    with name_value_errors(file):
        mu, sigma = _check(arrays["mu"], arrays["sigma"])
        origin = _read_origin(arrays.get(KEY), len(mu))
        n = origin.pop("n", None)
        # Without n, any number above the dimensions will do: sigma counts as it stands.
        count = n or len(mu) + 2
        return Statistics(Moments(n=count, mean=mu, m2=sigma * (count - 1)), n, origin)


def write_statistics(file: Path, statistics: Statistics) -> None:
    """Write an .npz that pytorch-fid reads, too, whole or not at all."""
    moments = statistics.moments
    arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.cov}
    if statistics.made_by and statistics.n:
        arrays[KEY] = json.dumps({"n": statistics.n, **statistics.made_by})
    npz.write(file, arrays)


def _check(mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mu and sigma in float64; refuse what is no mean and covariance."""
    if mu.ndim != 1 or not len(mu) or sigma.shape != 2 * mu.shape:
        raise ValueError(f"mu {mu.shape} and sigma {sigma.shape}, expected [d] and [d, d]")
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise ValueError(f"mu is {mu.dtype} and sigma {sigma.dtype}, expected real numbers")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("mu or sigma has NaN or infinite values: compute them again")
    scale = TOLERANCE * np.abs(sigma).max()
    if np.abs(sigma - sigma.T).max() > scale:
        raise ValueError("sigma is not symmetric, so it is no covariance: compute it again")
    lowest = np.linalg.eigvalsh(sigma)[0]
    if lowest < -scale:
        raise ValueError(
            f"sigma has the eigenvalue {lowest:.3g}, and no images have a negative variance: "
            "compute it again"
        )
    return mu, sigma


def _read_origin(array: np.ndarray | None, dims: int) -> dict[str, Any]:
    """Return n and `MADE_BY` from the JSON that bloodjax writes; {} for anything else."""
    try:
        origin = json.loads(str(array))
        n = origin["n"]
        made_by = {key: origin[key] for key in MADE_BY}
    except (KeyError, TypeError, ValueError):
        return {}
    whole = isinstance(n, int) and n >= 2 and made_by["dims"] == dims
    return {"n": n, **made_by} if whole else {}
