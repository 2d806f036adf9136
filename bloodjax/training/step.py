"""One step of training, and the order in which images come to it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from bloodjax import options
from bloodjax.images import to_float
from bloodjax.methods import Batch, Method, Metrics
from bloodjax.options import Count, Interval
from bloodjax.randomness import Purpose, key_at
from bloodjax.training.averages import average_params, update_average

Step = Callable[["State", Batch], tuple["State", Metrics]]


class State(NamedTuple):
    """The arrays that training carries; each has a leading seed axis outside a step.

    Attributes:
        seed: uint32.
        step: int32, updates so far.
        params: player -> parameters, float32.
        stats: player -> moving statistics of BatchNorm; {} without BatchNorm.
        ema: the moving average of params, which sampling uses.
        opt: player -> state of the optimizer, with the second average if there is one.
    """

    seed: Array
    step: Array
    params: Any
    stats: Any
    ema: Any
    opt: Any


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, and how its learning rate changes.

    Attributes:
        learning_rate, beta1, beta2: Adam's numbers.
        warmup_steps: steps in which the learning rate rises from 0.
        decay: "cosine" lowers the learning rate to 0 at the end; "none" keeps it.
        clip_norm: gradients of a player are scaled down to this norm, over all of its parameters;
            0 leaves them.
    """

    learning_rate: Annotated[float, Interval(0, open_low=True)] = 1e-3
    beta1: Annotated[float, Interval(0, 1, open_high=True)] = 0.9
    beta2: Annotated[float, Interval(0, 1, open_high=True)] = 0.999
    warmup_steps: Count = 0
    decay: Literal["none", "cosine"] = "none"
    clip_norm: Annotated[float, Interval(0)] = 0.0

    def __post_init__(self) -> None:
        options.check(type(self), "optimizer", vars(self))


def make_optimizer(
    config: OptimizerConfig, steps: int = 0, ema_decay_long: float = 0.0
) -> optax.GradientTransformation:
    """Return Adam, Kingma and Ba (2015), with ε = 1e-8.

    `steps` are those of the whole training; only a learning rate that decays depends on them. A
    shorter training than the warm-up ends in the warm-up. With `ema_decay_long` above 0 the state
    has a second average of the parameters, see `averages`.
    """
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.decay == "cosine":
        end = max(steps, config.warmup_steps + 1)
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, config.warmup_steps, end)
    elif config.warmup_steps:
        rate = optax.linear_schedule(0.0, rate, config.warmup_steps)
    tx = optax.adam(rate, config.beta1, config.beta2)
    if config.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    return optax.chain(tx, average_params(ema_decay_long)) if ema_decay_long else tx


def init_state(method: Method, tx: optax.GradientTransformation, seed: Array) -> State:
    """Return the state of one seed before its first step."""
    params, stats = method.init(key_at(seed, Purpose.INIT))
    opt = {player: tx.init(params[player]) for player in method.losses}
    return State(seed, jnp.zeros((), jnp.int32), params, stats, params, opt)


