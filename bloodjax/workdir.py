"""The folder of a run: whose it is, and files in it that are whole or not there."""

import errno
import fcntl
import functools
import json
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import bloodjax
from bloodjax import hosts
from bloodjax.data import Dataset
from bloodjax.progress import console

# What a run takes, not what it is: these keys may change between two commands.
FREE = (
    "log.tensorboard",
    "train.checkpoint_epochs",
    "train.evaluate",
    "train.keep",
    "sample.chunk",
    "sample.export",
)
STALE = 86_400  # seconds after which nobody is still writing a file
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a --workdir elsewhere",
    errno.EACCES: "give yourself access or choose a --workdir elsewhere",
    errno.EPERM: "give yourself access or choose a --workdir elsewhere",
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Versions, device and git commit, as they are written beside every result."""
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(bloodjax.__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=False,
    ).stdout.strip()
    return {
        "bloodjax": bloodjax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "git_commit": commit or "unknown",
    }


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep other processes out of `workdir`, which is made if it is not there, during the block.

    By flock, which ends with the process however it ends. Where the file system has no locks, as
    some network file systems have none, it says so and goes on. Of several processes of one run,
    process 0 holds it.

    Raises:
        BlockingIOError: another process is in there; names it.
    """
    if not hosts.is_main():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / ".lock"
    held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = file.read_text("utf-8").strip() or "another process"
            raise BlockingIOError(
                f"{workdir} is in use by {who}: wait for it, stop it, or use another --workdir"
            ) from None
        except OSError as error:
            said = f"{file}: {error.strerror}; start no second process on this workdir"
            console.print(said, soft_wrap=True)
        with naming(file):
            os.ftruncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        for left in filter(Path.is_file, workdir.glob(".*.part")):  # by a process that was killed
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(held)


def claim(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, free: Sequence[str] = ()
) -> None:
    """Make `workdir` the folder of this run, or go on with it (see `compare`): config.json."""
    file = workdir / "config.json"
    now = {**described(config, dataset), "environment": environment()}
    if file.exists():
        then = compare(workdir, config, dataset, free)
        begun, goes_on = (about["environment"]["jaxlib"] for about in (then, now))
        if begun != goes_on:
            console.print(
                f"{workdir}: begun with jaxlib {begun}, not bitwise the same with {goes_on}"
            )
    else:
        workdir.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(now, indent=1) + "\n")


def compare(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, free: Sequence[str] = ()
) -> dict[str, Any]:
    """What config.json in `workdir` says, if it is this run's; writes nothing.

    Args:
        config: the resolved configuration: groups of plain values.
        dataset: what the run is about.
        free: groups that may differ from the last command's, e.g. "sample".

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: it belongs to a run with another configuration or other data.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing: no run was made in this folder; name another by --workdir, or "
            "make the run first"
        )
    then = read_json(file)
    if differs := list(differences(then, described(config, dataset), free)):
        raise ValueError(
            f"{workdir} belongs to another run: {'; '.join(differs)}. Use another --workdir or "
            "the same config; --mode=sample and --mode=score may change their own group."
        )
    return then


def described(config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What a run is, as JSON has it."""
    about = {
        "name": dataset.name,
        "digest": dataset.digest,
        "n": len(dataset.images),
        "shape": list(dataset.images.shape[1:]),
        "classes": list(dataset.classes),
    }
    return json.loads(json.dumps({"config": config, "dataset": about}))


def differences(
    then: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]
) -> Iterator[str]:
    """What of the configuration and the data set is not the same, one phrase per key.

    Where the data lies is not what they are: paths may differ while the digest is the same.
    """
    old, new = flatten(then["config"]), flatten(now["config"])
    for key in sorted(old.keys() | new.keys()):
        same = old.get(key) == new.get(key)
        if not same and key not in FREE and key.split(".")[0] not in (*free, "data"):
            yield f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
    if then["dataset"]["digest"] != now["dataset"]["digest"]:
        names = (f"{d['dataset']['name']} {d['dataset']['digest'][:8]}" for d in (then, now))
        yield "the data set was {}, now {}".format(*names)


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
def naming(file: Path) -> Iterator[None]:
    """System errors of the block name `file` if they name none, as those of writing do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def explain(error: OSError) -> str:
    """One line for who started the program: what failed, on which file, and the remedy."""
    if error.errno not in REMEDIES:
        return str(error)
    remedy = REMEDIES[error.errno]
    return (
        f"{error.filename}: {error.strerror}: {remedy}; what was saved before is as it was, and "
        "the same command goes on from there"
    )


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to that becomes `file` when the block ends well, and vanishes when not."""
    # a name of its own: several hosts may share a cache, and write the same file of it
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        with naming(file):
            yield part
            clear(file.parent)
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@functools.cache  # once in a process: a folder may have thousands of files
def clear(folder: Path) -> None:
    """Remove what killed processes left half-written: `STALE` older than what is written now."""
    with suppress(OSError):  # it is in nobody's way
        dates = {part: part.stat().st_mtime for part in folder.glob(".*.part")}
        for part in (part for part, date in dates.items() if date < max(dates.values()) - STALE):
            part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write `file` whole or leave it as it was; with several processes, process 0 does."""
    if not hosts.is_main():
        return
    with replacing(file) as part:
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
