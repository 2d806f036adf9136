"""Runs that are killed or stopped, wherever that meets them, end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bloodjax import methods
from bloodjax.training import step as steps
from bloodjax.training.checkpoint import Checkpoints
from bloodjax.training.step import OptimizerConfig

ROOT = Path(__file__).parents[2]
SEEDS = (0, 3)
OPTIONS = [
    "--config.seeds=0,3",
    "--config.train.batch_size=64",  # 4 steps an epoch
    "--config.sample.chunk=1",
    "--config.sample.count=50",
    "--config.score.count=50",
    "--config.train.evaluate_count=10",
    "--config.sample.checkpoint=best",
]
TINY = {
    "vae": ["--config.method.width=4"],
    "gan": ["--config.method.width=4", "--config.method.discriminator_width=4"],
    "ddpm": [
        "--config.method.widths=(8,)",
        "--config.method.timesteps=20",
        "--config.sampler.steps=3",
    ],
}
SECONDS = {"step": 0.05, "checkpoint": 0.1, "sample": 0.01, "score": 0.3}  # about what one takes
MOST = {"step": 9, "checkpoint": 3, "sample": 4, "score": 1}  # of which a process may do so many


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of all runs here; its `xla` is their compile cache."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture
def start(noise, place):
    """Start a run; `stop` is when it is to stop itself, as stop_itself.py takes it."""

    def start(name, folder, epochs, stop=None):
        command = [
            sys.executable,
            *(["tests/helpers/stop_itself.py", stop] if stop else ["launch.py"]),
        ]
        command += [f"--config=configs/{name}.py:quick", *OPTIONS, *TINY[name]]
        command += [f"--config.train.epochs={epochs}"]
        command += [f"--config.data.path={noise}", f"--workdir={place / folder}"]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(place / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        pipes = {"capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(command, cwd=ROOT, env=environment, **pipes)

    return start


@pytest.fixture
def finish(start):
    def finish(*run):
        done = start(*run)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr

    return finish


@pytest.fixture
def stop(start):
    """Start a run that is stopped `seconds` after it has begun `stage` so many times."""

    def stop(*run, stage, times=1, seconds=0.0, number=signal.SIGKILL):
        done = start(*run, f"{stage}:{times}:{seconds}:{int(number)}")
        assert done.returncode in (-number, 128 + number), f"it was not stopped: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return stop


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: r[k] for k in r.keys() - {"images_per_s", "compile_s"}} for r in rows]


def states(folder):
    """Steps and states of the newest and of the best checkpoint."""
    config = json.loads((folder / "config.json").read_text())["config"]
    method = methods.make(shape=(16, 16, 3), **config["method"])
    checkpoints = Checkpoints(folder / "checkpoints")
    tx = steps.make_optimizer(OptimizerConfig(**config["optimizer"]))
    like, best = steps.abstract_states(method, tx, SEEDS), checkpoints.best()
    return checkpoints.restore_newest(like), (best, checkpoints.restore(best, like))


def assert_same(folder, straight, epochs):
    found, expected = states(folder), states(straight)
    assert found[0][0] == 4 * epochs
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    with np.load(straight / "samples.npz") as a, np.load(folder / "samples.npz") as b:
        assert a.files == b.files
        assert a["step"] == expected[1][0], "drawn from the best"
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key])
    rows = losses(folder)
    assert [(r["step"], r["seed"]) for r in rows] == [
        (t, seed) for t in range(1, 4 * epochs + 1) for seed in SEEDS
    ]
    assert all(("fd_bloodnet" in r) == (r["step"] % 4 == 0) for r in rows)
    assert rows == losses(straight)
    assert (folder / "scores.json").read_bytes() == (straight / "scores.json").read_bytes()
    assert not list(folder.glob(".*.part")) and not list(folder.glob(".samples-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"), [("gan", "step"), ("vae", "checkpoint"), ("ddpm", "sample")]
)
def test_killed_once_and_started_again_is_the_straight_run(finish, stop, place, name, stage):
    finish(name, f"straight-{name}", 2)
    rng = np.random.default_rng(len(name))
    times = 2 if stage == "checkpoint" else int(rng.integers(2, 8))
    stop(name, name, 2, stage=stage, times=times, seconds=rng.uniform(0, SECONDS[stage]))
    assert not (place / name / "samples.npz").exists()
    finish(name, name, 2)
    assert_same(place / name, place / f"straight-{name}", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_killed_twenty_times_is_the_straight_run(finish, stop, place, name):
    """A log of the kills is printed: pytest -m slow -s."""
    epochs, rng = 32, np.random.default_rng(list(TINY).index(name))
    stages = [*rng.permutation(["step"] * 8 + ["checkpoint"] * 5), *["sample"] * 4, *["score"] * 3]
    finish(name, f"long-{name}", epochs)
    folder = place / f"killed-{name}"
    for kill, stage in enumerate(stages, 1):
        times, delay = int(rng.integers(1, MOST[stage] + 1)), rng.uniform(0, SECONDS[stage])
        stop(name, f"killed-{name}", epochs, stage=stage, times=times, seconds=delay)
        steps = sorted(int(p.name) for p in folder.glob("checkpoints/[0-9]*"))
        log = folder / "metrics.jsonl"
        lines = len(log.read_bytes().splitlines()) if log.exists() else 0
        parts = len(list(folder.glob(".samples-*/[0-9]*.npy")))
        print(
            f"{name} kill {kill:2}: {1e3 * delay:3.0f} ms into {stage} {times}; on disk: "
            f"checkpoints {steps}, {lines} lines of metrics, {parts} chunks of samples"
        )
    finish(name, f"killed-{name}", epochs)
    assert_same(folder, place / f"long-{name}", epochs)


@pytest.mark.parametrize(
    ("stage", "number", "words"),
    [
        ("step", signal.SIGTERM, "of 8 is saved; the same command goes on"),
        ("sample", signal.SIGINT, "the samples so far are saved; the same command goes on"),
        ("score", signal.SIGTERM, "finished work is saved; the same command goes on"),
    ],
)
def test_stopped_in_any_stage_it_says_how_to_go_on(stop, place, stage, number, words):
    done = stop("vae", f"stopped-in-{stage}", 2, stage=stage, number=number)
    assert done.returncode == 128 + number
    assert words in " ".join(done.stderr.split())
    parts = list((place / f"stopped-in-{stage}").glob(".samples-*/*.npy"))
    assert bool(parts) == (stage == "sample")
