"""Training: the step, the order of the images, and runs that stop and go on."""

import functools
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import NAMES, cells, method
from helpers.training import equal, lines, run, timeless

from bloodjax.images import to_float
from bloodjax.training import log as metrics
from bloodjax.training import loop
from bloodjax.training import step as steps
from bloodjax.training.checkpoint import Checkpoints
from bloodjax.training.step import OptimizerConfig

ADAM = steps.make_optimizer(OptimizerConfig())


def test_an_epoch_shows_every_image_and_fills_up_from_its_own_start():
    order = np.asarray(steps.epoch_order(jnp.uint32(3), 1, 40, 16))
    assert order.shape == (3, 16)
    flat = order.ravel()
    assert sorted(flat[:40]) == list(range(40))
    np.testing.assert_array_equal(flat[40:], flat[:8])
    same = steps.epoch_order(jnp.uint32(3), 1, 40, 16)
    np.testing.assert_array_equal(order, same)
    for other in (steps.epoch_order(jnp.uint32(3), 2, 40, 16), steps.epoch_order(4, 1, 40, 16)):
        assert not np.array_equal(order, other)


def test_a_batch_larger_than_the_data_repeats_the_permutation():
    order = np.asarray(steps.epoch_order(jnp.uint32(0), 0, 5, 12))
    assert order.shape == (1, 12)
    assert np.bincount(order.ravel()).tolist().count(2) == 3  # 12 = 5 + 5 + 2


class Line:
    """A method of one number: the loss (w - mean of the batch)² has a known Adam step."""

    losses = {"line": lambda params, stats, batch, key: Line.loss(params, stats, batch)}

    @staticmethod
    def loss(params, stats, batch):
        return (params["line"] - batch[0].mean()) ** 2, ({}, stats)

    def init(self, key):
        return {"line": jnp.float32(0.5)}, {}


def test_one_step_is_adam_and_the_average_by_hand():
    tx = steps.make_optimizer(OptimizerConfig(learning_rate=1e-2, beta1=0.9, beta2=0.999))
    images = jnp.asarray(cells().images[:16])
    state = steps.init_state(Line(), tx, jnp.uint32(0))
    step = functools.partial(steps.train_step, Line(), tx, 0.998)
    w, m, v, ema = 0.5, 0.0, 0.0, 0.5
    target = float(to_float(images).mean())
    for t in range(1, 6):
        state, terms = step(state, (to_float(images), None))
        np.testing.assert_allclose(terms["line_loss"], (w - target) ** 2, rtol=1e-5)
        grad = 2 * (w - target)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        w -= 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        decay = min(0.998, t / (t + 9))  # (1 + step) / (10 + step), steps counted from 0
        ema = decay * ema + (1 - decay) * w
        np.testing.assert_allclose(state.params["line"], w, rtol=1e-5)
        np.testing.assert_allclose(state.ema["line"], ema, rtol=1e-5)
    assert int(state.step) == 5


def test_the_learning_rate_warms_up_and_decays():
    """Adam's first step on a constant gradient has the size of the learning rate."""
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=4, decay="cosine")
    tx = steps.make_optimizer(config, 12)
    state, sizes = tx.init(jnp.zeros(1)), []
    for _ in range(13):
        update, state = tx.update(jnp.ones(1), state)
        sizes.append(-float(update[0]))
    np.testing.assert_allclose(sizes[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-4)
    cosine = [0.1 * (1 + np.cos(np.pi * n / 8)) / 2 for n in range(9)]
    np.testing.assert_allclose(sizes[4:], cosine, rtol=1e-4, atol=1e-7)
    kept = steps.make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=1))
    state = kept.init(jnp.zeros(1))
    sizes = []
    for _ in range(3):
        update, state = kept.update(jnp.ones(1), state)
        sizes.append(-float(update[0]))
    np.testing.assert_allclose(sizes, [0, 0.1, 0.1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("total", [0, 3, 4])
def test_a_training_may_be_shorter_than_its_warm_up(total):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=4, decay="cosine")
    tx = steps.make_optimizer(config, total)
    state, sizes = tx.init(jnp.zeros(1)), []
    for _ in range(4):
        update, state = tx.update(jnp.ones(1), state)
        sizes.append(-float(update[0]))
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.075], rtol=1e-4)


def test_gradients_are_clipped_to_a_norm_over_all_parameters():
    tx = steps.make_optimizer(OptimizerConfig(clip_norm=1.0))
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state = tx.update(gradient, tx.init(gradient))
    first_moments = jax.tree.leaves(state[1][0].mu)
    np.testing.assert_allclose(first_moments, [[0.06], [0.08]], rtol=1e-5)  # 0.1 of 0.6 and 0.8


