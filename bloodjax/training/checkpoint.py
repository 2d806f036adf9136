"""Training states on disk: one folder per step, whole or not there, and checked when read."""

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
from bloodjax.runtime.files import name_errors, write_text
from bloodjax.runtime.progress import console

SUMS = "sha256.txt"
EVALUATION = "evaluation.json"


class Damaged(ValueError):
    """A checkpoint is not as it was written."""


class Checkpoints:
    """The checkpoints in `folder`, of which the newest `keep` are kept, and the best.

    STEP/default/ is orbax's; STEP/sha256.txt has the digests of its files, since orbax reads an
    array of which a byte has changed and says nothing: `sha256sum -c sha256.txt` checks them, too.
    STEP/evaluation.json says how good it is, if that was found out.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder.absolute(), keep

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, rising."""
        return sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdecimal())

    def best(self) -> int | None:
        """The step with the lowest mean, of those evaluated as the newest of them was; or None."""
        found = {s: e for s in self.steps() if (e := _evaluation(self.folder / str(s)))}
        alike = [step for step, (how, _) in found.items() if how == found[max(found)][0]]
        return min(alike, key=lambda step: found[step][1], default=None)

    def save(self, step: int, state: Any, evaluation: Mapping[str, Any] | None = None) -> None:
        """Write `state`, a pytree of NumPy arrays; returns when it is on disk.

        With several processes process 0 does, and the others return at once.

        Args:
            evaluation: how good it is, for JSON: "values", one a seed, lower is better; all else
                in it says how they were made.

        Raises:
            OSError: it cannot be written; the checkpoints before are left as they are.
        """
        if not processes.is_main():
            return
        for left in filter(Path.is_dir, self.folder.glob(".*")):  # by a process killed in here
            shutil.rmtree(left)
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
            shutil.rmtree(part, ignore_errors=True)  # room for what is tried next
            raise
        for old in {*self.steps()[: -self.keep]} - {self.best()}:
            gone = self.folder / f".{old}"  # half of a checkpoint must not look like one
            (self.folder / str(old)).rename(gone)
            shutil.rmtree(gone)

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, as NumPy arrays.

        Args:
            like: a pytree with the structure, shapes and dtypes of what was saved; only looked at.

        Raises:
            Damaged: a file of it is not as it was written.
        """
        folder = self.folder / str(step)
        _verify(folder)
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        with _orbax() as reader:
            return reader.restore(folder / "default", args=ocp.args.StandardRestore(template))

    def restore_newest(self, like: Any) -> tuple[int, Any] | None:
        """The newest step that is whole and its state; None if there is no checkpoint at all.

        Damaged ones are passed over, said so, and renamed to STEP.damaged.

        Raises:
            Damaged: all are; each is named and none is touched.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, like)
            except Damaged as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                self._put_aside(bad)
                console.print(f"{error}: now {bad}.damaged; step {step} is whole", soft_wrap=True)
            return step, state
        if damaged:
            names = "; ".join(map(str, damaged.values()))
            raise Damaged(f"{names}. Put back a copy, or delete {self.folder} to begin anew")
        return None

    def _put_aside(self, step: int) -> None:
        aside = self.folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)  # what was damaged at this step before
        (self.folder / str(step)).rename(aside)


def _reserve(file: Path, size: int) -> None:
    """Find out whether there is room: where there is none, tensorstore prints tracebacks."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with name_errors(file), file.open("wb") as held:
            os.posix_fallocate(held.fileno(), 0, size)
        file.unlink()


def _orbax() -> ocp.Checkpointer:
    """What reads and writes, in this process alone: arrays on the host are whole on every one."""
    alone = MultiprocessingOptions()
    if processes.count() > 1:
        own = jax.process_index()
        alone = MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"process{own}")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write(folder: Path, state: Any) -> None:
    """Orbax's checkpoint of `state`; a full disk is an OSError as it is everywhere else."""
    logging.disable(logging.CRITICAL)  # its threads log the error that is raised here anyway
    try:
        with _orbax() as writer:
            writer.save(folder, args=ocp.args.StandardSave(state))
    except ValueError as error:  # tensorstore's, the system's number in its text
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder.parent)) from error
    finally:
        logging.disable(logging.NOTSET)


def _evaluation(folder: Path) -> tuple[dict[str, Any], float] | None:
    """How a checkpoint was evaluated, and its mean; None if it was not, or that is damaged."""
    try:
        raw, sums = ((folder / name).read_bytes() for name in (EVALUATION, SUMS))
    except FileNotFoundError:
        return None
    if f"{hashlib.sha256(raw).hexdigest()}  {EVALUATION}".encode() not in sums.splitlines():
        return None
    how = json.loads(raw)
    return how, float(np.mean(how.pop("values")))


def _sums(folder: Path) -> str:
    """The sha256 of every file below `folder`, one a line, as sha256sum reads them."""
    lines = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _verify(folder: Path) -> None:
    """Damaged, naming a file, unless all are as they were when the digests were taken."""
    try:
        then = (folder / SUMS).read_bytes().splitlines()
    except FileNotFoundError:
        raise Damaged(f"{folder} has no {SUMS}") from None
    changed = set(then) - set(_sums(folder).encode().splitlines())
    if changed or not then:
        file = min(changed, default=b"").decode(errors="replace").partition("  ")[2] or SUMS
        raise Damaged(f"{folder} is damaged ({file})")
