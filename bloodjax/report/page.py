"""index.html, one file that fetches nothing, and the files beside it."""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

from bloodjax.features import MISTAKES
from bloodjax.report.texts import DATA, MISTAKE, NOT_SCORED, SECTIONS, SPACES, SYNTHETIC
from bloodjax.runtime.files import atomic_write, flatten, write_text
from bloodjax.runtime.progress import console
from bloodjax.scoring.scores import Scores, Summary, score_key
from bloodjax.scoring.tables import explain_spreads, format_mean_std, format_value, title

Table = list[tuple[str, ...]]  # rows of plain text, header first
WRAP_LENGTH = 80  # letters; the text of a longer cell wraps
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
.scores .long { white-space: normal; min-width: 22rem; }
.rows td:first-child { width: 9rem; vertical-align: middle; }
.settings table { table-layout: fixed; } .settings td:first-child { width: 40%; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-variant-numeric: tabular-nums; }
.class { width: 80%; } .bar { height: .5rem; border-radius: .15rem; margin: .2rem 0; }
.real { background: var(--real); } .fake { background: var(--fake); }
i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: .4rem; white-space: pre-wrap; }
"""


def write_files(folder: Path, pictures: Mapping[str, bytes], markdown: str, html: str) -> Path:
    """Write NAME.png of each picture, table.md and index.html; return the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        with atomic_write(folder / f"{name}.png") as part:
            part.write_bytes(png)
    write_text(folder / "table.md", markdown)
    write_text(folder / "index.html", html)
    console.print(f"report: {folder / 'index.html'}", markup=False)
    return folder / "index.html"


def run_page(
    heading: str,
    info: Mapping[str, Any],
    scores: Scores | None,
    sections: str,
    tables: Mapping[str, Table],
    pictures: Mapping[str, bytes],
) -> str:
    """Return the HTML of a run's page.

    `info` is the contents of config.json, or {}; `sections` the HTML of further sections, see
    `report.classes` and `report.audit`. `tables` are note -> table, `pictures` name -> PNG.
    """
    body = []
    if scores:
        body += [headline(summary, scores) for summary in scores["summary"]]
    else:
        body.append(paragraph(NOT_SCORED))
    body.append(sections)
    for name, png in pictures.items():
        section, caption = SECTIONS.get(name, (name, ""))
        body.append(f"<h2>{escape(section)}</h2>{picture(heading, caption, png)}")
    if "curves" not in pictures:
        body.append(paragraph("No curves: metrics.jsonl is missing or empty."))
    if scores:
        body.append("<h2>Scores</h2>")
        body += [html_table(table, "scores") + paragraph(note) for note, table in tables.items()]
    for section, group in (
        ("Data", "dataset"),
        ("Settings", "config"),
        ("Versions", "environment"),
    ):
        body.append(f"<h2>{section}</h2>{settings_table(info.get(group, {}))}")
    if "name" in (config := info.get("config", {})):
        body.append(f"<h2>Reproduce</h2><pre>{escape(launch_command(config['name']))}</pre>")
        body.append(paragraph("Add the settings above that differ from those of the file."))
    return document(heading, body)


def study_page(
    heading: str,
    tables: Mapping[str, Table],
    notes: Sequence[str],
    pictures: Mapping[str, bytes],
) -> str:
    """Return the HTML of a study's page: tables by heading, notes, then pictures by name."""
    captions = {
        "classes": "Figure 1. Real images of each class.",
        "samples": "Figure 2. Real images, and the first samples of each run's first seed.",
    }
    body = [f"<h2>{escape(n)}</h2>{html_table(t, 'scores')}" for n, t in tables.items()]
    body += [paragraph(note) for note in notes]
    body += [picture(heading, captions[name], png) for name, png in pictures.items()]
    return document(heading, body)


# ---- sections of a run's page ----


def headline(summary: Summary, scores: Scores) -> str:
    """Return one distance in large type, and how to read it."""
    first = next(s for s in scores["scores"] if score_key(s) == score_key(summary))
    name = title(*score_key(summary))
    space = SPACES.get(summary["features"], summary["features"])
    text = (
        f"The Fréchet distance between {first['n_fake']:,} generated and {first['n_real']:,} real "
        f"images in the features of {space}; {explain_spreads(summary)}. Lower is better. The "
        f"floor is the distance of {first['real']['n_fake']:,} other real images from "
        f"{first['real']['n_real']:,}: samples as good as these have about this distance. With "
        "fewer images, every such distance is larger."
    )
    if summary["name"] != "fid":
        text += f" This is not FID, which uses other features: compare {name} only with {name}."
    if summary["features"].endswith(MISTAKES):
        text += f" {MISTAKE}"
    return (
        f'<div class="score">{escape(name)}<b>{format_mean_std(summary)}</b>'
        f"floor {format_value(summary['floor'])}</div>{paragraph(text)}"
    )


def settings_table(group: Mapping[str, Any]) -> str:
    """Return a group of config.json as a table."""
    rows = [
        (key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in flatten(group).items()
    ]
    return html_table(rows, "settings") if rows else paragraph("Missing in config.json.")


def launch_command(name: str) -> str:
    """Return the command of a run: "ddpm-quick" is configs/ddpm.py:quick.

    A run of a study, "paper-cpu/ddpm", belongs to configs/paper.py:cpu.
    """
    file, _, variant = name.partition("/")[0].partition("-")
    option = f"--config=configs/{file}.py" + (variant and f":{variant}")
    return f"python launch.py {shlex.quote(option)}"


# ---- HTML and Markdown ----


def document(heading: str, body: Iterable[str]) -> str:
    """Return an HTML file with its title as h1; synthetic data are announced below it."""
    loud = f'<p class="loud">{escape(SYNTHETIC)}</p>' if DATA["synthetic"] in heading else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(heading)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(heading)}</h1>{loud}"
        f"{''.join(body)}</body></html>"
    )


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def picture(heading: str, caption: str, png: bytes) -> str:
    """Return a PNG below its caption, embedded in the page."""
    image = f'<img alt="{escape(heading)}. {escape(caption)}" src="data:image/png;base64,'
    image += f'{b64encode(png).decode()}">'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{image}</figure>"


def html_table(table: Table, style: Literal["scores", "settings"]) -> str:
    """Return rows of plain text as HTML; the first row of "scores" is a header."""
    lines = ""
    for i, row in enumerate(table):
        tag = "th" if style == "scores" and i == 0 else "td"
        cells = ""
        for cell in row:
            long = ' class="long"' if len(cell) > WRAP_LENGTH else ""
            cells += f"<{tag}{long}>{escape(cell)}</{tag}>"
        lines += f"<tr>{cells}</tr>"
    return f'<div class="{style}"><table>{lines}</table></div>'


def markdown_table(table: Table) -> str:
    """Return rows of plain text as Markdown."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in table]
    cells.insert(1, ["---"] * len(table[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
