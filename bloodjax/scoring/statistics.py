"""What the seeds of a study can tell: spreads, comparisons of runs, and rankings.

python -m bloodjax.scoring.statistics runs/paper [--json]
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from bloodjax.runtime import command
from bloodjax.runtime.files import read_json
from bloodjax.runtime.progress import console
from bloodjax.scoring import inference, scores
from bloodjax.scoring.metrics import METRICS
from bloodjax.scoring.tables import STUDY, title

STUDY_SEEDS = 5
ALIKE = ("dataset_digest", "extractor_sha256", "n_real", "n_fake")  # of scores that compare
NEEDED = {"seed", "name", "protocol", "value", "draws", *ALIKE}  # keys of a score
DISTANCE = "value"  # the key of the Fréchet distance
BETTER = {DISTANCE: "lower"} | {m.key: m.better for m in METRICS if m.averaged}
Row = dict[str, Any]


class Sample(NamedTuple):
    """One measure of one run, a value for each seed.

    Attributes:
        run: the name of the run's folder.
        method: the name of the run's method.
        space: the name of the distance, such as "FID".
        measure: a key of `BETTER`.
        values: float64 [seeds].
        draws: sample σ over draws of real images; None for measures other than the distance.
        basis: the values of `ALIKE`; samples compare only if they agree.
    """

    run: str
    method: str
    space: str
    measure: str
    values: np.ndarray
    draws: float | None
    basis: tuple[Any, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """The sample standard deviation over seeds, with n - 1."""
        return float(self.values.std(ddof=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the seeds of a study tell."""
    parser = argparse.ArgumentParser(prog="python -m bloodjax.scoring.statistics")
    parser.add_argument("folder", type=Path, help="the folder of a study, such as runs/paper")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    def run() -> None:
        result = analyze(read_study(args.folder))
        print(json.dumps(result, indent=1)) if args.json else print_tables(result)

    command.run(run, owns_process=argv is None)


# ---- reading -----------------------------------------------------------------------------------


def read_study(folder: Path) -> list[Sample]:
    """Return every measure of every run that has scores of two or more seeds.

    The console names the runs that are left out.

    Raises:
        ValueError: no run remains, or the seeds of one run do not compare.
    """
    samples: list[Sample] = []
    for run in sorted(file.parent for file in folder.glob("*/config.json")):
        file = run / scores.NAME
        every = read_json(file)["scores"] if file.exists() else []
        if reason := find_fault(every):
            print_line(f"{run} is left out: {reason}")
            continue
        method = read_json(run / "config.json")["config"]["method"]["name"]
        for key in dict.fromkeys(map(scores.score_key, every)):
            group = [score for score in every if scores.score_key(score) == key]
            samples += read_run(run, method, group)
    if not samples:
        raise ValueError(
            f"{folder}: no run with scores of 2 seeds or more; expected the folder of a study, "
            "such as runs/paper"
        )
    return samples


def find_fault(every: Sequence[scores.Score]) -> str:
    """Return why a run's scores cannot be used, or ""."""
    if not every:
        return "no scores yet, run --mode=score"
    if not all(score.keys() >= NEEDED for score in every):
        return "an older version scored it, run --mode=score"
    return "" if len({score["seed"] for score in every}) > 1 else "1 seed, expected at least 2"


def read_run(run: Path, method: str, group: Sequence[scores.Score]) -> list[Sample]:
    """Return the measures of one run in one feature space that all seeds have."""
    basis, *rest = {tuple(score[key] for key in ALIKE) for score in group}
    if rest:
        raise ValueError(f"{run}: seeds differ in {' or '.join(ALIKE)}: score again, --mode=score")
    space, n = title(*scores.score_key(group[0])), group[0]["draws"]["n"]
    variance = np.mean([score["draws"]["std"] ** 2 for score in group]) * n / max(n - 1, 1)
    draws = {DISTANCE: float(np.sqrt(variance))} if n > 1 else {}
    columns = {key: [score.get(key) for score in group] for key in BETTER}
    return [
        Sample(run.name, method, space, key, np.array(values, float), draws.get(key), basis)
        for key, values in columns.items()
        if None not in values
    ]


