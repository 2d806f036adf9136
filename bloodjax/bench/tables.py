"""Tables of benchmark rows: speed.md, a terminal's table, and one of several benchmarks.

python -m bloodjax.bench.tables runs/vae runs/gan runs/ddpm prints a line for each task.
python -m bloodjax.bench.tables docs/gpu_h200.json does so for a file of raw measurements.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from bloodjax.bench.results import Row, read_benchmarks
from bloodjax.bench.tasks import title
from bloodjax.runtime.environment import environment
from bloodjax.runtime.progress import console

HEADINGS = ("task", "by", "median", "IQR", "compile", "peak", "bound", "ratio")
UNITS = {
    "train": "a step",
    "sweep": "a step of five seeds",
    "sample": "that number of images",
    "features": "that number of images",
    "frechet": "one distance of 2048 features",
    "matmul": "4096 × 4096",
    "time to score": "the quick job",
}


def row_title(row: Row) -> str:
    """Return the name of a row: task, batch and precision."""
    return title(row["task"], row["batch"], row["precision"])


def format_row(row: Row) -> list[str]:
    """Return the cells of a row under HEADINGS."""
    head = [row_title(row), f"{row['framework']} {row['variant']}"]
    if row["median_s"] is None:
        return [*head, row["note"], *[""] * 5]
    return [
        *head,
        format_seconds(row["median_s"]),
        "" if row["iqr_s"] is None else format_seconds(row["iqr_s"]),
        "" if row["compile_s"] is None else f"{row['compile_s']:.1f} s",
        "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        "" if row["bound_share"] is None else f"{row['bound_share']:.0%}",
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
    ]


def format_seconds(value: float) -> str:
    """Return a duration with three digits, from 1,000 s on in whole seconds."""
    if value >= 999.5:
        return f"{value:,.0f} s"
    return f"{1e3 * value:.3g} ms" if value < 0.9995 else f"{value:#.3g} s".replace(". s", " s")


def print_table(workdir: Path, rows: Sequence[Row], seconds: Mapping[str, float]) -> None:
    """Print the rows, and the reasons of those that were not measured."""
    table = Table(*HEADINGS, title="ratio: the fastest rival's time over that of the row")
    for row in rows:
        if row["median_s"]:
            table.add_row(*format_row(row))
    console.print(table)
    console.print(describe_machine(rows))
    console.print(format_shares(seconds))
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        console.print(f"{sum(row['note'] == note for row in rows)} rows {note}", markup=False)
    console.print(f"{workdir}/speed.json, speed.md and speed.png hold all rows", markup=False)


def format_markdown(rows: Sequence[Row], seconds: Mapping[str, float]) -> str:
    """Return speed.md: the table, the machine, units, break-even and shares of the time."""
    table = join_cells([HEADINGS, ["---"] * 2 + ["---:"] * 6, *map(format_row, rows)])
    units = "; ".join(f"{task}: {unit}" for task, unit in UNITS.items())
    notes = [f"{describe_machine(rows)}. Times are of {units}.", break_even(rows)]
    return f"{table}\n" + "\n".join(filter(None, [*notes, format_shares(seconds)])) + "\n"


def join_cells(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n".replace("|  ", "| ") for line in lines)


def describe_machine(rows: Sequence[Row]) -> str:
    """Return the machine and the versions of the libraries."""
    values = environment()
    head = (values["machine"], values["device"], f"Python {values['python']}")
    return ", ".join([*head, *sorted({row["version"] for row in rows if row.get("version")})])


def format_shares(seconds: Mapping[str, float]) -> str:
    """Return the duration of a benchmark, and the share of each part."""
    total = sum(seconds.values())
    shares = ", ".join(f"{part} {time / total:.0%}" for part, time in seconds.items())
    return f"The benchmark took {total / 60:.1f} minutes: {shares}." if total else ""


def break_even(rows: Sequence[Row]) -> str:
    """Return the training step from which on JAX is ahead, compilation included, in words."""
    train = [r for r in rows if r["task"] == "train" and r["batch"] == 128 and r["median_s"]]
    train = [r for r in train if r["precision"] == "float32"]
    jax_rows = [r for r in train if r["framework"] == "JAX"]
    rivals = [r for r in train if r["framework"] != "JAX"]
    if not jax_rows or not rivals:
        return ""
    best = min(jax_rows, key=lambda r: r["median_s"])
    parts = []
    for rival in rivals:
        gain = rival["median_s"] - best["median_s"]
        cost = best["compile_s"] - rival["compile_s"]
        if gain > 0:
            steps = f"from step {max(cost / gain, 0):.0f} on"
        elif cost >= 0:
            steps = "never"
        else:
            steps = f"until step {cost / gain:.0f}" if gain else "always"
        parts.append(f"{rival['variant']}: {steps}")
    return f"With compilation, JAX is ahead of PyTorch's {'; '.join(parts)} (batches of 128)."


# ---- several benchmarks in one table -------------------------------------------------------------

COLUMNS = (
    "JAX",
    *(f"PyTorch {variant}" for variant in ("eager", "channels_last", "compile", "cuda_graphs")),
    "SciPy sqrtm",
)


def compare_methods(benchmarks: Mapping[str, Sequence[Row]]) -> str:
    """Return a Markdown table with a line for each task of each method.

    A cell holds the median and, in brackets, its share of the bound. JAX's cell is its fastest
    contestant. Below the table stand its other contestants, and what was not measured.

    Args:
        benchmarks: method -> rows.
    """
    lines, slower = [], []
    for method, rows in benchmarks.items():
        timed = [row for row in rows if row["median_s"] and row["task"] != "matmul"]
        timed.sort(key=lambda row: row["median_s"])
        for task in dict.fromkeys(row_title(row) for row in rows):
            cells: dict[str, Row] = {}
            for row in timed:
                if row_title(row) == task and column_of(row) in cells:
                    slower.append(f"{method} {task} {row['variant']} {format_median(row)}")
                elif row_title(row) == task:
                    cells[column_of(row)] = row
            if cells:
                ratio = cells["JAX"]["ratio"] if "JAX" in cells else None
                medians = {column: format_median(row) for column, row in cells.items()}
                lines.append((method, task, medians, f"{ratio:.2f}" if ratio else ""))
    columns = [name for name in COLUMNS if any(name in medians for _, _, medians, _ in lines)]
    table = [["", "task", *columns, "ratio"], ["---"] * 2 + ["---:"] * (len(columns) + 1)]
    for method, task, medians, ratio in lines:
        table.append([method, task, *(medians.get(name, "") for name in columns), ratio])
    text = join_cells(table)
    if slower:
        text += f"\nOther contestants of JAX: {'; '.join(slower)}.\n"
    return text + list_gaps(benchmarks)


def column_of(row: Row) -> str:
    """Return the column of a row: one for JAX, one for each variant of PyTorch."""
    return "JAX" if row["framework"] == "JAX" else f"{row['framework']} {row['variant']}"


def format_median(row: Row) -> str:
    """Return a median and its share of the bound."""
    share = "" if row["bound_share"] is None else f" ({row['bound_share']:.0%})"
    return format_seconds(row["median_s"]) + share


def list_gaps(benchmarks: Mapping[str, Sequence[Row]]) -> str:
    """Return a line for each reason why rows are empty, with their tasks and methods."""
    gaps: dict[str, dict[str, dict[str, None]]] = {}  # note -> task -> methods
    for method, rows in benchmarks.items():
        timed = {row_title(row) for row in rows if row["median_s"]}
        for row in rows:
            if row["note"]:
                task = row_title(row)
                if task in timed:  # by other contestants
                    task += f" by {row['framework']} {row['variant']}"
                gaps.setdefault(row["note"], {}).setdefault(task, {})[method] = None
    lines = []
    for note, tasks in gaps.items():
        parts = [
            f"{task} ({', '.join(methods)})" if len(methods) < len(benchmarks) else task
            for task, methods in tasks.items()
        ]
        lines.append(f"{note[0].upper()}{note[1:]}: {'; '.join(parts)}.")
    return "".join(f"\n{line}\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table of several benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bloodjax.bench.tables")
    parser.add_argument("paths", type=Path, nargs="+", help="folders of benchmarks, or raw files")
    print(compare_methods(read_benchmarks(parser.parse_args(argv).paths)), end="")


if __name__ == "__main__":
    main()
