"""The documents name only what exists: files, headings, configuration keys, modules, flags."""

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bloodjax/**/*.md")])
TEXTS = sorted([*PAGES, ROOT / "docs/notebook.ipynb", *ROOT.glob("configs/*.py")])
VARIANTS = {"paper": (None, "cpu"), "ablation": (None,)}  # those of a method: none and quick


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def text(file: Path) -> str:
    """The words of a file; of a notebook, its cells without their outputs."""
    raw = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(raw)["cells"])
    return raw


def prose(markdown: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def python_blocks(file: Path) -> list[str]:
    """The Python code of a page or a notebook."""
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text("utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```", file.read_text("utf-8"), re.M | re.S)


def configurations() -> Iterator[ConfigDict]:
    for file in sorted(ROOT.glob("configs/*.py")):
        if file.stem not in ("base", "__init__"):
            module = importlib.import_module(f"configs.{file.stem}")
            for variant in VARIANTS.get(file.stem, (None, "quick")):
                yield module.get_config(variant)


def keys(config: ConfigDict) -> Iterator[str]:
    """GROUP.KEY of every value, and GROUP of every group."""
    for name, value in config.items():
        yield name
        if isinstance(value, ConfigDict):
            yield from (f"{name}.{key}" for key in keys(value))


@pytest.fixture(scope="module")
def known() -> set[str]:
    return {key for config in configurations() for key in keys(config)}


def has_name(module: Path, name: str) -> bool:
    """Whether a module's text defines or imports the name at its top level."""
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if name in {(alias.asname or alias.name).split(".")[0] for alias in node.names}:
                return True
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in {leaf.id for t in targets for leaf in ast.walk(t) if hasattr(leaf, "id")}:
                return True
    return False


def exists(dotted: str) -> bool:
    """Whether `bloodjax.a.b` is a package, a module, or a name that one of them has."""
    parts = dotted.split(".")
    path = ROOT.joinpath(*parts)
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return True
    owner = path.parent
    module = owner.with_suffix(".py") if not owner.is_dir() else owner / "__init__.py"
    return module.is_file() and has_name(module, parts[-1])


# ---- the front page ----------------------------------------------------------------------------


def test_the_readme_fits_on_a_screen_or_two():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 900


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in [*ROOT.glob("docs/*.md"), ROOT / "docs/notebook.ipynb"]:
        assert f"({place(page)}" in readme, f"README.md has no link to {place(page)}"


def test_the_map_has_every_room():
    rooms = {p.parent.name for p in (ROOT / "bloodjax").glob("*/__init__.py")}
    readme = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)/` \|", readme, re.M)) == rooms


# ---- what the pages name -----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{place(page)}: {target}"
        assert not anchor or anchor in anchors(file), f"{place(page)}: {target}"


@pytest.mark.parametrize("file", TEXTS, ids=place)
def test_configuration_keys_exist(file, known):
    named = re.findall(r"--config\.([a-z_][\w.]*\w)", text(file))
    groups = "|".join(sorted({key.split(".")[0] for key in known if "." in key}))
    quoted = re.findall(rf"`((?:{groups})\.\w+)(?:=[^`]*)?`", text(file))
    for key in [*named, *quoted]:
        assert key in known, key


@pytest.mark.parametrize("file", TEXTS, ids=place)
def test_configurations_exist(file):
    added = re.findall(r"`configs/(\w+)\.py`:\n\n```python", text(file))
    for name, variant in re.findall(r"--config=configs/(\w+)\.py(?::(\w+))?", text(file)):
        if name not in ("NAME", *added):
            assert (ROOT / f"configs/{name}.py").is_file(), name
            assert not variant or variant in VARIANTS.get(name, ("quick",)), (name, variant)


@pytest.mark.parametrize("file", TEXTS, ids=place)
def test_modules_and_their_names_exist(file):
    for name in re.findall(r"\bbloodjax(?:\.\w+)+", text(file)):
        assert exists(name), f"{place(file)}: {name}"
    for block in python_blocks(file):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("bloodjax"):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"{node.module}: {alias.name}"


@pytest.mark.parametrize("file", TEXTS, ids=place)
def test_flags_and_modes_exist(file):
    launch = (ROOT / "launch.py").read_text("utf-8")
    flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', launch)) | {"config"}
    modes = set(re.findall(r'"(\w+)"', re.search(r"^MODES = (.*)$", launch, re.M)[1]))
    for line in text(file).splitlines():
        _, _, options = line.partition("launch.py ")
        assert set(re.findall(r"--(\w+)", options)) <= flags, line
        for mode in re.findall(r"--mode=(\w+)", line):
            assert mode in modes, line


def test_installed_commands_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for command, target in project["scripts"].items():
        assert exists(target.replace(":", ".")), f"{command}: {target}"
    for page in PAGES:
        for command in re.findall(r"\b(bloodjax-(?:fid|draw)\w*)", page.read_text("utf-8")):
            assert command in project["scripts"], f"{place(page)}: {command}"


def test_versions_and_licences_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {project['version']}\n" in citation
    assert f"\nlicense: {project['license']}\n" in citation
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_the_checks_see_what_does_not_exist(known):
    assert exists("bloodjax.model.load") and not exists("bloodjax.model.lod")
    assert exists("bloodjax.training") and not exists("bloodjax.trainings")
    assert "train.epochs" in known and "train.epoch" not in known
