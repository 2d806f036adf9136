"""The frame of a command: it stops on signals, and speaks in lines instead of tracebacks."""

import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from bloodjax.runtime import files, processes
from bloodjax.runtime.progress import console, print_line

GRACE = 1.0  # seconds that Python gets to unwind before native code is cut off
LONGEST = 200  # bytes of a file's name; temporary names are longer, and systems allow 255
SIGNALS = signal.SIGINT, signal.SIGTERM
PACKAGE = Path(__file__).parents[1]


def run(work: Callable[[], None], owns_process: bool) -> None:
    """Run a command: errors that a user can correct become one line and exit code 1.

    Where the command `owns_process`, Ctrl-C and SIGTERM end it with exit code 130 or 143 within
    about a second, also in the middle of a compilation or a long dispatch, and warnings of
    libraries take one line.
    """
    if owns_process:
        warnings.showwarning = _show_warning
        _exit_within_grace()
    try:
        work()
    except KeyboardInterrupt:
        if not owns_process:
            raise
        _stop(signal.SIGINT)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(describe_error(error))
    except (MemoryError, JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail("out of memory; ask for less at a time")


def run_resumable(main: Callable[[list[str]], None], argv: list[str]) -> int | str | None:
    """Run `main` of launch.py, whose work is saved as it goes; return the exit code.

    An error that the user can correct becomes one line; a traceback means a bug. The code is
    returned because an exception would keep the arrays of its frames, and JAX may crash when arrays
    outlive it.
    """
    exit_on_signals()
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code
    except (ValueError, OSError, FloatingPointError) as error:
        source = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = PACKAGE in source.parents or source == Path(main.__code__.co_filename)
        if not ours and not isinstance(error, OSError):
            raise
        text = files.explain_os_error(error) if isinstance(error, OSError) else error
        processes.kill_process(1, f"error: {text}")
        print_line(f"error: {text}")
        return 1
    except (MemoryError, JaxRuntimeError) as error:
        if is_out_of_memory(error):
            remedy = "a smaller sample.chunk, or in another --workdir a smaller train.batch_size"
            message = f"error: out of memory; choose {remedy}"
            processes.kill_process(1, message)
            print_line(message)
            return 1
        message = f"error: {error}; if another process has ended, start all of them again"
        processes.kill_process(1, message)
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the host or a device has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def parse_flags(parse: Callable[[list[str]], list[str]], argv: list[str]) -> list[str]:
    """Return `parse` of the flags of launch.py, which also loads the configuration.

    An error becomes one line and exit code 1.
    """
    for flag in re.findall(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv)):
        file = flag.partition(":")[0]
        if not Path(file).is_file():
            fail(
                f"--config={flag}: there is no file {file!r} here; start launch.py in its own "
                "folder, or give the whole path"
            )
    try:
        return parse(argv)
    except Exception as error:  # of a flag, a key of the configuration, or its file
        lines = str(error.args[0] if error.args else error).replace("\\n", "\n").splitlines()
        causes = [line for line in lines if re.match(r"\s*\w+Error: ", line)]
        text = causes[-1].partition(": ")[2] if causes else " ".join(map(str.strip, lines))
        fail(text.replace("\\'", "'").replace("''", "'").rstrip("'"))


def describe_error(error: Exception) -> str:
    """Return one line for an error; for a system error, its file and reason."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def fail(message: str) -> NoReturn:
    """Print an error and end the process with exit code 1."""
    print_line(f"error: {message}")
    raise SystemExit(1)


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a file or folder that cannot be written, before any work.

    Raises:
        OSError: it exists, its folder does not exist, or may not be written to; names the remedy.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}: create it first")
    if len(os.fsencode(path.name)) > LONGEST:
        raise OSError(f"{path}: the name is too long: choose one of at most {LONGEST} bytes")
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise FileExistsError(f"{path} exists: choose another name, or move it away")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror
        raise OSError(f"{path}: cannot be written ({reason}): choose another folder") from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_line(f"warning: {textwrap.shorten(str(message), 300)}")


# ---- signals ----


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


def _exit_within_grace() -> None:
    """Make signals unwind Python, and after `GRACE` end the process from another thread.

    A handler waits until native code returns. The byte that Python writes for each signal does not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def interrupt(number: int, _: object) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _stop(number)

    def watch() -> None:
        (number,) = os.read(reader, 1)
        time.sleep(GRACE)
        _stop(number)

    for number in SIGNALS:
        signal.signal(number, interrupt)
    threading.Thread(target=watch, daemon=True).start()


def _stop(number: int) -> NoReturn:
    """End this process now: JAX's own end would wait for what its devices compute."""
    console.show_cursor(True)
    console.print("stopped: nothing was written")
    sys.stdout.flush()
    os._exit(128 + number)


@contextmanager
def defer_signals(unit: str) -> Iterator[Stop]:
    """Yield a `Stop` that SIGINT or SIGTERM fills; a second signal acts as outside the block.

    The block must look at the `Stop` after each `unit` of its work, such as a "step". A signal that
    it does not act on is raised again at its end.
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

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore_handlers()
    if stop.signal:
        signal.raise_signal(stop.signal)
