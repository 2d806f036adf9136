"""Random weights for InceptionV3, for timing and tests that need no trained ones."""

import json
from pathlib import Path

import numpy as np

from bloodjax.features.inception.layers import CONVS

State = dict[str, np.ndarray]


def random_state(seed: int = 0) -> State:
    """Return weights under which activations neither vanish nor explode.

    Names and layout are torch's. NumPy's PCG64 gives the same weights on every machine.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name, (out, into, h, w) in CONVS.items():
        scale = (2 / (into * h * w)) ** 0.5  # He et al. (2015)
        arrays = {
            "conv.weight": rng.standard_normal((out, into, h, w), np.float32) * np.float32(scale),
            "bn.weight": rng.uniform(0.8, 1.2, out),
            "bn.bias": rng.normal(0, 0.1, out),
            "bn.running_mean": rng.normal(0, 0.1, out),
            "bn.running_var": rng.uniform(0.5, 1.5, out),
        }
        state |= {f"{name}.{key}": value.astype(np.float32) for key, value in arrays.items()}
    state["fc.weight"] = rng.standard_normal((1008, 2048), np.float32) * np.float32(2048**-0.5)
    state["fc.bias"] = rng.normal(0, 0.1, 1008).astype(np.float32)
    return state


def write_safetensors(file: Path, state: State) -> None:
    """Write weights as safetensors, without torch or safetensors."""
    header, offset = {}, 0
    for name, array in state.items():
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in state.values():
            out.write(array.tobytes())


def write(folder: Path) -> dict[str, str]:
    """Write the same random weights for both sides; return the files by their names in jobs."""
    state = random_state()
    files = {"weights": folder / "random.safetensors", "arrays": folder / "random.npz"}
    write_safetensors(files["weights"], state)
    np.savez(files["arrays"], **state)  # type: ignore[arg-type] its stub has options only
    return {name: str(file) for name, file in files.items()}
