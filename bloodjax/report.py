"""What a run looks like: tables, pictures, curves and one HTML page that needs nothing else."""

import io
import json
import math
import shlex
from base64 import b64encode
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bloodjax.data import Dataset
from bloodjax.progress import console
from bloodjax.score import Samples, read_samples, show, spread, title
from bloodjax.workdir import flatten, read_json, replacing, write_text

DPI, CELL, PAD, LINE = 150, 84, 16, 42  # pixels: a picture's side, margins, a caption's height
INK, MUTED, SERIES = "#1f2430", "#6b7280", ("#35618f", "#c2603f", "#4d8b67", "#8a6bb0", "#b08a2e")
CAPTION = {"size": 10, "color": INK, "parse_math": False}
TITLE = {"size": 12, "color": INK, "parse_math": False, "weight": "bold"}
DATA = {"bloodmnist": "BloodMNIST", "synthetic": "synthetic cells, not BloodMNIST"}
METHODS = {"gan": "DCGAN"}
SPACES = {"bloodnet": "BloodNet, a small network that tells blood cells apart"}
NOT_LOSSES = {"seed", "step", "epoch", "images_per_s"}
SECTIONS = {  # picture -> its heading and what it shows
    "samples": ("Samples", "Real images beside generated ones, drawn at random: none is picked."),
    "denoising": ("From noise to cell", "Each row is one sample on its way, from noise to image."),
    "interpolation": (
        "Between samples",
        "Each row walks through latent space from sample to sample.",
    ),
    "curves": ("Training", "Each loss over the training steps: pale as it was, dark smoothed."),
    "classes": ("The data", "Real images of each class, and how many there are."),
}
SYNTHETIC = (
    '<p class="loud"><strong>Synthetic cells, not BloodMNIST</strong>: drawn by arithmetic to try '
    "things out. No number here says anything about blood.</p>"
)
STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --muted: #5d6573; --paper: #fff; --card: #f4f5f7;
  --line: #dfe2e7; --real: #9aa3b2; --fake: #c2603f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --muted: #a3abb9; --paper: #14161b;
  --card: #1e2128; --line: #333842; --real: #77808f; --fake: #d9795a; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, figcaption { color: var(--muted); max-width: 44rem; margin: .4rem 0; } figure { margin: 0; }
