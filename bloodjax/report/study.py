"""The report of a study: several runs beside one another, read from their folders alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bloodjax.data import Dataset
from bloodjax.report import figures
from bloodjax.report.page import Table, markdown_table, study_page, write_files
from bloodjax.report.texts import DATA, NO_FID, PUBLISHED, STUDY, describe_metrics
from bloodjax.runtime.files import flatten
from bloodjax.sampling.samples import NAME, Samples, read_samples
from bloodjax.scoring.scores import (
    Key,
    PairScore,
    Score,
    Scores,
    Summary,
    read_scores,
    score_key,
)
from bloodjax.scoring.seeds import DISTANCE, find_fault, read_run
from bloodjax.scoring.tables import (
    format_draws,
    format_mean_std,
    format_metrics,
    format_value,
    metric_headings,
    title,
)
from bloodjax.scoring.verdicts import CAUTION, compare_runs

MISSING = "not made yet"
VERDICTS = "What seeds tell"


class RunResults(NamedTuple):
    """The files of one run.

    Attributes:
        name: of its folder.
        config: its configuration, groups of plain values.
        samples: None if there are none yet.
        scores: empty if the samples are not scored yet.
    """

    name: str
    config: dict[str, Any]
    samples: Samples | None
    scores: Scores

    def summary(self, key: Key) -> Summary | None:
        """Return the summary over seeds in one feature space, if there is one."""
        return next((s for s in self.scores["summary"] if score_key(s) == key), None)


def write_study_report(
    heading: str,
    settings: Sequence[str],
    runs: Mapping[Path, dict[str, Any]],
    dataset: Dataset,
    folder: Path,
) -> Path:
    """Write report/ in a study's folder; return the path of its index.html.

    Beside the page there are table.md and the pictures. The first table shows `settings`, keys of
    the configurations. `runs` are folder -> configuration; the tables name runs without results.
    """
    parts = [read_part(run, config, dataset) for run, config in runs.items()]
    heading = f"{heading}: {DATA.get(dataset.name, dataset.name)}"

    # Tables.
    keys = list(dict.fromkeys(score_key(s) for part in parts for s in part.scores["summary"]))
    tables = {"Table 1": value_rows(parts, settings, keys, dataset)}
    tables |= {f"{title(*key)}, all measures": metric_rows(parts, key) for key in keys}
    tables[VERDICTS] = verdict_rows(parts)
    tables["Classes"] = class_rows(parts, dataset)
    tables = {name: table for name, table in tables.items() if table}

    # Notes.
    notes = [describe_metrics()]
    if VERDICTS in tables:
        notes.append(CAUTION)
    if dataset.name == "bloodmnist":
        notes.append(STUDY)
    requested = ",".join(name for p in parts for name in p.config["score"]["features"])
    if "inception" in requested.split(",") and all(name != "fid" for name, _ in keys):
        notes.append(NO_FID)

    # Pictures and files.
    samples = {part.name: part.samples for part in parts if part.samples}
    pictures = {
        "classes": figures.draw_classes(heading, dataset),
        "samples": figures.draw_study(heading, samples, dataset),
    }
    sections = [f"## {name}\n\n{markdown_table(table)}" for name, table in tables.items()]
    text = "\n".join([f"# {heading}\n", *sections, *(f"{note}\n" for note in notes)])
    html = study_page(heading, tables, notes, pictures)
    return write_files(folder / "report", pictures, text, html)


def read_part(run: Path, config: dict[str, Any], dataset: Dataset) -> RunResults:
    """Return the files of a run that exist so far."""
    samples = read_samples(run, dataset) if (run / NAME).exists() else None
    scores = read_scores(run, samples) if samples else None
    return RunResults(run.name, config, samples, scores or {"scores": [], "summary": []})


def value_rows(
    parts: Sequence[RunResults], settings: Sequence[str], keys: Sequence[Key], dataset: Dataset
) -> Table:
    """Return each run's distances with both σ, beside the published ones; last, real images."""
    compared = len({part.config["method"]["name"] for part in parts}) > 1
    published = compared and dataset.name == "bloodmnist"
    head = ["run", *(key.partition(".")[2] for key in settings), "seeds", "n fake", "n real"]
    for key in keys:
        head += [title(*key), "σ of draws"]
    table: Table = [(*head, *["the study's FID"] * published)]

    for part in parts:
        config, first = flatten(part.config), next(iter(part.scores["scores"]), None)
        cells = [part.name, *(format_setting(config.get(key, "")) for key in settings)]
        cells += [str(len(config["seeds"]))]
        cells += count_cells(first) if first else [MISSING, ""]
        for key in keys:
            cells += value_cells(part.summary(key))
        if published:
            cells.append(PUBLISHED.get(config["method.name"], ""))
        table.append(tuple(cells))

    if keys:
        floors = []
        for most in (largest_floor(parts, key) for key in keys):
            counts = f"{most['real']['n_fake']:,} against {most['real']['n_real']:,}"
            floors += [f"{format_value(most['floor'])} ({counts})", ""]
        blank = [""] * (len(settings) + 3)
        table.append(("real images", *blank, *floors, *[""] * published))
    return table


