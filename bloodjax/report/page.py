"""index.html: one file that fetches nothing."""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from bloodjax.features import MISTAKES
from bloodjax.runtime.files import flatten
from bloodjax.scoring.tables import explain_spreads, format_mean_std, format_value, title

SPACES = {
    "bloodnet": "BloodNet, a small network that tells blood cells apart",
    "inception": "InceptionV3 with the weights of Heusel et al. (2017)",
}
SECTIONS = {  # picture -> its heading and what it shows
    "samples": ("Samples", "Real images beside generated ones, drawn at random: none is picked."),
    "closest": (
        "Nearest training images",
        "The samples that come nearest to a training image, for how near that one's own neighbours "
        "are: each above the training image. The ratio is below 1 where the sample is nearer than "
        "any other training image. Pairs that look the same were memorised.",
    ),
    "denoising": (
        "From noise to cell",
        "Each row is one sample: what the network takes it to be, first step to last.",
    ),
    "interpolation": (
        "Between samples",
        "Each row walks through latent space from sample to sample.",
    ),
    "curves": ("Training", "Each loss over the training steps: pale as it was, dark smoothed."),
    "classes": ("The data", "Real images of each class, and how many there are."),
}
SIDES = ("real", "fake")
RAW_RANGE = (
    "Its images, or with raw-reals the real ones alone, were given to the network in a range that "
    "it does not expect, as some published numbers were: it is here to explain those, and measures "
    "nothing else."
)
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


def page(
    about: str,
    synthetic: bool,
    info: dict[str, Any],
    scores: dict[str, Any],
    tables: Mapping[str, Sequence[tuple[str, ...]]],
    pictures: dict[str, bytes],
) -> str:
    """index.html: one file that fetches nothing."""
    body = [f"<h1>{escape(about)}</h1>"]
    if synthetic:
        body.append(SYNTHETIC)
    body += [headline(s, scores["scores"]) for s in scores.get("summary", ())]
    body.append(shares(scores["scores"]) if scores else "<p>Not scored: run --mode=score.</p>")
    for name, data in pictures.items():
        head, words = SECTIONS.get(name, (name, ""))
        body.append(f"<h2>{escape(head)}</h2>{picture(about, words, data)}")
    if "curves" not in pictures:
        body.append("<p>No curves: metrics.jsonl is missing or empty.</p>")
    if scores:
        body.append("<h2>Scores</h2>")
        for words, table in tables.items():
            body.append(html_table(table, "scores") + f"<p>{escape(words)}</p>")
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
        # "ddpm-quick" is configs/ddpm.py:quick, "paper-cpu/ddpm" a run of configs/paper.py:cpu
        file, _, variant = config["name"].partition("/")[0].partition("-")
        option = f"--config=configs/{file}.py" + (variant and f":{variant}")
        command = f"python launch.py {shlex.quote(option)}"
        body.append(f"<h2>Reproduce</h2><pre>{escape(command)}</pre>")
        body.append("<p>with the settings above where they differ from the file's.</p>")
    return document(about, body)


def document(about: str, body: Iterable[str]) -> str:
    """The whole of an HTML file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(about)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def picture(about: str, words: str, data: bytes) -> str:
    """A PNG under what it shows, in the page itself."""
    image = f'<img alt="{escape(about)}. {escape(words)}" src="data:image/png;base64,'
    image += f'{b64encode(data).decode()}">'
    return f"<figure><figcaption>{escape(words)}</figcaption>{image}</figure>"


def headline(summary: dict[str, Any], scores: list[dict[str, Any]]) -> str:
    """One measure in large type, and how to read it."""
    key = summary["name"], summary["protocol"]
    name, first = title(*key), [s for s in scores if (s["name"], s["protocol"]) == key][0]
    space = SPACES.get(summary["features"], summary["features"])
    words = (
        f"The Fréchet distance between {first['n_fake']:,} generated and {first['n_real']:,} real "
        f"images in the features of {space}; {explain_spreads(summary)}. Lower is better. "
        f"The floor is what {first['floor_n']:,} real images score against {first['floor_n']:,} "
        "others: samples as good as the data end near it. Fewer images make any such distance larger. "
    )
    if summary["name"] != "fid":
        words += f"This is not FID, which uses other features: compare {name} only with {name}."
    if summary["features"].endswith(MISTAKES):
        words += f" {RAW_RANGE}"
    return (
        f'<div class="score">{escape(name)}<b>{format_mean_std(summary)}</b>'
        f"floor {format_value(summary['floor'])}</div><p>{escape(words)}</p>"
    )


def shares(scores: list[dict[str, Any]]) -> str:
    """Which classes are made how often, and how far each is from the real ones; "" if nothing can
    tell.
    """
    known = [s for s in scores if s["classes"]]
    if not known:
        return ""
    spaces = dict.fromkeys(title(s["name"], s["protocol"]) for s in known)
    top = max(share[side] for s in known for share in s["classes"].values() for side in SIDES)
    lines = "".join(class_row(name, known, spaces, top) for name in known[0]["classes"])
    heads = "".join(f"<th>{escape(space)}</th>" for space in spaces)
    return (
        "<h2>Classes</h2><p>The share of each class among real and among generated images, both as "
        "BloodNet sees them, and the Fréchet distance between the two: a class has few images, "
        'which makes it larger.</p><div class="scores"><table><tr><th class="class"></th><th>'
        f'<i class="real"></i> real</th><th><i class="fake"></i> generated</th>{heads}</tr>'
        f"{lines}</table></div>"
    )


def class_row(name: str, known: list[dict[str, Any]], spaces: Iterable[str], top: float) -> str:
    """A class: its shares as bars and figures, and its distance in each space, means over seeds."""
    own = [(title(s["name"], s["protocol"]), s["classes"][name]) for s in known]
    real, fake = (np.mean([share[side] for _, share in own]) for side in SIDES)
    bar = '<div class="bar {}" style="width:{:.1%}"></div>'
    bars = bar.format("real", real / top) + bar.format("fake", fake / top)
    cells = f"<td>{escape(name)}{bars}</td><td>{real:.1%}</td><td>{fake:.1%}</td>"
    for space in spaces:
        distances = [share["distance"] for its, share in own if its == space]
        mean = "-" if None in distances else format_value(float(np.mean(distances)))
        cells += f"<td>{mean}</td>"
    return f"<tr>{cells}</tr>"


def html_table(table: Sequence[tuple[str, ...]], kind: str) -> str:
    """Rows of plain text as HTML; `kind` is the style: "scores" or "settings"."""
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table)
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="{kind}"><table>{lines}</table></div>'
