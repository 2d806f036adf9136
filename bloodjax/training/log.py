"""metrics.jsonl: one JSON object a line for every step of every seed."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from bloodjax.methods import Metrics
from bloodjax.runtime import processes
from bloodjax.runtime.files import name_errors, write_text
from bloodjax.runtime.progress import console, progress

NOT_LOSSES = {"seed", "step", "epoch", "images_per_s", "compile_s"}


class LogShape(NamedTuple):
    """The sizes of a training.

    Attributes:
        seeds: the seeds, in the order of the metrics' leading axis.
        steps_per_epoch: training steps in an epoch.
        batch_size: images per step and seed.
        total: training steps.
    """

    seeds: tuple[int, ...]
    steps_per_epoch: int
    batch_size: int
    total: int


class Log:
    """The log of a training run, which is written one dispatch behind the computation.

    Args:
        file: metrics.jsonl, open for appending.
        shape: the sizes of the training.
        advance: moves the progress bar, `advance(steps, note)`.
        fetch: brings the metrics of a program to the host.
        on_written: is called now, and whenever further lines can be read in the file.
    """

    def __init__(
        self,
        file: TextIO,
        shape: LogShape,
        advance: Callable[..., None],
        fetch: Callable[[Any], Metrics],
        on_written: Callable[[], None] | None = None,
    ) -> None:
        self.file, self.shape, self.advance, self.fetch = file, shape, advance, fetch
        self.pending: tuple[int, int, Any, dict[str, float]] | None = None
        self.timing: dict[str, float] = {}  # of the next dispatch
        self.on_written = on_written
        if on_written:
            on_written()
        self.mark = time.perf_counter()

    def record_compilation(self, seconds: float) -> None:
        """Note the seconds that the next dispatch needs first; images per second exclude them."""
        console.print(f"training compiled in {seconds:.1f} s")
        self.mark += seconds
        self.timing["compile_s"] = seconds

    def record(self, begin: int, length: int, metrics: Any) -> None:
        """Write the previous dispatch; keep `metrics`, of `length` steps after `begin`."""
        self._write_pending()
        self.pending, self.timing = (begin, length, metrics, self.timing), {}

    def untimed(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`; images per second exclude its time."""
        begin = time.perf_counter()
        result = function(*arguments)
        self.mark += time.perf_counter() - begin
        return result

    def flush(self, evaluation: Mapping[str, Any] | None = None) -> None:
        """Write all lines to disk: a checkpoint must not be ahead of its metrics.

        Args:
            evaluation: of the last step: its "name" and its "values", one per seed.
        """
        self._write_pending({evaluation["name"]: evaluation["values"]} if evaluation else {})
        self.file.flush()
        if processes.is_main():
            os.fsync(self.file.fileno())

    def _write_pending(self, last: Mapping[str, Sequence[float]] | None = None) -> None:
        if self.pending is None:
            return
        (begin, length, metrics, timing), self.pending = self.pending, None
        metrics = {name: rows[:, :length] for name, rows in self.fetch(metrics).items()}
        images = length * self.shape.batch_size * len(self.shape.seeds)
        rate = images / (time.perf_counter() - self.mark)
        self.mark = time.perf_counter()
        timing["images_per_s"] = rate
        losses = write_lines(self.file, self.shape, begin, metrics, timing, last or {})
        if self.on_written:
            self.file.flush()
            self.on_written()
        self.advance(length, f"{rate:.0f} images/s  {losses}")


def write_lines(
    file: TextIO,
    shape: LogShape,
    begin: int,
    metrics: Metrics,
    timing: Mapping[str, float],
    last: Mapping[str, Sequence[float]],
) -> str:
    """Append the lines of the steps after `begin`; return the last losses in words.

    Args:
        file: metrics.jsonl, open for appending.
        shape: the sizes of the training.
        begin: steps before these.
        metrics: name -> float [seeds, steps].
        timing: "images_per_s" of all seeds together; "compile_s" where a compilation came first.
        last: further values of the last of these steps: name -> one value per seed.

    Raises:
        FloatingPointError: a value is not finite; the message names it, its step and its seed.
    """
    values: dict[str, float] = {}
    length = next(iter(metrics.values())).shape[1]
    for i in range(length):
        for row, seed in enumerate(shape.seeds):
            values = {name: float(x[row, i]) for name, x in metrics.items()}
            if i == length - 1:
                values |= {name: float(x[row]) for name, x in last.items()}
            step = begin + i + 1
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value} at step {step} of seed {seed}; the last good "
                        "checkpoint is kept"
                    )
            position = {
                "seed": int(seed),
                "step": step,
                "epoch": (begin + i) // shape.steps_per_epoch,
            }
            rounded = {name: round(value, 1) for name, value in timing.items()}
            file.write(json.dumps(position | values | rounded) + "\n")
    return "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k.endswith("_loss"))


@contextmanager
def open_log(
    file: Path,
    shape: LogShape,
    done: int,
    fetch: Callable[[Any], Metrics],
    on_written: Callable[[], None] | None = None,
) -> Iterator[Log]:
    """Open `file` for the lines after step `done`, with a progress bar; see `Log`.

    Lines of other processes than 0 are dropped.
    """
    file = file if processes.is_main() else Path(os.devnull)
    with name_errors(file), file.open("a", encoding="utf-8") as lines:
        with progress("train", shape.total, done) as advance:
            yield Log(lines, shape, advance, fetch, on_written)


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
                console.print(f"{file}: line {number} is damaged and dropped", soft_wrap=True)
    if "".join(kept).encode() != text:
        write_text(file, "".join(kept))


def read(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Return the curves of a file: loss -> seed -> float64 [n, 2] of (step, value).

    Steps rise. A step that ran again after a resume counts once, as last written. A last line that
    an interruption cut short does not count. Without a file there are no curves.
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