def format_setting(value: Any) -> str:
    """Return a setting as a table shows it."""
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def value_cells(summary: Summary | None) -> list[str]:
    """Return the cells of one distance: mean ± σ over seeds, σ over draws."""
    if summary is None:
        return [MISSING, ""]
    return [format_mean_std(summary), format_draws(summary["draws"], summary["mean"])]


def largest_floor(parts: Sequence[RunResults], key: Key) -> Score:
    """Return a score of the run that compares the most real images."""
    scores = (s for part in parts for s in part.scores["scores"] if score_key(s) == key)
    return max(scores, key=lambda score: score["real"]["n_real"] + score["real"]["n_fake"])


def metric_rows(parts: Sequence[RunResults], key: Key) -> Table:
    """Return all metrics of each run in one space, means over seeds; last, other real images."""
    table: Table = [("run", "n fake", "n real", *metric_headings())]
    for part in parts:
        if summary := part.summary(key):
            first = next(s for s in part.scores["scores"] if score_key(s) == key)
            table.append((part.name, *count_cells(first), *format_metrics(summary)))
    real = largest_floor(parts, key)["real"]
    return [*table, ("other real images", *count_cells(real), *format_metrics(real))]


def count_cells(score: PairScore) -> list[str]:
    """Return the numbers of images on both sides."""
    return [f"{score['n_fake']:,}", f"{score['n_real']:,}"]


def verdict_rows(parts: Sequence[RunResults]) -> Table:
    """Return a verdict on each pair of runs that compare, or [] without such a pair."""
    samples = []
    for part in parts:
        if not find_fault(part.scores["scores"]):
            method = part.config["method"]["name"]
            samples += read_run(Path(part.name), method, part.scores["scores"])
    head = ("first", "second", "distance", "second - first", "95 %", "first better", "95 %")
    table: Table = [(*head, "verdict")]
    for row in compare_runs([x for x in samples if x.measure == DISTANCE]):
        gap = row["gap"] if row["difference"] is None else row["difference"]
        bounds = [row["low"], row["high"]]
        cells = [row["first"], row["second"], row["space"], f"{gap:.3g}"]
        cells.append("" if None in bounds else " to ".join(f"{x:.3g}" for x in bounds))
        cells.append(f"{row['first_better']:.0%}")
        cells.append(f"{row['first_low']:.0%} to {row['first_high']:.0%}")
        table.append((*cells, row["verdict"]))
    return table if len(table) > 1 else []


def class_rows(parts: Sequence[RunResults], dataset: Dataset) -> Table:
    """Return the share of each class among real and generated images, or [] without classes."""
    shares = {p.name: [s["classes"] for s in p.scores["scores"] if s["classes"]] for p in parts}
    shares = {name: seeds for name, seeds in shares.items() if seeds}
    if not shares:
        return []
    first = next(iter(shares.values()))[0]
    table: Table = [("class", "real", *shares)]
    for name in dataset.classes:
        means = (np.mean([seed[name]["fake"] for seed in seeds]) for seeds in shares.values())
        table.append((name, f"{first[name]['real']:.1%}", *(f"{mean:.1%}" for mean in means)))
    return table
