"""The folder of a run: its lock, and config.json, which says to which run it belongs."""

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
from bloodjax.runtime.progress import print_line

# These keys may change between two commands of one run. They change neither the training nor the
# samples, but for rounding (sample.chunk) and the choice of the best checkpoint.
CHANGEABLE = (
    "log.tensorboard",
    "train.checkpoint_epochs",
    "train.evaluate_count",
    "train.keep",
    "sample.chunk",
    "sample.export",
)
# Keys that older runs lack, and the values that describe them.
OLDER_DEFAULTS = {"train.ema_decay_long": 0.0, "score.sample_sets": 1}


@contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep other processes out of `workdir` during the block; make the folder if need be.

    The lock is flock's, which ends with the process however it ends. On a file system without locks
    a message is printed and the block runs. Of several processes of one run, process 0 holds it.

    Raises:
        BlockingIOError: another process holds the lock; the message names it.
        ValueError: `workdir` is a file.
    """
    if not processes.is_main():
        yield
        return
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file: expected a folder, or a new name")
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / ".lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read_text("utf-8").strip() or "another process"
            raise BlockingIOError(
                f"{workdir} is in use by {holder}: wait for it, stop it, or use another --workdir"
            ) from None
        except OSError as error:
            print_line(f"{file}: {error.strerror}; start no second process on this workdir")
        with name_errors(file):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        for part in filter(Path.is_file, workdir.glob(".*.part")):  # a killed process left it
            part.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def open_run(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, free: Sequence[str] = ()
) -> None:
    """Write config.json into `workdir`; a folder that has one must hold the same run.

    See `check_same_run` for the arguments and for a folder of another run.
    """
    if not (workdir / "config.json").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(workdir, config, dataset, environment())
        return
    begun = check_same_run(workdir, config, dataset, free)["environment"]["jaxlib"]
    if begun != (now := environment()["jaxlib"]):
        print_line(
            f"{workdir}: begun with jaxlib {begun}; jaxlib {now} goes on, with results that are "
            "not bitwise the same"
        )


def update_config(workdir: Path, config: Mapping[str, Any], dataset: Dataset) -> None:
    """Write what changed of the configuration, once its results are there, into config.json."""
    begun = read_json(workdir / "config.json")["environment"]
    write_config(workdir, config, dataset, begun)


def write_config(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, begun: Mapping[str, Any]
) -> None:
    """Write config.json; `begun` is the environment that the run began in."""
    description = {**describe_run(config, dataset), "environment": begun}
    write_text(workdir / "config.json", json.dumps(description, indent=1) + "\n")


def check_same_run(
    workdir: Path, config: Mapping[str, Any], dataset: Dataset, free: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of config.json in `workdir` if it describes this run; write nothing.

    Args:
        workdir: the folder of the run.
        config: groups of plain values.
        dataset: the data of the run.
        free: groups that may differ from the last command's, such as "sample".

    Raises:
        FileNotFoundError, ValueError: see `read_config`.
        ValueError: the run in the folder has another configuration or other data.
    """
    before = read_config(workdir)
    if changes := list(differences(before, describe_run(config, dataset), free)):
        raise ValueError(
            f"{workdir} belongs to another run: {'; '.join(changes)}. Use another --workdir or the "
            "same config; --mode=sample and --mode=score may change their own groups."
        )
    return before


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the content of a run's config.json.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the file is damaged, or of an older version with other groups.
    """
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing: there is no run in this folder; name another by --workdir or "
            "--model, or make the run first"
        )
    run = read_json(file)
    if "optimizer" not in run["config"]:
        raise ValueError(
            f"{workdir} was made by an older version, whose configuration has other groups: use "
            f"another --workdir; bloodjax-fid {workdir / 'samples.npz'} REAL scores its samples, "
            f"and commit {run['environment'].get('git_commit', 'unknown')} goes on with it"
        )
    return run


def describe_run(config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the configuration and the data of a run, as JSON reads them back."""
    data = {
        "name": dataset.name,
        "digest": dataset.digest,
        "n": len(dataset.images),
        "shape": list(dataset.images.shape[1:]),
        "classes": list(dataset.classes),
        "counts": list(dataset.counts),
    }
    return json.loads(json.dumps({"config": config, "dataset": data}))


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], free: Sequence[str]
) -> Iterator[str]:
    """Yield a phrase for each key of two descriptions that differs.

    Data are compared by their digest: their path may differ.
    """
    old, new = (OLDER_DEFAULTS | flatten(run["config"]) for run in (before, after))
    for key in sorted(old.keys() | new.keys()):
        same = old.get(key) == new.get(key)
        if not same and key not in CHANGEABLE and key.split(".")[0] not in (*free, "data"):
            yield f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
    data = [run["dataset"] for run in (before, after)]
    if data[0]["digest"] != data[1]["digest"]:
        names = [f"{d['name']} {d['digest'][:8]}" for d in data]
        yield f"the data set was {names[0]}, now {names[1]}"
