"""Moving averages of the parameters: one in the training's state, a longer one in its optimizer's.

Without the longer one a training has no further arrays, and its checkpoints are as older versions
wrote them.
"""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax
from jax import Array

from bloodjax.runtime.progress import console

# A moving average of the parameters, the longer one, or the parameters
Weights = Literal["ema", "ema_long", "raw"]


def warm_up(step: Any) -> Any:
    """Return the largest decay at `step`: the average then covers about a tenth of the steps."""
    return (1.0 + step) / (10.0 + step)


def update_average(average: Any, params: Any, decay: float, step: Array) -> Any:
    """Return the moving average after one more step, with a short memory at first."""
    return optax.incremental_update(params, average, 1.0 - jnp.minimum(decay, warm_up(step)))


def report_equal_averages(ema_decay: float, ema_decay_long: float, steps: int) -> None:
    """Print that a longer average equals the first if the warm-up limits both to the last step."""
    if min(ema_decay, ema_decay_long) >= (limit := warm_up(steps - 1)):
        remedy = f"choose a train.ema_decay below {limit:.4f}"
        console.print(f"ema_long equals ema in {steps:,} steps: {remedy}")


def average_params(decay: float) -> optax.GradientTransformation:
    """Return a transformation that averages the parameters and leaves their updates as they are."""

    def init(params: Any) -> Any:
        return optax.EmaState(jnp.zeros((), jnp.int32), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        params = optax.apply_updates(params, updates)
        average = update_average(state.ema, params, decay, state.count)
        return updates, optax.EmaState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def check_weights(weights: str, ema_decay_long: float) -> None:
    """Refuse unknown weights, and an average that the training does not keep: ValueError."""
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r}: expected {' or '.join(get_args(Weights))}")
    if weights == "ema_long" and not ema_decay_long:
        raise ValueError(
            "sample.weights='ema_long', but train.ema_decay_long=0 keeps no second average: "
            "expected ema or raw, or a training with --config.train.ema_decay_long=0.9995"
        )
