"""The process of one contestant: gets ready, then works for as long as it is asked to.

It knows no framework, so that both sides run the same lines around their work.
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

# Does so many units or a few more, and returns how many, when they are done and not before.
Work = Callable[[int], int]


def host_peak() -> int:
    """The most memory that this process has held so far, in bytes, its libraries included."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, where the unit is a byte
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss on Linux is at least what the process that started this one held.
    lines = (line.split() for line in status.read_text("utf-8").splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")


def serve(prepare: Callable[[dict[str, Any]], tuple[Work, dict[str, Any]]]) -> None:
    """Read a job, one line of JSON, then numbers of units, from stdin; answer on stdout.

    Answers, one line of JSON each: to a number {"units": how many were done, "seconds": what they
    took}, to an empty line {"peak_bytes": ...}, to the job what a first unit took, with all that is
    compiled for it, and what the job says of itself.

    Args:
        prepare: job -> the work, and what else to answer; "peak" in it is asked for the most memory
            of an accelerator, in bytes.
    """
    keep_freed_memory()  # as bloodjax does for itself; PyTorch gains from it too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print on stdout is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work, about = prepare(json.loads(sys.stdin.readline()))
    peak = about.pop("peak", host_peak)
    answer(**timed(work, 1), **about)
    for line in sys.stdin:
        if line.strip():
            answer(**timed(work, int(line)))
        else:
            answer(peak_bytes=peak())


def timed(work: Work, units: int) -> dict[str, float]:
    """The units done, at least so many, and the seconds they took."""
    begin = time.perf_counter()
    done = work(units)
    return {"units": done, "seconds": time.perf_counter() - begin}
