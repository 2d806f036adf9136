"""Training: the state, one step of it, and the loop that survives being stopped."""

import functools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from bloodjax import sweep
from bloodjax.checkpoint import Checkpoints
from bloodjax.data import Dataset
from bloodjax.images import to_float
from bloodjax.methods import Batch, Method, Metrics
from bloodjax.progress import console, progress
from bloodjax.randomness import Purpose, key_at
from bloodjax.workdir import trim_metrics


class State(NamedTuple):
    """All that training carries, arrays only; every array has a leading seed axis outside a step.

    Attributes:
        seed: uint32.
        step: int32, updates made so far.
        params: player -> parameters, float32.
        stats: player -> BatchNorm's moving statistics, {} if there are none.
        ema: the moving average of params, which sampling uses.
        opt: player -> optimizer state.
    """

    seed: Array
    step: Array
    params: Any
    stats: Any
    ema: Any
    opt: Any


def init(method: Method, tx: optax.GradientTransformation, seed: Array) -> State:
    """The state of one seed before its first step."""
    params, stats = method.init(key_at(seed, Purpose.INIT))
    opt = {player: tx.init(params[player]) for player in method.losses}
    return State(seed, jnp.zeros((), jnp.int32), params, stats, params, opt)


def train_step(
    method: Method,
    tx: optax.GradientTransformation,
    ema_decay: float,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    """Update each player in turn, then the moving average.

    Each loss is differentiated with respect to its own player only and sees the players before it
    already updated. The average starts with a short memory, decay (1 + step) / (10 + step), so that
    it forgets the initial weights; with `ema_decay` 0 it is the parameters themselves.
    """
    params, stats, opt, metrics = state.params, state.stats, dict(state.opt), {}
    for number, (player, loss) in enumerate(method.losses.items()):
        key = key_at(state.seed, Purpose.LOSS + number, state.step)

        def objective(own: Any) -> tuple[Array, Any]:
            return loss({**params, player: own}, stats, batch, key)  # noqa: B023 called at once

        (value, (terms, stats)), grads = jax.value_and_grad(objective, has_aux=True)(params[player])
        updates, opt[player] = tx.update(grads, opt[player], params[player])
        params = {**params, player: optax.apply_updates(params[player], updates)}
        metrics |= {f"{player}_loss": value, **terms}
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = optax.incremental_update(params, state.ema, 1.0 - decay) if ema_decay else params
    return State(state.seed, state.step + 1, params, stats, ema, opt), metrics


def epoch_order(seed: Array, epoch: int, count: int, batch_size: int) -> Array:
    """A permutation of 0..count-1 cut into batches, int32 [steps, batch_size].

    The last batch is filled up from the start of the same permutation.
    """
    order = random.permutation(key_at(seed, Purpose.ORDER, epoch), count)
    steps = -(-count // batch_size)
    return order[jnp.arange(steps * batch_size) % count].reshape(steps, batch_size)


def advance(
    step: Callable[[State, Batch], tuple[State, Metrics]],
    length: int,
    state: State,
    order: Array,
    images: Array,
    labels: Array,
) -> tuple[State, Metrics]:
    """`length` steps of one seed; metrics get a leading axis of that length.

    Args:
        order: int32 [steps, batch], this epoch's `epoch_order`.
        images: uint8 [N, H, W, C], all of them.
        labels: int32 [N].
    """

    def one(state: State, _: None) -> tuple[State, Metrics]:
        rows = order[state.step % len(order)]
        return step(state, (to_float(images[rows]), labels[rows]))

    if length > 1:
        return lax.scan(one, state, length=length)
    # Not a scan of length one: XLA:CPU differentiates convolutions 15 to 70 times slower in a loop.
    state, metrics = one(state, None)
    return state, jax.tree.map(lambda x: x[None], metrics)


def optimizer(learning_rate: float, beta1: float, beta2: float) -> optax.GradientTransformation:
    """Adam, Kingma and Ba (2015), ε = 1e-8."""
    return optax.adam(learning_rate, beta1, beta2)


def abstract(method: Method, seeds: Sequence[int]) -> State:
    """Shapes and dtypes of the state of these seeds; they do not depend on Adam's numbers."""
    tx = optimizer(learning_rate=0.0, beta1=0.0, beta2=0.0)
    seed = jax.ShapeDtypeStruct((len(seeds),), jnp.uint32)
    return jax.eval_shape(jax.vmap(functools.partial(init, method, tx)), seed)


def restore(method: Method, workdir: Path, *, seeds: Sequence[int]) -> State:
    """The state of the last checkpoint in `workdir`, NumPy arrays with a leading seed axis.

    Raises:
        FileNotFoundError: there is none.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise FileNotFoundError(f"{workdir}/checkpoints is empty: train first, --mode=train")
        return checkpoints.restore(step, abstract(method, seeds))


def run(
    method: Method,
    dataset: Dataset,
    workdir: Path,
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    ema_decay: float,
    scan_steps: int,
    checkpoint_epochs: int,
) -> State:
    """Train every seed to the end, from the last checkpoint in `workdir` if there is one.

    Args:
        seeds: each is a training of its own.
        epochs: passes over `dataset`.
        batch_size: images per step.
        learning_rate: Adam's, constant.
        beta1, beta2: Adam's.
        ema_decay: of the moving average of the parameters; 0 turns it off.
        scan_steps: steps per dispatch; 0 takes 1 on CPU, where convolutions in loops are slow, and a
            whole epoch on an accelerator, where dispatches cost more than the loop.
        checkpoint_epochs: epochs between two checkpoints; the end is always one.

    Returns:
        The final state, NumPy arrays with a leading seed axis.

    Raises:
        FloatingPointError: a loss or a parameter is not finite; the last good checkpoint remains.
        SystemExit: SIGINT or SIGTERM; the step was finished and saved first.
    """
    # ---- what is computed, compiled once per length of a dispatch ----
    tx = optimizer(learning_rate, beta1, beta2)
    step = functools.partial(train_step, method, tx, ema_decay)
    programs = {}

    def program(length: int) -> Callable[..., tuple[State, Metrics]]:
        if length not in programs:
            one_seed = sweep.single(functools.partial(advance, step, length))
            programs[length] = jax.jit(one_seed, donate_argnums=0)
        return programs[length]

    per_epoch = -(-len(dataset.images) // batch_size)
    dispatch = scan_steps or (1 if jax.default_backend() == "cpu" else per_epoch)
    order_of = jax.jit(epoch_order, static_argnames=("count", "batch_size"))
    images, labels = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    total = epochs * per_epoch

    with Checkpoints(workdir / "checkpoints") as checkpoints, stop_signals() as stopped:
        # ---- where it starts ----
        done = checkpoints.latest() or 0
        if done:
            state = checkpoints.restore(done, abstract(method, seeds))
            states = [jax.tree.map(jnp.asarray, one) for one in sweep.split(state)]
            console.print(f"training goes on from step {done} of {total} ({workdir})")
        else:
            first = jax.jit(jax.vmap(functools.partial(init, method, tx)))
            states = [first(jnp.asarray([seed], jnp.uint32)) for seed in seeds]
        trim_metrics(workdir / "metrics.jsonl", done)

        def save() -> State:
            state = sweep.join(states)
            check_finite(state, done, checkpoints.latest())
            log.flush()
            if checkpoints.latest() != done:
                checkpoints.save(done, state)
            return state

        # ---- the loop: dispatch a chunk, then read the metrics of the one before ----
        with (
            (workdir / "metrics.jsonl").open("a") as log,
            progress("train", total, done) as tell,
        ):
            pending, mark = None, time.perf_counter()

            def read() -> None:
                nonlocal pending, mark
                if pending is None:
                    return
                begin, length, chunk = pending
                chunk = jax.device_get(chunk)
                now = time.perf_counter()
                rate = length * batch_size * len(seeds) / (now - mark)
                mark, pending = now, None
                loss = write_metrics(log, seeds, begin, per_epoch, chunk, rate)
                tell(length, f"{rate:.0f} images/s  {loss}")

            while done < total:
                epoch, within = divmod(done, per_epoch)
                if within == 0 or pending is None:
                    orders = [
                        order_of(s.seed[0], epoch, len(images), batch_size) for s in states
                    ]
                length = min(dispatch, per_epoch - within)
                chunk = []
                for i, order in enumerate(orders):
                    states[i], metrics = program(length)(states[i], order, images, labels)
                    chunk.append(metrics)
                read()
                pending = (done, length, chunk)
                done += length
                if stopped or (done % per_epoch == 0 and done // per_epoch % checkpoint_epochs == 0):
                    read()
                    save()
                if stopped:
                    console.print(f"stopped at step {done}; the same command goes on from there")
                    raise SystemExit(128 + stopped[0])
            read()
            return save()


def write_metrics(
    log: Any, seeds: Sequence[int], begin: int, per_epoch: int, chunk: list[Metrics], rate: float
) -> str:
    """One JSON line per step and seed; returns the last losses for the progress line."""
    length = len(next(iter(chunk[0].values())))
    for i in range(length):
        for seed, metrics in zip(seeds, chunk, strict=True):
            values = {name: float(np.ravel(x)[i]) for name, x in metrics.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {begin + i + 1} of seed {seed}"
                    )
            where = {"seed": int(seed), "step": begin + i + 1, "epoch": (begin + i) // per_epoch}
            log.write(json.dumps(where | values | {"images_per_s": round(rate, 1)}) + "\n")
    return "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k.endswith("_loss"))


def check_finite(state: State, step: int, last: int | None) -> None:
    """Refuse to save what training could not go on from."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.all(np.isfinite(leaf)):
            kept = f"the checkpoint of step {last} is kept" if last else "there is no checkpoint"
            raise FloatingPointError(
                f"state{jax.tree_util.keystr(path)} is not finite after step {step}; {kept}"
            )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number into; a second one acts as it always does."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])
        console.print("stopping after this step; once more to stop at once")

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