def keep_comparable(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with the commonest basis of their space; the console names the rest."""
    common = {}
    for space in {x.space for x in samples}:
        common[space] = Counter(x.basis for x in samples if x.space == space).most_common(1)[0][0]
    for x in samples:
        if x.basis != common[x.space] and x.measure == DISTANCE:
            pairs = zip(ALIKE, x.basis, common[x.space], strict=True)
            unlike = ", ".join(f"{key} is {a}, elsewhere {b}" for key, a, b in pairs if a != b)
            print_line(f"{x.run} is not compared with other runs by {x.space}: {unlike}")
    return [x for x in samples if x.basis == common[x.space]]


def print_line(text: str) -> None:
    """Print a note on the console in one line."""
    console.print(text, markup=False, soft_wrap=True)


# ---- results -----------------------------------------------------------------------------------


def analyze(samples: Sequence[Sample]) -> dict[str, list[Row]]:
    """Return spreads, comparisons, rankings and the study's σ; each a list of rows."""
    alike = keep_comparable(samples)
    pairs = [(a, b) for a, b in combinations(alike, 2) if a[2:4] == b[2:4]]
    distances = [x for x in samples if x.measure == DISTANCE]
    return {
        "spreads": [describe_spread(x) for x in samples],
        "comparisons": [compare(a, b) for a, b in pairs],
        "rankings": compare_rankings(alike),
        "study": [compare_study(x) for x in distances if x.method in STUDY and x.std],
    }


def describe_spread(x: Sample) -> Row:
    """Return mean, σ over trainings with its interval, σ of draws, and the detectable gap."""
    n, (low, high) = len(x.values), inference.sigma_interval(x.std, len(x.values))
    row = {"run": x.run, "space": x.space, "measure": x.measure, "seeds": n, "mean": x.mean}
    row |= {"std": x.std, "low": low, "high": high, "draws": x.draws}
    return row | {"detectable": inference.detectable_gap(x.std, n)}


def compare(a: Sample, b: Sample) -> Row:
    """Return the gap of two runs, p of Welch's t test, and the seeds that power 0.8 needs."""
    row: Row = {"first": a.run, "second": b.run, "space": a.space, "measure": a.measure}
    row["gap"] = b.mean - a.mean
    if not a.std and not b.std:
        return row | {"p": None, "needed": None}
    moments = a.mean, a.std, len(a.values), b.mean, b.std, len(b.values)
    p = float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)
    return row | {"p": p, "needed": inference.values_needed(row["gap"], a.std, b.std)}


def compare_rankings(samples: Sequence[Sample]) -> list[Row]:
    """Return Kendall's τ-b (1945) between the orders of the runs by each two measures."""
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for x in samples:
        if better := BETTER[x.measure]:
            means[f"{x.space} {x.measure}"][x.run] = x.mean if better == "lower" else -x.mean
    rows = []
    for first, second in combinations(means, 2):
        runs = [run for run in means[first] if run in means[second]]
        if len(runs) > 2:  # two runs agree or do not
            values = ([means[measure][run] for run in runs] for measure in (first, second))
            order: Any = stats.kendalltau(*values)  # NaN if all runs are equal by one measure
            tau = None if np.isnan(order.statistic) else float(order.statistic)
            rows.append({"first": first, "second": second, "runs": len(runs), "tau": tau})
    return rows


def compare_study(x: Sample) -> Row:
    """Return the study's σ and this run's as shares of their means; p of `small_spread_test`."""
    mean, std = STUDY[x.method]
    p = inference.small_spread_test(mean, std, STUDY_SEEDS, x.values)
    sample_std = std * np.sqrt(STUDY_SEEDS / (STUDY_SEEDS - 1))
    row = {"run": x.run, "space": x.space, "study": sample_std / mean, "std": x.std / x.mean}
    row["low"], row["high"] = inference.sigma_interval(x.std / x.mean, len(x.values))
    return row | {"draws": x.draws and x.draws / x.mean, "p": p}


# ---- tables ------------------------------------------------------------------------------------


def print_tables(result: Mapping[str, Sequence[Row]]) -> None:
    """Print the results of `analyze`; comparisons and orders by the distances alone."""
    for space in dict.fromkeys(row["space"] for row in result["spreads"]):
        rows = [row for row in result["spreads"] if row["space"] == space]
        print_table(f"{space}: spread over seeds", rows)
    pairs = [row for row in result["comparisons"] if row["measure"] == DISTANCE]
    print_table("Runs that differ, and the seeds that show it", pairs)
    orders = [row for row in result["rankings"] if row["first"].endswith(DISTANCE)]
    print_table("Orders of the runs by two measures", orders)
    print_table("The study's σ beside the σ of seeds, as shares of the means", result["study"])


def print_table(name: str, rows: Sequence[Row]) -> None:
    """Print rows with equal keys as a table, unless there are none."""
    if not rows:
        return
    hidden = {"space"} if len({row.get("space") for row in rows}) == 1 else set()
    keys = [key for key in rows[0] if key not in hidden]
    table = Table(*keys, title=f"\n{name}", title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(format_cell(row[key]) for key in keys))
    Console(highlight=False, emoji=False).print(table)


def format_cell(value: object) -> str:
    """Return a number with four significant digits, a text as it is, or "" for None."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
