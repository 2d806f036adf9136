"""The format of samples.npz."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bloodjax.data import Dataset
from bloodjax.runtime import npz


class Samples(NamedTuple):
    """The contents of samples.npz: S seeds, N images each.

    Attributes:
        images: uint8 [S, N, H, W, C].
        seeds: uint32 [S].
        step: training steps done.
        trace: uint8 [S, R, K, H, W, C], K pictures on the way of each of R samples; R may be 0.
        trace_name: what the trace shows, e.g. "denoising".
    """

    images: np.ndarray
    seeds: np.ndarray
    step: int
    trace: np.ndarray
    trace_name: str

    def digest(self, s: int) -> str:
        """sha256 hex of the images of the s-th seed."""
        return hashlib.sha256(np.ascontiguousarray(self.images[s])).hexdigest()


def read_samples(workdir: Path, dataset: Dataset) -> Samples:
    """The samples of a run, checked against the data they are to be compared with.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: the file is damaged, or its images are of another shape or type than the data's.
    """
    path = Path(workdir) / "samples.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make it with --mode=sample")
    try:
        images, seeds, step, trace, name = npz.read(path, *Samples._fields).values()
        samples = Samples(images, seeds, int(step), trace, str(name))
    except ValueError as error:
        raise ValueError(f"{error}; move it away and sample again, --mode=sample") from None
    expected = dataset.images.shape[1:]
    if images.ndim != 5 or images.shape[2:] != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{path} holds {images.dtype} images {images.shape}: expected uint8 (seeds, n, "
            f"{', '.join(map(str, expected))}) as in {dataset.name}; sample again with this data"
        )
    return samples
