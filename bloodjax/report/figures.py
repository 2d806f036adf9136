"""The pictures of a report, as the bytes of PNG files. Only this file imports matplotlib."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bloodjax.data import Dataset
from bloodjax.images import tile
from bloodjax.sampling.samples import Samples
from bloodjax.scoring.embedding import shuffled_rows
from bloodjax.scoring.scores import Scores
from bloodjax.scoring.tables import title

DPI, PAD, LINE = 150, 16, 42  # pixels: margins, a caption's height
INK, MUTED, SERIES = "#1f2430", "#6b7280", ("#35618f", "#c2603f", "#4d8b67", "#8a6bb0", "#b08a2e")
CAPTION: dict[str, Any] = {"size": 10, "color": INK, "parse_math": False}
TITLE: dict[str, Any] = {"size": 12, "color": INK, "parse_math": False, "weight": "bold"}


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def mosaic(heading: str, blocks: list[tuple[str, np.ndarray]], columns: int, across: int) -> bytes:
    """Return blocks of images below their captions, as a PNG.

    Args:
        heading: the title.
        blocks: (caption, uint8 [N, H, W, C]).
        columns: images side by side in a block.
        across: blocks side by side.
    """
    images = [(caption, tile(pixels, columns)) for caption, pixels in blocks]
    captions = max(14 * len(caption) for caption, _ in blocks)  # pixels, about
    wide = max(images[0][1].shape[1], captions) + PAD
    tall = max(image.shape[0] for _, image in images) + LINE + PAD
    across = min(across, len(images))
    height = math.ceil(len(images) / across) * tall + LINE + PAD
    width = max(across * wide, 18 * len(heading)) + PAD
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    figure.text(PAD / width, 1 - PAD / height, heading, va="top", **TITLE)
    for i, (caption, image) in enumerate(images):
        x, y = PAD + i % across * wide, height - PAD - LINE - i // across * tall
        figure.text(x / width, (y - 12) / height, caption, va="top", **CAPTION)
        figure.figimage(image, x, y - LINE - image.shape[0], origin="upper")
    return png(figure)


def draw_samples(heading: str, samples: Samples, dataset: Dataset, side: int = 6) -> bytes:
    """Draw real images beside the samples of each seed."""
    blocks = [real_block(dataset, side * side)]
    for seed, images in zip(samples.seeds, samples.images, strict=True):
        blocks.append((f"generated, seed {seed}, step {samples.step:,}", images[: side * side]))
    return mosaic(heading, blocks, side, 2)


def real_block(dataset: Dataset, count: int) -> tuple[str, np.ndarray]:
    """Return a block of `mosaic`: the same real images every time."""
    images = dataset.images[shuffled_rows(dataset)[:count]]
    return "synthetic" if dataset.name == "synthetic" else "real", images


def draw_study(heading: str, runs: Mapping[str, Samples], dataset: Dataset, side: int = 6) -> bytes:
    """Draw real images beside the samples of each run's first seed."""
    blocks = [real_block(dataset, side * side)]
    blocks += [(name, samples.images[0, : side * side]) for name, samples in runs.items()]
    return mosaic(heading, blocks, side, 4)


def draw_trace(heading: str, samples: Samples, count: int = 6) -> bytes | None:
    """Draw a row of pictures for each trace; return None if the run kept no trace."""
    if not samples.trace.size:
        return None
    trace = samples.trace[0, :count]
    caption = f"{samples.trace_name}, seed {samples.seeds[0]}, left to right"
    return mosaic(heading, [(caption, trace.reshape(-1, *trace.shape[2:]))], trace.shape[1], 1)


def draw_closest(heading: str, samples: Samples, dataset: Dataset, scores: Scores) -> bytes | None:
    """Draw the most likely copies above their training images; return None if there are none."""
    blocks, seeds = [], samples.seeds.tolist()
    for s in scores["scores"]:
        if pairs := s["closest"]:
            images = samples.images[seeds.index(s["seed"])]
            ratios = [pair["ratio"] for pair in pairs]
            low, high = ("∞" if x is None else f"{x:.2f}" for x in (ratios[0], ratios[-1]))
            name = title(s["name"], s["protocol"])
            pixels = [images[pair["sample"]] for pair in pairs]
            pixels += [dataset.images[pair["train"]] for pair in pairs]
            caption = f"{name}, seed {s['seed']}: ratios {low} to {high}"
            blocks.append((caption, np.stack(pixels)))
    return mosaic(heading, blocks, len(blocks[0][1]) // 2, 1) if blocks else None


def class_caption(name: str, number: int) -> str:
    """Return the name of a class, or its number if the font lacks letters of the name."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    if all(font.get_char_index(ord(letter)) for letter in name):
        return name if len(name) <= 36 else f"{name[:35]}…"
    return f"class {number}"


def draw_classes(heading: str, dataset: Dataset, count: int = 6) -> bytes:
    """Draw examples of each class of the real data."""
    blocks = []
    for k, name in enumerate(dataset.classes):
        members = np.random.default_rng(k).permutation(np.flatnonzero(dataset.labels == k))
        if len(members):
            caption = f"{class_caption(name, k)} ({len(members):,})"
            blocks.append((caption, dataset.images[members[:count]]))
    return mosaic(heading, blocks, count, 2)


def draw_curves(heading: str, curves: dict[str, dict[int, np.ndarray]]) -> bytes | None:
    """Draw each loss over the steps, one line per seed; return None without losses."""
    if not curves:
        return None
    figure = Figure((6.4, 2.3 * len(curves) + 0.3), dpi=DPI, layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", **TITLE)
    for i, (name, seeds) in enumerate(curves.items()):
        draw_loss(figure.add_subplot(len(curves), 1, i + 1), name, seeds)
    return png(figure)


def draw_loss(axes: Axes, name: str, seeds: dict[int, np.ndarray]) -> None:
    """Draw one loss: each step pale, the moving average over n / 40 steps on top.

    A linear scale omits the highest 2 %; a loss of a wide range gets a logarithmic scale.
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


def draw_speed(rows: list[dict[str, Any]]) -> bytes:
    """Draw benchmark rows as bars: each contestant's speed relative to its fastest rival."""
    rows = [row for row in rows if row["ratio"] and row["task"] != "matmul"]
    tasks = list(dict.fromkeys((row["task"], row["batch"]) for row in rows))
    figure = Figure((6.4, 0.24 * (len(rows) + 2 * len(tasks)) + 0.8), dpi=DPI, layout="constrained")
    axes, names = figure.subplots(), []
    for task, batch in tasks:
        names.append(f"{task} {batch or ''}".strip().upper())
        for row in (row for row in rows if (row["task"], row["batch"]) == (task, batch)):
            color = SERIES[0] if row["framework"] == "JAX" else SERIES[1]
            axes.barh(len(names), row["ratio"], color=color, height=0.8)
            axes.text(row["ratio"], len(names), f" {row['ratio']:.2f}", va="center", size=8)
            names.append(f"{row['framework']} {row['variant']} {row['precision']}")
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_xlabel("speed relative to the fastest rival", color=MUTED, size=9)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return png(figure)
