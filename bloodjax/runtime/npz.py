"""Arrays from .npz files of any origin: as they were written, or an error with the reason."""

import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bloodjax.runtime.files import atomic_write


def read(file: Path, *only: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, all or `only` some; nothing is unpickled.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no .npz file, an array is missing, or differs from what was written, by
            its checksum (CRC-32); names the file.
    """
    with opened(file) as archive:
        return {name: _read_array(archive, name) for name in only or _list(archive)}


def names(file: Path) -> list[str]:
    """List the names of the arrays of an .npz file; raises as `read` does."""
    with opened(file) as archive:
        return _list(archive)


def write(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to an .npz file, whole or not at all."""
    with atomic_write(file) as part, part.open("wb") as out:
        np.savez(out, **arrays)


@contextmanager
def opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file as an archive; every error in the block is blamed on the file."""
    with file.open("rb") as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                yield archive
        except Exception as error:  # any error that foreign bytes cause in zipfile, zlib and NumPy
            reason = textwrap.shorten(f"{error}" or type(error).__name__, 150)
            message = f"{file}: not readable ({reason}), expected a whole .npz file"
            raise ValueError(message) from None


def _list(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # the checksum is compared at the end, and only there
                raise ValueError("more bytes than the array has")
            return array
    except ValueError as error:  # NumPy's do not name the array
        raise ValueError(f"{name}: {error}") from None
