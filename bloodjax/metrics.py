"""metrics.jsonl: one JSON object a line for every step of every seed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from bloodjax.methods import Metrics
from bloodjax.workdir import write_text

NOT_LOSSES = {"seed", "step", "epoch", "images_per_s"}


def write(
    log: TextIO, seeds: Sequence[int], begin: int, per_epoch: int, chunk: Metrics, rate: float
) -> str:
    """Append the steps after `begin`; returns the last losses in words.

    Args:
        log: the open file.
        begin: steps done before.
        per_epoch: steps in an epoch.
        chunk: each value float [seeds, steps].
        rate: images per second, all seeds together.

    Raises:
        FloatingPointError: a value is not finite; names it, its step and its seed.
    """
    values: dict[str, float] = {}
    for i in range(next(iter(chunk.values())).shape[1]):
        for row, seed in enumerate(seeds):
            values = {name: float(x[row, i]) for name, x in chunk.items()}
            step = begin + i + 1
            for name, value in values.items():
                if not math.isfinite(value):
                    what = f"{name} is {value} at step {step} of seed {seed}"
                    raise FloatingPointError(f"{what}; the last good checkpoint is kept")
            where = {"seed": int(seed), "step": step, "epoch": (begin + i) // per_epoch}
            log.write(json.dumps(where | values | {"images_per_s": round(rate, 1)}) + "\n")
    return "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k.endswith("_loss"))


def trim(file: Path, step: int) -> None:
    """Drop the lines after `step`: they were written by a process that did not save so far."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the line that was being written when the process died
            continue
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
