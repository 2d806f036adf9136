"""Several processes: real ones, that find each other on this machine, against one process."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from bloodjax import methods
from bloodjax.runtime import processes as hosts
from bloodjax.scoring import score
from bloodjax.scoring.score import ScoreConfig
from bloodjax.training import autotune, checkpoint, loop
from bloodjax.training.step import OptimizerConfig, make_optimizer

ROOT = Path(__file__).parents[2]
SMALL = {  # tiny, and with few steps where a unit may be on either side of its kink: a few such
    # units, which rounding decides, and the parameters are 1e-4 apart, also on one machine
    "gan": [
        "--config.method.width=4",
        "--config.method.discriminator_width=4",
        "--config.train.batch_size=200",
        "--config.optimizer.learning_rate=0.02",
        "--config.seeds=3",
    ],
    "vae": ["--config.method.width=4", "--config.train.batch_size=64"],
}
SHORT = [
    "--config.train.epochs=2",
    "--config.sample.count=30",
    "--config.sample.chunk=2",
    "--config.score.count=30",
    "--config.score.draws=1",
]
DEAD = 60  # seconds in which the others must have noticed, from when the dead one is gone
HUNG = 240  # seconds after which a test gives up


@pytest.fixture(scope="module")
def start(cells, tmp_path_factory):
    """Starts launch.py with so many fake devices; what still runs at the end is killed."""
    cache, running = tmp_path_factory.mktemp("xla"), []

    def one(name, folder, *arguments, devices, found=(), stop=None):
        command = [
            sys.executable,
            *(["tests/helpers/stop_itself.py", stop] if stop else ["launch.py"]),
        ]
        command += [f"--config=configs/{name}.py:quick", *SMALL[name], *SHORT]
        command += [f"--config.data.path={cells}", f"--workdir={folder}", *arguments]
        flags = f"--xla_force_host_platform_device_count={devices}"
        own = {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "COLUMNS": "200",
        }
        with (cache / f"{len(running)}.log").open("wb") as said:
            environment = os.environ | own | dict(found)
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=said, stdout=subprocess.DEVNULL
            )
        process.log = Path(said.name)
        running.append(process)
        return process

    yield one
    for process in running:
        process.kill()
        process.wait()


def free_port():
    """Pick a port below the ephemeral range, so that no other process takes it."""
    for port in map(int, np.random.default_rng().permutation(np.arange(20_000, 32_000))):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


@pytest.fixture
def alone(start):
    """One process with eight devices, running the program that two with four run."""
    return lambda *run: start(*run, "--config.train.strategy=sharded", devices=8)


@pytest.fixture
def pair(start):
    """Two processes with four devices each, told of each other."""

    def both(*run, last=((), ())):
        where = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
        flags = [(*run, *where, f"--process_id={i}", *last[i]) for i in (0, 1)]
        return [start(*each, devices=4) for each in flags]

    return both


@pytest.fixture
def slurm(start):
    """Two processes that JAX finds by what SLURM would tell them; the port comes from the job.

    `stop` is when the second is to stop itself, as stop_itself.py takes it.
    """

    def both(*run, stop=None):
        step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
        job = {**step, "SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": str(free_port())}
        found = [{**job, "SLURM_PROCID": str(i)} for i in (0, 1)]
        stops = None, stop
        return [start(*run, devices=4, found=found[i], stop=stops[i]) for i in (0, 1)]

    return both


def ended(process, seconds=HUNG):
    """The exit code and what it said."""
    process.wait(seconds)
    return process.returncode, process.log.read_text()


def succeed(*processes):
    """What each said."""
    codes, said = zip(*map(ended, processes), strict=True)
    assert set(codes) == {0}, "\n\n".join(said)
    return said


def state(folder, seeds):
    config = json.loads((folder / "config.json").read_text())["config"]
    method = methods.make(shape=(28, 28, 3), **config["method"])
    tx = make_optimizer(OptimizerConfig(**config["optimizer"]))
    return loop.restore(method, tx, folder, seeds=seeds)


def check_alike(one, two, seeds, steps):
    """Parameters to 1e-5, images to a grey level, scores to 1e-4, and nothing written twice."""
    a, b = (state(folder, seeds) for folder in (one, two))
    assert a.step.tolist() == b.step.tolist() == [steps] * len(seeds)
    x, y = (
        np.concatenate([x.ravel() for x in jax.tree.leaves((s.params, s.stats))]) for s in (a, b)
    )
    assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x)
    with np.load(one / "samples.npz") as x, np.load(two / "samples.npz") as y:
        assert x["images"].shape == y["images"].shape == (len(seeds), 30, 28, 28, 3)
        assert x["images"].std() > 1
        for key in ("images", "trace"):
            np.testing.assert_allclose(x[key].astype(int), y[key], atol=1)
    x, y = (json.loads((folder / "scores.json").read_text()) for folder in (one, two))
    assert [s["seed"] for s in x["scores"]] == [s["seed"] for s in y["scores"]] == list(seeds)
    for a, b in zip(x["scores"], y["scores"], strict=True):
        for key in ("value", "floor", "kid"):
            assert b[key] == pytest.approx(a[key], rel=1e-4)
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["seed"]) for m in lines] == [
        (t, s) for t in range(1, steps + 1) for s in seeds
    ]
    x, y = (checkpoint.Checkpoints(folder / "checkpoints") for folder in (one, two))
    assert x.best() == y.best()
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    kept = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (one, two)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_two_processes_are_as_one(alone, pair, tmp_path):
    """A DCGAN of one seed: every batch, with its BatchNorm, is spread over both processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    board = ["--config.log.tensorboard"] if find_spec("tensorboardX") else []
    main, other = succeed(*pair("gan", two, *board))
    succeed(alone("gan", one, *board))
    check_alike(one, two, [3], steps=2)
    assert "2 processes, 8 devices" in main and "report:" in main
    ours = ("processes,", "compiled", "train ", "sample ", "score ", "report:")
    assert not [line for line in other.splitlines() if line.startswith(ours)], "only 0 reports"
    record = json.loads((two / "strategy.json").read_text())
    assert (record["strategy"], record["devices"], record["processes"]) == ("sharded", 8, 2)
    assert [p.parent.name for p in two.glob("*/*/*tfevents*")] == ["seed3"] * len(board)


