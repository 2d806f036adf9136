"""Random weights for InceptionV3, for all that does not depend on what it has learnt."""

import json
from pathlib import Path

import numpy as np

from bloodjax.features.inception.layers import CONVS

State = dict[str, np.ndarray]


def random_state(seed: int = 0) -> State:
    """Weights under which activations neither vanish nor explode, in torch's names and layout.

    NumPy's PCG64 gives the same ones everywhere.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, (out, into, h, w) in CONVS.items():
        scale = (2 / (into * h * w)) ** 0.5  # He et al. (2015)
        drawn = {
            "conv.weight": rng.standard_normal((out, into, h, w), np.float32) * np.float32(scale),
            "bn.weight": rng.uniform(0.8, 1.2, out),
            "bn.bias": rng.normal(0, 0.1, out),
            "bn.running_mean": rng.normal(0, 0.1, out),
            "bn.running_var": rng.uniform(0.5, 1.5, out),
        }
        state |= {f"{name}.{key}": value.astype(np.float32) for key, value in drawn.items()}
    state["fc.weight"] = rng.standard_normal((1008, 2048), np.float32) * np.float32(2048**-0.5)
    state["fc.bias"] = rng.normal(0, 0.1, 1008).astype(np.float32)
    return state


def write_safetensors(file: Path, state: State) -> None:
    """A weight file that needs neither torch nor safetensors to write."""
    header, at = {}, 0
    for name, array in state.items():
        ends = [at, at + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": ends}
        at = ends[1]
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in state.values():
            out.write(array.tobytes())


def write(folder: Path) -> dict[str, str]:
    """Both sides' files of the same random weights, as their jobs name them."""
    state = random_state()
    files = {"weights": folder / "random.safetensors", "arrays": folder / "random.npz"}
    write_safetensors(files["weights"], state)
    np.savez(files["arrays"], **state)
    return {name: str(file) for name, file in files.items()}
