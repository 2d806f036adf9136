"""The code of docs/extending.md, added to a copy of the tree, trains, samples and scores."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text("utf-8")
BLOCK = re.compile(r"`([\w/]+\.py)`:\n\n```(python|diff)\n(.*?)^```", re.M | re.S)
TINY = ["--config.train.epochs=1", "--config.sample.count=8", "--config.score.count=16"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree with every file and every change of the page."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("bloodjax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", tree)
    for path, kind, code in BLOCK.findall(PAGE):
        file = tree / path
        file.write_text(code if kind == "python" else change(file.read_text("utf-8"), code))
    return tree


def change(text: str, diff: str) -> str:
    """Return the text with one hunk of a diff applied."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, before
    return text.replace(before, after)


def launch(tree: Path, name: str, *options: str) -> dict:
    """Return the scores of a run."""
    command = [sys.executable, "launch.py", f"--config=configs/{name}.py", *TINY, *options]
    run = subprocess.run(
        [*command, f"--workdir={tree / name}"], cwd=tree, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads((tree / name / "scores.json").read_text("utf-8"))


@pytest.mark.slow
def test_a_method_a_source_a_space_and_a_metric_make_a_run(tree):
    scores = launch(
        tree,
        "flow",
        "--config.method.widths=(8,16)",
        "--config.sampler.steps=2",
        "--config.data.source=squares",
        "--config.score.features=colours",
    )
    (score,) = scores["scores"]
    assert score["name"] == "fd_colours" and score["dataset"] == "squares"
    assert score["spread"] > 0


@pytest.mark.slow
def test_a_network_and_a_sampler_make_a_run(tree):
    scores = launch(
        tree,
        "ddpm",
        "--config.method.net=plain",
        "--config.method.widths=(8,16)",
        "--config.sampler.name=renoise",
        "--config.sampler.steps=2",
        "--config.data.source=squares",
        "--config.score.features=colours",
    )
    assert scores["scores"][0]["value"] > 0


def test_every_kind_of_extension_has_its_code(tree):
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    titles = ["A method", "A sampler", "A network", "A feature space", "A metric", "A data source"]
    *kinds, last = (section.partition("\n")[0] for section in sections)
    assert kinds == titles and last == "Before you propose a change"
    assert all(BLOCK.search(section) for section in sections[:-1])