def test_augmented_images_are_all_symmetries_and_labels_stay():
    square = jnp.arange(9.0).reshape(1, 3, 3, 1)
    symmetries = set()
    for turned in (square, square.swapaxes(1, 2)):
        for mirrored in (turned, turned[:, ::-1]):
            symmetries |= {np.asarray(x).tobytes() for x in (mirrored, mirrored[:, :, ::-1])}
    assert len(symmetries) == 8
    state = steps.init_state(Line(), ADAM, jnp.uint32(0))
    images, labels = jnp.repeat(square, 400, axis=0), jnp.arange(400)
    batches = [
        steps.augmented_step(lambda state, batch: batch, state._replace(step=n), (images, labels))
        for n in (0, 1)
    ]
    counts = {}
    for image in np.asarray(batches[0][0]):
        counts[image.tobytes()] = counts.get(image.tobytes(), 0) + 1
    assert set(counts) == symmetries and min(counts.values()) > 25, "50 of each are expected"
    np.testing.assert_array_equal(batches[0][1], labels)
    assert not np.array_equal(batches[0][0], batches[1][0]), "another step, other symmetries"
    wide = jnp.arange(6.0).reshape(1, 2, 3, 1)
    shown, _ = steps.augmented_step(
        lambda state, batch: batch, state, (jnp.repeat(wide, 100, axis=0), labels[:100])
    )
    assert len({image.tobytes() for image in np.asarray(shown)}) == 4


def test_a_resumed_run_with_augmentation_and_decay_is_bitwise_the_straight_one(tmp_path):
    settings = {"augment": True, "optimizer": {"warmup_steps": 2, "clip_norm": 1.0}}
    straight = run(tmp_path / "straight", **settings)
    run(tmp_path / "resumed", epochs=1, **settings)
    equal(straight, run(tmp_path / "resumed", **settings))
    plain = run(tmp_path / "plain", optimizer=settings["optimizer"])
    assert not np.array_equal(*(jax.tree.leaves(x.params)[1] for x in (straight, plain)))


