"""Training: the loop that survives being stopped."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bloodjax.data import Dataset
from bloodjax.methods import Method, accepts
from bloodjax.runtime import processes
from bloodjax.runtime.progress import console, progress
from bloodjax.runtime.signals import defer_signals, exit_with_signal
from bloodjax.training import autotune
from bloodjax.training import log as metrics
from bloodjax.training.checkpoint import Checkpoints, Damaged
from bloodjax.training.step import (
    State,
    abstract_states,
    advance,
    epoch_orders,
    init_states,
    make_optimizer,
    train_step,
)
from bloodjax.training.strategies import Batched, Loop

# A state on the host -> {"name": of the measure, "values": one float a seed, lower is better}, and
# in what other values it has, all for JSON, how that was made.
Evaluate = Callable[[State], Mapping[str, Any]]


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
    accepts(train, "train", others)
    autotune.parse_strategies(strategy)
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


def restore(
    method: Method, workdir: Path, *, seeds: Sequence[int], checkpoint: str = "newest"
) -> State:
    """The state of a checkpoint in `workdir`, NumPy arrays with a leading seed axis.

    Args:
        checkpoint: "newest", or "best" of those that were evaluated.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it is not as it was written. Another one would be another model.
    """
    checkpoints, like = Checkpoints(workdir / "checkpoints"), abstract_states(method, seeds)

    def chosen() -> State:
        if not (steps := checkpoints.steps()):
            raise FileNotFoundError(f"{checkpoints.folder} is empty: train first, --mode=train")
        step, remedy = steps[-1], "--mode=train makes it again from the one before"
        if checkpoint == "best":
            step, remedy = checkpoints.best(), "take the newest, --config.sample.checkpoint=newest"
        if step is None:
            raise FileNotFoundError(f"{checkpoints.folder}: none was evaluated; {remedy}")
        console.print(f"the {checkpoint} checkpoint: step {step}")
        try:
            return checkpoints.restore(step, like)
        except Damaged as error:
            raise Damaged(f"{error}: {remedy}") from None

    return processes.broadcast_from_main(chosen, like)


def train(
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
    evaluate: Evaluate | None = None,
    watch: Callable[[], None] | None = None,
) -> State:
    """Train every seed to the end, from the last checkpoint in `workdir` if there is one.

    Args:
        seeds, epochs, batch_size: a training each; passes over `dataset`; images per step.
        learning_rate, beta1, beta2: Adam's, constant.
        ema_decay: of the moving average of the parameters; 0 turns it off.
        scan_steps: steps per dispatch; 0 takes 1 on CPU, where convolutions in loops are slow, and
            a whole epoch on an accelerator, where dispatches cost more than the loop.
        strategy: how the seeds are spread over the devices: see `autotune.expand`.
        checkpoint_epochs, keep: epochs between checkpoints, the end is always one; how many stay.
        evaluate: how good is each of these? The best one stays, too.
        watch: called before the first step and whenever metrics.jsonl has further lines.

    Returns:
        The final state, NumPy arrays with a leading seed axis.

    Raises:
        FloatingPointError: a loss or a parameter is not finite; the checkpoints before remain.
        Damaged: there are checkpoints and none is as it was written.
        SystemExit: SIGINT or SIGTERM; the step was finished and saved first.
    """
    tx = make_optimizer(learning_rate, beta1, beta2)
    step = functools.partial(advance, functools.partial(train_step, method, tx, ema_decay))
    data = dataset.images, dataset.labels
    per_epoch = -(-len(dataset.images) // batch_size)
    total = epochs * per_epoch
    length = scan_steps or (1 if jax.default_backend() == "cpu" else per_epoch)
    shuffle = epoch_orders(seeds, len(dataset.images), batch_size)
    log_file, choice = workdir / "metrics.jsonl", workdir / "strategy.json"
    checkpoints, like = Checkpoints(workdir / "checkpoints", keep), abstract_states(method, seeds)
    with defer_signals("step") as stopped:
        state = processes.broadcast_from_main(
            lambda: (checkpoints.restore_newest(like) or (0, init_states(method, tx, seeds)))[1],
            like,
        )
        begin = int(state.step[0])
        metrics.trim(log_file, begin)
        if begin >= total:
            return state
        if begin:
            console.print(f"training goes on from step {begin} of {total} ({workdir})")
        program = autotune.choose_program(strategy, step, choice, length, state, shuffle(0), data)
        with metrics.appending(log_file) as file, progress("train", total, begin) as tell:
            log = metrics.Log(file, tell, program.fetch, seeds, per_epoch, batch_size, watch)
            for done, held in dispatches(program, state, shuffle, data, epochs, length, log):
                # A signal after this line waits for the next step; all stop at the same one.
                leaving = processes.largest(stopped[0] if stopped else 0)
                regular = done % (per_epoch * checkpoint_epochs) == 0 or done == total
                if leaving or regular:
                    save(checkpoints, program.fetch(held), log, evaluate if regular else None)
                if leaving:
                    exit_with_signal(leaving, f"step {done} of {total} is saved")
    return program.fetch(held)


def save(
    checkpoints: Checkpoints, state: State, log: metrics.Log, evaluate: Evaluate | None
) -> None:
    """Evaluate `state`, if it is to be, and write it, its metrics first."""
    found, step = log.untimed(evaluate, state) if evaluate else None, int(state.step[0])
    log.settle(found)
    checkpoints.save(step, check_finite(state, step), found)


def dispatches(
    program: Loop | Batched,
    state: State,
    shuffle: Callable[[int], Any],
    data: Sequence[np.ndarray],
    epochs: int,
    length: int,
    log: metrics.Log,
) -> Iterator[tuple[int, Any]]:
    """Train from `state`, on the host, to the end of the last epoch, `length` steps at a time.

    Args:
        shuffle: epoch -> the order of its images, int32 [seeds, steps, batch].

    Yields:
        After each dispatch the steps done and the state, in the program's own form; it is used up
        by the next. The device computes meanwhile.
    """
    done, compiled = int(state.step[0]), set()
    state, data = program.put(state), [program.share(array) for array in data]
    per_epoch = log.per_epoch
    for epoch in range(done // per_epoch, epochs):
        order = program.put(shuffle(epoch), None, "data")
        while (left := (epoch + 1) * per_epoch - done) > 0:
            now = min(length, left)
            if now not in compiled:
                compiled.add(now)
                log.compiled(program.compile(now, state, order, *data))
            state, chunk = program(now, state, order, *data)
            log.follow(done, chunk)
            done += now
            yield done, state


def check_finite(state: State, step: int) -> State:
    """`state`, or FloatingPointError naming an array of it that training could not go on from."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.all(np.isfinite(leaf)):
            what = f"state{jax.tree_util.keystr(path)} is not finite after step {step}"
            raise FloatingPointError(f"{what}; the last good checkpoint is kept")
    return state
