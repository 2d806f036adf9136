"""Which file may import what: read off the syntax trees, so that nothing need be installed."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "bloodjax").rglob("*.py"), ROOT / "launch.py", *ROOT.glob("configs/*.py")])
ALLOWED = {  # package -> the only places (files or folders) that may import it
    "torch": {"bloodjax/bench"},
    "matplotlib": {"bloodjax/report/figures.py"},
    "orbax": {"bloodjax/training/checkpoint.py"},
    "absl": {"launch.py"},
    "ml_collections": {"launch.py", "configs"},
    "configs": {"configs"},
    "medmnist": {"bloodjax/data/medmnist.py"},
    "tensorflow_datasets": {"bloodjax/data/tfds"},
    "pickle": {"bloodjax/features/inception/torchfile.py"},
    "tensorboardX": {"bloodjax/report/tensorboard.py"},
    "tensorflow": set(),
}


def place(file):
    return file.relative_to(ROOT).as_posix()


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree):
    """Every module that a tree imports, wherever in the file, as absolute names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def may(file, package):
    return any(place(file) == p or place(file).startswith(f"{p}/") for p in ALLOWED[package])


@pytest.mark.parametrize("file", FILES, ids=place)
def test_packages_stay_behind_their_walls(file):
    for name in imports(ast.parse(file.read_text("utf-8"))):
        package = name.split(".")[0]
        assert package not in ALLOWED or may(file, package), f"{place(file)} imports {name}"
        assert not name.startswith("jax._src"), f"{place(file)} imports {name}"
        bench = name.startswith("bloodjax.bench")
        assert not bench or "bench" in place(file) or place(file) == "launch.py"


TIMELESS = [
    file for file in FILES if place(file) != "bloodjax/report/tensorboard.py"
]  # shows the time


@pytest.mark.parametrize("file", TIMELESS, ids=place)
def test_nothing_depends_on_the_time_of_day(file):
    """A clock may jump: intervals are measured by one that does not."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            clock = node.value.id in ("time", "datetime", "date")
            reads = node.attr in ("time", "time_ns", "now", "today", "utcnow")
            assert not (clock and reads), node.lineno


METHODS = sorted((ROOT / "bloodjax/methods").glob("*.py"))


@pytest.mark.parametrize("file", METHODS, ids=place)
def test_methods_do_not_know_how_they_are_trained(file):
    for name in imports(ast.parse(file.read_text("utf-8"))):
        assert name not in ("bloodjax.training", "bloodjax.sampling")


def test_imports_have_no_cycle():
    modules = {module(file) for file in FILES}
    graph = {}
    for file in FILES:
        tree = ast.parse(file.read_text("utf-8"))
        graph[module(file)] = {name for name in imports(tree) if name in modules - {module(file)}}
        graph[module(file)].discard("bloodjax")  # the package itself imports nothing
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_walls_see_an_import_inside_a_function():
    tree = ast.parse("def f():\n    from torch import nn\n    import jax._src.core\n")
    assert set(imports(tree)) == {"torch", "torch.nn", "jax._src.core"}
