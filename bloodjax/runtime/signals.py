"""Being stopped: at once where nothing is lost by it, else after the step or chunk under way."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bloodjax.runtime import processes
from bloodjax.runtime.progress import console

SIGNALS = signal.SIGINT, signal.SIGTERM


def exit_with_signal(number: int, saved: str) -> NoReturn:
    """End the process with the exit code of a signal, and say how to go on from what is `saved`."""
    console.print(f"stopped: {saved}; the same command goes on from there")
    raise SystemExit(128 + number)


def exit_on_signals() -> None:
    """From now on SIGINT and SIGTERM end the process, wherever it is outside `stop_signals`."""

    def stop(number: int, _: object) -> None:
        # Objects that the signal met half made complain as they vanish: of no use to anyone.
        sys.unraisablehook = lambda _: None
        processes.kill_process(128 + number, "stopped; the same command goes on from what is saved")
        exit_with_signal(number, "what was finished is saved")

    for number in SIGNALS:
        signal.signal(number, stop)


@contextmanager
def defer_signals(unit: str) -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number into; a second one acts as it did before.

    Args:
        unit: what is finished first, e.g. "step"; the block is to look at the list after each.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, _: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        console.print(f"stopping after this {unit}; once more to stop at once")

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
