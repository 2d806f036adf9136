"""Files that are written whole or not at all, and errors that name the file and the remedy."""

import errno
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bloodjax.runtime import processes

STALE = 86_400  # seconds after which no process still writes a file
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a --workdir elsewhere",
    errno.EACCES: "give yourself access or choose a --workdir elsewhere",
    errno.EPERM: "give yourself access or choose a --workdir elsewhere",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": 1} for {"a": {"b": 1}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def digest_file(file: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's bytes, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


@contextmanager
def name_errors(file: Path) -> Iterator[None]:
    """Make system errors of the block name `file`; errors of writing name no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def explain_os_error(error: OSError) -> str:
    """Return one line for the user: the file, the error and the remedy."""
    if error.errno not in REMEDIES:
        return str(error)
    return (
        f"{error.filename}: {error.strerror}: {REMEDIES[error.errno]}; earlier files are "
        "unchanged, and the same command goes on from them"
    )


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `file` if the block succeeds, and vanishes if not."""
    # A unique name: several hosts may share a cache and write the same file at once.
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        with name_errors(file):
            yield part
            remove_stale_parts(file.parent)
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@functools.cache  # once per process: a folder may have thousands of files
def remove_stale_parts(folder: Path) -> None:
    """Remove half-written files of killed processes: those `STALE` older than the newest one."""
    with suppress(OSError):  # leftovers do no harm
        dates = {part: part.stat().st_mtime for part in folder.glob(".*.part")}
        for part in (part for part, date in dates.items() if date < max(dates.values()) - STALE):
            part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write `file` whole or leave it unchanged; with several processes, process 0 writes."""
    if not processes.is_main():
        return
    with atomic_write(file) as part:
        part.write_text(text, encoding="utf-8")


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON ({error}): restore it or use another --workdir"
        ) from None
