"""Commands stop at once, speak in lines, and look at their output before any work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jax.errors import JaxRuntimeError

from bloodjax.runtime import command

ROOT = Path(__file__).parents[2]
NATIVE = """
import hashlib, warnings
from bloodjax.runtime import command

def work():
    warnings.warn("of a library,\\nin two lines")
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # native code, for minutes

command.run(work, owns_process=True)
"""
LOOP = NATIVE.replace('hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)', "while True: pass")


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [(NATIVE, signal.SIGINT, 130), (NATIVE, signal.SIGTERM, 143), (LOOP, signal.SIGINT, 130)],
    ids=["Ctrl-C in native code", "SIGTERM", "Ctrl-C"],
)
def test_a_signal_ends_a_command_in_a_second_or_two_with_one_line(code, number, status):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        process.send_signal(number)
        _, lines = process.communicate(timeout=60)
        assert time.monotonic() - begin < 10  # a second, on a machine with nothing else to do
    assert process.returncode == status
    assert lines.splitlines() == [
        "warning: of a library, in two lines",
        "stopped: nothing was written",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x=3: expected 4"), "error: x=3: expected 4"),
        (FileNotFoundError(2, "No such file or directory", "a b"), "error: a b: No such file or"),
        (OSError("no space"), "error: no space"),
        (FloatingPointError("3 of 3"), "error: 3 of 3"),
        (MemoryError(), "error: out of memory; ask for less at a time"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GiB"), "error: out of memory"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_an_error_that_a_user_can_mend_is_one_line(capsys, error, line):
    def work():
        raise error

    with pytest.raises(SystemExit) as stop:
        command.run(work, owns_process=False)
    assert stop.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


@pytest.mark.parametrize("error", [KeyError("x"), JaxRuntimeError("INTERNAL"), KeyboardInterrupt()])
def test_a_bug_keeps_its_traceback_and_a_library_its_interrupt(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        command.run(work, owns_process=False)


@pytest.mark.parametrize("error", [MemoryError(), JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GiB")])
def test_a_run_without_memory_says_what_to_make_smaller(capsys, monkeypatch, error):
    def main(argv):
        raise error

    monkeypatch.setattr(command, "exit_on_signals", lambda: None)
    assert command.run_resumable(main, []) == 1
    assert "out of memory; choose a smaller sample.chunk" in capsys.readouterr().err


def test_an_output_that_can_be_written_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.npz", "folder", "a b ü.png", str(tmp_path / "x.npz")):
        command.check_output(Path(name))
    assert list(tmp_path.iterdir()) == []
    Path("x.npz").write_text("old")
    command.check_output(Path("x.npz"), overwrite=True)
    assert Path("x.npz").read_text() == "old"


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, overwrite, reason in (
        (tmp_path / "file", False, "file exists: choose another name"),
        (tmp_path / "link", False, "link exists"),
        (tmp_path / "folder", True, "folder exists"),
        (tmp_path / "gone" / "x", True, "there is no folder .*gone: create it first"),
        (tmp_path / "file" / "x", False, "there is no folder .*file: create it first"),
        (tmp_path / ("x" * 250), False, "the name is too long"),
        (Path("/proc/x.npz"), False, "/proc/x.npz: cannot be written .*: choose another folder"),
    ):
        with pytest.raises(OSError, match=reason) as error:
            command.check_output(path, overwrite)
        assert "\n" not in str(error.value)
