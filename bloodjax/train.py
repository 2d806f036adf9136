"""Training: the state, one step of it, and the loop that survives being stopped."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from bloodjax import autotune, hosts, metrics
from bloodjax.checkpoint import Checkpoints, Damaged
from bloodjax.data import Dataset
from bloodjax.images import to_float
from bloodjax.interrupt import leave, stop_signals
from bloodjax.methods import Batch, Method, Metrics, accepts
from bloodjax.progress import console, progress
from bloodjax.randomness import Purpose, key_at


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


def initial(method: Method, tx: optax.GradientTransformation, seeds: Sequence[int]) -> State:
    """The states of these seeds before their first step, NumPy arrays with a leading seed axis."""
    # Runs once: 2 s to compile without optimization, 40 with it.
    first = jax.jit(
        jax.vmap(functools.partial(init, method, tx)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    states = [jax.device_get(first(np.asarray([seed], np.uint32))) for seed in seeds]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *states)


def abstract(method: Method, seeds: Sequence[int]) -> State:
    """Shapes and dtypes of the state of these seeds; they do not depend on Adam's numbers."""
    tx = optimizer(learning_rate=0.0, beta1=0.0, beta2=0.0)
    seed = jax.ShapeDtypeStruct((len(seeds),), jnp.uint32)
    return jax.eval_shape(jax.vmap(functools.partial(init, method, tx)), seed)


def check(
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    checkpoint_epochs: int,
    keep: int,
    scan_steps: int,
    strategy: str,
    **others: Any,
) -> None:
    """Refuse, before any work, what `run` could not do: ValueError naming the value."""
    accepts(run, "train", others)
    autotune.expand(strategy)
    rules = {
        f"seeds={tuple(seeds)}: expected different integers in 0..2**32-1": seeds
        and len(set(seeds)) == len(seeds)
        and all(0 <= seed < 2**32 for seed in seeds),
        f"train.epochs={epochs}: expected at least 1": epochs >= 1,
        f"train.batch_size={batch_size}: expected at least 1": batch_size >= 1,
        f"train.learning_rate={learning_rate}: expected more than 0": learning_rate > 0,
        f"train.ema_decay={ema_decay}: expected 0 <= decay < 1": 0 <= ema_decay < 1,
        f"train.checkpoint_epochs={checkpoint_epochs}: expected at least 1": checkpoint_epochs >= 1,
        f"train.keep={keep}: expected at least 1": keep >= 1,
        f"train.scan_steps={scan_steps}: expected at least 0": scan_steps >= 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)


def restore(method: Method, workdir: Path, *, seeds: Sequence[int]) -> State:
    """The state of the last checkpoint in `workdir`, NumPy arrays with a leading seed axis.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not as it was written. An older one would be another model.
    """
    checkpoints, like = Checkpoints(workdir / "checkpoints"), abstract(method, seeds)

    def newest() -> State:
        steps = checkpoints.steps()
        if not steps:
            raise FileNotFoundError(f"{workdir}/checkpoints is empty: train first, --mode=train")
        try:
            return checkpoints.restore(steps[-1], like)
        except Damaged as error:
            raise Damaged(f"{error}: --mode=train makes it again from the one before") from None

    return hosts.from_main(newest, like)


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
    strategy: str,
    checkpoint_epochs: int,
    keep: int,
) -> State:
    """Train every seed to the end, from the last checkpoint in `workdir` if there is one.

    Args:
        seeds: each is a training of its own.
        epochs: passes over `dataset`.
        batch_size: images per step.
        learning_rate: Adam's, constant.
        beta1, beta2: Adam's.
        ema_decay: of the moving average of the parameters; 0 turns it off.
        scan_steps: steps per dispatch; 0 takes 1 on CPU, where convolutions in loops are slow, and
            a whole epoch on an accelerator, where dispatches cost more than the loop.
        strategy: how the seeds are spread over the devices: a name of `sweep.STRATEGIES`, several
            with commas to take the fastest, or "auto" for the fastest of those that make sense.
        checkpoint_epochs: epochs between two checkpoints; the end is always one.
        keep: checkpoints that are kept, the newest.

    Returns:
        The final state, NumPy arrays with a leading seed axis.

    Raises:
        FloatingPointError: a loss or a parameter is not finite; the checkpoints before remain.
        Damaged: there are checkpoints and none is as it was written.
        SystemExit: SIGINT or SIGTERM; the step was finished and saved first.
    """
    tx = optimizer(learning_rate, beta1, beta2)
    step = functools.partial(advance, functools.partial(train_step, method, tx, ema_decay))
    data = dataset.images, dataset.labels
    order = functools.partial(epoch_order, count=len(dataset.images), batch_size=batch_size)
    shuffle = jax.jit(jax.vmap(order, in_axes=(0, None)))
    all_seeds = np.asarray(seeds, np.uint32)
    per_epoch = -(-len(dataset.images) // batch_size)
    total = epochs * per_epoch
    dispatch = scan_steps or (1 if jax.default_backend() == "cpu" else per_epoch)

    log_file = workdir / "metrics.jsonl"
    checkpoints = Checkpoints(workdir / "checkpoints", keep)
    with stop_signals("step") as stopped:
        # ---- where it starts, and how ----
        like = abstract(method, seeds)
        done, state = hosts.from_main(
            lambda: checkpoints.restore_newest(like) or (0, initial(method, tx, seeds)),
            (np.int64(0), like),
        )
        done = int(done)
        metrics.trim(log_file, done)
        if done == total:
            return state
        if done:
            console.print(f"training goes on from step {done} of {total} ({workdir})")
        program = autotune.choose(
            strategy, step, workdir / "strategy.json", dispatch, state, shuffle(all_seeds, 0), data
        )
        state = program.put(state)
        data = [program.share(array) for array in data]

        @functools.lru_cache(maxsize=1)
        def orders(epoch: int) -> Any:
            return program.put(shuffle(all_seeds, epoch), None, "data")

        # ---- the loop: dispatch some steps, then read the metrics of those before ----
        with metrics.appending(log_file) as file, progress("train", total, done) as tell:
            log = metrics.Log(file, tell, program.fetch, seeds, per_epoch, batch_size)
            compiled: set[int] = set()
            while done < total:
                epoch, within = divmod(done, per_epoch)
                length = min(dispatch, per_epoch - within)
                if length not in compiled:
                    compiled.add(length)
                    log.compiled(program.compile(length, state, orders(epoch), *data))
                state, chunk = program(length, state, orders(epoch), *data)
                log.follow(done, chunk)
                done += length
                # A signal after this line waits for the next step; all stop at the same one.
                leaving = hosts.largest(stopped[0] if stopped else 0)
                if leaving or done % (per_epoch * checkpoint_epochs) == 0 or done == total:
                    log.settle()
                    checkpoints.save(done, check_finite(program.fetch(state), done))
                if leaving:
                    leave(leaving, f"step {done} of {total} is saved")
    return program.fetch(state)


def check_finite(state: State, step: int) -> State:
    """`state`, or FloatingPointError naming an array of it that training could not go on from."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.all(np.isfinite(leaf)):
            what = f"state{jax.tree_util.keystr(path)} is not finite after step {step}"
            raise FloatingPointError(f"{what}; the last good checkpoint is kept")
    return state
