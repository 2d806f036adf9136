"""Files that are whole or not there, and errors that name the file and the remedy."""

import errno
import functools
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bloodjax.runtime import processes

STALE = 86_400  # seconds after which nobody is still writing a file


REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a --workdir elsewhere",
    errno.EACCES: "give yourself access or choose a --workdir elsewhere",
    errno.EPERM: "give yourself access or choose a --workdir elsewhere",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def name_errors(file: Path) -> Iterator[None]:
    """System errors of the block name `file` if they name none, as those of writing do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def explain_os_error(error: OSError) -> str:
    """One line for who started the program: what failed, on which file, and the remedy."""
    if error.errno not in REMEDIES:
        return str(error)
    remedy = REMEDIES[error.errno]
    return (
        f"{error.filename}: {error.strerror}: {remedy}; what was saved before is as it was, and "
        "the same command goes on from there"
    )


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A path to write to that becomes `file` when the block ends well, and vanishes when not."""
    # a name of its own: several hosts may share a cache, and write the same file of it
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        with name_errors(file):
            yield part
            remove_stale_parts(file.parent)
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@functools.cache  # once in a process: a folder may have thousands of files
def remove_stale_parts(folder: Path) -> None:
    """Remove what killed processes left half-written: `STALE` older than what is written now."""
    with suppress(OSError):  # it is in nobody's way
        dates = {part: part.stat().st_mtime for part in folder.glob(".*.part")}
        for part in (part for part, date in dates.items() if date < max(dates.values()) - STALE):
            part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write `file` whole or leave it as it was; with several processes, process 0 does."""
    if not processes.is_main():
        return
    with atomic_write(file) as part:
        part.write_text(text, encoding="utf-8")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON ({error}): restore it or use another --workdir"
        ) from None
