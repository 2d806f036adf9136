"""Contestants: processes that start, work in turns, fail and end."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.tiny import SMALL
from helpers.tiny import cells as noisy

from bloodjax.bench import jax_worker, timing
from bloodjax.bench.timing import Contestant, ContestantError

ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999}


def job(**values):
    return {"task": "matmul", "precision": "float32", "dims": 64, **values}


def contestant(**values):
    return Contestant("jax", "jit", job(**values), sys.executable)


def ignore(*_):
    """Show no progress."""


def test_contestants_take_turns_and_one_that_fails_does_no_harm():
    good, bad = contestant(), contestant(task="x")
    started, turns = [], []
    timing.start_all([good, bad], 2, lambda n, note: started.append(note))
    assert bad.failure == "KeyError: 'x'" and good.failure == "" and len(started) == 2
    timing.time_in_turns([good, bad], 0.01, 5, lambda n, note: turns.append(note))
    assert len(turns) == 10
    assert len(good.times) == 5 and min(good.times) > 0 and bad.times == []
    assert good.versions == {"version": f"jax {jax.__version__}", "device": "cpu"}
    assert good.first[1] > max(good.times), "it compiled"
    assert good.peak_bytes > 50 << 20
    assert good.process.poll() is not None and bad.process.poll() is not None


class Scripted(Contestant):
    """A contestant without a process, whose unit takes the given time."""

    def __init__(self, seconds, fail_after=None):
        super().__init__("jax", "jit", {}, "")
        self.seconds, self.fail_after, self.asked = seconds, fail_after, []

    def ask(self, line):
        if line == "":
            return {"peak_bytes": 1}
        self.asked.append(line)
        if len(self.asked) == self.fail_after:
            raise ContestantError("out of memory")
        return {"units": line, "seconds": line * self.seconds}


def test_a_contestant_that_fails_later_keeps_no_times():
    good, bad = Scripted(0.1), Scripted(0.1, fail_after=3)
    timing.time_in_turns([good, bad], 1.0, 5, ignore)
    assert len(good.times) == 5 and bad.times == [] and bad.failure == "out of memory"


def test_windows_fill_their_time_and_long_ones_are_fewer():
    short, unit, long = Scripted(0.01), Scripted(1.5), Scripted(9.0)
    timing.time_in_turns([short, unit, long], 1.0, 5, ignore)
    assert short.asked == [1, *[100] * 5] and short.times == [pytest.approx(0.01)] * 5
    assert unit.asked == [1] * 5 and unit.times == [1.5] * 5, "the first look is a window"
    assert long.asked == [1] * 3 == [1] * timing.MIN_WINDOWS


def test_a_contestant_that_cannot_start_gives_the_reason():
    with pytest.raises(ContestantError, match="No module named"):
        Contestant("nothing", "step", job(), sys.executable).start()


def test_a_contestant_that_never_gets_ready_fails(monkeypatch):
    monkeypatch.setattr(timing, "START_TIMEOUT", 0.2)
    with pytest.raises(ContestantError, match="not ready after 0 s"):
        contestant().start()


def test_the_users_python_path_reaches_the_contestants(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/their/wheels")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    environment = timing.process_environment()
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(timing.ROOT), "/their/wheels"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("PYTHONPATH")
    assert timing.process_environment()["PYTHONPATH"] == str(timing.ROOT)


def test_steps_of_a_scan_are_counted(tmp_path):
    np.save(tmp_path / "images.npy", noisy().images)
    values = {"variant": "scan", "seeds": 1, "batch": 8, "images": str(tmp_path / "images.npy")}
    values |= {"method": {"name": "vae", **SMALL["vae"]}, "dtype": "float32", "ema_decay": 0.0}
    work = jax_worker.train(values | {"optimizer": ADAM})
    assert [work(1), work(10), work(11)] == [10, 10, 20]


PEAKS = """
import numpy as np
from bloodjax.bench.worker import host_peak
before = host_peak()
np.ones(2**25)  # 256 MB
print(before, host_peak())
"""


def test_the_peak_is_that_of_the_process_alone():
    held = np.ones(2**27)  # 1 GB in the parent
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < held.nbytes
    assert 200 << 20 < after - before < 300 << 20
