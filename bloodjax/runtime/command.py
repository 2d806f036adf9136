"""The frame of a command: it stops at once, and speaks in lines instead of tracebacks."""

import os
import signal
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from bloodjax.runtime.progress import console

GRACE = 1.0  # seconds that Python gets to unwind before native code is cut off
LONGEST = 200  # bytes of a file's name; temporary names are longer, and systems allow 255
SIGNALS = signal.SIGINT, signal.SIGTERM


def run(work: Callable[[], None], owns_process: bool) -> None:
    """Run a command: errors that a user can mend become one line and exit code 1.

    Args:
        work: the command.
        owns_process: whether this process is the command's own. Then Ctrl-C and SIGTERM end it with
            exit code 130 or 143 within about a second, also in the middle of a compilation or a
            long dispatch, and warnings of libraries take one line.
    """
    if owns_process:
        warnings.showwarning = _show_warning
        _exit_on_signals()
    try:
        work()
    except KeyboardInterrupt:
        if not owns_process:
            raise
        _stop(signal.SIGINT)
    except (ValueError, OSError) as error:
        _fail(describe_error(error))
    except (MemoryError, JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _fail("out of memory; ask for less at a time")


def describe_error(error: Exception) -> str:
    """Return one line for an error: of the system's, the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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


def _fail(message: str) -> NoReturn:
    console.print(f"error: {message}", markup=False, soft_wrap=True)
    raise SystemExit(1)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    text = textwrap.shorten(str(message), 300)
    console.print(f"warning: {text}", markup=False, soft_wrap=True)


def _stop(number: int) -> NoReturn:
    """End this process now: JAX's own end would wait for what its devices compute."""
    console.show_cursor(True)
    console.print("stopped: nothing was written")
    sys.stdout.flush()
    os._exit(128 + number)


def _exit_on_signals() -> None:
    """Make signals unwind Python, and after `GRACE` end the process from another thread.

    A handler waits until native code returns. The byte that Python writes for each signal does not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        (number,) = os.read(reader, 1)
        time.sleep(GRACE)
        _stop(number)

    def interrupt(number: int, _: object) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _stop(number)

    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, interrupt)
    threading.Thread(target=watch, daemon=True).start()
