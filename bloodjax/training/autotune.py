"""The fastest strategy for several seeds, measured at the start and written down."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from bloodjax.runtime import processes
from bloodjax.runtime.compilation import choose_engine
from bloodjax.runtime.files import read_json, write_text
from bloodjax.runtime.progress import console, print_line
from bloodjax.training.strategies import STRATEGIES, Advance, Program, make_program, mesh_shape

ROUNDS = 3  # timings of each strategy; the fastest counts, since the machine does other work too
STEPS = 8  # of a timing, at most: a dispatch of training may be an epoch
SECONDS = 300  # after which no further strategy is compiled
SHARDED = STRATEGIES[3:]  # use all devices


def parse_strategies(strategy: str) -> tuple[str, ...]:
    """Return the names in "loop,vmap", or ("auto",).

    Raises:
        ValueError: a name is not in `STRATEGIES`, or there is none; with several processes, a name
            that uses one device only.
    """
    names = tuple(name.strip() for name in strategy.split(","))
    if names != ("auto",) and not set(names) <= set(STRATEGIES):
        raise ValueError(
            f"train.strategy={strategy!r}: expected auto, one of {', '.join(STRATEGIES)}, or "
            "several of them with commas, of which the fastest is taken"
        )
    if processes.count() > 1 and not {"auto", *SHARDED}.issuperset(names):
        raise ValueError(
            f"train.strategy={strategy!r}: there are {processes.count()} processes, expected auto, "
            f"or one or several of {', '.join(SHARDED)}"
        )
    return names


def candidates(seeds: int, batch: int) -> tuple[str, ...]:
    """Return the strategies that can be the fastest here.

    A CPU tries neither vmap, which makes convolutions 1.5 to 5 times slower, nor map, which makes
    their gradients 10 to 70 times slower. Several processes try only what uses all devices.
    """
    devices, cpu = jax.device_count(), jax.default_backend() == "cpu"
    if devices == 1:
        return ("loop",) if cpu or seeds == 1 else ("loop", "vmap", "map", "sharded")
    one_seed_per_device = seeds <= mesh_shape(seeds, batch, devices)[0]
    sharded = ("sharded",) if cpu or one_seed_per_device else SHARDED
    return sharded if processes.count() > 1 else ("loop", *sharded)


def choose_program(
    strategy: str,
    advance: Advance,
    file: Path,
    length: int,
    state: Any,
    orders: np.ndarray,
    data: Sequence[np.ndarray],
) -> Program:
    """Return the program of `strategy`, or of the fastest of several, measured here.

    The choice is written to `file`. The same question on the same devices reads it from there, so
    that a resumed run runs the same program.

    Args:
        strategy: see `parse_strategies`.
        advance: see `strategies.Advance`.
        file: strategy.json of the run.
        length, state, orders, data: of the first dispatch, on the host; left unchanged.
    """
    seeds, _, batch = orders.shape
    question = {
        "asked": strategy,
        "seeds": seeds,
        "devices": jax.device_count(),
        "processes": processes.count(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "engine": choose_engine(),
    }
    if answer := broadcast_name(lambda: read_choice(file, question)):
        return make_program(answer, advance, seeds, batch)

    # Measure if there is a choice
    names = candidates(seeds, batch) if strategy == "auto" else parse_strategies(strategy)
    programs = {name: make_program(name, advance, seeds, batch) for name in names}
    rows, begin = [], time.perf_counter()
    if len(programs) > 1:
        rows = measure(programs, min(length, STEPS), state, orders, data)
    seconds = time.perf_counter() - begin
    fastest = min(rows, key=lambda row: row["ms_per_step"])["strategy"] if rows else [*programs][0]
    best = broadcast_name(lambda: fastest)

    # Write the choice down
    write_text(file, json.dumps(question | {"strategy": best, "measured": rows}, indent=1) + "\n")
    if rows:
        devices = f"{question['devices']} × {question['device']}"
        console.print(
            make_table(rows, best, f"{seeds} seeds, {devices}, {seconds:.0f} s to choose")
        )
    return programs[best]


def read_choice(file: Path, question: Mapping[str, Any]) -> str:
    """Return the strategy in `file`, or "" if there is none or if it answers another question."""
    if not file.exists():
        return ""
    choice = read_json(file)
    changes = [
        f"{key} was {choice.get(key)}, is {value}"
        for key, value in question.items()
        if choice.get(key) != value
    ]
    if changes:
        console.print(f"{file} is out of date ({', '.join(changes)}): choosing again")
    return "" if changes else choice["strategy"]


def broadcast_name(choose: Callable[[], str]) -> str:
    """Return the result of `choose` on process 0, a strategy or "", on every process.

    Clocks and disks of processes differ. Processes exchange arrays, so the name goes as a number.
    """
    names = ("", *STRATEGIES)
    number = processes.broadcast_from_main(lambda: np.int32(names.index(choose())), np.int32(0))
    return names[number]


def is_over(start: float) -> bool:
    """Return whether process 0 has waited `SECONDS` since `start`: all processes must agree."""
    late = processes.broadcast_from_main(
        lambda: np.bool_(time.perf_counter() - start > SECONDS), np.bool_(False)
    )
    return bool(late)


def measure(
    programs: Mapping[str, Program],
    length: int,
    state: Any,
    orders: np.ndarray,
    data: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """Return milliseconds per step of all seeds and seconds of compilation, a row per program.

    The programs take turns, so that other load on the machine meets all of them alike. There is no
    row for a program that fails, by lack of memory for example, nor for one whose compilation would
    begin after `SECONDS`.
    """
    arguments = {
        name: [p.put(state), p.put(orders, None, "data"), *map(p.put_shared, data)]
        for name, p in programs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    compile_s: dict[str, float] = {}
    start = time.perf_counter()
    for turn in range(1 + ROUNDS):
        for name in list(arguments):
            if turn == 0 and compile_s and is_over(start):
                console.print(f"{name} is not tried: {SECONDS} s are over")
                del arguments[name]
                continue
            try:
                if turn == 0:
                    compile_s[name] = programs[name].compile(*arguments[name])
                begin = time.perf_counter()
                arguments[name][0], _ = programs[name](length, *arguments[name])
                jax.block_until_ready(arguments[name][0])
                times[name].append(time.perf_counter() - begin)
            except jax.errors.JaxRuntimeError as error:
                print_line(f"{name} does not run here: {error}")
                del arguments[name]
    steps = {name: 1e3 * min(times[name][1:]) / length for name in arguments}
    return [
        {"strategy": name, "ms_per_step": ms, "compile_s": compile_s[name]}
        for name, ms in steps.items()
    ]


def make_table(rows: Sequence[Mapping[str, Any]], best: str, title: str) -> Table:
    """Return the measured rows as a table for a terminal."""
    table = Table("strategy", "ms a step", "s to compile", title=title)
    for row in rows:
        style = "bold" if row["strategy"] == best else None
        cells = row["strategy"], f"{row['ms_per_step']:.1f}", f"{row['compile_s']:.0f}"
        table.add_row(*cells, style=style)
    return table
