"""The second average: it follows its recursion, costs nothing when off, and older runs go on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.tiny import cells, method
from helpers.training import equal, run

from bloodjax.training import averages, loop
from bloodjax.training import step as steps
from bloodjax.training.checkpoint import Checkpoints
from bloodjax.training.loop import TrainConfig
from bloodjax.training.step import OptimizerConfig

SHORT, LONG = 0.3, 0.6  # the warm-up reaches them after 3 and 13 steps
SEEDS = (0, 5, 9)


class Pair:
    """Two players of one number each, which differ by seed and follow the mean of the batch."""

    classes = 0

    @staticmethod
    def loss(player, params, stats, batch, key):
        target = batch[0].mean() + 0.5 * params["right"]
        return (params[player] - target) ** 2, ({}, stats)

    losses = {
        "left": lambda *args: Pair.loss("left", *args),
        "right": lambda *args: Pair.loss("right", *args),
    }

    def init(self, key):
        left, right = jax.random.normal(key, (2,))
        return {"left": left, "right": right}, {}


def train(folder, strategy="loop", ema_decay_long=LONG, epochs=6, **changes):
    """Train the pair of each seed for 3 steps an epoch."""
    folder.mkdir(exist_ok=True)
    config = TrainConfig(
        epochs=epochs,
        batch_size=16,
        ema_decay=SHORT,
        ema_decay_long=ema_decay_long,
        strategy=strategy,
        **changes,
    )
    tx = steps.make_optimizer(OptimizerConfig(learning_rate=0.1), 18, ema_decay_long)
    return loop.train(Pair(), tx, cells(), folder, SEEDS, config)


def longer(state):
    return {player: average.ema for player, (_, average) in state.opt.items()}


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_the_second_average_is_the_recursion_over_the_parameters(clip_norm):
    adam = OptimizerConfig(learning_rate=0.1, clip_norm=clip_norm)
    tx = steps.make_optimizer(adam, ema_decay_long=LONG)
    state = steps.init_state(Pair(), tx, jnp.uint32(3))
    recorded = [state.params]
    for n in range(20):
        images = jnp.full((4, 8, 8, 3), np.sin(n))
        state, _ = steps.train_step(Pair(), tx, SHORT, state, (images, None))
        recorded.append(state.params)
    for player in Pair.losses:
        averages = {SHORT: float(recorded[0][player]), LONG: float(recorded[0][player])}
        for n, params in enumerate(recorded[1:]):
            for decay, average in averages.items():
                kept = min(decay, (1 + n) / (10 + n))
                averages[decay] = kept * average + (1 - kept) * float(params[player])
        np.testing.assert_allclose(longer(state)[player], averages[LONG], rtol=1e-5)
        np.testing.assert_allclose(state.ema[player], averages[SHORT], rtol=1e-5)
        assert abs(averages[LONG] - averages[SHORT]) > 1e-3


def test_the_training_itself_does_not_change(tmp_path):
    with_second, without = train(tmp_path / "a"), train(tmp_path / "b", ema_decay_long=0.0)
    for field in ("params", "ema", "stats", "step"):
        equal(getattr(with_second, field), getattr(without, field))
    equal({p: adam for p, (adam, _) in with_second.opt.items()}, without.opt)


def test_without_a_second_average_the_optimizer_is_adam_alone():
    state = steps.init_state(Pair(), steps.make_optimizer(OptimizerConfig()), jnp.uint32(0))
    adam = optax.adam(1e-3)
    equal(state.opt, {player: adam.init(state.params[player]) for player in Pair.losses})


@pytest.mark.parametrize("strategy", ["vmap", "map", "sharded", "sharded-vmap", "sharded-map"])
def test_every_strategy_keeps_the_average_of_each_seed(strategy, tmp_path):
    alone, spread = train(tmp_path / "loop"), train(tmp_path / "spread", strategy)
    assert len(np.unique(longer(alone)["left"])) == len(SEEDS)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_scanned_steps_and_a_resumed_run_have_the_same_average(tmp_path):
    straight = train(tmp_path / "straight")
    train(tmp_path / "resumed", epochs=2)
    equal(straight, train(tmp_path / "resumed"))
    scanned = train(tmp_path / "scanned", scan_steps=2)
    for player, average in longer(scanned).items():
        np.testing.assert_allclose(average, longer(straight)[player], rtol=1e-5)


def test_an_average_that_cannot_differ_is_pointed_out(tmp_path, capsys):
    train(tmp_path / "a")
    assert "ema_long" not in capsys.readouterr().err
    state = train(tmp_path / "b", epochs=1)  # the warm-up of 3 steps allows 3 / 12
    assert "ema_long equals ema in 3 steps: choose a train.ema_decay below 0.25" in (
        capsys.readouterr().err
    )
    equal(longer(state), state.ema)


def test_a_longer_average_with_a_short_memory_is_not_called_equal(capsys):
    averages.report_equal_averages(0.9999, 0.5, 100)
    averages.report_equal_averages(0.9999, 0.0, 100)
    assert capsys.readouterr().err == ""


class OlderState(NamedTuple):
    """The fields of a checkpoint from before the second average."""

    seed: Any
    step: Any
    params: Any
    stats: Any
    ema: Any
    opt: Any


def test_a_checkpoint_from_before_the_second_average_is_gone_on_with(tmp_path):
    straight = run(tmp_path / "straight")
    newer = run(tmp_path / "half", epochs=1)
    adam = optax.adam(1e-3)
    opt = {player: jax.vmap(adam.init)(params) for player, params in newer.params.items()}
    assert jax.tree.structure(opt) == jax.tree.structure(newer.opt)
    older = OlderState(*newer._replace(opt=jax.tree.map(lambda _, x: x, opt, newer.opt)))
    (tmp_path / "older").mkdir()
    Checkpoints(tmp_path / "older" / "checkpoints").save(3, older)
    tx = steps.make_optimizer(OptimizerConfig())
    equal(newer, loop.restore(method(), tx, tmp_path / "older", seeds=(0,)))
    equal(straight, run(tmp_path / "older"))
