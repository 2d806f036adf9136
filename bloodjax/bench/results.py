"""What a benchmark found, row by row: speed.json, speed.md, speed.png, and a terminal's table.

python -m bloodjax.bench.results runs/vae runs/gan runs/ddpm prints what was measured in one table.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bloodjax.bench.contest import Contestant
from bloodjax.report.figures import draw_speed
from bloodjax.runtime.environment import environment
from bloodjax.runtime.files import atomic_write, read_json, write_text
from bloodjax.runtime.progress import console

Row = dict[str, Any]
FRAMEWORKS = {"jax": "JAX", "torch": "PyTorch"}
UNITS = {
    "train": "a step",
    "sweep": "a step of five seeds",
    "sample": "so many images",
    "features": "so many images",
    "frechet": "one distance of 2048 features",
    "matmul": "4096 × 4096",
    "time to score": "the quick job",
}


def row(
    task: str,
    batch: int,
    precision: str,
    contestant: Contestant,
    flops: float = 0.0,
    note: str = "",
) -> Row:
    """What is known of a contestant in a task; None for what was not measured.

    Seconds are of a unit (`UNITS`): median and interquartile range over windows; compile_s is what
    the first time took longer than as many units did later.
    """
    sqrtm = contestant.variant == "sqrtm"
    known: Row = {
        "task": task,
        "batch": batch,
        "framework": "SciPy" if sqrtm else FRAMEWORKS[contestant.side],
        "variant": contestant.variant,
        "precision": precision,
        "median_s": None,
        "iqr_s": None,
        "compile_s": None,
        "peak_bytes": None,
        "bound_share": None,
        "ratio": None,
        "flops": flops or None,
        "windows": len(contestant.times),
        "note": note,
        **contestant.about,
    }
    if contestant.times:
        low, median, high = np.percentile(contestant.times, (25, 50, 75)).tolist()
        known |= {
            "median_s": median,
            "iqr_s": high - low if len(contestant.times) > 1 else None,
            "compile_s": max(contestant.first[1] - contestant.first[0] * median, 0.0),
            "peak_bytes": contestant.peak_bytes,
        }
    return known


def complete(rows: list[Row]) -> list[Row]:
    """Fill in what needs several rows.

    bound_share: the row's floating-point operations in the time of a matrix product of as many, by
    whichever framework is faster at that. ratio: the time of the fastest rival, SciPy where it is
    the rival, over the row's own: above 1 is faster than PyTorch.
    """
    for own in rows:
        same = [r for r in rows if r["precision"] == own["precision"] and r["median_s"]]
        peaks = [r["flops"] / r["median_s"] for r in same if r["task"] == "matmul"]
        rivals = [
            r["median_s"]
            for r in same
            if (r["task"], r["batch"]) == (own["task"], own["batch"]) and r["framework"] != "JAX"
        ]
        if own["median_s"] and own["flops"] and peaks:
            own["bound_share"] = own["flops"] / own["median_s"] / max(peaks)
        if own["median_s"] and rivals:
            own["ratio"] = min(rivals) / own["median_s"]
    return rows


def write(workdir: Path, rows: list[Row]) -> None:
    """speed.json (the rows), speed.md and speed.png."""
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(workdir / "speed.json", text + "\n")
    write_text(workdir / "speed.md", markdown(rows))
    with atomic_write(workdir / "speed.png") as part:
        part.write_bytes(draw_speed(rows))


def show(workdir: Path, rows: list[Row]) -> None:
    """The table on the terminal, and why a row is not in it."""
    table = Table(*HEADINGS, title="ratio: the fastest rival's time over the row's own")
    for own in rows:
        if own["median_s"]:
            table.add_row(*as_cells(own))
    console.print(table)
    console.print(made_by(rows))
    for note in dict.fromkeys(own["note"] for own in rows if own["note"]):
        console.print(f"{sum(own['note'] == note for own in rows)} rows {note}", markup=False)
    console.print(f"{workdir}/speed.json, speed.md and speed.png hold all rows", markup=False)


HEADINGS = "task by median IQR compile peak bound ratio".split()


def as_cells(own: Row) -> list[str]:
    """A row for people."""
    head = [title(own), f"{own['framework']} {own['variant']}"]
    if own["median_s"] is None:
        return [*head, own["note"], *[""] * 5]
    rest = [
        seconds(own["median_s"]),
        "" if own["iqr_s"] is None else seconds(own["iqr_s"]),
        "" if own["compile_s"] is None else f"{own['compile_s']:.1f} s",
        "" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 2**20:,.0f} MiB",
        "" if own["bound_share"] is None else f"{own['bound_share']:.0%}",
        "" if own["ratio"] is None else f"{own['ratio']:.2f}",
    ]
    return head + rest


def seconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def markdown(rows: Sequence[Row]) -> str:
    """speed.md: the table, ready for a README, and what made it."""
    lines = [HEADINGS, ["---"] * 2 + ["---:"] * 6, *map(as_cells, rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    units = "; ".join(f"{task}: {unit}" for task, unit in UNITS.items())
    return f"{table}\n{made_by(rows)}. Times are of {units}.\n{break_even(rows)}"


def made_by(rows: Sequence[Row]) -> str:
    """The machine and the versions."""
    about = environment()
    known = (about["machine"], about["device"], f"Python {about['python']}")
    return ", ".join([*known, *sorted({r["version"] for r in rows if r.get("version")})])


def break_even(rows: Sequence[Row]) -> str:
    """From how many training steps on JAX is ahead, compilation included, in words."""
    train = [r for r in rows if r["task"] == "train" and r["batch"] == 128 and r["median_s"]]
    ours = [r for r in train if r["framework"] == "JAX"]
    rivals = [r for r in train if r["framework"] != "JAX"]
    if not ours or not rivals:
        return ""
    own = min(ours, key=lambda r: r["median_s"])
    said = []
    for rival in rivals:
        gain = rival["median_s"] - own["median_s"]
        cost = own["compile_s"] - rival["compile_s"]
        steps = "never" if gain <= 0 < cost else f"from step {max(cost / gain, 0):.0f} on"
        if gain <= 0 >= cost:
            steps = f"until step {cost / gain:.0f}" if gain else "always"
        said.append(f"{rival['variant']}: {steps}")
    return f"With compilation, JAX is ahead of PyTorch's {'; '.join(said)} (batches of 128).\n"


def several(workdirs: Sequence[Path]) -> str:
    """What was measured in each of these folders, a line a task, for a README."""
    read = {workdir.name: read_json(workdir / "speed.json") for workdir in workdirs}
    found = {
        name: [row for row in rows if row["median_s"] and row["task"] != "matmul"]
        for name, rows in read.items()
    }
    who = list(dict.fromkeys(map(by, (row for rows in found.values() for row in rows))))
    lines = [["", "task", *who, "ratio"], ["---"] * 2 + ["---:"] * (len(who) + 1)]
    for name, rows in found.items():
        for task in dict.fromkeys(map(title, rows)):
            own = {by(row): row for row in rows if title(row) == task}
            ratio = max(
                (r["ratio"] or 0 for r in own.values() if r["framework"] == "JAX"), default=0
            )
            cells = [measured(own[who]) if who in own else "" for who in who]
            lines.append([name, task, *cells, f"{ratio:.2f}" if ratio else ""])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by(row: Row) -> str:
    """Who did it: JAX has one way on a CPU, so that goes without saying."""
    return "JAX" if row["framework"] == "JAX" else f"{row['framework']} {row['variant']}"


def title(row: Row) -> str:
    precision = "" if row["precision"] == "float32" else row["precision"]
    return " ".join(filter(None, (row["task"], str(row["batch"] or ""), precision)))


def measured(row: Row) -> str:
    """A median and its share of the bound."""
    share = "" if row["bound_share"] is None else f" ({row['bound_share']:.0%})"
    return seconds(row["median_s"]) + share


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bloodjax.bench.results")
    parser.add_argument("workdirs", type=Path, nargs="+", help="where benchmarks were made")
    print(several(parser.parse_args(argv).workdirs), end="")


if __name__ == "__main__":
    main()
