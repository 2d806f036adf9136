"""metrics.jsonl: one JSON object a line for every step of every seed."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bloodjax.methods import Metrics
from bloodjax.runtime import processes
from bloodjax.runtime.files import name_errors, write_text
from bloodjax.runtime.progress import console, print_line

NOT_LOSSES = {"seed", "step", "epoch", "images_per_s", "compile_s"}


@contextmanager
def open_lines(file: Path) -> Iterator[TextIO]:
    """Open `file` for appending; lines of other processes than 0 are dropped."""
    file = file if processes.is_main() else Path(os.devnull)
    with name_errors(file), file.open("a", encoding="utf-8") as lines:
        yield lines


class Log:
    """The log of a training run, which is written one dispatch behind the computation.

    Args:
        lines: metrics.jsonl, open for appending.
        seeds: the seeds, in the order of the metrics' leading axis.
        steps_per_epoch: training steps in an epoch.
        batch_size: images per step and seed.
        advance: moves the progress bar, `advance(steps, note)`.
        fetch: brings the metrics of a program to the host, name -> float [seeds, steps].
        on_written: is called now, and whenever further lines can be read in the file.
    """

    def __init__(
        self,
        lines: TextIO,
        seeds: Sequence[int],
        steps_per_epoch: int,
        batch_size: int,
        advance: Callable[..., None],
        fetch: Callable[[Any], Metrics],
        on_written: Callable[[], None] | None = None,
    ) -> None:
        self.lines, self.seeds, self.advance, self.fetch = lines, seeds, advance, fetch
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.on_written = on_written or (lambda: None)
        self.pending: tuple[int, int, Any, dict[str, float]] | None = None
        self.timing: dict[str, float] = {}  # of the next dispatch
        self.on_written()
        self.mark = time.perf_counter()

    def record_compilation(self, seconds: float) -> None:
        """Note the seconds that the next dispatch needs first; images per second exclude them."""
        console.print(f"training compiled in {seconds:.1f} s")
        self.mark += seconds
        self.timing["compile_s"] = seconds

    def record(self, begin: int, length: int, metrics: Any) -> None:
        """Write the previous dispatch; keep `metrics`, of `length` steps after `begin`."""
        self._write_pending({})
        self.pending, self.timing = (begin, length, metrics, self.timing), {}

    def untimed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`; images per second exclude its time."""
        begin = time.perf_counter()
        result = function(*arguments)
        self.mark += time.perf_counter() - begin
        return result

    def flush(self, evaluation: Mapping[str, Any] | None = None) -> None:
        """Write all lines to disk: a checkpoint must not be ahead of its metrics.

        `evaluation` is that of the last step: its "name" and its "values", one per seed.

        Raises:
            FloatingPointError: a value is not finite; the message names it, its step and its seed.
        """
        self._write_pending({evaluation["name"]: evaluation["values"]} if evaluation else {})
        self.lines.flush()
        if processes.is_main():
            os.fsync(self.lines.fileno())

    def _write_pending(self, last: Mapping[str, Sequence[float]]) -> None:
        """Write the lines of a dispatch; `last` has further values of its last step."""
        if self.pending is None:
            return
        (begin, length, metrics, timing), self.pending = self.pending, None
        metrics = self.fetch(metrics)
        rate = length * self.batch_size * len(self.seeds) / (time.perf_counter() - self.mark)
        self.mark = time.perf_counter()
        timing = {name: round(x, 1) for name, x in {**timing, "images_per_s": rate}.items()}

        values: dict[str, float] = {}
        for i in range(length):
            step = begin + i + 1
            for row, seed in enumerate(self.seeds):
                position = {"seed": int(seed), "step": step}
                position["epoch"] = (step - 1) // self.steps_per_epoch
                values = {name: float(x[row, i]) for name, x in metrics.items()}
                if i == length - 1:
                    values |= {name: float(x[row]) for name, x in last.items()}
                check_finite(values, step, seed)
                self.lines.write(json.dumps(position | values | timing) + "\n")
        self.lines.flush()
        self.on_written()
        losses = "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k.endswith("_loss"))
        self.advance(length, f"{rate:.0f} images/s  {losses}")


def check_finite(values: Mapping[str, float], step: int, seed: int) -> None:
    """Refuse values that are not finite: FloatingPointError."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step} of seed {seed}; the last good checkpoint is kept"
            )


def trim(file: Path, step: int) -> None:
    """Drop the lines after `step`, which a process wrote that stopped before it saved them.

    A line that is not JSON is dropped as well. The last line may be one, if the process was killed
    while writing it; any other is reported.
    """
    text = file.read_bytes() if file.exists() else b""
    lines, kept = text.splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode() + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                print_line(f"{file}: line {number} is damaged and dropped")
    if "".join(kept).encode() != text:
        write_text(file, "".join(kept))


def parse_lines(text: str) -> Iterator[dict[str, Any]]:
    """Yield the values of lines; damaged ones, which `trim` reports, are left out."""
    for line in text.splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def read(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Return the curves of a file: loss -> seed -> float64 [n, 2] of (step, value).

    Steps rise. A step that ran again after a resume counts once, as last written. A last line that
    an interruption cut short does not count. Without a file there are no curves.
    """
    text = path.read_text("utf-8") if path.exists() else ""
    rows = {(row["seed"], row["step"]): row for row in parse_lines(text)}
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for (seed, step), row in sorted(rows.items()):
        for name in row.keys() - NOT_LOSSES:
            curves.setdefault(name, {}).setdefault(seed, []).append((step, row[name]))
    return {k: {s: np.array(c, np.float64) for s, c in curves[k].items()} for k in sorted(curves)}
