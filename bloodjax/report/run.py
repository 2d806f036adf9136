"""What a run looks like: a table, pictures, curves and one HTML page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloodjax.data import Dataset
from bloodjax.report import figures
from bloodjax.report.page import page
from bloodjax.runtime.files import atomic_write, read_json, write_text
from bloodjax.runtime.progress import console
from bloodjax.sampling.samples import Samples, read_samples
from bloodjax.scoring.score import AVERAGED
from bloodjax.scoring.tables import format_mean_std, format_short, format_value, title
from bloodjax.training import log

DATA = {"bloodmnist": "BloodMNIST", "synthetic": "synthetic cells, not BloodMNIST"}
METHODS = {"gan": "DCGAN"}
# the scores of a row after its value, and what they are of; key -> heading
COLUMNS = {
    "draws": "σ of draws",
    "infinity": "n → ∞",
    "floor": "floor",
    "kid": "KID ×10³",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "memorised": "memorised",
}
SOURCE = "n real, n fake, floor n, step, data, protocol, extractor".split(", ")
NOTES = (
    "Value, floor and KID: lower is better; ± is the population σ over seeds, σ of draws that over "
    "draws of the real images for one model. Precision, recall, density and coverage: higher is "
    "better. Memorised: the share of samples nearer to a training image than that is to any other."
)
STUDY = (
    "Published by the study (FID of 10,000 samples against 10,000 real images, mean ± σ of five "
    "runs; software and input range not stated). Only a FID compares with it."
)
PUBLISHED = {"vae": "201.73 ± 0.23", "gan": "180.57 ± 0.71", "ddpm": "423.70 ± 0.64"}
TABLE_1 = (
    ("method", "FID"),
    *zip(("VAE", "GAN", "diffusion"), PUBLISHED.values(), strict=True),
)


def write_report(workdir: Path, dataset: Dataset) -> Path:
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
    if not scores_match(scores, samples):
        console.print("scores.json is of other samples and left out: score again, --mode=score")
        scores = {}
    about = heading(info, dataset, workdir.resolve().name)
    pictures = {
        "samples": figures.draw_samples(about, samples, dataset),
        samples.trace_name: figures.draw_trace(about, samples),
        "closest": figures.draw_closest(about, samples, dataset, scores),
        "curves": figures.draw_curves(about, log.read(workdir / "metrics.jsonl")),
        "classes": figures.draw_classes(
            f"The data: {DATA.get(dataset.name, dataset.name)}", dataset
        ),
    }
    pictures = {name: data for name, data in pictures.items() if data}
    table, published = rows(scores), dataset.name == "bloodmnist"
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for name, data in pictures.items():
        with atomic_write(folder / f"{name}.png") as part:
            part.write_bytes(data)
    write_text(folder / "table.md", markdown(about, table, published))
    tables = {NOTES: table} | ({STUDY: TABLE_1} if published else {})
    write_text(
        folder / "index.html",
        page(about, DATA["synthetic"] in about, info, scores, tables, pictures),
    )
    console.print(f"report: {folder / 'index.html'}", markup=False)
    return folder / "index.html"


def scores_match(scores: dict[str, Any], samples: Samples) -> bool:
    """Whether the scores are those of the samples."""
    own = {(int(seed), samples.digest(s)) for s, seed in enumerate(samples.seeds)}
    return {(s["seed"], s.get("samples_sha256")) for s in scores.get("scores", ())} <= own


def heading(info: dict[str, Any], dataset: Dataset, fallback: str) -> str:
    """What the report is about, e.g. "DDPM on BloodMNIST"."""
    method = info.get("config", {}).get("method", {}).get("name", fallback)
    data = {dataset.name, info.get("dataset", {}).get("name", dataset.name)}
    name = "synthetic" if "synthetic" in data else dataset.name
    return f"{METHODS.get(method, method.upper())} on {DATA.get(name, name)}"


def rows(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of scores, header first; or []. Per space: each seed, the mean over seeds, and
    what real images score beside other real images.
    """
    if not scores:
        return []
    table = [(*"seed measure value".split(), *COLUMNS.values(), *SOURCE)]
    for summary in scores["summary"]:
        own = [s for s in scores["scores"] if score_key(summary) == score_key(s)]
        measure = title(*score_key(summary))
        for s in own:
            table.append(
                (str(s["seed"]), measure, format_value(s["value"]), *columns(s), *source(s))
            )
        if summary["seeds"] > 1:
            flat = summary | {key: summary[key]["mean"] for key in AVERAGED[1:]}
            blank = ("",) * len(SOURCE)
            mean = f"mean of {summary['seeds']}"
            table.append((mean, measure, format_mean_std(summary), *columns(flat), *blank))
        real, first = own[0]["real"], own[0]
        counted = {**first, **real, "floor": None, "infinity": None, "draws": None}
        about = "other real images", measure, format_value(real["value"])
        table.append((*about, *columns(counted), *source(counted)))
    return table


def score_key(score: dict[str, Any]) -> tuple[str, str]:
    return score["name"], score["protocol"]


def columns(score: dict[str, Any]) -> list[str]:
    """The cells of `COLUMNS`; "" for what a row does not have."""
    cells = []
    for key in COLUMNS:
        value = score.get(key)
        if key == "draws" and value:
            cells.append(format_value(value["std"], score.get("value", score.get("mean"))))
        elif value is None:
            cells.append("")
        else:
            cells.append(
                format_value(value) if key in ("floor", "infinity") else format_short(key, value)
            )
    return cells


def source(score: dict[str, Any]) -> tuple[str, ...]:
    """The cells of `SOURCE`: what the numbers are of."""
    counts = (f"{score[key]:,}" for key in ("n_real", "n_fake", "floor_n", "step"))
    data = f"{DATA.get(score['dataset'], score['dataset'])} {score['dataset_digest'][:12]}"
    return *counts, data, score["protocol"], score["extractor_sha256"][:12]


def markdown(about: str, table: list[tuple[str, ...]], published: bool) -> str:
    """table.md."""
    if not table:
        return f"# {about}\n\nNot scored yet: run with `--mode=score`.\n"
    text = f"# {about}\n\n{as_markdown(table)}\n{NOTES}\n"
    return text + (f"\n{STUDY}\n\n{as_markdown(TABLE_1)}" if published else "")


def as_markdown(table: Sequence[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in table]
    cells.insert(1, ["---"] * len(table[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
