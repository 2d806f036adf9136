"""BloodNet: a small network for blood cells, shipped with its weights, to compare images offline.

`python -m bloodjax.features.bloodnet` trains it again; bloodnet.md is its model card.
"""

import argparse
import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax, random

from bloodjax import data
from bloodjax.data.bloodmnist import CLASSES
from bloodjax.features import MISTAKES, Extractor, mistaken
from bloodjax.images import as_uint8
from bloodjax.runtime import npz
from bloodjax.runtime.progress import console, progress

COMMAND = "python -m bloodjax.features.bloodnet"
WEIGHTS = Path(__file__).with_suffix(".npz")
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

    `norm` is batch normalisation, for training; in what is shipped it is folded away.
    """

    norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
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
    """The parameters of the network without normalisation that computes the same."""
    folded = {"head": params["head"]}
    for name in (n for n in params if f"{n}_norm" in params):
        norm, moving = params[f"{name}_norm"], stats[f"{name}_norm"]
        gain = norm["scale"] / jnp.sqrt(moving["var"] + EPSILON)
        bias = norm["bias"] - moving["mean"] * gain
        folded[name] = {"kernel": params[name]["kernel"] * gain, "bias": bias}
    return folded


def extractor(weights: Path = WEIGHTS, protocol: str = "") -> Extractor:
    """BloodNet with the shipped weights, or others of the same shapes (else ValueError).

    `protocol` is "" or one of `MISTAKES`.
    """
    if protocol not in ("", *MISTAKES):
        raise ValueError(f"protocol={protocol!r}: expected none, or one of {', '.join(MISTAKES)}")
    raw, params = read(Path(weights))
    right = Extractor(
        name="bloodnet",
        dims=DIMS,
        sha256=hashlib.sha256(raw).hexdigest(),
        protocol="antialiased bilinear to 28x28 (native size: as is), grey to RGB, uint8/127.5-1",
        features=partial(embed, params),
        classify=partial(classify, jax.device_get(params["head"])),
        classes=CLASSES,
    )
    return mistaken(right, protocol, partial(embed, params, raw=True)) if protocol else right


def read(path: Path) -> tuple[bytes, Params]:
    """The bytes of a weight file, and its float16 arrays as float32 parameters on the device."""
    try:
        raw, arrays = path.read_bytes(), npz.read(path)
        found = {k: (v.shape, v.dtype) for k, v in arrays.items()}
        net = jax.eval_shape(BloodNet().init, random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
        expected = flatten_dict(net["params"], sep="/")
        for name in sorted(expected.keys() | found.keys()):
            want = (expected[name].shape, np.float16) if name in expected else None
            if found.get(name) != want or not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is {found.get(name)}, expected finite {want}")
    except (OSError, ValueError) as error:
        remedy = f"reinstall bloodjax, or train it again: {COMMAND}"
        raise ValueError(f"{path} is not BloodNet's weights: {error}; {remedy}") from error
    return raw, jax.tree.map(jnp.float32, unflatten_dict(arrays, sep="/"))


def embed(params: Params, images: np.ndarray, raw: bool = False) -> np.ndarray:
    """Images (see `as_uint8`) -> float32 [N, 192], in chunks of one size: one compilation.

    With `raw`, the network is given images in [-3, 1]: see `MISTAKES`.
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
    x = images.astype(jnp.float32)
    if x.shape[1:3] != (SIDE, SIDE):
        shape = (len(x), SIDE, SIDE, x.shape[3])
        x = jax.image.resize(x, shape, "linear", antialias=True, precision=EXACT)
    x = x / 127.5 - 1
    return BloodNet().apply({"params": params}, 2 * x - 1 if raw else x)[0]


