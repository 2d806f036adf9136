"""How scores are written for people: names, digits, deviations, and the table on a terminal."""

from typing import Any

import numpy as np
from rich.table import Table

TITLES = {"bloodnet": "BloodNet", "inception": "Inception"}
# what stands beside the value on a terminal: key -> heading
SHORT = {"kid": "KID ×10³", "precision": "prec.", "recall": "recall"}


def title(name: str, protocol: str = "") -> str:
    """A measure's name for people: "fd_bloodnet" -> "FD-BloodNet"; FID with another protocol than
    pytorch-fid's has that one's name behind it.
    """
    kind, _, space = name.partition("_")
    other = f" ({protocol})" if name == "fid" and protocol != "pytorch-fid" else ""
    return "-".join(filter(None, (kind.upper(), TITLES.get(space, space)))) + other


def format_value(value: float, like: float | None = None) -> str:
    """Four digits that matter, or as many decimals as `like` has; what rounds to 0 has no sign."""
    size = max(abs(value if like is None else like), 1e-3)
    return f"{value:z.{max(3 - int(np.floor(np.log10(size))), 0)}f}"


def format_mean_std(summary: dict[str, Any]) -> str:
    """Mean ± population standard deviation over seeds; one seed has no ±."""
    mean = format_value(summary["mean"])
    return (
        f"{mean} ± {format_value(summary['std'], summary['mean'])}"
        if summary["seeds"] > 1
        else mean
    )


def explain_spreads(summary: dict[str, Any]) -> str:
    """The two σ that published tables mix: over trained models, and over draws of real images."""
    n, std = summary["draws"]["n"], format_value(summary["draws"]["std"], summary["mean"])
    drawn = f"σ {std} over {n} draws of the real images"
    if summary["seeds"] == 1:
        return f"one seed; {drawn}"
    return f"mean ± population σ over {summary['seeds']} seeds; {drawn}"


def make_table(result: dict[str, Any]) -> Table:
    """The scores for a terminal of 80 columns; the report has the rest."""
    first = result["scores"][0]
    counts = f"{first['n_fake']:,} samples, {first['n_real']:,} real images"
    table = Table("seed", "measure", "value", "floor", *SHORT.values(), title=counts)
    for s in result["scores"]:
        others = (format_short(key, s[key]) for key in SHORT)
        row = title(s["name"], s["protocol"]), format_value(s["value"]), format_value(s["floor"])
        table.add_row(str(s["seed"]), *row, *others)
    for s in (s for s in result["summary"] if s["seeds"] > 1):
        others = (format_short(key, s[key]["mean"]) for key in SHORT)
        row = title(s["name"], s["protocol"]), format_mean_std(s), format_value(s["floor"])
        table.add_row("mean", *row, *others)
    return table


def format_short(key: str, value: float | None) -> str:
    """A measure beside the Fréchet distance, in a few characters."""
    if value is None:
        return "-"
    return f"{1000 * value:.3g}" if key == "kid" else f"{value:.3f}"
