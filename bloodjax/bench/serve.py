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

from bloodjax.memory import keep_freed

Work = Callable[[int], None]  # does so many units; returns when they are done, not before


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

    Answers, one line of JSON each: to the job {"first_s": seconds of its first unit, with all that
    is compiled for it, ...}, to a number {"seconds": what so many units took}, to an empty line
    {"peak_bytes": ...}.

    Args:
        prepare: job -> the work, and what else to answer; "peak" in it is asked for the most memory
            of an accelerator, in bytes.
    """
    keep_freed()  # as bloodjax does for itself; PyTorch gains from it too
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print on stdout is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work, about = prepare(json.loads(sys.stdin.readline()))
    peak = about.pop("peak", host_peak)
    answer(first_s=timed(work, 1), **about)
    for line in sys.stdin:
        if line.strip():
            answer(seconds=timed(work, int(line)))
        else:
            answer(peak_bytes=peak())


def timed(work: Work, units: int) -> float:
    """Seconds for so many units."""
    begin = time.perf_counter()
    work(units)
    return time.perf_counter() - begin