@pytest.mark.slow
def test_stopped_or_killed_it_goes_on_where_it_was(alone, slurm, tmp_path):
    """Three seeds of the VAE, each process with its own ones, found as under SLURM."""
    one, two, seeds = tmp_path / "one", tmp_path / "two", [4, 2, 9]
    run = ["--config.seeds=4,2,9", "--config.train.epochs=3"]
    run += ["--config.train.evaluate_count=20", "--config.sample.checkpoint=best"]

    # A signal that reaches one of them stops both after the same step.
    stopped = slurm("vae", two, *run, stop=f"step:6:0:{int(signal.SIGTERM)}")
    assert [ended(process)[0] for process in stopped] == [143, 143]
    done = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert sorted(done) == sorted([*range(1, 7)] * 3)
    assert (two / "checkpoints" / "6").exists()

    # Killed, it ends the other with an error, which does not wait for ever.
    killed = slurm("vae", two, *run, stop=f"step:4:0:{int(signal.SIGKILL)}")
    assert ended(killed[1])[0] == -signal.SIGKILL
    code, said = ended(killed[0], DEAD)
    assert code not in (0, 143), said
    assert (two / "checkpoints" / "8").exists() and not (two / "checkpoints" / "12").exists()

    succeed(*slurm("vae", two, *run))
    succeed(alone("vae", one, *run))
    check_alike(one, two, seeds, steps=12)


def test_processes_that_were_started_differently_refuse(pair, tmp_path):
    rates = ((), ("--config.optimizer.learning_rate=0.5",))
    for process in pair("gan", tmp_path / "run", last=rates):
        code, said = ended(process)
        assert code == 1
        assert "processes [1] have another configuration than process 0" in said
    assert not (tmp_path / "run").exists()


# ---- with one process ----


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, ""),
        ({"SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "2"}, "SLURM"),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, ""),  # a batch script without srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "x"}, ""),  # any pod
    ],
)
def test_what_started_this_process_is_known(environment, name):
    assert hosts.cluster(environment) == name


@pytest.mark.parametrize(
    "given", [("x:1", None, None), (None, 2, 0), ("x:1", 2, 2), ("x:1", 2, -1), (None, None, 0)]
)
def test_half_of_the_flags_are_refused(given):
    with pytest.raises(ValueError, match="--process_id=.*expected HOST:PORT"):
        hosts.initialize(*given)


def test_num_processes_1_is_alone_whatever_started_it(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    hosts.initialize(None, 1, None)
    assert (hosts.count(), hosts.is_main()) == (1, True)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("main", [True, False])
def test_process_0_goes_first_and_never_keeps_the_others_waiting(monkeypatch, main, fails):
    done = []

    def make():
        done.append("make")
        return 1 / (not fails)

    monkeypatch.setattr(hosts, "is_main", lambda: main)
    monkeypatch.setattr(hosts, "barrier", lambda: done.append("barrier"))
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        assert hosts.main_first(make) == 1
    assert done == (["make", "barrier"] if main else ["barrier", "make"])


def test_feature_spaces_are_compared_before_any_work(monkeypatch):
    compared = []
    monkeypatch.setattr(hosts, "require_equal", lambda *arguments: compared.append(arguments))
    assert score.keep_available(ScoreConfig()) == ScoreConfig()
    ((what, ((name, *_),)),) = compared
    assert (what, name) == ("feature spaces", "bloodnet")


def test_several_processes_have_only_the_strategies_of_all_devices(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert autotune.candidates(1, 128) == ("sharded",)
    assert autotune.parse_strategies("sharded,sharded-map") == ("sharded", "sharded-map")
    for strategy in ("loop", "sharded,vmap"):
        with pytest.raises(
            ValueError, match="2 processes, expected auto, or one or several of sharded, "
        ):
            autotune.parse_strategies(strategy)
