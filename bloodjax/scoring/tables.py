"""Scores as text: names, digits, deviations, and the table on a terminal."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from bloodjax.scoring import metrics
from bloodjax.scoring.metrics import Metric
from bloodjax.scoring.scores import Draws, Score, Scores, Summary

# The study's FIDs: mean and population σ of five seeds
STUDY = {"vae": (201.73, 0.23), "gan": (180.57, 0.71), "ddpm": (423.70, 0.64)}
TITLES = {"bloodnet": "BloodNet", "inception": "Inception"}


def title(name: str, protocol: str = "") -> str:
    """Return the name of a distance for readers: "fd_bloodnet" -> "FD-BloodNet".

    A distance in Inception's features names its protocol, unless that is pytorch-fid's.
    """
    kind, _, space = name.partition("_")
    implied = protocol == "pytorch-fid" or name.endswith(protocol)
    named = name == "fid" or space.startswith("inception")
    suffix = f" ({protocol})" if named and not implied else ""
    return "-".join(filter(None, (kind.upper(), TITLES.get(space, space)))) + suffix


def format_value(value: float, like: float | None = None, least: int = 0) -> str:
    """Return a number with four significant digits, or with the decimals of `like`.

    It has `least` decimals at least. A value that rounds to zero has no sign.
    """
    size = max(abs(value if like is None else like), 1e-3)
    return f"{value:z.{max(3 - int(np.floor(np.log10(size))), least)}f}"


def format_mean_std(summary: Summary) -> str:
    """Return mean ± population standard deviation over seeds; one seed has no ±."""
    if summary["seeds"] == 1:
        return format_value(summary["mean"])
    pair = (format_value(summary[key], summary["mean"], least=2) for key in ("mean", "std"))
    return " ± ".join(pair)


def format_metric(metric: Metric, score: Mapping[str, object]) -> str:
    """Return a metric of a score, or its mean in a summary.

    Returns:
        "-" if the value is None, "" if the score does not have this metric.
    """
    value = score.get(metric.key, "")
    if isinstance(value, Mapping):
        value = value["mean"]
    if isinstance(value, int | float):
        scaled = metric.scale * value
        return f"{scaled:{metric.digits}}" if metric.digits else format_value(scaled)
    return "-" if value is None else ""


def format_metrics(score: Mapping[str, object]) -> list[str]:
    """Return the cells of `metric_headings`."""
    return [format_metric(metric, score) for metric in metrics.METRICS if metric.heading]


def metric_headings() -> list[str]:
    """Return the headings of all metrics that a report shows."""
    return [metric.heading for metric in metrics.METRICS if metric.heading]


def format_draws(draws: Draws, value: float) -> str:
    """Return σ of draws with the digits of a distance; "-" for one draw."""
    return format_value(draws["std"], value, least=2) if draws["n"] > 1 else "-"


def explain_spreads(summary: Summary) -> str:
    """Return a phrase for both σ: over trained models, and over draws of real images."""
    n, std = summary["draws"]["n"], format_draws(summary["draws"], summary["mean"])
    draws = f"σ {std} over {n} draws of the real images" if n > 1 else "one draw of real images"
    if summary["seeds"] == 1:
        return f"one seed; {draws}"
    return f"mean ± population σ over {summary['seeds']} seeds; {draws}"


def describe_accuracy(result: Scores) -> str:
    """Return a sentence on the classes that BloodNet sees; "" for unlabelled samples."""
    pairs = [score["accuracy"] for score in result["scores"] if "accuracy" in score]
    fake, real = (format_share([pair[side] for pair in pairs]) for side in ("fake", "real"))
    text = (
        f"BloodNet assigns {fake} of the samples to the class that was asked for, and {real} of "
        "the real images to their own class."
    )
    return text if pairs else ""


def format_share(shares: Sequence[float | None]) -> str:
    """Return the mean of shares in percent; "-" without any."""
    numbers = [share for share in shares if share is not None]
    return f"{np.mean(numbers):.1%}" if numbers else "-"


def make_table(result: Scores) -> Table:
    """Return the scores as a table for a terminal of 80 columns; the report has all columns."""
    first = result["scores"][0]
    counts = f"{first['n_fake']:,} samples, {first['n_real']:,} real images"
    columns = [metric for metric in metrics.METRICS if metric.terminal]
    headings = [metric.terminal for metric in columns]
    table = Table("seed", "measure", "value", "floor", *headings, title=counts)
    table.caption = describe_accuracy(result)

    def add(label: str, row: Score | Summary, value: str) -> None:
        cells = [format_metric(metric, row) for metric in columns]
        name = title(row["name"], row["protocol"])
        table.add_row(label, name, value, format_value(row["floor"]), *cells)

    for score in result["scores"]:
        add(str(score["seed"]), score, format_value(score["value"]))
    for summary in result["summary"]:
        if summary["seeds"] > 1:
            add("mean", summary, format_mean_std(summary))
    return table
