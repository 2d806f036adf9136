"""A metric is described once: each table, page and average shows it from its description."""

import copy

import numpy as np
import pytest
from helpers import report
from helpers.scoring import a_dataset
from rich.console import Console

from bloodjax.report import study
from bloodjax.report.run import write_report
from bloodjax.scoring import metrics, score, tables
from bloodjax.scoring.metrics import METRICS, Metric
from bloodjax.scoring.score import ScoreConfig

TOY = Metric(
    "gap",
    "gap ×10²",
    lambda pair: float(np.abs(pair.real.features.mean() - pair.features.mean())),
    terminal="gap",
    better="lower",
    note="The gap is a toy.",
    scale=100,
    digits=".5f",
)


@pytest.mark.parametrize("place", [0, 3, len(METRICS)])
def test_a_new_metric_appears_everywhere(workdir, monkeypatch, place):
    monkeypatch.setattr(metrics, "METRICS", (*METRICS[:place], TOY, *METRICS[place:]))
    result = score.write_scores(workdir, a_dataset(), ScoreConfig(count=30))
    values = [s["gap"] for s in result["scores"]]
    mean = np.mean(values)
    (summary,) = result["summary"]
    assert summary["gap"] == pytest.approx({"mean": mean, "std": np.std(values)})
    real = result["scores"][0]["real"]["gap"]
    assert real != values[0] > 0

    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.make_table(result))
    rows = [line.split("│") for line in capture.get().splitlines() if "│" in line]
    column = [r.strip() for r in capture.get().splitlines()[2].split("┃")].index("gap")
    cells = [f"{100 * x:.5f}" for x in (*values, mean)]
    assert [row[column].strip() for row in rows] == cells

    page = write_report(workdir, a_dataset()).read_text("utf-8")
    text = (workdir / "report" / "table.md").read_text("utf-8")
    assert under(text, "seed", "gap ×10²") == [*cells, f"{100 * real:.5f}"]
    for words in ("The gap is a toy.", *(f"<td>{cell}</td>" for cell in cells)):
        assert words in page
    assert "Lower is better: value" in text and "gap ×10²" in text.split("Lower is better")[1]

    config = {"seeds": [5, 6], "method": {"name": "flow"}, "score": {"features": ["bloodnet"]}}
    study.write_study_report("A study", (), {workdir: config}, a_dataset(), workdir)
    text = (workdir / "report" / "table.md").read_text("utf-8")
    assert under(text, "run", "gap ×10²") == [cells[-1], f"{100 * real:.5f}"]


def under(text, first, heading):
    """The cells below a heading, in the first table that has it and begins with `first`."""
    lines = iter(text.splitlines())
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        if first in cells and heading in cells:
            rows = []
            next(lines)
            while (row := next(lines, "")).startswith("|"):
                rows.append(row.split("|")[cells.index(heading)].strip())
            return rows
    raise AssertionError(f"no column {heading}")


def test_every_column_stands_under_its_heading(tmp_path):
    """Scores in which no two metrics have the same value."""
    scores = copy.deepcopy(report.SCORES)
    for i, metric in enumerate(METRICS, 1):
        for s in scores["scores"]:
            s[metric.key] = i / 1000
        scores["summary"][0][metric.key] = {"mean": i / 1000, "std": 0.0}
    report.put(tmp_path, scores=scores)
    write_report(tmp_path, report.a_dataset())
    text = (tmp_path / "report" / "table.md").read_text("utf-8")
    shown = [(i, metric) for i, metric in enumerate(METRICS, 1) if metric.heading]
    assert len(shown) == len(METRICS) - 1
    for i, metric in shown:
        cells = under(text, "seed", metric.heading)[:3]
        assert [float(cell) for cell in cells] == [pytest.approx(metric.scale * i / 1000)] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, None])
def test_what_is_not_finite_is_null(workdir, monkeypatch, value):
    broken = Metric("broken", "broken", lambda pair: value, terminal="broken")
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, broken))
    result = score.write_scores(workdir, a_dataset(), ScoreConfig(count=30))
    assert [s["broken"] for s in result["scores"]] == [None, None]
    assert result["summary"][0]["broken"] == {"mean": None, "std": None}
    write_report(workdir, a_dataset())
    text = (workdir / "report" / "table.md").read_text("utf-8")
    assert under(text, "seed", "broken") == ["-"] * 4
