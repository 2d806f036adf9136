"""Short trainings, and what they leave."""

import json

import jax
import numpy as np

from bloodjax.training import loop
from bloodjax.training.step import OptimizerConfig, make_optimizer
from helpers.tiny import cells, method

SETTINGS = {"epochs": 2, "batch_size": 16, "ema_decay": 0.9}


def run(workdir, name="vae", seeds=(0,), optimizer=None, evaluate=None, on_written=None, **changes):
    workdir.mkdir(exist_ok=True)
    return loop.train(
        method(name),
        make_optimizer(
            OptimizerConfig(**optimizer or {}), ema_decay_long=changes.get("ema_decay_long", 0.0)
        ),
        cells(),
        workdir,
        seeds=seeds,
        config=loop.TrainConfig(**(SETTINGS | changes)),
        evaluate=evaluate,
        on_written=on_written,
    )


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def timeless(folder):
    """The lines without what the clock says."""
    return [{k: r[k] for k in r.keys() - {"images_per_s", "compile_s"}} for r in lines(folder)]


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
