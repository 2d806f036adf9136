"""The notebook runs from top to bottom, and its stored outputs come from such a run."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "notebook.ipynb"
SMALL = 'EPOCHS, SAMPLES, SPLIT = 1, 60, "val"\nimport warnings\nwarnings.simplefilter("error")'
missing = [name for name in ("nbformat", "nbclient", "ipykernel") if find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")
# warnings of one part of Jupyter about another
@pytest.mark.filterwarnings("default:::jupyter_client", "default:::zmq", "default:::nbclient")
def test_it_runs_and_shows_pictures_and_the_score(noise, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("BLOODJAX_DATA", str(noise))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    assert set(re.findall(r"^(\w+) =", parameters.source, re.M)) == {"EPOCHS", "SAMPLES", "SPLIT"}
    parameters.source = SMALL
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = outputs(notebook.cells)
    assert sum("image/png" in out.get("data", ()) for out in shown) == 5
    assert re.search(r"fd_bloodnet: [\d.]+ of 60 samples against 30 real images", join_texts(shown))
    assert not [out for out in shown if out["output_type"] == "error"]


def test_the_stored_outputs_come_from_one_whole_run():
    raw = FILE.read_text("utf-8")
    assert len(raw) < 500_000
    notebook = json.loads(raw)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = outputs(code)
    assert sum("image/png" in out.get("data", ()) for out in shown) == 5
    text = join_texts(shown)
    assert "fd_bloodnet: " in text and "floor: " in text
    assert not re.search(r"/(tmp|home|root|work|Users|mnt)\b|[A-Z]:\\\\", text)


def outputs(cells):
    return [out for cell in cells for out in cell.get("outputs", ())]


def join_texts(shown):
    """The text of all outputs, pictures left out."""
    texts = [out.get("text", "") for out in shown]
    texts += [out["data"][kind] for out in shown for kind in out.get("data", ()) if "text" in kind]
    return "\n".join("".join(text) for text in texts)
