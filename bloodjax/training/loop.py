"""The training loop, which resumes where it was stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax

from bloodjax import options
from bloodjax.data import Dataset
from bloodjax.methods import Method
from bloodjax.options import Count, Interval, PositiveInt
from bloodjax.runtime import processes
from bloodjax.runtime.command import defer_signals, exit_with_signal
from bloodjax.runtime.progress import console, progress
from bloodjax.training.autotune import choose_program, parse_strategies
from bloodjax.training.averages import report_equal_averages
from bloodjax.training.checkpoint import Checkpoints, DamagedError
from bloodjax.training.log import Log, open_lines, trim
from bloodjax.training.step import State, abstract_states, epoch_orders, init_states, make_advance

# A state on the host -> {"name": of a measure, "values": one float per seed, lower is better}, and
# further values for JSON, its origin.
Evaluate = Callable[[State], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of training.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step and seed.
        augment: show each image turned and mirrored at random, see `step.augmented_step`.
        ema_decay: decay of the moving average of the parameters; 0 turns the average off.
        ema_decay_long: decay of a second, longer average, which `make_optimizer` adds; 0: none.
        scan_steps: steps per dispatch. 0 means 1 on a CPU, where convolutions in loops are slow,
            and an epoch on an accelerator, where dispatches cost more than the loop.
        strategy: how seeds are spread over devices; see `autotune.parse_strategies`.
        checkpoint_epochs: epochs between checkpoints; the end always has one.
        keep: how many of the newest checkpoints stay.
        evaluate_count: images per seed to evaluate each checkpoint by, or 0. The best checkpoint
            then stays as well.
    """

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128
    augment: bool = False
    ema_decay: Annotated[float, Interval(0, 1, open_high=True)] = 0.0
    ema_decay_long: Annotated[float, Interval(0, 1, open_high=True)] = 0.0
    scan_steps: Count = 0
    strategy: str = "auto"
    checkpoint_epochs: PositiveInt = 1
    keep: PositiveInt = 2
    evaluate_count: Count = 0

    def __post_init__(self) -> None:
        options.check(type(self), "train", vars(self))
        parse_strategies(self.strategy)
        if self.evaluate_count == 1:
            raise ValueError("train.evaluate_count=1: expected 0 or at least 2, for a covariance")


def train(
    method: Method,
    tx: optax.GradientTransformation,
    dataset: Dataset,
    workdir: Path,
    seeds: Sequence[int],
    config: TrainConfig,
    evaluate: Evaluate | None = None,
    on_written: Callable[[], None] | None = None,
) -> State:
    """Train every seed to the end, from the newest checkpoint on; return the state on the host.

    `evaluate` evaluates regular checkpoints; `on_written` is called at the start and whenever
    metrics.jsonl has further lines.

    Raises:
        FloatingPointError: a loss or a parameter is not finite; earlier checkpoints remain.
        DamagedError: there are checkpoints and all of them are damaged.
        SystemExit: SIGINT or SIGTERM came; the step was finished and saved first.
    """
    # The step, and how many of them
    shuffle = epoch_orders(seeds, len(dataset.images), config.batch_size)
    per_epoch = -(-len(dataset.images) // config.batch_size)
    total, save_every = config.epochs * per_epoch, config.checkpoint_epochs * per_epoch
    dispatch = config.scan_steps or (1 if jax.default_backend() == "cpu" else per_epoch)
    advance = make_advance(method, tx, config.ema_decay, config.augment, dispatch)
    report_equal_averages(config.ema_decay, config.ema_decay_long, total)

    with defer_signals("step") as stop:
        # The state, and the program that advances it
        checkpoints = Checkpoints(workdir / "checkpoints", config.keep)
        state = resume(checkpoints, method, tx, seeds, workdir, total)
        done = int(state.step[0])
        if done >= total:
            return state
        arrays = (dataset.images, dataset.labels)
        first = (dispatch, state, np.asarray(shuffle(0)), arrays)
        program = choose_program(config.strategy, advance, workdir / "strategy.json", *first)
        state, data = program.put(state), [program.put_shared(array) for array in arrays]
        with open_lines(workdir / "metrics.jsonl") as lines, progress("train", total, done) as bar:
            log = Log(lines, seeds, per_epoch, config.batch_size, bar, program.fetch, on_written)
            for epoch in range(done // per_epoch, config.epochs):
                order = program.put(shuffle(epoch), None, "data")
                if seconds := program.compile(state, order, *data):
                    log.record_compilation(seconds)
                while done < (epoch + 1) * per_epoch:
                    # Train
                    length = min(dispatch, (epoch + 1) * per_epoch - done)
                    state, metrics = program(length, state, order, *data)
                    log.record(done, length, metrics)
                    done += length

                    # Save; a signal that comes later waits for the next step
                    signal = processes.largest(stop.signal)
                    regular = done % save_every == 0 or done == total
                    if signal or regular:
                        save(checkpoints, program.fetch(state), log, evaluate if regular else None)
                    if signal:
                        exit_with_signal(signal, f"step {done} of {total} is saved")
    return program.fetch(state)


def resume(
    checkpoints: Checkpoints,
    method: Method,
    tx: optax.GradientTransformation,
    seeds: Sequence[int],
    workdir: Path,
    total: int,
) -> State:
    """Return the state of the newest intact checkpoint, or else the initial one.

    Drops the lines of metrics.jsonl after that state. Prints where a training of `total` steps
    goes on.
    """

    def restore_or_init() -> State:
        newest = checkpoints.restore_newest(like)
        return newest[1] if newest else init_states(method, tx, seeds)

    like = abstract_states(method, tx, seeds)
    state = processes.broadcast_from_main(restore_or_init, like)
    step = int(state.step[0])
    trim(workdir / "metrics.jsonl", step)
    if 0 < step < total:
        console.print(f"training goes on from step {step} of {total} ({workdir})")
    return state


def save(checkpoints: Checkpoints, state: State, log: Log, evaluate: Evaluate | None) -> None:
    """Evaluate `state` if there is an `evaluate`, and write it, its metrics first."""
    step = int(state.step[0])
    try:
        check_finite(state, step)
    except FloatingPointError:
        log.flush()  # if a loss is not finite either, the error names its step and seed
        raise
    evaluation = log.untimed(evaluate, state) if evaluate else None
    log.flush(evaluation)
    checkpoints.save(step, state, evaluation)


def check_finite(state: State, step: int) -> None:
    """Raise FloatingPointError naming an array of `state` that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.all(np.isfinite(leaf)):
            name = f"state{jax.tree_util.keystr(path)}"
            raise FloatingPointError(
                f"{name} is not finite after step {step}; the last good checkpoint is kept"
            )


def restore(
    method: Method,
    tx: optax.GradientTransformation,
    workdir: Path,
    *,
    seeds: Sequence[int],
    checkpoint: str = "newest",
) -> State:
    """Return the state of a checkpoint of a run, NumPy arrays with a leading seed axis.

    `checkpoint` is "newest", or "best" of the evaluated ones.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedError: the checkpoint is damaged; another one would be another model.
        ValueError: `checkpoint` is another word.
    """
    if checkpoint not in ("newest", "best"):
        raise ValueError(f"checkpoint={checkpoint!r}: expected newest or best")
    checkpoints, like = Checkpoints(workdir / "checkpoints"), abstract_states(method, tx, seeds)

    def restore_chosen() -> State:
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
        except DamagedError as error:
            raise DamagedError(f"{error}: {remedy}") from None

    return processes.broadcast_from_main(restore_chosen, like)
