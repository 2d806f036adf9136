"""How one seed's function is spread over the seed axis that every state array carries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def single(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(state, *rest)` of one seed, on a state whose arrays have a seed axis of length one.

    The results get that axis back.
    """

    def on_axis(state: Any, *rest: Any) -> Any:
        result = function(jax.tree.map(lambda x: x[0], state), *rest)
        return jax.tree.map(lambda x: x[None], result)

    return on_axis


def split(state: Any) -> list[Any]:
    """A state of S seeds -> S states of one seed each."""
    count = len(jax.tree.leaves(state)[0])
    return [jax.tree.map(lambda x, i=i: x[i : i + 1], state) for i in range(count)]


def join(states: Sequence[Any]) -> Any:
    """The inverse of `split`, as NumPy arrays on the host."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *jax.device_get(list(states)))
