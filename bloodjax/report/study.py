"""The report of a study: several runs beside one another, out of their folders alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bloodjax.data import Dataset
from bloodjax.report import figures
from bloodjax.report.page import SYNTHETIC, document, html_table, picture
from bloodjax.report.run import DATA, NOTES, PUBLISHED, STUDY, as_markdown, score_key, scores_match
from bloodjax.runtime.files import atomic_write, flatten, read_json, write_text
from bloodjax.runtime.progress import console
from bloodjax.sampling.samples import Samples, read_samples
from bloodjax.scoring.score import AVERAGED
from bloodjax.scoring.tables import format_mean_std, format_short, format_value, title

Table = list[tuple[str, ...]]
MEASURES = "KID ×10³,precision,recall,density,coverage,memorised".split(",")
NOT_YET = "not made yet"
WITHOUT = (
    "No FID stands here: Inception's published weights were not to be had when these runs were "
    "scored. `--mode=score` adds it where they are."
)


class Part(NamedTuple):
    """What there is of one run.

    Attributes:
        name: of its folder.
        config: what it is, groups of plain values.
        samples: None if there are none yet.
        scores: {} if these samples are not scored yet.
    """

    name: str
    config: dict[str, Any]
    samples: Samples | None
    scores: dict[str, Any]

    def summary(self, key: tuple[str, str]) -> dict[str, Any] | None:
        """Over seeds, of the measure called `key`: (name, protocol)."""
        return next((s for s in self.scores.get("summary", ()) if score_key(s) == key), None)

    def scored(self, key: tuple[str, str]) -> list[dict[str, Any]]:
        """Of each seed."""
        return [s for s in self.scores["scores"] if score_key(s) == key]


def write_study_report(
    heading: str,
    settings: Sequence[str],
    runs: Mapping[Path, dict[str, Any]],
    dataset: Dataset,
    folder: Path,
) -> Path:
    """Write report/ in the study's folder: table.md, the pictures and index.html.

    Args:
        heading: what the study is.
        settings: keys of the configurations that the first table shows.
        runs: folder of each run -> its configuration. Of what is not made yet the tables say so.
        dataset: the real images.

    Returns:
        The path of index.html.
    """
    parts = [part(where, config, dataset) for where, config in runs.items()]
    about = f"{heading}: {DATA.get(dataset.name, dataset.name)}"
    keys = list(dict.fromkeys(score_key(s) for p in parts for s in p.scores.get("summary", ())))
    tables = {"Table 1": values(parts, settings, keys, dataset)}
    tables |= {f"{title(*key)}, all measures": measures(parts, key) for key in keys}
    tables["Classes"] = classes(parts, dataset)
    notes = [NOTES, STUDY] if dataset.name == "bloodmnist" else [NOTES]
    asked = {name for p in parts for name in ",".join(p.config["score"]["features"]).split(",")}
    if "inception" in asked and all(name != "fid" for name, _ in keys):
        notes.append(WITHOUT)
    pictures = {
        "classes": ("Figure 1. Real images of each class.", figures.draw_classes(about, dataset)),
        "samples": (
            "Figure 2. Real images, and the first of each run's first seed: none is picked.",
            figures.draw_study(about, {p.name: p.samples for p in parts if p.samples}, dataset),
        ),
    }
    write(folder / "report", about, dataset, tables, notes, pictures)
    console.print(f"report: {folder / 'report' / 'index.html'}", markup=False)
    return folder / "report" / "index.html"


def write(
    folder: Path,
    about: str,
    dataset: Dataset,
    tables: Mapping[str, Table],
    notes: Sequence[str],
    pictures: Mapping[str, tuple[str, bytes]],
) -> None:
    """table.md, PNG files and index.html."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, data) in pictures.items():
        with atomic_write(folder / f"{name}.png") as part:
            part.write_bytes(data)
    texts = [f"# {about}\n"]
    texts += [f"## {name}\n\n{as_markdown(table)}" for name, table in tables.items() if table]
    write_text(folder / "table.md", "\n".join([*texts, *(f"{note}\n" for note in notes)]))
    body = [f"<h1>{about}</h1>", SYNTHETIC if dataset.name == "synthetic" else ""]
    for name, table in tables.items():
        body.append(f"<h2>{name}</h2>{html_table(table, 'scores')}" if table else "")
    body += [f"<p>{note}</p>" for note in notes]
    body += [picture(about, words, data) for words, data in pictures.values()]
    write_text(folder / "index.html", document(about, body))


