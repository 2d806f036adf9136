"""Signals: end at once where nothing is lost, else after the current step or chunk."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bloodjax.runtime import processes
from bloodjax.runtime.progress import console

SIGNALS = signal.SIGINT, signal.SIGTERM


class Stop:
    """The number of the signal that came, 0 before that."""

    signal = 0


def exit_with_signal(number: int, saved: str) -> NoReturn:
    """End the process with the exit code of a signal; print what is `saved` and how to go on."""
    console.print(f"stopped: {saved}; the same command goes on from there")
    raise SystemExit(128 + number)


def exit_on_signals() -> None:
    """Make SIGINT and SIGTERM end the process from now on, except inside `defer_signals`."""

    def stop(number: int, _: object) -> None:
        # Objects that the signal interrupts print errors as they are deleted: useless to a user.
        sys.unraisablehook = lambda _: None
        processes.kill_process(128 + number, "stopped; the same command goes on from the last save")
        exit_with_signal(number, "finished work is saved")

    for number in SIGNALS:
        signal.signal(number, stop)


@contextmanager
def defer_signals(unit: str) -> Iterator[Stop]:
    """Yield a `Stop` that SIGINT or SIGTERM fills; a second signal acts as outside the block.

    Args:
        unit: the work that is finished first, such as "step". The block must look at the `Stop`
            after each unit.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        stop.signal = number
        restore_handlers()
        console.print(f"stopping after this {unit}; once more to stop at once")

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore_handlers()
