"""The process of one contestant: it prepares a job, then works as often as it is asked.

This module imports no framework, so both sides run the same lines around their work.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bloodjax.runtime.malloc import keep_freed_memory

Job = dict[str, Any]
Work = Callable[[int], int]  # does at least that number of units, waits for them, counts them


def host_peak() -> int:
    """Return the peak memory of this process in bytes, libraries included."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where the unit is a byte
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux, ru_maxrss starts from the peak of the parent process.
    lines = (line.split() for line in status.read_text("utf-8").splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")


def serve(prepare: Callable[[Job], tuple[Work, dict[str, Any]]]) -> None:
    """Read a job and then requests from stdin; answer each on stdout in one line of JSON.

    The job is one line of JSON. Its answer is the time of a first unit, which includes all
    compilation, and the versions of the libraries. A request is a number of units, answered with
    {"units": number done, "seconds": time}, or an empty line, answered with {"peak_bytes": number}.

    Args:
        prepare: job -> work, and further values for the first answer. Its value "peak" is a
            function that returns the peak memory of an accelerator in bytes; it is not sent.
    """
    keep_freed_memory()  # as launch.py does; PyTorch gains from it too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on stdout as well

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work, versions = prepare(json.loads(sys.stdin.readline()))
    peak = versions.pop("peak", host_peak)
    answer(**measure(work, 1), **versions)
    for line in sys.stdin:
        if line.strip():
            answer(**measure(work, int(line)))
        else:
            answer(peak_bytes=peak())


def measure(work: Work, units: int) -> dict[str, float]:
    """Do at least `units` units; return their number and the seconds."""
    begin = time.perf_counter()
    done = work(units)
    return {"units": done, "seconds": time.perf_counter() - begin}


def repeat(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Work:
    """Return the work of which a unit is one `call`; `wait` gets the last result."""

    def work(units: int) -> int:
        result = None
        for _ in range(units):
            result = call()
        wait(result)
        return units

    return work
