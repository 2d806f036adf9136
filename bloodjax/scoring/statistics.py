"""What the seeds of a study can tell: spreads, comparisons of runs, and their orders.

python -m bloodjax.scoring.statistics runs/paper [--json]
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from scipy import stats

from bloodjax.runtime import command
from bloodjax.runtime.progress import print_line
from bloodjax.scoring import inference
from bloodjax.scoring.seeds import BETTER, DISTANCE, Measurement, keep_comparable, read_study
from bloodjax.scoring.tables import STUDY
from bloodjax.scoring.verdicts import CAUTION, Row, compare_runs

STUDY_SEEDS = 5
RANKED = (DISTANCE, "kid")  # measures that tables rank the runs by
IQM_SEEDS = 5  # at least, for an interquartile mean
ONE_SET = (
    "One set of samples of each model does not tell training from sampling, which stay empty: "
    "sample more and add --config.score.sample_sets=5 to --mode=score."
)
ONE_DRAW = "One draw of real images has no spread: add --config.score.draws=5 and --mode=score."


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the seeds of a study tell."""
    parser = argparse.ArgumentParser(prog="python -m bloodjax.scoring.statistics")
    parser.add_argument("folder", type=Path, help="the folder of a study, such as runs/paper")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    def run() -> None:
        result = analyze(read_study(args.folder))
        for note in result["notes"]:
            print_line(note)
        print(json.dumps(result, indent=1)) if args.json else print_tables(result)

    command.run(run, owns_process=argv is None)


# ---- results -----------------------------------------------------------------------------------


def analyze(samples: Sequence[Measurement]) -> dict[str, list[Any]]:
    """Return spreads, components, comparisons, ranks and the study's σ, each a list of rows.

    "notes" name the runs that do not compare with other runs.
    """
    alike, notes = keep_comparable(samples)
    distances = [x for x in samples if x.measure == DISTANCE]
    return {
        "spreads": [describe_spread(x) for x in samples],
        "components": [describe_components(x) for x in distances],
        "comparisons": compare_runs(samples),
        "ranks": rank_runs(alike),
        "orders": compare_orders(alike),
        "study": [compare_study(x) for x in distances if is_of_study(x) and x.std],
        "notes": notes,
    }


def describe_spread(x: Measurement) -> Row:
    """Return means, σ over trainings, their 95 % intervals, σ of draws, and the detectable gap.

    The interquartile mean (iqm) is None below `IQM_SEEDS` seeds.
    """
    n, (low, high) = len(x.values), inference.sigma_interval(x.std, len(x.values))
    row: Row = {"run": x.run, "space": x.space, "measure": x.measure, "seeds": n, "mean": x.mean}
    row |= {"std": x.std, "low": low, "high": high, "draws": x.draws and x.draws.std}
    row |= {"detectable": inference.detectable_gap(x.std, n)}
    row |= dict.fromkeys(("iqm", "iqm_low", "iqm_high"))
    if n >= IQM_SEEDS:
        interval = inference.bootstrap_interval(x.values, inference.interquartile_mean)
        row["iqm"] = float(inference.interquartile_mean(x.values))
        row["iqm_low"], row["iqm_high"] = map(float, interval)
    return row


def describe_components(x: Measurement) -> Row:
    """Return the σ that each source of variation adds to one distance of a run.

    All seeds meet the same draws of real images. What a draw does to all seeds alike is no spread
    over models, so that `variance_components` may take too much from it, at most `reals`² / n.

    Returns:
        training: of the trained models; None with one set of samples each.
        sampling: of the noise that a set of samples is drawn from; None likewise.
        models: of a model with one set of samples; None with one draw of real images.
        reals: of the draw of real images; None likewise.
        note: why a component is None, or "".
    """
    row: Row = {"run": x.run, "space": x.space, "seeds": len(x.values)}
    notes = []
    sources = {("training", "sampling"): (x.sampling, ONE_SET)}
    sources[("models", "reals")] = x.draws, ONE_DRAW
    for names, (draws, note) in sources.items():
        parts: tuple[float | None, ...] = (None, None)
        if draws:
            parts = inference.variance_components(draws.means, draws.std**2, draws.n)
        else:
            notes.append(note)
        row |= dict(zip(names, parts, strict=True))
    return row | {"note": " ".join(notes)}


