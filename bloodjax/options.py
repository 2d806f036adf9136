"""Options by name: checked against the annotations of the function or dataclass that takes them.

An annotation says what a value may be: a type, a `Literal` of choices, a tuple of items, or a
number with its bounds, `Annotated[int, Interval(1)]`.
"""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")
WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
}


@dataclass(frozen=True)
class Interval:
    """Bounds of a number, which belong to it unless they are open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'more than' if self.open_low else 'at least'} {self.low}"
        if not (self.open_low or self.open_high):
            return f"{self.low} to {self.high}"
        first, last = ("<" if x else "<=" for x in (self.open_low, self.open_high))
        return f"{self.low} {first} value {last} {self.high}"


PositiveInt = Annotated[int, Interval(1)]
Count = Annotated[int, Interval(0)]
UnitInterval = Annotated[float, Interval(0, 1)]
NonNegative = Annotated[float, Interval(0)]
PositiveFloat = Annotated[float, Interval(0, open_low=True)]
Seed = Annotated[int, Interval(0, 2**32 - 1)]


def build(cls: type[T], group: str, options: Mapping[str, Any]) -> T:
    """Return `cls(**options)` after `check`; see `normalize` for what flags and JSON change.

    An option that is annotated by a dataclass is a group of its own, and built likewise.
    """
    parameters = check_names(cls, group, options)
    values = {}
    for name, value in options.items():
        annotation: Any = parameters[name].annotation
        if isinstance(annotation, type) and is_dataclass(annotation):
            values[name] = build(annotation, name, value)
        else:
            values[name] = normalize(annotation, value)
    check(cls, group, values)
    return cls(**values)


def check(function: Callable[..., Any], group: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the keyword-only parameters of `function` do not allow.

    Args:
        function: a function or a dataclass with annotated keyword-only parameters.
        group: the name of the options in configurations and messages.
        options: name -> value.

    Raises:
        ValueError: an option is unknown, missing or out of its range. The message names it as
            GROUP.NAME, with its value and the values that are allowed.
    """
    parameters = check_names(function, group, options)
    for name, value in options.items():
        annotation: Any = parameters[name].annotation
        if not matches(annotation, value):
            prefix = f"{group}." if group else ""
            raise ValueError(f"{prefix}{name}={value!r}: expected {describe(annotation)}")


def check_names(
    function: Callable[..., Any], group: str, options: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters by name; refuse unknown and missing options."""
    signature = inspect.signature(function, eval_str=True)
    allowed = {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    prefix = f"{group}." if group else ""
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {[*allowed]}"
            raise ValueError(f"{prefix}{name}: no such option; {hint}")
    for name, parameter in allowed.items():
        if name not in options and parameter.default is parameter.empty:
            expected = describe(parameter.annotation)
            raise ValueError(f"{prefix}{name} is missing: expected {expected}")
    return allowed


def normalize(annotation: Any, value: Any) -> Any:
    """Return `value` as Python writes it: JSON has lists for tuples, a flag one name for `a,b`."""
    if typing.get_origin(annotation) is tuple:
        if isinstance(value, list):
            value = tuple(value)
        texts = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        if texts and any("," in item for item in value):
            value = tuple(filter(None, ",".join(value).split(",")))
    return value


def matches(annotation: Any, value: Any) -> bool:
    """Return whether an annotation allows a value; what is not annotated allows every value."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return matches(arguments[0], value) and all(value in bounds for bounds in arguments[1:])
    if origin is Literal:
        return any(value == x and type(value) is type(x) for x in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(matches(arguments[0], item) for item in value)
        pairs = zip(arguments, value, strict=False)
        return len(arguments) == len(value) and all(matches(a, item) for a, item in pairs)
    if origin in (types.UnionType, typing.Union):
        return any(matches(a, value) for a in arguments)
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, types.NoneType):
        return isinstance(value, annotation)
    return True


def describe(annotation: Any) -> str:
    """Return the values that an annotation allows, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return f"{describe(arguments[0])}, {' and '.join(map(str, arguments[1:]))}"
    if origin is Literal:
        return " or ".join(repr(x) for x in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a tuple, each item {describe(arguments[0])}"
        return f"a tuple of {len(arguments)}: {', '.join(describe(a) for a in arguments)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(a) for a in arguments)
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
