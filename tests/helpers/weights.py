"""Weight files of a network of two layers."""

import pathlib

import numpy as np

from bloodjax.features.inception import conversion
from helpers.torch_files import legacy

LAYERS = {"Conv2d_1a_3x3": (3, 2, 3, 3), "Mixed_6b.branch7x7_2": (4, 3, 1, 7)}
CLASSIFIER = (5, 4)


def rng(seed=0):
    return np.random.default_rng(seed)


def shrink(monkeypatch):
    """Make the network that files are read for one of two layers."""
    monkeypatch.setattr(conversion, "CONVS", LAYERS)
    monkeypatch.setattr(conversion, "FC", CLASSIFIER)


def small(seed=0, counters=True, **changes):
    """Weights of that network; `changes` replace arrays, None drops one. No dots: __ for them."""
    draw, held = rng(seed).random, {}
    for name, shape in LAYERS.items():
        held[f"{name}.conv.weight"] = draw(shape) - 0.5
        held |= {f"{name}.bn.{part}": draw(shape[0]) for part in conversion.NORM}
    held |= {"fc.weight": draw(CLASSIFIER), "fc.bias": draw(5)}
    held = {name: x.astype(np.float32) for name, x in held.items()}
    if counters:
        held |= {f"{name}.bn.num_batches_tracked": np.array(0) for name in LAYERS}
    held |= {name.replace("__", "."): x for name, x in changes.items()}
    return {name: x for name, x in held.items() if x is not None}


def write(path, raw=None):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(legacy(small()) if raw is None else raw)
    return path