def orient_means(samples: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Return "space measure" -> run -> mean over seeds, with a sign that makes lower better."""
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for x in samples:
        if better := BETTER[x.measure]:
            means[f"{x.space} {x.measure}"][x.run] = x.mean if better == "lower" else -x.mean
    return means


def rank_runs(samples: Sequence[Measurement]) -> list[Row]:
    """Return each run's rank by the measures of `RANKED` in each space; 1 is best."""
    means = orient_means([x for x in samples if x.measure in RANKED])
    ranks = {
        name: dict(zip(runs, map(int, stats.rankdata([*runs.values()], "min")), strict=True))
        for name, runs in means.items()
    }
    runs = dict.fromkeys(x.run for x in samples)
    return [{"run": run} | {name: rank.get(run) for name, rank in ranks.items()} for run in runs]


def compare_orders(samples: Sequence[Measurement]) -> list[Row]:
    """Return Kendall's τ-b (1945) between the orders of the runs by each two measures."""
    means, rows = orient_means(samples), []
    for first, second in combinations(means, 2):
        runs = [run for run in means[first] if run in means[second]]
        if len(runs) > 2:  # two runs agree or do not
            values = ([means[measure][run] for run in runs] for measure in (first, second))
            order: Any = stats.kendalltau(*values)  # NaN if all runs are equal by one measure
            tau = None if np.isnan(order.statistic) else float(order.statistic)
            rows.append({"first": first, "second": second, "runs": len(runs), "tau": tau})
    return rows


def is_of_study(x: Measurement) -> bool:
    """Return whether the study has a value for this method and these data."""
    return x.method in STUDY and x.dataset == "bloodmnist"


def compare_study(x: Measurement) -> Row:
    """Return the study's σ and this run's as shares of their means; p of `small_spread_test`."""
    mean, std = STUDY[x.method]
    p = inference.small_spread_test(mean, std, STUDY_SEEDS, x.values)
    sample_std = std * np.sqrt(STUDY_SEEDS / (STUDY_SEEDS - 1))
    row = {"run": x.run, "space": x.space, "study": sample_std / mean, "std": x.std / x.mean}
    row["low"], row["high"] = inference.sigma_interval(x.std / x.mean, len(x.values))
    return row | {"draws": x.draws and x.draws.std / x.mean, "p": p}


# ---- tables ------------------------------------------------------------------------------------


SPREADS = "run measure seeds mean std low high draws detectable"
MEANS = "run measure iqm iqm_low iqm_high"
SOURCES = "run space seeds training sampling models reals"
GAPS = "first second space gap welch_p needed first_better first_low first_high"
PAIRS = "first second space pairs difference low high flip_p least_p detectable"


def print_tables(result: Mapping[str, Sequence[Any]]) -> None:
    """Print the results of `analyze`: comparisons by the distances, orders by `RANKED`."""
    # Each run by itself
    for space in dict.fromkeys(row["space"] for row in result["spreads"]):
        rows = [row for row in result["spreads"] if row["space"] == space]
        print_table(f"{space}: spread over seeds", rows, SPREADS)
        rows = [row for row in rows if row["iqm"] is not None]
        print_table(f"{space}: interquartile means", rows, MEANS)
    print_table("σ by its source", result["components"], SOURCES)
    print_text(*dict.fromkeys(row["note"] for row in result["components"] if row["note"]))

    # Runs beside one another
    pairs = [row for row in result["comparisons"] if row["measure"] == DISTANCE]
    print_table("Runs that differ, and the seeds that show it", pairs, GAPS)
    print_table("Differences by seed", [row for row in pairs if row["pairs"] > 1], PAIRS)
    if pairs:
        print_text("", *(f"{row['space']}: {row['verdict']}" for row in pairs), CAUTION)
        print_table("Ranks of the runs, 1 is best", result["ranks"])
    orders = [
        row
        for row in result["orders"]
        if {row[side].split()[-1] for side in ("first", "second")} <= set(RANKED)
    ]
    print_table("Orders of the runs by two measures", orders)
    print_table("The study's σ beside the σ of seeds, as shares of the means", result["study"])


def print_text(*lines: str) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        make_console().print(line, markup=False, soft_wrap=True)


def print_table(name: str, rows: Sequence[Row], shown: str = "") -> None:
    """Print rows with equal keys as a table, unless there are none.

    `shown` are the keys that it shows, separated by blanks; "": all.
    """
    if not rows:
        return
    hidden = {"space"} if len({row.get("space") for row in rows}) == 1 else set()
    keys = [key for key in shown.split() or rows[0] if key not in hidden]
    columns = [Column(key, overflow="fold") for key in keys]  # no digit of a number is left out
    table = Table(*columns, title=f"\n{name}", title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(format_cell(row[key]) for key in keys))
    make_console().print(table)


def make_console() -> Console:
    """Return the console of stdout; a file or a pipe has room for whole tables."""
    width = None if sys.stdout.isatty() else 250
    return Console(highlight=False, emoji=False, width=width)


def format_cell(value: object) -> str:
    """Return a number with four significant digits, a text as it is, or "" for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