def test_golden_step():
    """One step of a fixed VAE on fixed images, to notice when numbers move.

    If a change to initialisation, randomness, loss or optimizer is meant, print the new values with
    this test and say in the commit that earlier results cannot be had again.
    """
    tx = steps.make_optimizer(OptimizerConfig())
    state = steps.init_state(method(), tx, jnp.uint32(7))
    batch = (to_float(jnp.asarray(cells().images[:16])), jnp.zeros(16, jnp.int32))
    state, terms = jax.jit(functools.partial(steps.train_step, method(), tx, 0.9))(state, batch)
    found = {name: float(value) for name, value in terms.items()}
    leaves = jax.tree.leaves(state.params)
    found["params"] = float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in leaves)))
    assert found == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = {
    "kl_nats": 0.023371,
    "kl_per_dim": 0.005843,
    "reconstruction_nats": 718.319519,
    "reconstruction_per_dim": 3.741248,
    "vae_loss": 718.342896,
    "params": 11.245794,
}


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_bitwise_the_straight_run(name, tmp_path):
    straight = run(tmp_path / "straight", name, seeds=(0, 5))
    run(tmp_path / "resumed", name, seeds=(0, 5), epochs=1)
    resumed = run(tmp_path / "resumed", name, seeds=(0, 5))
    equal(straight, resumed)
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "resumed")
    assert [(r["step"], r["seed"]) for r in lines(tmp_path / "resumed")] == [
        (step, seed) for step in range(1, 7) for seed in (0, 5)
    ]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    equal(first, run(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_seed_of_a_sweep_is_the_lone_run(tmp_path):
    both, alone = run(tmp_path / "both", seeds=(3, 8)), run(tmp_path / "alone", seeds=(8,))
    equal(jax.tree.map(lambda x: x[1:], both), alone)
    own = [row for row in timeless(tmp_path / "both") if row["seed"] == 8]
    assert own == timeless(tmp_path / "alone")


def test_scanned_steps_are_the_same_steps(tmp_path):
    one, scanned = run(tmp_path / "one"), run(tmp_path / "scanned", scan_steps=2)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert [r["step"] for r in lines(tmp_path / "scanned")] == [1, 2, 3, 4, 5, 6]
    a, b = lines(tmp_path / "one"), lines(tmp_path / "scanned")
    assert [r["vae_loss"] for r in a] == pytest.approx([r["vae_loss"] for r in b], rel=1e-3)


def test_without_an_average_sampling_uses_the_parameters(tmp_path):
    state = run(tmp_path, ema_decay=0.0)
    equal(state.params, state.ema)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_in_mid_epoch_and_the_run_goes_on_bitwise(tmp_path, monkeypatch, number):
    straight = run(tmp_path / "straight", batch_size=8)
    record = metrics.Log.record

    def record_and_kill(log, begin, *rest):
        if begin == 2:  # the third step of five
            os.kill(os.getpid(), number)
        return record(log, begin, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Log, "record", record_and_kill)
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "stopped", batch_size=8)
    assert stop.value.code == 128 + number
    assert Checkpoints(tmp_path / "stopped" / "checkpoints").steps()[-1] % 5 != 0
    equal(straight, run(tmp_path / "stopped", batch_size=8))
    assert [r["step"] for r in lines(tmp_path / "stopped")] == list(range(1, 11))


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    straight = run(tmp_path / "run")
    before = lines(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "6" / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoints/6 is damaged .*--mode=train makes it again"):
        loop.restore(method(), ADAM, tmp_path / "run", seeds=(0,))
    capsys.readouterr()
    equal(straight, run(tmp_path / "run"))
    assert "training goes on from step 3 of 6" in capsys.readouterr().err
    assert [r["vae_loss"] for r in lines(tmp_path / "run")] == [r["vae_loss"] for r in before]
    equal(straight, loop.restore(method(), ADAM, tmp_path / "run", seeds=(0,)))


def test_images_per_second_are_of_training_alone(tmp_path, monkeypatch, capsys):
    clock, shown = [100.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def passes(seconds, result=None):
        clock[0] += seconds
        return result

    chunk = {"a_loss": np.zeros((2, 3))}  # two seeds, three steps: 96 images
    with (tmp_path / "metrics.jsonl").open("a") as file:
        log = metrics.Log(file, (0, 1), 3, 16, lambda *args: shown.append(args), lambda x: x)
        log.record_compilation(passes(30, 30.0))
        passes(4)
        log.record(0, 3, chunk)
        passes(2)
        log.record(3, 3, chunk)  # writes the first: 96 images in 6 s
        passes(8)
        found = log.untimed(passes, 50, {"name": "fd", "values": [3.5, 4.5]})
        log.flush(found)  # writes the second: in 8 s
    rows = lines(tmp_path)
    assert [row["images_per_s"] for row in rows] == [16.0] * 6 + [12.0] * 6
    assert [row.get("compile_s") for row in rows] == [30.0] * 6 + [None] * 6
    assert [row.get("fd") for row in rows] == [None] * 10 + [3.5, 4.5], "of the last step"
    assert "training compiled in 30.0 s" in capsys.readouterr().err
    assert [length for length, _ in shown] == [3, 3]


def test_seconds_of_compiling_are_in_the_rows_that_it_came_before(tmp_path):
    run(tmp_path)
    assert ["compile_s" in row for row in lines(tmp_path)] == [True] + [False] * 5


def test_lines_of_a_process_that_died_before_it_saved_are_dropped(tmp_path):
    run(tmp_path, epochs=1)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"seed": 0, "step": 4, "epoch": 1, "vae_loss": 0.0}\n{"seed": 0, "st')
    run(tmp_path)
    assert [r["step"] for r in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(FloatingPointError, match=r"is (nan|inf|-inf) at step \d+ of seed 0.*kept"):
        run(tmp_path, epochs=40, optimizer={"learning_rate": 1e30})
    _, state = Checkpoints(tmp_path / "checkpoints").restore_newest(
        steps.abstract_states(method(), ADAM, (0,))
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_training_that_diverged_is_not_evaluated(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(FloatingPointError, match="of seed 0"):
        run(tmp_path, epochs=40, optimizer={"learning_rate": 1e30}, evaluate=lambda _: 1 / 0)


def test_a_parameter_that_is_not_finite_is_never_saved():
    tx = steps.make_optimizer(OptimizerConfig())
    state = steps.init_state(method(), tx, jnp.uint32(0))
    loop.check_finite(state, 1)
    broken = state._replace(ema=jax.tree.map(lambda x: x * jnp.nan, state.ema))
    with pytest.raises(FloatingPointError, match=r"state\.ema.*not finite after step 9"):
        loop.check_finite(broken, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("ema_decay", 1.0),
        ("checkpoint_epochs", 0),
        ("keep", 0),
        ("scan_steps", -1),
        ("evaluate_count", 1),
    ],
)
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ValueError, match=f"train.{name}={value}: expected "):
        loop.TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", -1.0), ("beta1", 1.5), ("beta2", float("nan"))]
)
def test_numbers_that_adam_cannot_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"optimizer.{name}={value}: expected "):
        OptimizerConfig(**{name: value})


def test_sampling_without_a_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="--mode=train"):
        loop.restore(method(), ADAM, tmp_path, seeds=(0,))


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert len(lines(tmp_path)) == 6
