"""One step of training: what it changes, how, and in which order images come to it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from bloodjax.images import to_float
from bloodjax.methods import Batch, Method, Metrics
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


def init_state(method: Method, tx: optax.GradientTransformation, seed: Array) -> State:
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


def epoch_orders(seeds: Sequence[int], count: int, batch_size: int) -> Callable[[int], Array]:
    """Epoch -> the `epoch_order` of all seeds, int32 [seeds, steps, batch_size]."""
    order = functools.partial(epoch_order, count=count, batch_size=batch_size)
    all_seeds = jax.jit(jax.vmap(order, in_axes=(0, None)))
    return functools.partial(all_seeds, np.asarray(seeds, np.uint32))


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


def make_optimizer(
    learning_rate: float, beta1: float, beta2: float
) -> optax.GradientTransformation:
    """Adam, Kingma and Ba (2015), ε = 1e-8."""
    return optax.adam(learning_rate, beta1, beta2)


def init_states(method: Method, tx: optax.GradientTransformation, seeds: Sequence[int]) -> State:
    """The states of these seeds before their first step, NumPy arrays with a leading seed axis."""
    # Runs once: 2 s to compile without optimization, 40 with it.
    first = jax.jit(
        jax.vmap(functools.partial(init_state, method, tx)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    states = [jax.device_get(first(np.asarray([seed], np.uint32))) for seed in seeds]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *states)


def abstract_states(method: Method, seeds: Sequence[int]) -> State:
    """Shapes and dtypes of the state of these seeds; they do not depend on Adam's numbers."""
    tx = make_optimizer(learning_rate=0.0, beta1=0.0, beta2=0.0)
    seed = jax.ShapeDtypeStruct((len(seeds),), jnp.uint32)
    return jax.eval_shape(jax.vmap(functools.partial(init_state, method, tx)), seed)
