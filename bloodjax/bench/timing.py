"""Contestants that take turns: each in a process of its own, timed in windows."""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

import bloodjax
from bloodjax.bench.worker import Job

ROOT = Path(bloodjax.__file__).parent.parent
WINDOWS_SECONDS = 20.0  # seconds for all windows of a contestant, ...
MIN_WINDOWS = 3  # ... but never fewer windows than this
START_TIMEOUT = 400.0  # seconds until a contestant that is not ready has failed

Advance = Callable[..., None]  # of a progress bar


class ContestantError(Exception):
    """A contestant failed; the message is the last line that it printed."""


def process_environment() -> dict[str, str]:
    """Return the environment variables of a contestant.

    The user's PYTHONPATH stays, behind the folder of bloodjax. Peaks count memory in use, and one
    GPU is enough. Compiled programs of earlier days are hidden from both sides.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }


@dataclass
class Contestant:
    """One way to do a task.

    Attributes:
        side: "jax" or "torch"; the module `bloodjax.bench.<side>_worker` prepares the job.
        variant: the way, such as "channels_last".
        job: the values that the worker needs.
        python: the interpreter of the worker.
        versions: library and device, as the worker names them.
        first: units and seconds of the first call, with compilation.
        times: seconds of a unit, one per window.
        peak_bytes: the peak of the memory.
        failure: the reason why the contestant dropped out, or "".
    """

    side: str
    variant: str
    job: Job
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    first: tuple[int, float] = (0, 0.0)
    times: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failure: str = ""
    process: subprocess.Popen[str] | None = None
    log: IO[str] | None = None

    def start(self) -> None:
        """Start the process and have it do its first unit.

        Raises:
            ContestantError: the process ended, or took longer than START_TIMEOUT.
        """
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [self.python, "-m", f"bloodjax.bench.{self.side}_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=process_environment(),
            text=True,
        )
        alarm = threading.Timer(START_TIMEOUT, self.process.kill)
        begin = time.monotonic()
        alarm.start()
        try:
            answer = self.ask(json.dumps(self.job | {"variant": self.variant}))
        except ContestantError:
            if time.monotonic() - begin >= START_TIMEOUT:
                raise ContestantError(f"not ready after {START_TIMEOUT:.0f} s") from None
            raise
        finally:
            alarm.cancel()
        self.first = answer.pop("units"), answer.pop("seconds")
        self.versions = answer

    def ask(self, line: object) -> dict[str, Any]:
        """Send one request and return its answer; see `worker.serve`.

        Raises:
            ContestantError: the process ended.
        """
        process, log = self.process, self.log
        assert process and process.stdin and process.stdout and log, "started"
        try:
            print(line, file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            code = process.wait()
            log.seek(0)
            lines = log.read().strip().splitlines()
            self.end()
            raise ContestantError(lines[-1] if lines else f"ended with exit code {code}") from None

    def window(self, units: int) -> float:
        """Do at least `units` units; return the seconds per unit."""
        answer = self.ask(units)
        return answer["seconds"] / answer["units"]

    def end(self) -> None:
        """End the process, if it runs."""
        if self.process and self.log and not self.log.closed:
            self.process.kill()
            self.process.communicate()
            self.log.close()

    @contextmanager
    def drop_out_on_failure(self) -> Iterator[None]:
        """Keep the reason of a failure in the block, and no times; the other contestants go on."""
        try:
            yield
        except ContestantError as error:
            self.failure = str(error)
            self.times.clear()
            self.end()


def start_all(contestants: Sequence[Contestant], workers: int, advance: Advance) -> None:
    """Start every contestant, `workers` of them at a time; those that compile longest come first.

    Compilers leave cores idle, and most contestants wait for a compiler.
    """

    def start(contestant: Contestant) -> None:
        with contestant.drop_out_on_failure():
            contestant.start()
        advance(1, f"{contestant.side} {contestant.variant}")

    cheap = ("eager", "channels_last", "sqrtm")
    order = sorted(contestants, key=lambda contestant: contestant.variant in cheap)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(start, order))


def time_in_turns(
    contestants: Sequence[Contestant], window: float, repeats: int, advance: Advance
) -> None:
    """Time contestants that have started, in turns, in a new order in every round; end them.

    Turns let all of them meet the same other load on the machine. A process is idle except in its
    turn. Contestants with windows of many seconds get fewer rounds, see `WINDOWS_SECONDS`.

    Args:
        contestants: rivals in one task.
        window: seconds of work between two looks at the clock; one unit if that takes longer.
        repeats: windows of each contestant.
        advance: called after each turn, `repeats` times for each contestant.
    """
    units: dict[int, int] = {}
    rounds: dict[int, int] = {}
    order = np.random.default_rng(0)
    try:
        for number in range(repeats):
            for i in order.permutation(len(contestants)).tolist():
                contestant = contestants[i]
                with contestant.drop_out_on_failure():
                    if not number and not contestant.failure:
                        # The first turn finds the units that fill a window: by one unit, which
                        # may be slow after a pause, then by a window of them.
                        seconds = contestant.window(1)
                        if seconds < window:
                            seconds = contestant.window(max(1, round(window / seconds)))
                        contestant.times.append(seconds)
                        units[i] = max(1, round(window / seconds))
                        windows = int(WINDOWS_SECONDS / (units[i] * seconds))
                        rounds[i] = max(MIN_WINDOWS, min(repeats, windows))
                    elif number < rounds.get(i, 0) and not contestant.failure:
                        contestant.times.append(contestant.window(units[i]))
                advance(1, f"{contestant.side} {contestant.variant}")

        for contestant in contestants:
            if not contestant.failure:
                with contestant.drop_out_on_failure():
                    contestant.peak_bytes = contestant.ask("")["peak_bytes"]
    finally:
        for contestant in contestants:
            contestant.end()
