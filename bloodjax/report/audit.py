"""The section of a run's page on usefulness and copies."""

from bloodjax.report.page import html_table, paragraph
from bloodjax.scoring.audit import Audit, MeanStd
from bloodjax.scoring.membership import MEMBERS

TITLES = {"real": "real images", "samples": "samples", "both": "both"}


def audit_section(audit: Audit | None) -> str:
    """Return an audit as HTML; "" without one."""
    if not audit:
        return ""
    sets, counts, copies = audit["classifiers"], audit["counts"], audit["copies"]
    table = [("real test images", *(TITLES[name] for name in sets))]
    for heading, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1")):
        table.append((heading, *(format_mean_std(x[key]) for x in sets.values())))
    for name in next(iter(sets.values()))["recall"]:
        recalls = (format_mean_std(x["recall"][name]) for x in sets.values())
        table.append((f"recall, {name}", *recalls))
    use = (
        f"BloodNet trained on {counts['train']:,} real images, on {counts['samples']:,} samples "
        f"and on both, for {audit['steps']:,} steps each. It is tested on {counts['test']:,} real "
        "images that neither BloodNet nor the generative model was trained on. Mean ± population σ "
        "over seeds of BloodNet."
    )
    members, others = (min(counts[side], MEMBERS) for side in ("train", "test"))
    sigma = ((members + others + 1) / (12 * members * others)) ** 0.5  # Mann and Whitney
    safety = (
        f"{copies['train']:.1%} of the samples are nearer to one of "
        f"{min(counts['train'], counts['test']):,} training images than that image's nearest "
        "neighbour among them is. Against as many test images, which the model never saw, the "
        f"share is {copies['test']:.1%}; for real test images against the training images it is "
        f"{copies['real']:.1%}. A model that copies has a first share well above the other two. "
        "An attack that takes images of low loss for training images has an area under the ROC "
        f"curve of {audit['membership']:.3f}; chance is 0.5 ± {sigma:.3f} (σ)."
    )
    return (
        f"<h2>Usefulness</h2>{paragraph(use)}{html_table(table, 'scores')}"
        f"<h2>Copies and membership</h2>{paragraph(safety)}"
    )


def format_mean_std(value: MeanStd) -> str:
    """Return a share in percent with its spread; "-" if it is undefined."""
    mean, std = value["mean"], value["std"]
    return "-" if mean is None else f"{mean:.1%} ± {std:.1%}"
