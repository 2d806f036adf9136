"""Sweeps: every strategy trains each seed as if it were alone, and the fastest one is found."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sampling import OPTIONS
from helpers.tiny import NAMES, SMALL, cells

from bloodjax import methods
from bloodjax.features.bloodnet import extractor as bloodnet
from bloodjax.sampling import draw as sample
from bloodjax.training import autotune, loop, step, strategies
from bloodjax.training.step import OptimizerConfig

ROOT = Path(__file__).parents[2]
SHAPES = {"gan": (16, 16, 3)}  # at 8×8 the discriminator has no BatchNorm
CHANGES = {"ddpm": {"widths": (8,)}, "edm": {"widths": (8,)}}  # a third of the time to compile
SETTINGS = {"epochs": 1, "batch_size": 8, "ema_decay": 0.9, "checkpoint_epochs": 100}


def small(name):
    options = SMALL[name] | CHANGES.get(name, {})
    return methods.make(name, shape=SHAPES.get(name, (8, 8, 3)), classes=2, **options)


def data(name):
    some = cells()
    if name not in SHAPES:
        return some
    images = some.images.repeat(2, axis=1).repeat(2, axis=2)
    return type(some)(images, some.labels, some.classes, some.name, some.digest)


def advance(name, most=1):
    tx = step.make_optimizer(OptimizerConfig())
    return step.make_advance(small(name), tx, 0.9, False, most)


def sweep_of(name, strategy, seeds, batch, most=1):
    return strategies.make_program(strategy, advance(name, most), seeds, batch)


@functools.cache
def start(name, seeds, batch):
    """What a first dispatch gets, on the host."""
    state = step.init_states(small(name), step.make_optimizer(OptimizerConfig()), seeds)
    orders = [step.epoch_order(np.uint32(seed), 0, 40, batch) for seed in seeds]
    return state, np.stack(orders), (data(name).images, data(name).labels)


def arguments(program, name, seeds, batch):
    state, orders, shared = start(name, tuple(seeds), batch)
    return [
        program.put(state),
        program.put(orders, None, "data"),
        *(program.put_shared(x) for x in shared),
    ]


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(folder, name, seeds, **changes):
    folder.mkdir(exist_ok=True)
    config = loop.TrainConfig(**(SETTINGS | changes))
    tx = step.make_optimizer(step.OptimizerConfig())
    return loop.train(small(name), tx, data(name), folder, seeds=seeds, config=config)


# ---- each seed as if alone ----


@functools.cache
def fifty_steps(name, strategy, seeds):
    """The last state and the losses, float [seeds, 50] each."""
    program = sweep_of(name, strategy, len(seeds), 8)
    state, orders, *shared = arguments(program, name, seeds, 8)
    chunks = []
    for _ in range(50):
        state, terms = program(1, state, orders, *shared)
        chunks.append(program.fetch(terms))
    losses = [k for k in chunks[0] if k.endswith("_loss")]
    return program.fetch(state), {k: np.concatenate([c[k] for c in chunks], 1) for k in losses}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", strategies.STRATEGIES[:4])
@pytest.mark.parametrize("name", methods.names())
def test_a_seed_of_a_sweep_is_the_lone_run(name, strategy):
    alone, expected = fifty_steps(name, "loop", (7,))
    state, losses = fifty_steps(name, strategy, (3, 7))
    assert list(losses) == [f"{player}_loss" for player in small(name).losses]
    for loss, curves in losses.items():
        assert curves.shape == (2, 50)
        np.testing.assert_allclose(curves[1], expected[loss][0], rtol=1e-4)
        assert not np.allclose(curves[0], expected[loss][0], rtol=1e-4)
    if strategy == "loop":
        equal(jax.tree.map(lambda x: x[1:], state), alone)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_every_strategy_takes_the_same_steps(strategy):
    """A step that is a sum, by hand; sharded-vmap and sharded-map are not run above."""

    def count(length, state, order, images):
        return {"n": state["n"] + images[order[0]].sum()}, {"m": jnp.full(4, state["n"])}

    program = strategies.make_program(strategy, count, 3, 2)
    images, orders = np.arange(10), np.array([[[0, 1]], [[2, 3]], [[4, 9]]])
    state = program.put({"n": np.array([10, 20, 30])})
    state, terms = program(4, state, program.put(orders, None, "data"), program.put_shared(images))
    equal(program.fetch(state), {"n": np.array([11, 25, 43])})
    equal(program.fetch(terms), {"m": np.array([[10] * 4, [20] * 4, [30] * 4])})


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
def test_one_program_takes_any_number_of_steps(strategy, caplog):
    """A step that adds the sum of its batch, against sums by NumPy."""

    def add(state, batch):
        images, _ = batch
        return state._replace(step=state.step + 1, params=state.params + images.sum()), {
            "sum": state.params
        }

    images, labels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * 20, np.zeros(12, int)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(12), (3, 1)), axis=1)
    orders = orders.reshape(3, 6, 2).astype(np.int32)
    program = strategies.make_program(strategy, functools.partial(step.advance, add, 4), 3, 2)
    zeros = {name: np.zeros(3, np.float32) for name in step.State._fields}
    state = program.put(step.State(**zeros | {"step": np.zeros(3, np.int32)}))
    order, shared = program.put(orders, None, "data"), [*map(program.put_shared, (images, labels))]
    sums = []
    for length in (3, 1, 2):
        with jax.log_compiles(length < 3):
            state, terms = program(length, state, order, *shared)
        sums.append(program.fetch(terms)["sum"][:, :length])
    steps = (images.squeeze()[orders] / 127.5 - 1).sum(2)
    before = np.cumsum(steps, axis=1) - steps
    np.testing.assert_allclose(np.concatenate(sums, 1), before, rtol=1e-5, atol=1e-5)
    assert not [record for record in caplog.records if "Compiling" in record.message]
    assert program.fetch(state).step.tolist() == [6, 6, 6]


# ---- where seeds and batches go ----


@pytest.mark.parametrize(
    ("seeds", "batch", "devices", "expected"),
    [
        (1, 128, 1, (1, 1)),
        (5, 128, 1, (1, 1)),
        (1, 128, 8, (1, 8)),  # one seed: its batch over all
        (2, 128, 8, (2, 4)),
        (3, 128, 8, (4, 2)),  # one idle row rather than two seeds on one device
        (5, 128, 8, (8, 1)),
        (8, 128, 8, (8, 1)),
        (10, 128, 8, (8, 1)),  # two rounds
        (12, 128, 4, (4, 1)),
        (4, 128, 6, (6, 1)),
        (1, 12, 8, (1, 6)),  # the most that divide the batch
        (1, 7, 4, (1, 1)),
        (2, 100, 16, (2, 5)),
    ],
)
def test_seeds_go_first_and_what_is_left_divides_the_batch(seeds, batch, devices, expected):
    assert strategies.mesh_shape(seeds, batch, devices) == expected


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/training/eight_devices.py",
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# ---- which strategy ----


def choose(file, strategy, monkeypatch=None, times=None):
    program_of = lambda *rest: autotune.choose_program(strategy, advance("vae"), file, 1, *rest)  # noqa: E731
    if times:
        rows = [{"strategy": k, "ms_per_step": v, "compile_s": 1.0} for k, v in times.items()]
        monkeypatch.setattr(autotune, "measure", lambda *_: rows)
    return program_of(*start("vae", (0, 1), 8))


def test_one_cpu_loops_and_measures_nothing(tmp_path, capsys):
    assert isinstance(choose(tmp_path / "s.json", "auto"), strategies.Loop)
    record = json.loads((tmp_path / "s.json").read_text())
    assert (record["strategy"], record["measured"]) == ("loop", [])
    assert (record["backend"], record["devices"], record["seeds"]) == ("cpu", 1, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("backend", "devices", "seeds", "expected"),
    [
        ("cpu", 1, 5, ["loop"]),
        ("cpu", 8, 5, ["loop", "sharded"]),
        ("cpu", 8, 10, ["loop", "sharded"]),
        ("gpu", 1, 1, ["loop"]),
        ("gpu", 1, 5, ["loop", "vmap", "map", "sharded"]),
        ("gpu", 8, 1, ["loop", "sharded"]),
        ("gpu", 8, 5, ["loop", "sharded"]),
        ("gpu", 8, 10, ["loop", "sharded", "sharded-vmap", "sharded-map"]),
    ],
)
def test_only_what_makes_sense_is_tried(backend, devices, seeds, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert list(autotune.candidates(seeds, 128)) == expected


def test_measuring_times_each_and_leaves_everything_as_it_was():
    state, orders, shared = start("vae", (0, 1), 8)
    before = jax.tree.map(np.copy, (state, orders, shared))
    programs = {name: sweep_of("vae", name, 2, 8) for name in ("loop", "sharded")}
    rows = autotune.measure(programs, 1, state, orders, shared)
    equal((state, orders, shared), before)
    assert [row["strategy"] for row in rows] == ["loop", "sharded"]
    assert all(row["ms_per_step"] > 0 and row["compile_s"] > 0 for row in rows)


def test_the_fastest_is_taken_and_taken_again(tmp_path, monkeypatch, capsys):
    file = tmp_path / "s.json"
    program = choose(file, "loop,vmap,sharded", monkeypatch, {"loop": 9.0, "vmap": 3, "sharded": 4})
    assert isinstance(program, strategies.Batched)
    record = json.loads(file.read_text())
    assert record["strategy"] == "vmap"
    assert [row["ms_per_step"] for row in record["measured"]] == [9.0, 3, 4]
    assert "vmap" in capsys.readouterr().err
    times = {"loop": 1.0, "vmap": 3, "sharded": 4}
    assert isinstance(choose(file, "loop,vmap,sharded", monkeypatch, times), strategies.Batched)
    assert json.loads(file.read_text()) == record and capsys.readouterr().err == ""


def test_no_strategy_is_compiled_after_the_time_is_over(monkeypatch, capsys):
    monkeypatch.setattr(autotune, "SECONDS", 0)
    programs = {name: sweep_of("vae", name, 2, 8) for name in ("loop", "vmap")}
    rows = autotune.measure(programs, 1, *start("vae", (0, 1), 8))
    assert [row["strategy"] for row in rows] == ["loop"]
    assert not programs["vmap"].is_compiled
    assert "vmap is not tried: 0 s are over" in capsys.readouterr().err


def test_process_0_decides_whether_the_time_is_over(monkeypatch):
    monkeypatch.setattr(autotune.processes, "broadcast_from_main", lambda make, like: like)
    assert not autotune.is_over(-1e9), "the clock of another process does not count"


@pytest.mark.parametrize(("length", "timed"), [(134, 8), (2, 2)])
def test_an_epoch_in_a_dispatch_is_not_an_epoch_to_time(tmp_path, monkeypatch, length, timed):
    seen = []

    def measure(programs, length, *_):
        seen.append(length)
        return [{"strategy": name, "ms_per_step": 1.0, "compile_s": 1.0} for name in programs]

    monkeypatch.setattr(autotune, "measure", measure)
    arguments = start("vae", (0, 1), 8)
    autotune.choose_program("loop,vmap", advance("vae"), tmp_path / "s.json", length, *arguments)
    assert seen == [timed]


@pytest.mark.parametrize(("key", "value"), [("devices", 8), ("backend", "gpu"), ("seeds", 3)])
def test_on_another_machine_it_is_measured_again(tmp_path, monkeypatch, capsys, key, value):
    file = tmp_path / "s.json"
    choose(file, "loop,vmap", monkeypatch, {"loop": 2.0, "vmap": 1.0})
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    program = choose(file, "loop,vmap", monkeypatch, {"loop": 1.0, "vmap": 2.0})
    assert isinstance(program, strategies.Loop)
    assert f"{key} was {value}" in capsys.readouterr().err
    assert json.loads(file.read_text())["strategy"] == "loop"


class Broken(strategies.Loop):
    def __call__(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_what_does_not_run_here_is_not_taken(capsys):
    programs = {"vmap": Broken(advance("vae")), "loop": sweep_of("vae", "loop", 2, 8)}
    rows = autotune.measure(programs, 1, *start("vae", (0, 1), 8))
    assert [row["strategy"] for row in rows] == ["loop"]
    assert "vmap does not run here: RESOURCE_EXHAUSTED" in capsys.readouterr().err


def test_a_run_is_not_changed_by_what_was_timed(tmp_path, monkeypatch):
    measure = autotune.measure

    def prefer_sharded(*rest):
        return [row | {"ms_per_step": len(row["strategy"]) < 5} for row in measure(*rest)]

    monkeypatch.setattr(autotune, "measure", prefer_sharded)
    timed = run(tmp_path / "timed", "vae", seeds=(0, 1), strategy="loop,sharded")
    assert json.loads((tmp_path / "timed" / "strategy.json").read_text())["strategy"] == "sharded"
    equal(timed, run(tmp_path / "straight", "vae", seeds=(0, 1), strategy="sharded"))


@pytest.mark.parametrize("strategy", ["", "lop", "loop,", "auto,loop", "pmap"])
def test_a_strategy_that_there_is_not_is_refused(strategy):
    with pytest.raises(ValueError, match="train.strategy=.*expected auto, one of loop, vmap"):
        loop.TrainConfig(strategy=strategy)
    loop.TrainConfig(strategy="loop, sharded-map")


# ---- a GPU is never the first to see a program ----


def exported(jitted, *arguments):
    """`jitted` lowered for an NVIDIA GPU, as far as that can be checked without one."""
    return jax.export.export(jitted, platforms=["cuda"])(*arguments)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES[:4])
@pytest.mark.parametrize("name", NAMES)
def test_sweeps_can_be_made_for_cuda(name, strategy):
    program = sweep_of(name, strategy, 2, 8, most=5)
    state, orders, *shared = arguments(program, name, (0, 1), 8)
    if strategy == "loop":
        state, orders = state[0], orders[0]
    assert exported(program.compiled, np.int32(5), state, orders, *shared).platforms == ("cuda",)


def initialiser(name):
    init = functools.partial(step.init_state, small(name), step.make_optimizer(OptimizerConfig()))
    return jax.jit(jax.vmap(init)), [np.zeros(2, np.uint32)]


def sampler(name):
    method = small(name)
    draw = functools.partial(method.sample, **OPTIONS.get(name, {}))
    params, stats = jax.eval_shape(method.init, jax.random.key(0))
    draw_part = functools.partial(sample.draw_images, draw, method.classes > 0)
    return strategies.spread_over_devices(draw_part, "XLA"), [
        params,
        stats,
        np.uint32(0),
        np.arange(4),
        np.zeros(4, np.int32),
    ]


def tracer(name):
    method, (_, given) = small(name), sampler(name)
    trace = functools.partial(method.trace, **OPTIONS.get(name, {}))
    return jax.jit(functools.partial(sample.draw_images, trace, method.classes > 0)), given


@pytest.mark.parametrize("program", [initialiser, sampler, tracer])
@pytest.mark.parametrize("name", methods.names())
def test_what_surrounds_training_can_be_made_for_cuda(name, program):
    jitted, given = program(name)
    assert exported(jitted, *given).platforms == ("cuda",)


def order():
    shuffle = functools.partial(step.epoch_order, count=40, batch_size=8)
    return jax.jit(jax.vmap(shuffle, in_axes=(0, None))), [np.zeros(2, np.uint32), 3]


def bloodnet_forward():
    _, params = bloodnet.read(bloodnet.WEIGHTS)
    return bloodnet.forward, [params, np.zeros((2, 64, 64, 3), np.uint8)]


@pytest.mark.parametrize("program", [order, bloodnet_forward])
def test_the_rest_can_be_made_for_cuda(program):
    jitted, given = program()
    assert exported(jitted, *given).platforms == ("cuda",)
