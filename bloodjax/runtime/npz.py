"""Arrays out of .npz files, whoever wrote them: as they were written, or a reason why not."""

import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def read(file: Path, *only: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, all or `only` some; nothing is unpickled.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no .npz file, an array is missing, or is not as it was written, which the
            checksums (CRC-32) tell; names the file.
    """
    with opened(file) as archive:
        return {name: _array(archive, name) for name in only or _names(archive)}


def names(file: Path) -> list[str]:
    """What the arrays of an .npz file are called; raises what `read` does."""
    with opened(file) as archive:
        return _names(archive)


@contextmanager
def opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The archive that an .npz file is. What goes wrong in the block is the file's fault."""
    with file.open("rb") as raw:
        try:
            with zipfile.ZipFile(raw) as archive:
                yield archive
        except Exception as error:  # whatever foreign bytes make zipfile, zlib and NumPy say
            reason = textwrap.shorten(f"{error}" or type(error).__name__, 150)
            said = f"{file}: not readable ({reason}), expected a whole .npz file"
            raise ValueError(said) from None


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            if member.read(1):  # the checksum is compared at the end, and only there
                raise ValueError("more bytes than the array has")
            return array
    except ValueError as error:  # NumPy's do not say of which array
        raise ValueError(f"{name}: {error}") from None
