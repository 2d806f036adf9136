"""Checkpoints: one folder per step, written whole and verified when read."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from bloodjax.runtime import processes
from bloodjax.runtime.files import digest_file, name_errors, write_text
from bloodjax.runtime.progress import print_line

SUMS = "sha256.txt"
EVALUATION = "evaluation.json"


class DamagedError(ValueError):
    """A checkpoint differs from what was written."""


class Checkpoints:
    """The checkpoints in `folder`: the newest `keep`, and the best.

    Orbax writes STEP/default/. STEP/sha256.txt holds the digests of its files, since orbax reads an
    array with a changed byte without an error; `sha256sum -c sha256.txt` verifies them as well.
    STEP/evaluation.json holds the evaluation, if there was one.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder.absolute(), keep

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, rising."""
        return sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdecimal())

    def best(self) -> int | None:
        """Return the step with the lowest mean evaluation, or None.

        Evaluations made in another way than the newest one do not count.
        """
        evaluations = {s: e for s in self.steps() if (e := _evaluation(self.folder / str(s)))}
        if not evaluations:
            return None
        newest, _ = evaluations[max(evaluations)]
        means = {step: mean for step, (origin, mean) in evaluations.items() if origin == newest}
        return min(means, key=means.__getitem__)

    def save(self, step: int, state: Any, evaluation: Mapping[str, Any] | None = None) -> None:
        """Write a state and return when it is on disk.

        With several processes, process 0 writes and the rest return at once.

        `state` is a pytree of NumPy arrays, and `evaluation` a value for JSON: "values" are one per
        seed, lower is better, and the rest says how they were made.

        Raises:
            OSError: the checkpoint cannot be written; earlier checkpoints stay unchanged.
        """
        if not processes.is_main():
            return
        for stale in filter(Path.is_dir, self.folder.glob(".*")):  # a killed process left it
            shutil.rmtree(stale)
        part = self.folder / ".part"
        part.mkdir(parents=True)
        try:
            _reserve(part / "room", sum(x.nbytes for x in jax.tree.leaves(state)))
            _write(part / "default", state)
            if evaluation:
                write_text(part / EVALUATION, json.dumps(evaluation, indent=1) + "\n")
            write_text(part / SUMS, _sums(part))
            part.rename(self.folder / str(step))
        except OSError:
            shutil.rmtree(part, ignore_errors=True)  # make room for the next attempt
            raise
        for old in {*self.steps()[: -self.keep]} - {self.best()}:
            hidden = self.folder / f".{old}"  # half of a checkpoint must not look like one
            (self.folder / str(old)).rename(hidden)
            shutil.rmtree(hidden)

    def restore(self, step: int, like: Any) -> Any:
        """Return the state of a checkpoint, as NumPy arrays of the shapes and dtypes of `like`.

        Raises:
            DamagedError: a file differs from what was written.
        """
        folder = self.folder / str(step)
        _verify(folder)
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        with _orbax() as reader:
            return reader.restore(folder / "default", args=ocp.args.StandardRestore(template))

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """Return the newest intact step and its state, or None if there is no checkpoint.

        Damaged checkpoints are reported and renamed to STEP.damaged.

        Raises:
            DamagedError: all checkpoints are damaged; the message names each, and none is renamed.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, like)
            except DamagedError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                aside = self.folder / f"{bad}.damaged"
                shutil.rmtree(aside, ignore_errors=True)  # an older damaged checkpoint of this step
                (self.folder / str(bad)).rename(aside)
                print_line(f"{error}: now {bad}.damaged; step {step} is intact")
            return step, state
        if damaged:
            names = "; ".join(map(str, damaged.values()))
            raise DamagedError(f"{names}. Put back a copy, or delete {self.folder} to start again")
        return None


def _reserve(file: Path, size: int) -> None:
    """Raise OSError if `size` bytes do not fit; tensorstore would print tracebacks."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with name_errors(file), file.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, size)
        file.unlink()


def _orbax() -> ocp.Checkpointer:
    """Return a checkpointer of this process alone: each process holds whole arrays."""
    alone = MultiprocessingOptions()
    if processes.count() > 1:
        index = jax.process_index()
        alone = MultiprocessingOptions(index, {index}, barrier_sync_key_prefix=f"process{index}")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write(folder: Path, state: Any) -> None:
    """Write `state` by orbax; a full disk raises OSError, as it does elsewhere."""
    logging.disable(logging.CRITICAL)  # orbax's threads log the error that is raised here anyway
    try:
        with _orbax() as writer:
            writer.save(folder, args=ocp.args.StandardSave(state))
    except ValueError as error:  # tensorstore's, with the system's error number in its text
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder.parent)) from error
    finally:
        logging.disable(logging.NOTSET)


def _evaluation(folder: Path) -> tuple[dict[str, Any], float] | None:
    """Return how a checkpoint was evaluated and its mean; None without an intact evaluation."""
    try:
        raw, sums = ((folder / name).read_bytes() for name in (EVALUATION, SUMS))
    except FileNotFoundError:
        return None
    if f"{hashlib.sha256(raw).hexdigest()}  {EVALUATION}".encode() not in sums.splitlines():
        return None
    origin = json.loads(raw)
    return origin, float(np.mean(origin.pop("values")))


def _sums(folder: Path) -> str:
    """Return the sha256 of every file below `folder`, in the format of sha256sum."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    return "".join(f"{digest_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)


def _verify(folder: Path) -> None:
    """Raise DamagedError, naming a file, unless all files match their digests."""
    try:
        written = (folder / SUMS).read_bytes().splitlines()
    except FileNotFoundError:
        raise DamagedError(f"{folder} has no {SUMS}") from None
    changed = set(written) - set(_sums(folder).encode().splitlines())
    if changed or not written:
        file = min(changed, default=b"").decode(errors="replace").partition("  ")[2] or SUMS
        raise DamagedError(f"{folder} is damaged ({file})")
