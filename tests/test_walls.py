"""Which room may import which, and the words in it: read off the syntax trees."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "bloodjax").rglob("*.py"), ROOT / "launch.py", *ROOT.glob("configs/*.py")])
FLOORS = (  # a room imports rooms of lower floors only; rooms are folders and loose modules
    {"images", "options", "randomness"},
    {"diffusion", "nets", "runtime"},
    {"data", "methods"},
    {"features", "workdir"},
    {"training"},
    {"sampling"},
    {"model", "scoring"},
    {"report"},
    {"bench", "doctor", "draw", "fid"},
    {"launch"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LOOSE, ARROWS = 8, 80  # at most: loose modules in the package, pairs of rooms one of which imports
PACKAGES = {  # package -> the only places (files or folders) that may import it
    "torch": {"bloodjax/bench"},
    "matplotlib": {"bloodjax/report/figures.py"},
    "orbax": {"bloodjax/training/checkpoint.py"},
    "absl": {"launch.py"},
    "ml_collections": {"launch.py", "configs"},
    "configs": {"configs"},
    "medmnist": {"bloodjax/data/sources/medmnist.py"},
    "tensorflow_datasets": {"bloodjax/data/sources/tfds"},
    "pickle": {"bloodjax/features/inception/torchfile.py"},
    "tensorboardX": {"bloodjax/report/tensorboard.py"},
    "tensorflow": set(),
}


def place(file):
    return file.relative_to(ROOT).as_posix()


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    """The folder or loose module that a module belongs to; the package itself belongs to none."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "bloodjax" else package


def imports(tree):
    """Yield every module that a tree imports, also inside functions, as absolute names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {module(file): ast.parse(file.read_text("utf-8")) for file in FILES}
GRAPH = {name: {x for x in imports(tree) if x in TREES} for name, tree in TREES.items()}


@pytest.mark.parametrize("file", FILES, ids=place)
def test_packages_stay_behind_their_walls(file):
    for name in imports(TREES[module(file)]):
        allowed = PACKAGES.get(name.split(".")[0], {place(file)})
        assert any(f"{place(file)}/".startswith(f"{path}/") for path in allowed), name
        assert not name.startswith("jax._src"), name


def test_rooms_import_lower_floors_only():
    assert {room(name) for name in TREES} - {"", "configs"} == FLOOR.keys()
    arrows = {(room(name), room(x)) for name in GRAPH for x in GRAPH[name]}
    arrows = {(a, b) for a, b in arrows if a != b and {a, b} <= FLOOR.keys()}
    assert [f"{a} imports {b}" for a, b in sorted(arrows) if FLOOR[a] <= FLOOR[b]] == []
    assert len(arrows) <= ARROWS
    assert len(list((ROOT / "bloodjax").glob("*.py"))) - 1 <= LOOSE  # less __init__.py


def test_modules_import_without_cycle():
    graph = {name: GRAPH[name] - {name, "bloodjax"} for name in GRAPH}  # bloodjax imports nothing
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_only_launch_imports_bench_and_only_when_it_is_called():
    users = {name for name in GRAPH if any(room(x) == "bench" for x in GRAPH[name])}
    assert {name for name in users if room(name) != "bench"} == {"launch"}
    at_start = ast.Module([x for x in TREES["launch"].body if not hasattr(x, "body")], [])
    assert not any(room(name) == "bench" for name in imports(at_start))


METHODS = sorted((ROOT / "bloodjax/methods").glob("*.py"))


@pytest.mark.parametrize("file", METHODS, ids=place)
def test_methods_do_not_know_how_they_are_trained(file):
    assert not {room(name) for name in GRAPH[module(file)]} & {"training", "sampling"}


TIMELESS = [
    file for file in FILES if place(file) != "bloodjax/report/tensorboard.py"
]  # shows the time


@pytest.mark.parametrize("file", TIMELESS, ids=place)
def test_nothing_depends_on_the_time_of_day(file):
    """A clock may jump: intervals are measured by one that does not."""
    for node in ast.walk(TREES[module(file)]):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            clock = node.value.id in ("time", "datetime", "date")
            reads = node.attr in ("time", "time_ns", "now", "today", "utcnow")
            assert not (clock and reads), node.lineno


def test_the_walls_see_an_import_inside_a_function():
    tree = ast.parse("def f():\n    from torch import nn\n    import jax._src.core\n")
    assert set(imports(tree)) == {"torch", "torch.nn", "jax._src.core"}


# ---- words ---------------------------------------------------------------------------------------

VAGUE = set(
    "own about found known said then how what there here made told held agreed described drawn"
    " settled judged few way ways these those such one now seen left at others further ahead"
    " again".split()
)
PER_THOUSAND = 3  # vague names in a thousand lines, at most
NOUN_CLAUSE = re.compile(r"(What|Those|How|Of|As|Whether|The|A|An|Where|Which|Each|All|One|Its)\b")


def names(tree):
    """Yield every name that a tree binds: variables and parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_names_say_what_they_name():
    vague = [f"{name}: {x}" for name in TREES for x in names(TREES[name]) if x in VAGUE]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in FILES)
    assert len(vague) <= PER_THOUSAND * lines / 1000, vague


@pytest.mark.parametrize("name", TREES)
def test_functions_are_described_by_verbs(name):
    """Properties are values, which a noun describes."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            is_value = any("property" in ast.unparse(x) for x in node.decorator_list)
            summary = ast.get_docstring(node) or ""
            assert is_value or not NOUN_CLAUSE.match(summary), f"line {node.lineno}: {summary}"
