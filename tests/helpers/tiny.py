"""Models and data so small that a test trains them in seconds."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest

from bloodjax import methods
from bloodjax.data import Dataset

DIRECTORY = b"PK\1\2"  # how the entry of a member begins in the directory of a zip file
SHAPE = (8, 8, 3)
SMALL = {
    "vae": {"latent": 4, "width": 4, "sigma": 0.2},
    "gan": {"latent": 4, "width": 4, "discriminator_width": 4},
    "ddpm": {
        "timesteps": 20,
        "beta_first": 1e-4,
        "beta_last": 0.02,
        "widths": (8, 16),
        "blocks": 1,
        "patch": 2,
    },
    "edm": {
        "sigma_data": 0.5,
        "p_mean": -1.2,
        "p_std": 1.2,
        "widths": (8, 16),
        "blocks": 1,
        "patch": 2,
        "conditional": True,
    },
}


# Each program of a diffusion compiles for 5 to 10 s.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("ddpm", "edm") else name
    for name in methods.names()
]


def method(name="vae"):
    return methods.make(name, shape=SHAPE, classes=2, **SMALL[name])


def cells(n=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 2, n).astype(np.int32), ("a", "b"), "test", "0" * 64)


def write_medmnist(file, images, labels):
    """200 images in a file such as MedMNIST's: 140 for training, 30 and 30."""
    rows = {"train": slice(0, 140), "val": slice(140, 170), "test": slice(170, 200)}
    arrays = {f"{split}_images": images[s] for split, s in rows.items()}
    np.savez(file, **arrays, **{f"{split}_labels": labels[s, None] for split, s in rows.items()})
    return file


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flagged(raw):
    """An .npz of which one bit changed: its last array is taken for encrypted."""
    at = raw.rindex(DIRECTORY) + 8
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@contextmanager
def file_limit(size):
    """No file may become larger: a disk that is full, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def torch_with_torchvision():
    """torch, with a torchvision that can be imported if there is one; without torch a skip."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    from bloodjax.bench.torch_worker import declare_operators

    declare_operators()
    return torch


def torch_reference(state):
    """pytorch-fid's own InceptionV3 with all its taps, under the weights of `state`."""
    torch = torch_with_torchvision()
    inception = pytest.importorskip("pytorch_fid.inception", reason="the reference is pytorch-fid")
    tensors = {name: torch.from_numpy(a) for name, a in state.items()}
    inception.load_state_dict_from_url = lambda *args, **kwargs: tensors
    return inception.InceptionV3(range(4)).eval()
