"""The formats of samples: samples.npz of a run, and .npy files of its chunks."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bloodjax.data import Dataset
from bloodjax.runtime import npz, processes
from bloodjax.runtime.files import atomic_write

NAME = "samples.npz"
MADE_BY = ("step", "sha256", "count", "labels", "weights", "sampler")


class Samples(NamedTuple):
    """The contents of samples.npz: S seeds, N images each.

    Attributes:
        images: uint8 [S, N, H, W, C].
        labels: int32 [S, N], the class of each image, or -1.
        seeds: uint32 [S].
        step: training steps done.
        trace: uint8 [S, R, K, H, W, C], K pictures on the way of each of R samples; R may be 0.
        trace_name: what the trace shows, e.g. "denoising".
    """

    images: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray
    step: int
    trace: np.ndarray
    trace_name: str

    def digest(self, s: int) -> str:
        """Return the sha256 of the images of the s-th seed, in hex."""
        return hashlib.sha256(np.ascontiguousarray(self.images[s])).hexdigest()


def write_samples_file(
    workdir: Path, samples: Samples, made_by: Mapping[str, Any] | None = None
) -> None:
    """Write samples.npz into a run's folder, whole or not at all.

    `made_by` are the model and the sampler, the keys of `MADE_BY`; None leaves them out.
    """
    arrays = {name: np.asarray(value) for name, value in samples._asdict().items()}
    if made_by is not None:
        arrays["made_by"] = np.asarray(json.dumps(made_by))
    npz.write(workdir / NAME, arrays)


def read_samples(workdir: Path, dataset: Dataset | None = None) -> Samples:
    """Return the samples of a run, of the shape and type of the images of `dataset`.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: the file is damaged, or its images differ from the data in shape or type.
    """
    path = Path(workdir) / NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make it with --mode=sample")
    try:
        images, labels, seeds, step, trace, name = npz.read(path, *Samples._fields).values()
    except ValueError as error:
        raise ValueError(f"{error}; move it away and sample again, --mode=sample") from None
    if dataset is not None:
        shape = dataset.images.shape[1:]
        if images.ndim != 5 or images.shape[2:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"{path} holds {images.dtype} images {images.shape}: expected uint8 (seeds, n, "
                f"{', '.join(map(str, shape))}) as in {dataset.name}; sample again with this data"
            )
    return Samples(images, labels, seeds, int(step), trace, str(name))


def read_made_by(workdir: Path) -> dict[str, Any]:
    """Return the model and the sampler that made samples.npz, the keys of `MADE_BY`.

    Raises:
        ValueError: the file is damaged, or another program wrote it.
    """
    path = Path(workdir) / NAME
    try:
        made_by = json.loads(str(npz.read(path, "made_by")["made_by"]))
        return {name: made_by[name] for name in MADE_BY}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or of another program ({error}): move it away and sample again, "
            "--mode=sample"
        ) from None


def is_drawn(file: Path, made_by: dict[str, Any]) -> bool:
    """Return whether `file` holds these samples; samples of an earlier step may be replaced.

    Raises:
        ValueError: the file holds samples that must not be lost: of a later step, even where the
            best checkpoint is asked for, or of another training.
    """
    if not file.exists():
        return False
    before = read_made_by(file.parent)
    if before["step"] > made_by["step"]:
        content = f"samples after step {before['step']}, not those of step {made_by['step']}"
    elif before["step"] == made_by["step"] and before["sha256"] != made_by["sha256"]:
        content = "samples of another training"
    else:
        return before == made_by
    raise ValueError(f"{file} holds {content}: move it away, and the same command draws them")


def check_same_samples(workdir: Path, after: dict[str, Any]) -> None:
    """Refuse to score samples that another configuration made: ValueError naming both.

    `after` are the values of the configuration, see `draw.made_with`.
    """
    if (workdir / NAME).exists():
        before = read_made_by(workdir)
        if before | after != before:
            old = {name: before[name] for name in after}
            raise ValueError(
                f"{workdir / NAME} was made with {old}, now {after}: sample again, --mode=sample"
            )


def write_array(file: Path, array: npt.ArrayLike) -> None:
    """Write an .npy file whole or not at all; with several processes, process 0 writes."""
    if not processes.is_main():
        return
    content = io.BytesIO()  # np.save to a full disk loses the number of the error
    np.save(content, np.asarray(array))
    with atomic_write(file) as part:
        part.write_bytes(content.getbuffer())


def read_array(file: Path) -> np.ndarray:
    """Return the array of `write_array`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it, and the same command draws it again"
        ) from None
