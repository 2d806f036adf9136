"""Training of BloodNet: python -m bloodjax.features.bloodnet."""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax import Array, lax, random

from bloodjax import data
from bloodjax.data.sources.bloodmnist import CLASSES
from bloodjax.features.bloodnet.extractor import (
    COMMAND,
    SIDE,
    WEIGHTS,
    BloodNet,
    Params,
    classify,
    embed,
    fold,
    read,
)
from bloodjax.runtime import command, npz
from bloodjax.runtime.compilation import ENGINES, choose_engine, uncached
from bloodjax.runtime.progress import console, progress

BATCH = 128  # images per step


def augment(key: Array, images: Array, reach: int = 3) -> Array:
    """Flip, turn by quarters, shift by up to `reach` pixels, tint; uint8 -> [-1, 1]."""
    turn, move, contrast, tint = random.split(key, 4)
    x = images / 127.5 - 1
    n = len(x)
    flip = random.bernoulli(turn, shape=(3, n, 1, 1, 1))
    x = jnp.where(flip[0], x[:, ::-1], x)
    x = jnp.where(flip[1], x[:, :, ::-1], x)
    x = jnp.where(flip[2], x.swapaxes(1, 2), x)
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    corners = random.randint(move, (n, 2), 0, 2 * reach + 1)
    crop = jax.vmap(lambda x, c: lax.dynamic_slice(x, (c[0], c[1], 0), (SIDE, SIDE, 3)))
    gain = 1 + 0.08 * random.normal(contrast, (n, 1, 1, 3))
    return crop(x, corners) * gain + 0.08 * random.normal(tint, (n, 1, 1, 3))


@cache  # one program for all classifiers of an audit
def make_step(
    steps: int, engine: str
) -> tuple[optax.GradientTransformation, Callable[..., tuple[dict, Array]]]:
    """Return AdamW for a training of `steps`, and `train_step` by it, jitted for an engine."""
    rate = optax.cosine_onecycle_schedule(steps, 4e-3, pct_start=0.2)
    kernels = partial(jax.tree.map, lambda a: a.ndim > 1)
    tx = optax.adamw(rate, weight_decay=0.05, mask=kernels)
    options = ENGINES[engine]
    return tx, jax.jit(partial(train_step, tx), donate_argnums=0, compiler_options=options)


def train_step(
    tx: optax.GradientTransformation, state: dict, step: Array, key: Array, batch: tuple
) -> tuple[dict, Array]:
    """Return the state after one step of AdamW on an augmented batch, and the loss."""
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


def train(
    cells: data.Dataset, seed: int, steps: int, held_out: data.Dataset | None = None
) -> Params:
    """Train BloodNet on batches of 128: a function of the images and the seed.

    Args:
        cells: images uint8 [N, 28, 28, 3] of BloodMNIST's classes.
        seed: of the weights, the order and the augmentation.
        steps: of AdamW.
        held_out: the images whose accuracy the progress bar shows after each epoch.

    Returns:
        Folded parameters, averaged over the last few hundred steps.

    Raises:
        ValueError: images of another shape or of other classes.
    """
    check_cells(cells)
    per_epoch = max(1, len(cells.images) // BATCH)
    engine = choose_engine()
    tx, step_program = make_step(steps, engine)
    key = random.key(seed)
    variables = jax.jit(BloodNet(norm=True).init)(key, jnp.zeros((1, SIDE, SIDE, 3)))
    params, stats = variables["params"], variables["batch_stats"]
    ema = jax.tree.map(jnp.copy, (params, stats))
    state = {"params": params, "stats": stats, "opt": tx.init(params), "ema": ema}
    note, loss, order = "", 0.0, np.arange(0)
    with uncached(engine), progress("bloodnet", steps) as advance:
        for step in range(steps):
            epoch, i = divmod(step, per_epoch)
            if i == 0:
                order = np.random.default_rng((seed, epoch)).permutation(len(cells.images))
            rows = order[i * BATCH : (i + 1) * BATCH]
            previous, rows_batch = loss, (cells.images[rows], cells.labels[rows])
            state, loss = step_program(state, jnp.uint32(step), key, rows_batch)
            if held_out and i == per_epoch - 1:
                counts = confusion(fold(*state["ema"]), held_out)
                note = f"val {counts.trace() / counts.sum():.2%}"
            advance(note=f"loss {float(previous):.3f} {note}")
    return fold(*state["ema"])


def check_cells(cells: data.Dataset) -> None:
    """Refuse images of another shape than BloodMNIST's 28x28, or of other classes: ValueError."""
    if (cells.images.shape[1:], cells.classes) != ((SIDE, SIDE, 3), CLASSES):
        shape = cells.images.shape
        raise ValueError(f"{cells.name}: images {shape}, expected 28x28 images of BloodMNIST")


def confusion(params: Params, cells: data.Dataset) -> np.ndarray:
    """Count images [true class, predicted class]."""
    predicted = classify(jax.device_get(params["head"]), embed(params, cells.images)).argmax(1)
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(counts, (cells.labels, predicted), 1)
    return counts


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the weights, and print their accuracy on both held-out splits."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train BloodNet's weights again.")
    parser.add_argument("--data", default="", help="a 28x28 .npz; default: where bloodjax looks")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: the shipped file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args(argv)
    command.run(lambda: run(args), owns_process=argv is None)


def run(args: argparse.Namespace) -> None:
    """Do the work of `main`."""
    command.check_output(args.out, overwrite=args.out == WEIGHTS)
    begin = time.monotonic()
    cells, held_out = (data.load("bloodmnist", args.data, split) for split in ("train", "val"))
    steps = args.epochs * (len(cells.images) // BATCH)
    params = flatten_dict(jax.device_get(train(cells, args.seed, steps, held_out)), sep="/")
    npz.write(args.out, {k: v.astype(np.float16) for k, v in sorted(params.items())})
    raw, params = read(args.out)  # the shipped file is the one that is measured
    console.print(f"{args.out}: {len(raw)} bytes in {time.monotonic() - begin:.0f} s, sha256")
    console.print(hashlib.sha256(raw).hexdigest())

    for split in ("val", "test"):
        cells = data.load("bloodmnist", args.data, split)
        counts = confusion(params, cells)
        console.print(f"{split}: {counts.trace() / counts.sum():.2%} of {counts.sum()}")
    for name, row, right in zip(CLASSES, counts, counts.diagonal(), strict=True):
        console.print(f"  {name}: {right}/{row.sum()} = {right / row.sum():.2%}")
