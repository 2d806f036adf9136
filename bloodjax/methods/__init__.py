"""Generative models behind one interface; a further one is a further file in this folder."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from jax import Array

from bloodjax import options
from bloodjax.options import PositiveInt

Params = dict[str, Any]  # player -> pytree of float32 arrays
Stats = dict[str, Any]  # player -> BatchNorm's moving statistics; {} if there are none
Batch = tuple[Array, Array]  # images float32 [B, H, W, C] in [-1, 1], labels int32 [B]
Metrics = dict[str, Array]  # name -> scalar
Loss = Callable[[Params, Stats, Batch, Array], tuple[Array, tuple[Metrics, Stats]]]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]  # (H, W, C)
Dtype = Literal["float32", "bfloat16"]


class Method(Protocol):
    """A frozen dataclass of hyper-parameters: knows shapes, holds no arrays.

    Attributes:
        shape: (H, W, C) of the images.
        dtype: of the networks' activations, "float32" (the default) or "bfloat16". Arguments and
            results of the functions below are always float32.
        classes: number of classes that `label` may name; 0 if the method is unconditional. Such a
            method ignores labels.
        trace_title: of the pictures of `trace`, one word, e.g. "denoising".
        losses: player -> loss(params, stats, batch, key) -> (scalar, (metrics, stats)), in the
            order in which the players are updated.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def trace_title(self) -> str: ...

    @property
    def losses(self) -> Mapping[str, Loss]: ...

    def init(self, key: Array) -> tuple[Params, Stats]:
        """Return parameters and statistics before the first step."""
        ...

    def sample(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **sampler: Any
    ) -> Array:
        """Return ONE image, float32 [H, W, C] in [-1, 1]; callers vmap.

        Args:
            params: of all players.
            stats: of all players.
            key: the image is a function of it.
            label: int32 scalar below `classes`; None draws from all classes.
            sampler: the method's own options, annotated and keyword-only: see `options.check`.
        """
        ...

    def trace(
        self, params: Params, stats: Stats, key: Array, label: Array | None = None, **sampler: Any
    ) -> Array:
        """Return K pictures of how one sample forms, float32 [K, H, W, C] in [-1, 1]."""
        ...


def names() -> list[str]:
    """Return the names of the methods in this folder."""
    return [file.name for file in pkgutil.iter_modules(__path__)]


def make(
    name: str, *, classes: int = 0, conditional: bool = False, **hyper_parameters: Any
) -> Method:
    """Return the method of the file called `name`, which exports it as `Method`.

    Args:
        name: a file in this folder.
        classes: number of classes of the data.
        conditional: the method learns to draw each class; it has a field `classes`.
        hyper_parameters: the further fields of the method.

    Raises:
        ValueError: the method or a hyper-parameter is unknown, or a value is not allowed.
    """
    if name not in names():
        raise ValueError(f"method.name={name!r}: expected one of {', '.join(names())}")
    if not isinstance(conditional, bool):
        raise ValueError(f"method.conditional={conditional!r}: expected True or False")
    method = importlib.import_module(f"{__name__}.{name}").Method
    if conditional:
        if classes < 1 or "classes" not in {field.name for field in dataclasses.fields(method)}:
            reason = "the data have no classes" if classes < 1 else f"{name} ignores labels"
            raise ValueError(f"method.conditional=True: {reason}; expected False")
        hyper_parameters["classes"] = classes
    return options.build(method, "method", hyper_parameters)
