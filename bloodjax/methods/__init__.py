"""Generative models behind one interface; a further one is a further file in this folder."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jax import Array

Params = dict[str, Any]  # player -> pytree of float32 arrays
Stats = dict[str, Any]  # player -> BatchNorm's moving statistics; {} if there are none
Batch = tuple[Array, Array]  # images float32 [B, H, W, C] in [-1, 1], labels int32 [B]
Metrics = dict[str, Array]  # name -> scalar
Loss = Callable[[Params, Stats, Batch, Array], tuple[Array, tuple[Metrics, Stats]]]


class Method(Protocol):
    """A frozen dataclass of hyper-parameters: knows shapes, holds no arrays.

    Attributes:
        shape: (H, W, C) of the images.
        dtype: of the networks' activations, "float32" (the default) or "bfloat16"; all that the
            functions below take and return is float32.
        trace_title: what `trace` shows, one word, e.g. "denoising".
        losses: player -> loss(params, stats, batch, key) -> (scalar, (metrics, stats)), in the
            order in which the players are updated.
    """

    shape: tuple[int, int, int]
    dtype: str
    trace_title: str

    @property
    def losses(self) -> Mapping[str, Loss]: ...

    def init(self, key: Array) -> tuple[Params, Stats]: ...

    def sample(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **options: Any
    ) -> Array:
        """ONE image, float32 [H, W, C] in [-1, 1]; callers vmap. `options` are its own."""
        ...

    def trace(self, params: Params, stats: Stats, key: Array, **options: Any) -> Array:
        """K pictures that show how one sample comes about, float32 [K, H, W, C] in [-1, 1]."""
        ...


def names() -> list[str]:
    """The methods in this folder."""
    return [m.name for m in pkgutil.iter_modules(__path__)]


def make(name: str, **options: Any) -> Method:
    """The method called `name`; its file exports it as `Method`.

    Raises:
        ValueError: no such method, or an option that it does not have.
    """
    if name not in names():
        raise ValueError(f"method.name={name!r}: expected one of {', '.join(names())}")
    method = importlib.import_module(f"{__name__}.{name}").Method
    accepts(method, "method", options)
    return method(**options)


def accepts(function: Callable[..., Any], group: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that is no keyword-only parameter of `function`, and name the nearest one.

    Raises:
        ValueError: naming the option as `group`.`option`.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {group}.{near[0]}?" if near else f"expected one of {known}"
            raise ValueError(f"{group}.{option}: no such option; {hint}")