def init_states(method: Method, tx: optax.GradientTransformation, seeds: Sequence[int]) -> State:
    """Return the states of several seeds before their first step, as NumPy arrays."""
    # Each program runs once: 2 s to compile without optimization, 40 s with it.
    init = jax.jit(
        jax.vmap(functools.partial(init_state, method, tx)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    states = [jax.device_get(init(np.asarray([seed], np.uint32))) for seed in seeds]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *states)


def abstract_states(
    method: Method, tx: optax.GradientTransformation, seeds: Sequence[int]
) -> State:
    """Return the shapes and dtypes of `init_states`."""
    seed = jax.ShapeDtypeStruct((len(seeds),), jnp.uint32)
    return jax.eval_shape(jax.vmap(functools.partial(init_state, method, tx)), seed)


def train_step(
    method: Method,
    tx: optax.GradientTransformation,
    ema_decay: float,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    """Update each player in turn, then the moving average.

    Each player takes the gradient of its own loss with respect to its own parameters, and sees the
    players before it already updated. The average starts with a short memory, see `update_average`;
    with `ema_decay` 0 it equals the parameters.
    """
    params, stats, opt, metrics = state.params, state.stats, dict(state.opt), {}
    for number, (player, loss) in enumerate(method.losses.items()):
        key = key_at(state.seed, Purpose.LOSS + number, state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (terms, stats)), grads = gradient(params, stats, batch, key)
        # Nothing reads the gradients of the other players, so XLA does not compute them.
        updates, opt[player] = tx.update(grads[player], opt[player], params[player])
        params = {**params, player: optax.apply_updates(params[player], updates)}
        metrics |= {f"{player}_loss": value, **terms}

    ema = update_average(state.ema, params, ema_decay, state.step) if ema_decay else params
    return State(state.seed, state.step + 1, params, stats, ema, opt), metrics


def augmented_step(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
    """Take a step on images that are turned and mirrored at random.

    Each image is drawn from the eight symmetries of a square, which leave a smear a smear; from the
    four of a rectangle if it is not square.
    """
    images, labels = batch
    key = key_at(state.seed, Purpose.AUGMENT, state.step)
    flips = random.bernoulli(key, 0.5, (3, len(images), 1, 1, 1))
    images = jnp.where(flips[0], images[:, ::-1], images)
    images = jnp.where(flips[1], images[:, :, ::-1], images)
    if images.shape[1] == images.shape[2]:
        images = jnp.where(flips[2], images.swapaxes(1, 2), images)
    return step(state, (images, labels))


def advance(
    step: Step,
    most: int,
    length: Array,
    state: State,
    order: Array,
    images: Array,
    labels: Array,
) -> tuple[State, Metrics]:
    """Take `length` steps of one seed, at most `most`: one program serves every length.

    Args:
        step: `train_step` with its first arguments filled in.
        most: the largest number of steps; static.
        length: the number of steps, int32 scalar; `most` = 1 does not read it.
        state: the state of one seed, without a seed axis.
        order: int32 [steps, batch], the `epoch_order` of this epoch.
        images: uint8 [N, H, W, C], the whole data set.
        labels: int32 [N].

    Returns:
        The state and the metrics of each step, [most], of which `length` are filled.
    """

    def take_batch(state: State) -> Batch:
        rows = order[state.step % len(order)]
        return to_float(images[rows]), labels[rows]

    def take_step(i: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = carry
        state, row = step(state, take_batch(state))
        return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), metrics, row)

    if most > 1:
        shapes = jax.eval_shape(lambda state: step(state, take_batch(state))[1], state)
        # Zeros like the step: shard_map then knows that the rows differ by seed.
        zeros = functools.partial(lax.full_like, state.step, 0)
        rows = jax.tree.map(lambda x: zeros(x.dtype, (most, *x.shape)), shapes)
        return lax.fori_loop(0, length, take_step, (state, rows))
    # No loop: XLA:CPU differentiates convolutions 15 to 70 times slower inside one.
    state, metrics = step(state, take_batch(state))
    return state, jax.tree.map(lambda x: x[None], metrics)


def make_advance(
    method: Method, tx: optax.GradientTransformation, ema_decay: float, augment: bool, most: int
) -> Callable[..., tuple[State, Metrics]]:
    """Return `advance` for one method: (length, state, order, images, labels) -> see there."""
    step: Step = functools.partial(train_step, method, tx, ema_decay)
    if augment:
        step = functools.partial(augmented_step, step)
    return functools.partial(advance, step, most)


def epoch_order(seed: Array, epoch: int, count: int, batch_size: int) -> Array:
    """Return a permutation of 0..count-1 cut into batches, int32 [steps, batch_size].

    The start of the same permutation fills up the last batch.
    """
    order = random.permutation(key_at(seed, Purpose.ORDER, epoch), count)
    steps = -(-count // batch_size)
    return order[jnp.arange(steps * batch_size) % count].reshape(steps, batch_size)


def epoch_orders(seeds: Sequence[int], count: int, batch_size: int) -> Callable[[int], Array]:
    """Return a function epoch -> `epoch_order` of all seeds, int32 [seeds, steps, batch_size]."""
    order = functools.partial(epoch_order, count=count, batch_size=batch_size)
    all_seeds = jax.jit(jax.vmap(order, in_axes=(0, None)))
    return functools.partial(all_seeds, np.asarray(seeds, np.uint32))