def classify(head: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """float32 [N, 192] features -> float32 [N, 8] class probabilities."""
    shape = np.shape(features)
    if shape[1:] != (DIMS,):
        raise ValueError(f"features are {shape}: expected [N, {DIMS}], as features() gives them")
    logits = features @ head["kernel"] + head["bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def augment(key: Array, images: Array, reach: int = 3) -> Array:
    """Flips, quarter turns, shifts by up to `reach` pixels, colour jitter; uint8 -> [-1, 1]."""
    turn, move, contrast, tint = random.split(key, 4)
    x = images / 127.5 - 1
    n = len(x)
    flip = random.bernoulli(turn, shape=(3, n, 1, 1, 1))
    x = jnp.where(flip[0], x[:, ::-1], x)
    x = jnp.where(flip[1], x[:, :, ::-1], x)
    x = jnp.where(flip[2], x.swapaxes(1, 2), x)
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    corners = random.randint(move, (n, 2), 0, 2 * reach + 1)
    crop = jax.vmap(lambda x, at: lax.dynamic_slice(x, (at[0], at[1], 0), (SIDE, SIDE, 3)))
    gain = 1 + 0.08 * random.normal(contrast, (n, 1, 1, 3))
    return crop(x, corners) * gain + 0.08 * random.normal(tint, (n, 1, 1, 3))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    tx: optax.GradientTransformation, state: dict, step: Array, key: Array, batch: tuple
) -> tuple[dict, Array]:
    images, labels = batch
    x = augment(random.fold_in(key, step), images)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, len(CLASSES)), 0.05)

    def loss(params: Params) -> tuple[Array, Params]:
        variables = {"params": params, "batch_stats": state["stats"]}
        (_, logits), moved = BloodNet(norm=True).apply(variables, x, True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy(logits, targets).mean(), moved["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    decay = jnp.minimum(0.995, (1 + step) / (10 + step))
    ema = optax.incremental_update((params, stats), state["ema"], 1 - decay)
    return {"params": params, "stats": stats, "opt": opt, "ema": ema}, value


def train(path: str, seed: int, epochs: int, batch: int = 128) -> Params:
    """Folded parameters, averaged over the last few hundred steps: a function of the seed."""
    cells, held_out = (data.load("bloodmnist", path, split) for split in ("train", "val"))
    if (cells.images.shape[1:], cells.classes) != ((SIDE, SIDE, 3), CLASSES):
        raise ValueError(f"data={path!r}: images {cells.images.shape}, expected BloodMNIST's 28x28")
    per_epoch = len(cells.images) // batch
    total = epochs * per_epoch
    rate = optax.cosine_onecycle_schedule(total, 4e-3, pct_start=0.2)
    kernels = partial(jax.tree.map, lambda a: a.ndim > 1)
    tx = optax.adamw(rate, weight_decay=0.05, mask=kernels)
    key = random.key(seed)
    variables = jax.jit(BloodNet(norm=True).init)(key, jnp.zeros((1, SIDE, SIDE, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    ema = jax.tree.map(jnp.copy, (params, stats))
    state = {"params": params, "stats": stats, "opt": tx.init(params), "ema": ema}
    note, loss = "", 0.0
    with progress("bloodnet", total) as advance:
        for step in range(total):
            epoch, i = divmod(step, per_epoch)
            if i == 0:
                order = np.random.default_rng((seed, epoch)).permutation(len(cells.images))
            rows = order[i * batch : (i + 1) * batch]
            last, draw = loss, (cells.images[rows], cells.labels[rows])
            state, loss = train_step(tx, state, jnp.uint32(step), key, draw)
            if i == per_epoch - 1:
                counts = confusion(fold(*state["ema"]), held_out)
                note = f"val {counts.trace() / counts.sum():.2%}"
            advance(note=f"loss {float(last):.3f} {note}")
    return fold(*state["ema"])


def confusion(params: Params, cells: data.Dataset) -> np.ndarray:
    """Counts [true class, predicted class]."""
    predicted = classify(jax.device_get(params["head"]), embed(params, cells.images)).argmax(1)
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(counts, (cells.labels, predicted), 1)
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train BloodNet's weights again.")
    parser.add_argument("--data", default="", help="a 28x28 .npz; default: where bloodjax looks")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: the shipped file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args(argv)

    begin = time.monotonic()
    params = flatten_dict(jax.device_get(train(args.data, args.seed, args.epochs)), sep="/")
    with args.out.open("wb") as file:
        np.savez(file, **{k: v.astype(np.float16) for k, v in sorted(params.items())})
    raw, params = read(args.out)  # what is shipped is what is measured
    console.print(f"{args.out}: {len(raw)} bytes in {time.monotonic() - begin:.0f} s, sha256")
    console.print(hashlib.sha256(raw).hexdigest())
    for split in ("val", "test"):
        cells = data.load("bloodmnist", args.data, split)
        counts = confusion(params, cells)
        console.print(f"{split}: {counts.trace() / counts.sum():.2%} of {counts.sum()}")
    for name, row, own in zip(CLASSES, counts, counts.diagonal(), strict=True):
        console.print(f"  {name}: {own}/{row.sum()} = {own / row.sum():.2%}")


if __name__ == "__main__":
    main()