def part(where: Path, config: dict[str, Any], dataset: Dataset) -> Part:
    """What a run's folder holds by now."""
    file = where / "scores.json"
    samples = read_samples(where, dataset) if (where / "samples.npz").exists() else None
    scores = read_json(file) if samples and file.exists() else {}
    return Part(
        where.name, config, samples, scores if samples and scores_match(scores, samples) else {}
    )


def values(
    parts: Sequence[Part],
    settings: Sequence[str],
    keys: Sequence[tuple[str, str]],
    dataset: Dataset,
) -> Table:
    """Each run's distances with both σ, beside what the study published; last, real images'."""
    several = len({p.config["method"]["name"] for p in parts}) > 1
    published = several and dataset.name == "bloodmnist"
    head = ["run", *(key.partition(".")[2] for key in settings), "seeds", "n fake", "n real"]
    for key in keys:
        head += [title(*key), "σ of draws"]
    table = [(*head, *["the study's FID"] * published)]
    for p in parts:
        flat = flatten(p.config)
        cells = [p.name, *(plain(flat.get(key, "")) for key in settings), str(len(flat["seeds"]))]
        cells += counts(p)
        for key in keys:
            cells += value(p.summary(key))
        table.append((*cells, *[PUBLISHED[p.config["method"]["name"]]] * published))
    if keys:
        blank = ("",) * len(settings)
        floors = [cell for key in keys for cell in (floor(parts, key), "")]
        table.append(("real images", *blank, "", "", "", *floors, *[""] * published))
    return table


def plain(setting: Any) -> str:
    """A setting as it is written in a table."""
    return {True: "on", False: "off"}[setting] if isinstance(setting, bool) else str(setting)


def counts(p: Part) -> list[str]:
    """How many samples, and how many real images they were compared with."""
    if not p.scores:
        return [NOT_YET, ""]
    first = p.scores["scores"][0]
    return [f"{first['n_fake']:,}", f"{first['n_real']:,}"]


def value(summary: dict[str, Any] | None) -> list[str]:
    """The cells of one measure: mean ± σ over seeds, σ over draws."""
    if summary is None:
        return [NOT_YET, ""]
    return [format_mean_std(summary), format_value(summary["draws"]["std"], summary["mean"])]


def floor(parts: Sequence[Part], key: tuple[str, str]) -> str:
    """What real images score against others, of the run with the most of them."""
    found = [s for p in parts if p.summary(key) for s in p.scored(key)]
    most = max(found, key=lambda s: s["floor_n"])
    return f"{format_value(most['floor'])} (n = {most['floor_n']:,})"


def measures(parts: Sequence[Part], key: tuple[str, str]) -> Table:
    """All that is said of each run in one space, means over seeds; last, other real images'."""
    table, real = [("run", "n → ∞", *MEASURES)], {}
    for p in parts:
        if summary := p.summary(key):
            table.append((p.name, *measured({k: summary[k]["mean"] for k in AVERAGED[1:]})))
            real = p.scored(key)[0]["real"]
    return [*table, ("other real images", *measured(real | {"infinity": None}))]


def measured(score: Mapping[str, float | None]) -> list[str]:
    """The cells of `measures`."""
    infinity = score["infinity"]
    others = [format_short(name, score[name]) for name in AVERAGED[2:]]
    return ["" if infinity is None else format_value(infinity), *others]


def classes(parts: Sequence[Part], dataset: Dataset) -> Table:
    """The share of each class among real and generated images, as BloodNet sees them."""
    scored = {p.name: p.scores.get("scores", ()) for p in parts}
    found = {name: [s["classes"] for s in own if s["classes"]] for name, own in scored.items()}
    if not (shown := {name: own for name, own in found.items() if own}):
        return []
    first = next(iter(shown.values()))[0]
    table = [("class", "real", *shown)]
    for name in dataset.classes:
        own = (f"{np.mean([c[name]['fake'] for c in found]):.1%}" for found in shown.values())
        table.append((name, f"{first[name]['real']:.1%}", *own))
    return table
