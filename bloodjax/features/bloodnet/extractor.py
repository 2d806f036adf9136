"""BloodNet as a feature space."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax, random

from bloodjax.data.sources.bloodmnist import CLASSES
from bloodjax.features import MISTAKES, RAW_RANGE, Extractor
from bloodjax.images import as_uint8
from bloodjax.runtime import npz

COMMAND = "python -m bloodjax.features.bloodnet"
WEIGHTS = Path(__file__).with_name("bloodnet.npz")
SIDE = 28
STEM = 24
BLOCKS = ((48, 2), (96, 2), (192, 2))  # width and stride of each residual block
DIMS = BLOCKS[-1][0]
EPSILON = 1e-5  # of the batch normalisation
CHUNK = 256  # images a device call; fewer where they are large
EXACT = lax.Precision.HIGHEST  # no TF32: the same features on every backend
Params = Mapping[str, Mapping[str, Array]]


class BloodNet(nn.Module):
    """A stem and three residual blocks: [N, 28, 28, 3] in [-1, 1] -> features [N, 192], logits.

    Attributes:
        norm: batch normalisation, for training; in the shipped weights it is folded away.
    """

    norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Return the features, means over positions, and the logits of the classes."""
        conv = partial(nn.Conv, use_bias=not self.norm, precision=EXACT)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=EPSILON)

        def layer(name: str, x: Array, width: int, size: int = 3, stride: int = 1) -> Array:
            x = conv(width, (size, size), stride, padding=size // 2, name=name)(x)
            return norm(name=f"{name}_norm")(x) if self.norm else x

        x = nn.relu(layer("stem", x, STEM))
        for i, (width, stride) in enumerate(BLOCKS):
            skip = layer(f"block{i}_skip", x, width, size=1, stride=stride)
            x = nn.relu(layer(f"block{i}_in", x, width, stride=stride))
            x = nn.relu(layer(f"block{i}_out", x, width) + skip)
        features = x.mean((1, 2))
        return features, nn.Dense(len(CLASSES), precision=EXACT, name="head")(features)


def fold(params: Params, stats: Params) -> Params:
    """Fold the normalisation into the convolutions: the same network without it."""
    folded = {"head": params["head"]}
    for name in (n for n in params if f"{n}_norm" in params):
        norm, moving = params[f"{name}_norm"], stats[f"{name}_norm"]
        gain = norm["scale"] / jnp.sqrt(moving["var"] + EPSILON)
        bias = norm["bias"] - moving["mean"] * gain
        folded[name] = {"kernel": params[name]["kernel"] * gain, "bias": bias}
    return folded


def make_extractor(weights: Path = WEIGHTS, protocol: str = "") -> Extractor:
    """Return BloodNet as a feature space.

    Args:
        weights: the shipped file, or another with the same shapes.
        protocol: "", or "raw-range" for images in [-1, 1] in the place of [0, 1].

    Raises:
        ValueError: an unknown protocol, or a file without the weights.
    """
    if protocol not in ("", RAW_RANGE):
        raise ValueError(f"protocol={protocol!r}: expected none, or one of {', '.join(MISTAKES)}")
    raw, params = read(Path(weights))
    space = Extractor(
        name="bloodnet",
        dims=DIMS,
        sha256=hashlib.sha256(raw).hexdigest(),
        protocol="antialiased bilinear to 28x28 (native size: as is), grey to RGB, uint8/127.5-1",
        features=partial(embed, params),
        classify=partial(classify, jax.device_get(params["head"])),
        classes=CLASSES,
        weights=Path(weights).name,
    )
    if not protocol:
        return space
    raw_features = partial(embed, params, raw=True)
    changes = {"name": f"bloodnet-{protocol}", "protocol": protocol, "features": raw_features}
    return space._replace(**changes, classify=None, classes=())


def read(path: Path) -> tuple[bytes, Params]:
    """Read a weight file: its bytes, and its float16 arrays as float32 parameters on the device."""
    try:
        raw, arrays = path.read_bytes(), npz.read(path)
        shapes = {k: (v.shape, v.dtype) for k, v in arrays.items()}
        net = jax.eval_shape(BloodNet().init, random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
        expected: Any = flatten_dict(net["params"], sep="/")
        for name in sorted(expected.keys() | shapes.keys()):
            want = (expected[name].shape, np.float16) if name in expected else None
            if shapes.get(name) != want or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is {shapes.get(name)}, expected finite {want}")
    except (OSError, ValueError) as error:
        remedy = f"reinstall bloodjax, or train it again: {COMMAND}"
        raise ValueError(f"{path} is not BloodNet's weights: {error}; {remedy}") from error
    return raw, jax.tree.map(jnp.float32, unflatten_dict(arrays, sep="/"))


def embed(params: Params, images: np.ndarray, raw: bool = False) -> np.ndarray:
    """Map images (see `as_uint8`) to float32 [N, 192], in chunks of one size: one compilation.

    With `raw`, the network gets images in [-3, 1]: see `MISTAKES`.
    """
    images = as_uint8(images)
    n, h, w, c = images.shape
    chunk = max(1, min(CHUNK, 2**24 // (h * w)))
    features = np.empty((n, DIMS), np.float32)
    for start in range(0, n, chunk):
        part = images[start : start + chunk]
        filler = np.zeros((chunk - len(part), h, w, c), np.uint8)
        out = forward(params, jax.device_put(np.concatenate([part, filler])), raw)
        features[start : start + chunk] = jax.device_get(out)[: len(part)]
    return features


@partial(jax.jit, static_argnames="raw")
def forward(params: Params, images: Array, raw: bool = False) -> Array:
    """Resize and scale a chunk of images, and return its features float32 [N, 192]."""
    x = images.astype(jnp.float32)
    if x.shape[1:3] != (SIDE, SIDE):
        shape = (len(x), SIDE, SIDE, x.shape[3])
        x = jax.image.resize(x, shape, "linear", antialias=True, precision=EXACT)
    x = x / 127.5 - 1
    return BloodNet().apply({"params": params}, 2 * x - 1 if raw else x)[0]


def classify(head: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Map float32 [N, 192] features to float32 [N, 8] class probabilities."""
    shape = np.shape(features)
    if shape[1:] != (DIMS,):
        raise ValueError(f"features are {shape}: expected [N, {DIMS}], the result of features()")
    logits = features @ head["kernel"] + head["bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)