.score { background: var(--card); border-radius: .6rem; padding: 1rem 1.2rem; margin: 1rem 0; }
.score b { display: block; font-size: 2.4rem; line-height: 1.3; }
.loud { color: var(--ink); border-left: .3rem solid #d0453a; padding: .4rem 1rem; }
img { max-width: 100%; height: auto; border-radius: .4rem; background: #fff; margin-top: .5rem; }
.scores { overflow-x: auto; white-space: nowrap; } .settings { overflow-wrap: anywhere; }
.settings table { table-layout: fixed; } .settings td:first-child { width: 40%; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-variant-numeric: tabular-nums; }
.class { width: 80%; } .bar { height: .5rem; border-radius: .15rem; margin: .2rem 0; }
.real { background: var(--real); } .fake { background: var(--fake); }
i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: .4rem; white-space: pre-wrap; }
"""


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
        "samples": draw_samples(about, samples, dataset),
        samples.trace_name: draw_trace(about, samples),
        "curves": draw_curves(about, read_metrics(workdir / "metrics.jsonl")),
        "classes": draw_classes(dataset),
    }
    pictures = {name: data for name, data in pictures.items() if data}
    table = rows(scores)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for name, data in pictures.items():
        with replacing(folder / f"{name}.png") as part:
            part.write_bytes(data)
    write_text(folder / "table.md", markdown(about, table))
    write_text(folder / "index.html", page(about, info, scores, table, pictures))
    console.print(f"report: {folder / 'index.html'}", markup=False)
    return folder / "index.html"


def read_metrics(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """{loss: {seed: float64 [n, 2] of (step, value), steps rising}}, {} where there is no file.

    A step that was run again after a resume counts once, as last written; a last line that an
    interruption cut short does not count.
    """
    rows = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["seed"], row["step"]] = row
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for (seed, step), row in sorted(rows.items()):
        for name in row.keys() - NOT_LOSSES:
            curves.setdefault(name, {}).setdefault(seed, []).append((step, row[name]))
    return {k: {s: np.array(c, np.float64) for s, c in curves[k].items()} for k in sorted(curves)}


def heading(info: dict[str, Any], dataset: Dataset, fallback: str) -> str:
    """What the report is about, e.g. "DDPM on BloodMNIST"."""
    method = info.get("config", {}).get("method", {}).get("name", fallback)
    data = {dataset.name, info.get("dataset", {}).get("name", dataset.name)}
    name = "synthetic" if "synthetic" in data else dataset.name
    return f"{METHODS.get(method, method.upper())} on {DATA.get(name, name)}"


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, H, W, C] -> one uint8 RGB image of them in rows, pixels enlarged whole."""
    scale = max(1, CELL // max(images.shape[1:3]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    spare = -len(images) % columns
    images = np.pad(images, ((0, spare), (0, 2), (0, 2), (0, 0)), constant_values=255)
    n, h, w, channels = images.shape
    grid = images.reshape(n // columns, columns, h, w, channels).transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(n // columns * h, columns * w, channels)
    return np.broadcast_to(grid, (*grid.shape[:2], 3))


def mosaic(about: str, blocks: list[tuple[str, np.ndarray]], columns: int, across: int) -> bytes:
    """Blocks of pictures under their captions, as a PNG.

    Args:
        about: the title.
        blocks: (caption, uint8 [N, H, W, C]).
        columns: pictures side by side in a block.
        across: blocks side by side.
    """
    images = [(caption, tile(pictures, columns)) for caption, pictures in blocks]
    wide = images[0][1].shape[1] + PAD
    tall = max(image.shape[0] for _, image in images) + LINE + PAD
    across = min(across, len(images))
    height = math.ceil(len(images) / across) * tall + LINE + PAD
    width = max(across * wide + PAD, 16 * len(about))
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    figure.text(PAD / width, 1 - PAD / height, about, va="top", **TITLE)
    for i, (caption, image) in enumerate(images):
        x, y = PAD + i % across * wide, height - PAD - LINE - i // across * tall
        figure.text(x / width, (y - 12) / height, caption, va="top", **CAPTION)
        figure.figimage(image, x, y - LINE - image.shape[0], origin="upper")
    return png(figure)


def draw_samples(about: str, samples: Samples, dataset: Dataset, side: int = 6) -> bytes:
    """Real images beside each seed's."""
    real = np.random.default_rng(0).permutation(len(dataset.images))[: side * side]
    blocks = [("real", dataset.images[real])]
    for seed, images in zip(samples.seeds, samples.images, strict=True):
        blocks.append((f"generated, seed {seed}, step {samples.step:,}", images[: side * side]))
    return mosaic(about, blocks, side, 2)


def draw_trace(about: str, samples: Samples, count: int = 6) -> bytes | None:
    """How samples come about: a row of pictures each; None if the run kept no trace."""
    if not samples.trace.size:
        return None
    trace = samples.trace[0, :count]
    caption = f"{samples.trace_name}, seed {samples.seeds[0]}, left to right"
    return mosaic(about, [(caption, trace.reshape(-1, *trace.shape[2:]))], trace.shape[1], 1)


def draw_classes(dataset: Dataset, count: int = 6) -> bytes:
    """Examples of each class of the real data."""
    blocks = []
    for k, name in enumerate(dataset.classes):
        members = np.random.default_rng(k).permutation(np.flatnonzero(dataset.labels == k))
        if len(members):
            caption = f"{shorten(name, 36, placeholder=' …')} ({len(members):,})"
            blocks.append((caption, dataset.images[members[:count]]))
    return mosaic(f"The data: {DATA.get(dataset.name, dataset.name)}", blocks, count, 2)


def draw_curves(about: str, curves: dict[str, dict[int, np.ndarray]]) -> bytes | None:
    """Each loss over the steps, a line a seed; None where there are none."""
    if not curves:
        return None
    figure = Figure((6.4, 2.3 * len(curves) + 0.3), dpi=DPI, layout="constrained")
    figure.suptitle(about, x=0.01, ha="left", **TITLE)
    for i, (name, seeds) in enumerate(curves.items()):
        draw_loss(figure.add_subplot(len(curves), 1, i + 1), name, seeds)
    return png(figure)


def draw_loss(axes: Axes, name: str, seeds: dict[int, np.ndarray]) -> None:
    """One loss: each step pale, the mean over the nearest n / 40 steps on top.

    The highest 2 % run off the top; a loss that falls far gets a logarithmic scale.
    """
    for i, (seed, curve) in enumerate(seeds.items()):
        steps, values = curve.T
        window = np.ones(len(values) // 40 + 1)
        sums = (np.convolve(x, window, "same") for x in (values, np.ones_like(values)))
        color = SERIES[i % len(SERIES)]
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.7)
        axes.plot(steps, np.divide(*sums), color=color, linewidth=1.6, label=f"seed {seed}")
    values = np.concatenate([curve[:, 1] for curve in seeds.values()])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (0, 98)) if len(values) else (0, 0)
    if low > 0 and high > 20 * np.median(values):
        axes.set_yscale("log")
    elif low < high:
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_title(name, loc="left", **CAPTION)
    axes.set_xlabel("training step", color=MUTED, size=9)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(which="both", colors=MUTED, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, fontsize=8)


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


def page(
    about: str,
    info: dict[str, Any],
    scores: dict[str, Any],
    table: list[tuple[str, ...]],
    pictures: dict[str, bytes],
) -> str:
    """index.html: one file that fetches nothing."""
    body = [f"<h1>{escape(about)}</h1>"]
    if DATA["synthetic"] in about:
        body.append(SYNTHETIC)
    body += [headline(s, scores["scores"]) for s in scores.get("summary", ())]
    body.append(shares(scores["scores"]) if scores else "<p>Not scored: run --mode=score.</p>")
    for name, data in pictures.items():
        head, words = (escape(text) for text in SECTIONS.get(name, (name, "")))
        image = f'<img alt="{escape(about)}. {words}" src="data:image/png;base64,'
        image += f'{b64encode(data).decode()}">'
        body.append(f"<h2>{head}</h2><figure><figcaption>{words}</figcaption>{image}</figure>")
    if "curves" not in pictures:
        body.append("<p>No curves: metrics.jsonl is missing or empty.</p>")
    if table:
        body.append("<h2>Scores by seed</h2>" + html_table(table, "scores"))
    for head, group in (("Data", "dataset"), ("Settings", "config"), ("Versions", "environment")):
        settings = [
            (key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, value in flatten(info.get(group, {})).items()
        ]
        body.append(f"<h2>{head}</h2>")
        body.append(
            html_table(settings, "settings") if settings else "<p>config.json does not say.</p>"
        )
    if "name" in (config := info.get("config", {})):
        file, _, variant = config["name"].partition("-")  # "ddpm-quick" is configs/ddpm.py:quick
        option = f"--config=configs/{file}.py" + (variant and f":{variant}")
        command = f"python launch.py {shlex.quote(option)}"
        body.append(f"<h2>Reproduce</h2><pre>{escape(command)}</pre>")
        body.append("<p>with the settings above where they differ from the file's.</p>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(about)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def headline(summary: dict[str, Any], scores: list[dict[str, Any]]) -> str:
    """One measure in large type, and how to read it."""
    name, first = title(summary["name"]), [s for s in scores if s["name"] == summary["name"]][0]
    space = SPACES.get(summary["features"], summary["features"])
    seeds = (
        f"mean ± population σ of {summary['seeds']} seeds" if summary["seeds"] > 1 else "one seed"
    )
    words = (
        f"The Fréchet distance between {first['n_fake']:,} generated and {first['n_real']:,} real "
        f"images in the features of {space}; {seeds}. Lower is better. The floor is what "
        f"{first['floor_n']:,} real images score against {first['floor_n']:,} others: samples as "
        "good as the data end near it. Fewer images make any such distance larger. "
    )
    if summary["name"] != "fid":
        words += f"This is not FID, which uses other features: compare {name} only with {name}."
    return (
        f'<div class="score">{escape(name)}<b>{spread(summary)}</b>'
        f"floor {show(summary['floor'])}</div><p>{escape(words)}</p>"
    )


def shares(scores: list[dict[str, Any]]) -> str:
    """Which classes are made how often, beside the data's own; "" if nothing can tell."""
    known = [s["classes"] for s in scores if s["classes"]]
    if not known:
        return ""
    mean = {
        name: [np.mean([classes[name][side] for classes in known]) for side in ("real", "fake")]
        for name in known[0]
    }
    top = max(map(max, mean.values()))
    bar = '<div class="bar {}" style="width:{:.1%}"></div>'
    lines = (
        f"<tr><td>{escape(name)}{bar.format('real', real / top)}{bar.format('fake', fake / top)}"
        f"</td><td>{real:.1%}</td><td>{fake:.1%}</td></tr>"
        for name, (real, fake) in mean.items()
    )
    return (
        "<h2>Classes</h2><p>The share of each class among real and among generated images, both as "
        'the same network sees them.</p><table><tr><th class="class"></th><th>'
        '<i class="real"></i> real</th><th><i class="fake"></i> generated</th></tr>'
        f"{''.join(lines)}</table>"
    )


def html_table(table: list[tuple[str, ...]], kind: str) -> str:
    """Rows of plain text as HTML; `kind` is the style: "scores" or "settings"."""
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="{kind}"><table>{lines}</table></div>'
