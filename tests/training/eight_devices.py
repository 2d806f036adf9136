"""What must hold on eight devices; test_strategies.py fakes them in a process of its own."""

import json
import re

import jax
import numpy as np
import pytest
from test_strategies import arguments, equal, exported, start, sweep_of
from test_strategies import run as train_run

from bloodjax import methods
from bloodjax.training import strategies

COLLECTIVES = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
BATCH = 16


def test_there_are_eight():
    assert jax.device_count() == 8


def epoch(program, name, seeds, batch=BATCH):
    """State and losses after an epoch, five steps at the least, and the executable."""
    state, orders, *shared = arguments(program, name, seeds, batch)
    looped = isinstance(program, strategies.Loop)
    first = (state[0], orders[0]) if looped else (state, orders)
    executable = program.compiled.lower(np.int32(1), *first, *shared).compile()
    program.compiled = executable  # not to compile it twice
    losses = []
    for _ in range(5):
        state, metrics = program(1, state, orders, *shared)
        losses.append({k: v for k, v in program.fetch(metrics).items() if k.endswith("_loss")})
    return program.fetch(state), losses, executable


@pytest.fixture(scope="module")
def one_device():
    """The epoch of each of five seeds on one device, made when asked for."""
    made = {}

    def get(name, seeds):
        if name not in made:
            made[name] = epoch(sweep_of(name, "loop", 5, BATCH), name, range(5))
        *results, executable = made[name]
        return *jax.tree.map(lambda x: x[:seeds], results), executable

    return get


def apart(a, b):
    """The distance of two trees relative to the size of the first.

    Not array by array: the gradient of a bias before a normalisation is zero but for rounding, and
    Adam makes steps of full size out of that.
    """
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(a)


# Every method on 4 × 2 devices with a seed to pad; the ends, 1 × 8 and 8 × 1, with the DCGAN, which
# has two players and statistics.
CASES = [*((name, 3) for name in methods.names()), ("gan", 1), ("gan", 5)]


@pytest.mark.parametrize(("name", "seeds"), CASES)
def test_an_epoch_is_that_of_one_device(name, seeds, one_device):
    program = sweep_of(name, "sharded", seeds, BATCH)
    expected, expected_losses, whole = one_device(name, seeds)
    state, losses, executable = epoch(program, name, range(seeds))
    before = start(name, tuple(range(seeds)), BATCH)[0]
    assert apart(expected.params, before.params) > 1e-3, "what does not move shows nothing"
    assert apart(expected.params, state.params) < 1e-5
    assert apart(expected.ema, state.ema) < 1e-5
    assert not expected.stats or apart(expected.stats, state.stats) < 1e-5
    equal((expected.seed, expected.step), (state.seed, state.step))
    for a, b in zip(expected_losses, losses, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)

    # Seeds exchange nothing, nothing is gathered, and work is divided, not done everywhere.
    assert tuple(program.mesh.shape.values()) == {1: (1, 8), 3: (4, 2), 5: (8, 1)}[seeds]
    divided = program.mesh.shape["data"]
    found = set(re.findall(COLLECTIVES, executable.as_text()))
    assert found == (set() if divided == 1 else {"all-reduce"})
    flops = executable.cost_analysis()["flops"] / whole.cost_analysis()["flops"]
    assert flops < 1.3 / divided


def test_a_batch_that_does_not_divide_uses_fewer_devices(capsys):
    program = sweep_of("gan", "sharded", 1, 12)
    assert tuple(program.mesh.shape.values()) == (1, 6)
    assert "6 of 8 devices are used: a batch of 12" in capsys.readouterr().err
    state, *_ = epoch(program, "gan", (0,), 12)
    expected, *_ = epoch(sweep_of("gan", "loop", 1, 12), "gan", (0,), 12)
    assert apart(expected.params, state.params) < 1e-5
    assert apart(expected.stats, state.stats) < 1e-5


@pytest.mark.parametrize(("name", "strategy"), [("gan", "auto"), ("vae", "sharded-vmap")])
def test_a_run_that_goes_on_is_bitwise_the_straight_one(name, strategy, tmp_path, capsys):
    def run(folder, epochs):
        settings = {"seeds": (4, 2, 9), "strategy": strategy, "epochs": epochs}
        return train_run(tmp_path / folder, name, **settings)

    run("resumed", 1)
    record = json.loads((tmp_path / "resumed" / "strategy.json").read_text())
    assert record["devices"] == 8 and record["asked"] == strategy
    said = capsys.readouterr().err
    if strategy == "auto":
        assert [row["strategy"] for row in record["measured"]] == ["loop", "sharded"]
        assert "sharded" in said and "ms a step" in said
    (tmp_path / "straight").mkdir()
    (tmp_path / "straight" / "strategy.json").write_text(json.dumps(record))
    equal(run("straight", 2), run("resumed", 2))
    assert json.loads((tmp_path / "resumed" / "strategy.json").read_text()) == record
    assert "ms a step" not in capsys.readouterr().err


@pytest.mark.parametrize("name", methods.names())
def test_programs_of_eight_devices_can_be_made_for_cuda(name):
    program = sweep_of(name, "sharded", 3, BATCH)
    assert exported(program.compiled, 1, *arguments(program, name, range(3), BATCH)).nr_devices == 8


def test_images_are_spread_over_all_devices():
    draw = strategies.spread_over_devices(
        lambda params, stats, seed, indices, labels: params + seed + indices + labels, "XLA"
    )
    images = draw(np.float32(1), {}, np.uint32(2), np.arange(16), np.zeros(16, np.int32))
    np.testing.assert_array_equal(images, np.arange(16) + 3)
    assert len(images.sharding.device_set) == 8
