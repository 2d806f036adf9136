"""The report of a run: a table, pictures, curves, and one HTML page that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloodjax.data import Dataset
from bloodjax.report import figures
from bloodjax.report.audit import audit_section
from bloodjax.report.classes import class_grid, class_shares
from bloodjax.report.page import Table, markdown_table, run_page, write_files
from bloodjax.report.texts import (
    DATA,
    METHODS,
    NOT_SCORED,
    PUBLISHED_TABLE,
    STUDY,
    describe_metrics,
)
from bloodjax.runtime.files import read_json
from bloodjax.sampling.samples import read_samples
from bloodjax.scoring.audit import read_audit
from bloodjax.scoring.scores import PairScore, Score, Scores, read_scores, score_key
from bloodjax.scoring.tables import (
    format_draws,
    format_mean_std,
    format_metrics,
    format_value,
    metric_headings,
    title,
)
from bloodjax.training import log

SOURCE = ("n real", "n fake", "step", "data", "protocol", "extractor")


def write_report(workdir: Path, dataset: Dataset) -> Path:
    """Write report/ in a run's folder; return the path of its index.html.

    Beside the page there are table.md and the pictures. There must be samples.npz; the page names
    other missing files.
    """
    workdir = Path(workdir)
    samples = read_samples(workdir, dataset)
    scores = read_scores(workdir, samples)
    config = workdir / "config.json"
    info = read_json(config) if config.exists() else {}

    heading = make_heading(info, dataset, workdir.resolve().name)
    data_heading = f"The data: {DATA.get(dataset.name, dataset.name)}"
    pictures = {
        "samples": figures.draw_samples(heading, samples, dataset),
        samples.trace_name: figures.draw_trace(heading, samples),
        "closest": scores and figures.draw_closest(heading, samples, dataset, scores),
        "curves": figures.draw_curves(heading, log.read(workdir / "metrics.jsonl")),
        "classes": figures.draw_classes(data_heading, dataset),
    }
    pictures = {name: png for name, png in pictures.items() if png}

    tables = {describe_metrics(): score_rows(scores)} if scores else {}
    if scores and dataset.name == "bloodmnist":
        tables[STUDY] = PUBLISHED_TABLE
    text = f"# {heading}\n\n" + "\n".join(
        f"{markdown_table(table)}\n{note}\n" for note, table in tables.items()
    )
    sections = class_grid(samples, dataset.classes) + (class_shares(scores) if scores else "")
    sections += audit_section(read_audit(workdir, samples))
    html = run_page(heading, info, scores, sections, tables, pictures)
    return write_files(
        workdir / "report", pictures, text if scores else f"{text}{NOT_SCORED}\n", html
    )


def make_heading(info: Mapping[str, Any], dataset: Dataset, fallback: str) -> str:
    """Return the title of the report, e.g. "DDPM on BloodMNIST"."""
    method = info.get("config", {}).get("method", {}).get("name", fallback)
    data = {dataset.name, info.get("dataset", {}).get("name", dataset.name)}
    name = "synthetic" if "synthetic" in data else dataset.name
    return f"{METHODS.get(method, method.upper())} on {DATA.get(name, name)}"


def score_rows(scores: Scores) -> Table:
    """Return the table of scores, header first.

    Each feature space has a row for each seed, one for the mean over seeds, and one for real
    images beside other real images.
    """
    head = ("seed", "measure", "value", "σ of draws", "floor", *metric_headings(), *SOURCE)
    table: Table = [head]
    for summary in scores["summary"]:
        group = [s for s in scores["scores"] if score_key(s) == score_key(summary)]
        measure, floor = title(*score_key(summary)), format_value(summary["floor"])
        for s in group:
            value, spread = s["value"], format_draws(s["draws"], s["value"])
            cells = (str(s["seed"]), measure, format_value(value), spread, floor)
            table.append((*cells, *format_metrics(s), *source_cells(s, s)))
        if summary["seeds"] > 1:
            label, mean = f"mean of {summary['seeds']}", format_mean_std(summary)
            spread = format_draws(summary["draws"], summary["mean"])
            cells = (label, measure, mean, spread, floor)
            table.append((*cells, *format_metrics(summary), *[""] * len(SOURCE)))
        real = group[0]["real"]
        cells = ("other real images", measure, format_value(real["value"]), "", "")
        table.append((*cells, *format_metrics(real), *source_cells(group[0], real)))
    return table


def source_cells(score: Score, counts: Score | PairScore) -> list[str]:
    """Return the cells of `SOURCE`."""
    numbers = (counts["n_real"], counts["n_fake"], score["step"])
    data = f"{DATA.get(score['dataset'], score['dataset'])} {score['dataset_digest'][:12]}"
    weights = f"{score['extractor_weights']} {score['extractor_sha256'][:12]}"
    return [f"{n:,}" for n in numbers] + [data, score["protocol"], weights]
