"""Contestants that take turns: each in a process of its own, timed in windows."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

import bloodjax

ROOT = Path(bloodjax.__file__).parent.parent
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # peaks are of what is used
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # one GPU
    # Both compile as on a first day.
    "JAX_ENABLE_COMPILATION_CACHE": "0",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}
WINDOW = 1.0  # seconds of work between two looks at the clock, or one unit if that takes longer


class Failed(Exception):
    """A contestant that could not do its job; the last line that it said."""


@dataclass
class Contestant:
    """One way to do a task.

    Attributes:
        side: who does it: the module `bloodjax.bench.<side>_side` prepares the job.
        variant: how, e.g. "channels_last".
        job: what is to be prepared, plain values.
        python: its interpreter.
        about: what it said of itself when it was ready.
        first: units and seconds of the first time.
        times: seconds of a unit, one per window.
        peak_bytes: the most memory that it held.
    """

    side: str
    variant: str
    job: dict[str, Any]
    python: str
    about: dict[str, Any] = field(default_factory=dict)
    first: tuple[int, float] = (0, 0.0)
    times: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    process: subprocess.Popen[str] | None = None
    said: IO[str] | None = None

    def start(self) -> None:
        """Start the process and have it do its first unit.

        Raises:
            Failed: it ended instead.
        """
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [self.python, "-m", f"bloodjax.bench.{self.side}_side"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=os.environ | ENVIRONMENT,
            text=True,
        )
        self.about = self.ask(json.dumps(self.job | {"variant": self.variant}))
        self.first = self.about.pop("units"), self.about.pop("seconds")

    def ask(self, line: object) -> dict[str, Any]:
        """The answer to a line, see `serve.serve`."""
        try:
            print(line, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = self.process.wait()
            self.said.seek(0)
            lines = self.said.read().strip().splitlines()
            self.end()
            raise Failed(lines[-1] if lines else f"ended with exit code {code}") from None

    def window(self, units: int) -> float:
        """Seconds of one unit, out of at least so many."""
        done = self.ask(units)
        return done["seconds"] / done["units"]

    def end(self) -> None:
        """End the process, if it is there."""
        if self.process and not self.said.closed:
            self.process.kill()
            self.process.communicate()
            self.said.close()


def compare(
    contestants: Sequence[Contestant], repeats: int, advance: Callable[..., None]
) -> dict[int, str]:
    """Time the contestants in turns, `repeats` windows each, in a new order in every round.

    So that what else the machine does meets all of them alike. Their processes live side by side,
    idle but for the one whose turn it is.

    Args:
        advance: called after each window.

    Returns:
        index -> why that contestant could not take part.
    """
    failed: dict[int, str] = {}
    units: dict[int, int] = {}
    order = np.random.default_rng(0)
    try:
        for i, contestant in enumerate(contestants):
            with out_if_failed(i, failed, units):
                contestant.start()
                units[i] = max(1, round(WINDOW / contestant.window(1)))
        for _ in range(repeats):
            for i in order.permutation(list(units)).tolist():
                with out_if_failed(i, failed, units):
                    contestants[i].times.append(contestants[i].window(units[i]))
                    advance(1, f"{contestants[i].side} {contestants[i].variant}")
        for i in list(units):
            with out_if_failed(i, failed, units):
                contestants[i].peak_bytes = contestants[i].ask("")["peak_bytes"]
    finally:
        for contestant in contestants:
            contestant.end()
    for i in failed:
        contestants[i].times.clear()
    return failed


@contextmanager
def out_if_failed(i: int, failed: dict[int, str], units: dict[int, int]) -> Iterator[None]:
    """A contestant that fails in the block takes part no longer, and it is written why."""
    try:
        yield
    except Failed as error:
        failed[i] = str(error)
        units.pop(i, None)
