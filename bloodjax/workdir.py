"""The folder of a run: whose it is, and files in it that are whole or not there."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bloodjax.data import Dataset
from bloodjax.runtime import processes
from bloodjax.runtime.environment import environment
from bloodjax.runtime.files import flatten, name_errors, read_json, write_text
from bloodjax.runtime.progress import console

# What a run takes, not what it is: these keys may change between two commands.
FREE = (
    "log.tensorboard",
    "train.checkpoint_epochs",
    "train.evaluate",
    "train.keep",
    "sample.chunk",
    "sample.export",
)


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep other processes out of `workdir`, which is made if it is not there, during the block.

    By flock, which ends with the process however it ends. Where the file system has no locks, as
    some network file systems have none, it says so and goes on. Of several processes of one run,
    process 0 holds it.

    Raises:
        BlockingIOError: another process is in there; names it.
    """
    if not processes.is_main():
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
        with name_errors(file):
            os.ftruncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        for left in filter(Path.is_file, workdir.glob(".*.part")):  # by a process that was killed
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(held)


def open_run(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, free: Sequence[str] = ()
) -> None:
    """Make `workdir` the folder of this run, or go on with it (see `compare`): config.json."""
    file = workdir / "config.json"
    now = {**describe_run(config, dataset), "environment": environment()}
    if file.exists():
        then = check_same_run(workdir, config, dataset, free)
        begun, goes_on = (about["environment"]["jaxlib"] for about in (then, now))
        if begun != goes_on:
            console.print(
                f"{workdir}: begun with jaxlib {begun}, not bitwise the same with {goes_on}"
            )
    else:
        workdir.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(now, indent=1) + "\n")


def check_same_run(
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
    if differs := list(differences(then, describe_run(config, dataset), free)):
        raise ValueError(
            f"{workdir} belongs to another run: {'; '.join(differs)}. Use another --workdir or "
            "the same config; --mode=sample and --mode=score may change their own group."
        )
    return then


def describe_run(config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
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
