"""The rows of a benchmark: a contestant in a task, as speed.json holds it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloodjax.bench.tasks import FEATURES, Task
from bloodjax.bench.timing import Contestant
from bloodjax.runtime.files import read_json

Row = dict[str, Any]
FRAMEWORKS = {"jax": "JAX", "torch": "PyTorch"}


def make_row(task: Task, contestant: Contestant) -> Row:
    """Return the result of a contestant in a task; None stands for what was not measured.

    median_s and iqr_s are seconds of a unit, over windows. compile_s is the time by which the first
    call exceeds the same number of units later; other contestants compile at the same time.
    """
    scipy = contestant.variant == "sqrtm"
    row: Row = {
        "task": task.name,
        "batch": task.batch,
        "framework": "SciPy" if scipy else FRAMEWORKS[contestant.side],
        "variant": contestant.variant,
        "precision": task.precision,
        "median_s": None,
        "iqr_s": None,
        "compile_s": None,
        "peak_bytes": None,
        "bound_share": None,
        "ratio": None,
        "flops": task.flops or None,
        "windows": len(contestant.times),
        "note": f"not measured: {contestant.failure}" if contestant.failure else "",
        **contestant.versions,
    }
    if contestant.times:
        low, median, high = np.percentile(contestant.times, (25, 50, 75)).tolist()
        row |= {
            "median_s": median,
            "iqr_s": high - low if len(contestant.times) > 1 else None,
            "compile_s": max(contestant.first[1] - contestant.first[0] * median, 0.0),
            "peak_bytes": contestant.peak_bytes,
        }
    return row


def add_ratios(rows: list[Row]) -> list[Row]:
    """Fill in the values that need several rows.

    bound_share: the floating-point operations of a row in the time of a matrix product with the
    same number, by the faster framework, over the time of the row. ratio: the time of the fastest
    rival, PyTorch or SciPy, over the time of the row; above 1, the row is faster.
    """
    for row in rows:
        if not row["median_s"]:
            continue
        same = [r for r in rows if r["precision"] == row["precision"] and r["median_s"]]
        peaks = [r["flops"] / r["median_s"] for r in same if r["task"] == "matmul"]
        rivals = [
            r["median_s"]
            for r in same
            if (r["task"], r["batch"]) == (row["task"], row["batch"]) and r["framework"] != "JAX"
        ]
        if row["flops"] and peaks:
            row["bound_share"] = row["flops"] / row["median_s"] / max(peaks)
        if rivals:
            row["ratio"] = min(rivals) / row["median_s"]
    return rows


def blank_rows(rows: Sequence[Row], note: str, **values: Any) -> list[Row]:
    """Return copies of rows without times, with a note and other `values`."""
    empty = dict.fromkeys(("median_s", "iqr_s", "compile_s", "peak_bytes", "bound_share", "ratio"))
    unknown = dict.fromkeys(("version", "device"))
    return [row | empty | unknown | {"windows": 0, "note": note} | values for row in rows]


# ---- files ---------------------------------------------------------------------------------------


def read_benchmarks(paths: Sequence[Path]) -> dict[str, list[Row]]:
    """Return the rows of each method.

    Args:
        paths: folders of benchmarks, which hold speed.json and are named after their methods, or
            files of raw measurements of several methods.
    """
    benchmarks: dict[str, list[Row]] = {}
    for path in paths:
        if path.is_dir():
            benchmarks[path.name] = read_json(path / "speed.json")["rows"]
        else:
            benchmarks |= read_measurements(path)
    return benchmarks


def read_measurements(file: Path) -> dict[str, list[Row]]:
    """Return the rows of each method from a file of raw measurements.

    The file lists objects: method, task, precision, size (images), side, variant, flops, times
    (seconds of a unit in each window), first (units and seconds of the first call), peak (bytes),
    about (versions), fail (a reason or null), and python: "def", or "nt" for JAX without Triton's
    matrix products. Tasks of a whole benchmark that are not in the file get rows without times.
    """
    benchmarks: dict[str, list[Row]] = {}
    products = []
    for item in read_json(file):
        default = item["side"] == "jax" and item["python"] == "def"
        variant = f"{item['variant']} with Triton" if default else item["variant"]
        contestant = Contestant(
            item["side"],
            variant,
            job={},
            python="",
            versions=item["about"],
            first=(item["first"][0], item["first"][1]),
            times=item["times"],
            peak_bytes=item["peak"],
            failure=(item["fail"] or "").removeprefix("Failed: "),
        )
        task = Task(item["task"], item["size"], item["precision"], [], item["flops"])
        row = make_row(task, contestant)
        if task.name == "matmul":
            products.append(row)
        else:
            benchmarks.setdefault(item["method"], []).append(row)
    for method, rows in benchmarks.items():
        benchmarks[method] = add_ratios([*products, *rows, *missing_rows(rows)])
    return benchmarks


def missing_rows(rows: Sequence[Row]) -> list[Row]:
    """Return an empty row for each task of a whole benchmark on a GPU that `rows` lack."""
    sizes = {"train": (32, 128, 512), "sample": (0,), "sweep": (128,), "features": (FEATURES,)}
    extra = [(task, "float32") for task in ("sweep", "features", "frechet", "time to score")]
    main = [(task, p) for p in ("float32", "tf32", "bfloat16") for task in ("train", "sample")]
    missing = []
    for task, precision in main + extra:
        for size in sizes.get(task, (0,)):
            present = {(r["task"], r["batch"] * bool(size), r["precision"]) for r in rows}
            if (task, size, precision) not in present:
                row = make_row(Task(task, size, precision, []), Contestant("jax", "", {}, ""))
                missing += blank_rows([row], "not measured")
    return missing
