"""What a run looks like: a table, pictures, curves and one HTML page that needs nothing else."""

from pathlib import Path
from typing import Any

from bloodjax import metrics
from bloodjax.data import Dataset
from bloodjax.progress import console
from bloodjax.report import figures
from bloodjax.report.page import page
from bloodjax.score import read_samples, show, spread, title
from bloodjax.workdir import read_json, replacing, write_text

DATA = {"bloodmnist": "BloodMNIST", "synthetic": "synthetic cells, not BloodMNIST"}
METHODS = {"gan": "DCGAN"}


def run(workdir: Path, dataset: Dataset) -> Path:
    """Write report/ in the run's folder: table.md, the pictures and index.html.

    Args:
        workdir: needs samples.npz; what else is not there yet is named on the page instead.
        dataset: the real images.

    Returns:
        The path of index.html.
    """
    workdir = Path(workdir)
    samples = read_samples(workdir, dataset)
    files = (workdir / "config.json", workdir / "scores.json")
    info, scores = (read_json(file) if file.exists() else {} for file in files)
    about = heading(info, dataset, workdir.resolve().name)
    pictures = {
        "samples": figures.draw_samples(about, samples, dataset),
        samples.trace_name: figures.draw_trace(about, samples),
        "curves": figures.draw_curves(about, metrics.read(workdir / "metrics.jsonl")),
        "classes": figures.draw_classes(
            f"The data: {DATA.get(dataset.name, dataset.name)}", dataset
        ),
    }
    pictures = {name: data for name, data in pictures.items() if data}
    table = rows(scores)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for name, data in pictures.items():
        with replacing(folder / f"{name}.png") as part:
            part.write_bytes(data)
    write_text(folder / "table.md", markdown(about, table))
    write_text(
        folder / "index.html",
        page(about, DATA["synthetic"] in about, info, scores, table, pictures),
    )
    console.print(f"report: {folder / 'index.html'}", markup=False)
    return folder / "index.html"


def heading(info: dict[str, Any], dataset: Dataset, fallback: str) -> str:
    """What the report is about, e.g. "DDPM on BloodMNIST"."""
    method = info.get("config", {}).get("method", {}).get("name", fallback)
    data = {dataset.name, info.get("dataset", {}).get("name", dataset.name)}
    name = "synthetic" if "synthetic" in data else dataset.name
    return f"{METHODS.get(method, method.upper())} on {DATA.get(name, name)}"


def rows(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of scores, header first: one row per seed and space, then their means; or []."""
    if not scores:
        return []
    head = "seed, measure, value, floor, floor n, n real, n fake, step, data, protocol, extractor"
    table = [tuple(head.split(", "))]
    for s in scores["scores"]:
        counts = (f"{s[key]:,}" for key in ("floor_n", "n_real", "n_fake", "step"))
        data = f"{DATA.get(s['dataset'], s['dataset'])} {s['dataset_digest'][:12]}"
        row = str(s["seed"]), title(s["name"]), show(s["value"]), show(s["floor"]), *counts
        table.append((*row, data, s["protocol"], s["extractor_sha256"][:12]))
    for s in (s for s in scores["summary"] if s["seeds"] > 1):
        row = f"mean of {s['seeds']}", title(s["name"]), spread(s), show(s["floor"])
        table.append(row + ("",) * 7)
    return table


def markdown(about: str, table: list[tuple[str, ...]]) -> str:
    """table.md."""
    if not table:
        return f"# {about}\n\nNot scored yet: run with `--mode=score`.\n"
    cells = [[cell.replace("|", r"\|") for cell in row] for row in table]
    cells.insert(1, ["---"] * len(table[0]))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return f"# {about}\n\n{lines}\n\nLower is better; ± is the population σ over seeds.\n"
