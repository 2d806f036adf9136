"""Which strategy of a sweep is the fastest here: timed on the spot, and written down."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from bloodjax.runtime import processes
from bloodjax.runtime.files import read_json, write_text
from bloodjax.runtime.progress import console
from bloodjax.training import strategies
from bloodjax.training.strategies import STRATEGIES, Advance, Batched, Loop

ROUNDS = 3  # timings of each, of which the fastest counts: the machine has other work too
STEPS = 8  # of a timing, at most: a dispatch of training may be a whole epoch


def candidates(seeds: int, batch: int) -> tuple[str, ...]:
    """The strategies that can be the fastest here.

    On CPU neither vmap, which makes convolutions 1.5 to 5 times slower, nor map, which makes their
    gradients 10 to 70 times slower, is tried. Several processes have only what uses all devices.
    """
    devices, cpu = jax.device_count(), jax.default_backend() == "cpu"
    if devices == 1:
        return ("loop",) if cpu or seeds == 1 else ("loop", "vmap", "map", "sharded")
    alone = seeds <= strategies.mesh_shape(seeds, batch, devices)[0]  # no device has two seeds
    sharded = ("sharded",) if cpu or alone else STRATEGIES[3:]
    return sharded if processes.count() > 1 else ("loop", *sharded)


def parse_strategies(strategy: str) -> tuple[str, ...]:
    """The names in "loop,vmap"; ("auto",) for "auto".

    Raises:
        ValueError: a name that is not in `STRATEGIES`, or none; with several processes one that
            is for one.
    """
    names = tuple(name.strip() for name in strategy.split(","))
    if names != ("auto",) and not set(names) <= set(STRATEGIES):
        known = ", ".join(STRATEGIES)
        raise ValueError(
            f"train.strategy={strategy!r}: expected auto, one of {known}, or several of them with "
            "commas, of which the fastest is taken"
        )
    if processes.count() > 1 and not {"auto", *STRATEGIES[3:]}.issuperset(names):
        raise ValueError(
            f"train.strategy={strategy!r}: {processes.count()} processes, expected auto, or of "
            f"{', '.join(STRATEGIES[3:])} one or several"
        )
    return names


def choose_program(
    strategy: str,
    advance: Advance,
    file: Path,
    length: int,
    state: Any,
    orders: np.ndarray,
    data: Sequence[np.ndarray],
) -> Loop | Batched:
    """The program of `strategy`, or the fastest where there are several, measured here and now.

    What was chosen is written to `file`, and taken from there when the same is asked again on the
    same devices, so that a run that goes on runs the same program.

    Args:
        strategy: "auto" or as in `expand`.
        length: steps of a dispatch.
        state, orders, data: what the first dispatch gets, on the host; left as they are.
    """
    seeds, _, batch = orders.shape
    here = {
        "asked": strategy,
        "seeds": seeds,
        "devices": jax.device_count(),
        "processes": processes.count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
    }
    names = candidates(seeds, batch) if strategy == "auto" else parse_strategies(strategy)
    if known := agreed(lambda: recorded(file, here)):
        return strategies.make_program(known, advance, seeds, batch)
    programs = {name: strategies.make_program(name, advance, seeds, batch) for name in names}
    steps = min(length, STEPS)
    measured = measure(programs, steps, state, orders, data) if len(names) > 1 else []
    fastest = min(measured, key=lambda row: row["ms_per_step"], default={"strategy": names[0]})
    best = agreed(lambda: fastest["strategy"])
    write_text(file, json.dumps(here | {"strategy": best, "measured": measured}, indent=1) + "\n")
    if measured:
        console.print(
            as_table(measured, best, f"{seeds} seeds, {here['devices']} × {here['device']}")
        )
    return programs[best]


def recorded(file: Path, here: Mapping[str, Any]) -> str:
    """The strategy in `file`; "" if there is none, or one for something else than `here`."""
    if not file.exists():
        return ""
    then = read_json(file)
    changed = [f"{k} was {then.get(k)}, now {v}" for k, v in here.items() if then.get(k) != v]
    if changed:
        console.print(f"{file} does not hold any more ({', '.join(changed)}): choosing again")
    return "" if changed else then["strategy"]


def agreed(choice: Callable[[], str]) -> str:
    """Process 0's `choice`, a strategy or "", on every process: their clocks and disks differ."""
    names = ("", *STRATEGIES)
    return names[
        processes.broadcast_from_main(lambda: np.int32(names.index(choice())), np.int32(0))
    ]


def measure(
    programs: Mapping[str, Loop | Batched],
    length: int,
    state: Any,
    orders: np.ndarray,
    data: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """Milliseconds of a step of all seeds and seconds of compilation, one row per program.

    The programs take turns, so that what else the machine does meets all of them alike. One that
    fails, for lack of memory say, has no row.
    """
    held = {
        name: [p.put(state), p.put(orders, None, "data"), *map(p.share, data)]
        for name, p in programs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + ROUNDS):
        for name, arguments in list(held.items()):
            begin = time.perf_counter()
            try:
                arguments[0], _ = programs[name](length, *arguments)
                jax.block_until_ready(arguments[0])
            except jax.errors.JaxRuntimeError as error:
                console.print(f"{name} does not run here: {error}", markup=False, soft_wrap=True)
                del held[name]
            times[name].append(time.perf_counter() - begin)
    best = {name: min(times[name][1:]) for name in held}
    return [
        {
            "strategy": name,
            "ms_per_step": 1e3 * fastest / length,
            "compile_s": max(times[name][0] - fastest, 0.0),
        }
        for name, fastest in best.items()
    ]


def as_table(measured: Sequence[Mapping[str, Any]], best: str, title: str) -> Table:
    """What was measured, for a terminal."""
    table = Table("strategy", "ms a step", "s to compile", title=title)
    for row in measured:
        style = "bold" if row["strategy"] == best else None
        table.add_row(
            row["strategy"], f"{row['ms_per_step']:.1f}", f"{row['compile_s']:.0f}", style=style
        )
    return table
