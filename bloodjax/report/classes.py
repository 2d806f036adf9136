"""The sections of a run's page that show classes, each class in a row with its name as text."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

import numpy as np
from PIL import Image

from bloodjax.images import tile
from bloodjax.report.page import paragraph
from bloodjax.sampling.samples import Samples
from bloodjax.scoring.scores import ClassScore, Scores, score_key
from bloodjax.scoring.tables import describe_accuracy, format_share, format_value, title

SIDES: tuple[Literal["real"], Literal["fake"]] = ("real", "fake")
COLUMNS = 8  # samples in a row of the grid


def class_grid(samples: Samples, classes: Sequence[str]) -> str:
    """Return rows of the first samples with each label, of the first seed; "" without labels."""
    rows = ""
    for k, name in enumerate(classes):
        images = samples.images[0][samples.labels[0] == k][:COLUMNS]
        if len(images):
            png = io.BytesIO()
            Image.fromarray(tile(images, COLUMNS)).save(png, "png")
            source = b64encode(png.getvalue()).decode()
            image = f'<img alt="{escape(name)}, generated" src="data:image/png;base64,{source}">'
            rows += f"<tr><td>{escape(name)}</td><td>{image}</td></tr>"
    text = f"The first samples of seed {samples.seeds[0]} for each class that was asked for."
    table = f'<div class="rows"><table>{rows}</table></div>'
    return f"<h2>Samples by class</h2>{paragraph(text)}{table}" if rows else ""


def class_shares(scores: Scores) -> str:
    """Return the shares of the classes and their distances; "" if the classes are unknown."""
    spaces: dict[str, list[dict[str, ClassScore]]] = {}
    for score in scores["scores"]:
        if score["classes"]:
            spaces.setdefault(title(*score_key(score)), []).append(score["classes"])
    if not spaces:
        return ""
    seeds = [classes for group in spaces.values() for classes in group]
    top = max(share[side] for classes in seeds for share in classes.values() for side in SIDES)
    rows = "".join(class_row(name, spaces, top) for name in seeds[0])
    heads = "".join(f"<th>{escape(space)}</th>" for space in spaces)
    text = (
        "The share of each class among the real and the generated images, as BloodNet classifies "
        "both, and the Fréchet distance between the two. A class has few images, which makes its "
        "distance larger."
    )
    if accuracy := describe_accuracy(scores):
        heads = f"<th>accuracy, real</th><th>accuracy, generated</th>{heads}"
        text += (
            f" {accuracy} Its accuracy by class is the share of the images with that label. It was "
            "trained on some of the real images."
        )
    return (
        f'<h2>Classes</h2>{paragraph(text)}<div class="scores"><table><tr><th class="class"></th>'
        '<th><i class="real"></i> real</th><th><i class="fake"></i> generated</th>'
        f"{heads}</tr>{rows}</table></div>"
    )


def class_row(name: str, spaces: Mapping[str, list[dict[str, ClassScore]]], top: float) -> str:
    """Return a class, in means over seeds: shares, accuracies, and the distance in each space."""
    shares = [classes[name] for group in spaces.values() for classes in group]
    real, fake = (np.mean([share[side] for share in shares]) for side in SIDES)
    bar = '<div class="bar {}" style="width:{:.1%}"></div>'
    bars = bar.format("real", real / top) + bar.format("fake", fake / top)
    cells = f"<td>{escape(name)}{bars}</td><td>{real:.1%}</td><td>{fake:.1%}</td>"
    if pairs := [share["accuracy"] for share in shares if "accuracy" in share]:
        for side in SIDES:
            cells += f"<td>{format_share([pair[side] for pair in pairs])}</td>"
    for group in spaces.values():
        distances = [x for classes in group if (x := classes[name]["distance"]) is not None]
        complete = len(distances) == len(group)
        cells += f"<td>{format_value(float(np.mean(distances))) if complete else '-'}</td>"
    return f"<tr>{cells}</tr>"
