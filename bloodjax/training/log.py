"""metrics.jsonl: one JSON object a line for every step of every seed."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bloodjax.methods import Metrics
from bloodjax.runtime import processes
from bloodjax.runtime.files import name_errors, write_text
from bloodjax.runtime.progress import console

NOT_LOSSES = {"seed", "step", "epoch", "images_per_s", "compile_s"}


def write(
    log: TextIO,
    seeds: Sequence[int],
    begin: int,
    per_epoch: int,
    chunk: Metrics,
    speed: Mapping[str, float],
    last: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Append the steps after `begin`; returns the last losses in words.

    Args:
        log: the open file.
        begin: steps done before.
        per_epoch: steps in an epoch.
        chunk: each value float [seeds, steps].
        speed: "images_per_s", all seeds together, and "compile_s" if there was something to compile
            first, which that does not count.
        last: further values of the last of these steps, one a seed.

    Raises:
        FloatingPointError: a value is not finite; names it, its step and its seed.
    """
    values: dict[str, float] = {}
    length = next(iter(chunk.values())).shape[1]
    for i in range(length):
        for row, seed in enumerate(seeds):
            values = {name: float(x[row, i]) for name, x in chunk.items()}
            if last and i == length - 1:
                values |= {name: float(x[row]) for name, x in last.items()}
            step = begin + i + 1
            for name, value in values.items():
                if not math.isfinite(value):
                    what = f"{name} is {value} at step {step} of seed {seed}"
                    raise FloatingPointError(f"{what}; the last good checkpoint is kept")
            where = {"seed": int(seed), "step": step, "epoch": (begin + i) // per_epoch}
            timing = {name: round(value, 1) for name, value in speed.items()}
            log.write(json.dumps(where | values | timing) + "\n")
    return "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k.endswith("_loss"))


@contextmanager
def appending(file: Path) -> Iterator[TextIO]:
    """`file`, open for further lines; those of other processes than 0 go nowhere."""
    file = file if processes.is_main() else Path(os.devnull)
    with name_errors(file), file.open("a", encoding="utf-8") as log:
        yield log


class Log:
    """What a training run writes to metrics.jsonl, one dispatch behind what it computes."""

    def __init__(
        self,
        file: TextIO,
        tell: Callable[..., None],
        fetch: Callable[[Any], Metrics],
        seeds: Sequence[int],
        per_epoch: int,
        batch_size: int,
        watch: Callable[[], None] | None = None,
    ) -> None:
        """`tell(steps, note)` shows progress; `fetch` brings what a program gave to the host.

        `watch` is called now, and after each dispatch when its lines can be read in the file.
        """
        self.file, self.tell, self.fetch = file, tell, fetch
        self.seeds, self.per_epoch, self.batch_size = seeds, per_epoch, batch_size
        self.pending: tuple[int, Any, dict[str, float]] | None = None
        self.speed: dict[str, float] = {}  # of the dispatch to come
        self.watch = watch
        if watch:
            watch()
        self.mark = time.perf_counter()

    def compiled(self, seconds: float) -> None:
        """So long took what the dispatch to come needed first: no part of images per second."""
        console.print(f"training compiled in {seconds:.1f} s")
        self.mark += seconds
        self.speed["compile_s"] = seconds

    def follow(self, begin: int, chunk: Any) -> None:
        """Write the dispatch before, once it is there; keep this one, the steps after `begin`."""
        self.write_pending()
        self.pending, self.speed = (begin, chunk, self.speed), {}

    def untimed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`, whose time is no part of images per second."""
        begin = time.perf_counter()
        result = function(*arguments)
        self.mark += time.perf_counter() - begin
        return result

    def settle(self, evaluation: Mapping[str, Any] | None = None) -> None:
        """Have all on disk: a checkpoint must not be ahead of its metrics.

        Args:
            evaluation: of the last step: its "values", one a seed, and their "name".
        """
        self.write_pending({evaluation["name"]: evaluation["values"]} if evaluation else None)
        self.file.flush()
        if processes.is_main():
            os.fsync(self.file.fileno())

    def write_pending(self, last: Mapping[str, Sequence[float]] | None = None) -> None:
        if self.pending is None:
            return
        (begin, chunk, speed), self.pending = self.pending, None
        chunk = self.fetch(chunk)
        length = next(iter(chunk.values())).shape[1]
        rate = length * self.batch_size * len(self.seeds) / (time.perf_counter() - self.mark)
        self.mark = time.perf_counter()
        speed["images_per_s"] = rate
        losses = write(self.file, self.seeds, begin, self.per_epoch, chunk, speed, last)
        if self.watch:
            self.file.flush()
            self.watch()
        self.tell(length, f"{rate:.0f} images/s  {losses}")


def trim(file: Path, step: int) -> None:
    """Drop the lines after `step`: they were written by a process that did not save so far.

    A line that is not JSON is dropped too: the last one, if that process died while writing it; of
    any other it is said.
    """
    text = file.read_bytes() if file.exists() else b""
    lines, kept = text.splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                console.print(f"{file}: line {number} is damaged and left out", soft_wrap=True)
    if "".join(kept).encode() != text:
        write_text(file, "".join(kept))


def read(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """{loss: {seed: float64 [n, 2] of (step, value), steps rising}}, {} where there is no file.

    A step that was run again after a resume counts once, as last written; a last line that an
    interruption cut short does not count.
    """
    rows = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["seed"], row["step"]] = row
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for (seed, step), row in sorted(rows.items()):
        for name in row.keys() - NOT_LOSSES:
            curves.setdefault(name, {}).setdefault(seed, []).append((step, row[name]))
    return {k: {s: np.array(c, np.float64) for s, c in curves[k].items()} for k in sorted(curves)}
