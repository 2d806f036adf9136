"""Options are refused by name, with the value and the values that are allowed."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from bloodjax import options
from bloodjax.options import Interval, PositiveInt, Seed


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: PositiveInt
    rate: Annotated[float, Interval(0, open_low=True)] = 1.0
    decay: Annotated[float, Interval(0, 1, open_high=True)] = 0.0
    weights: Literal["ema", "raw"] = "ema"
    seeds: tuple[Seed, ...] = (0,)
    names: tuple[str, ...] = ()
    flag: bool = False
    path: str = ""
    size: tuple[int, int] | None = None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 0, "an integer, at least 1"),
        ("epochs", True, "an integer, at least 1"),
        ("epochs", 2.5, "an integer, at least 1"),
        ("epochs", "3", "an integer, at least 1"),
        ("rate", 0, "a finite number, more than 0"),
        ("rate", float("nan"), "a finite number"),
        ("rate", float("inf"), "a finite number"),
        ("decay", 1, "0 <= value < 1"),
        ("decay", -0.1, "0 <= value < 1"),
        ("weights", "best", "'ema' or 'raw'"),
        ("seeds", (0, -1), "each item an integer, 0 to 4294967295"),
        ("seeds", (0, "0-4"), "each item an integer"),
        ("seeds", 0, "a tuple"),
        ("names", (1,), "each item a text"),
        ("flag", 1, "True or False"),
        ("path", 1, "a text"),
        ("size", (1, 2, 3), "a tuple of 2"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_range(name, value, expected):
    with pytest.raises(ValueError) as error:
        options.build(Config, "train", {"epochs": 1} | {name: value})
    assert str(error.value).startswith(f"train.{name}={value!r}: expected ")
    assert expected in str(error.value)


def test_what_is_allowed_is_taken():
    given = {"epochs": 1, "rate": 1, "decay": 0.5, "seeds": [1, 2], "names": ("a,b", "c")}
    config = options.build(Config, "train", given)
    assert config.rate == 1 and config.seeds == (1, 2) and config.names == ("a", "b", "c")
    options.check(Config, "train", {"epochs": 1, "size": (1, 2)})
    options.check(Config, "train", {"epochs": 1, "size": None})


def test_an_unknown_option_gets_the_nearest_name_and_a_missing_one_its_range():
    with pytest.raises(
        ValueError, match=r"train.epohcs: no such option; did you mean train.epochs"
    ):
        options.build(Config, "train", {"epohcs": 1})
    with pytest.raises(ValueError, match=r"train.xyz: no such option; expected one of"):
        options.build(Config, "train", {"xyz": 1})
    with pytest.raises(ValueError, match=r"train.epochs is missing: expected an integer, at least"):
        options.build(Config, "train", {})


def test_a_function_is_checked_by_its_keyword_only_parameters():
    def sample(key, *, steps: PositiveInt, eta: float = 0.0): ...

    options.check(sample, "sampler", {"steps": 3})
    with pytest.raises(ValueError, match="sampler.steps=0"):
        options.check(sample, "sampler", {"steps": 0})
    with pytest.raises(ValueError, match="sampler.key: no such option"):
        options.check(sample, "sampler", {"steps": 1, "key": 0})
