"""A trained model to draw from: of a run, out of one file, or the one that comes with bloodjax.

python -m bloodjax.model WORKDIR OUT.npz makes one file of a run's newest checkpoint.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import random

from bloodjax import methods, options
from bloodjax.methods import Method, Params, Stats
from bloodjax.runtime import compilation, npz
from bloodjax.runtime.files import atomic_write, read_json
from bloodjax.runtime.progress import console
from bloodjax.sampling.draw import Weights, make_sampler
from bloodjax.training import loop
from bloodjax.training.step import OptimizerConfig, make_optimizer

SHIPPED = Path(__file__).parent / "pretrained" / "ddpm.npz"
TREES = ("params", "stats")
CHUNK = 250  # images per dispatch and device


class Model(NamedTuple):
    """What draws images: a method, its parameters, and how it is sampled.

    Attributes:
        method: what was trained.
        params, stats: of one seed, float32.
        options: the sampler's own, see the method's `sample`.
        about: where it comes from, plain values: seed, step, data, ...
    """

    method: Method
    params: Params
    stats: Stats
    options: dict[str, Any]
    about: dict[str, Any]

    def sample(self, count: int, seed: int | None = None, **sampler: Any) -> np.ndarray:
        """Draw `count` images: uint8 [count, H, W, C].

        Image i is a function of (seed, i), so that more images begin with the same ones.

        Args:
            seed: of the drawing, 0 to 2**32 - 1; None takes that of the training, which draws the
                images that the run itself did.
            sampler: options of the sampler, in the place of the model's own.
        """
        if count < 1:
            raise ValueError(f"count={count}: expected at least 1")
        seed = self.about["seed"] if seed is None else seed
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: expected 0 to 2**32 - 1")
        sampler = self.options | sampler
        options.check(self.method.sample, "sampler", sampler)
        draw = drawing_of(self.method, **sampler)
        devices = jax.device_count()
        size = min(-(-count // devices), CHUNK) * devices
        own = self.params, self.stats, jnp.uint32(seed)
        parts = [draw(*own, jnp.arange(at, at + size)) for at in range(0, count, size)]
        return np.concatenate(parts)[:count]


drawing_of = functools.cache(
    lambda method, **options: make_sampler(method, options, "XLA")
)  # compiled once


def load(
    source: str | Path = SHIPPED,
    seed: int | None = None,
    *,
    weights: str = "ema",
    checkpoint: str = "newest",
) -> Model:
    """A model to draw from.

    Args:
        source: a run's folder, or a file that `save` wrote; by default the one shipped, see
            pretrained/ddpm.md.
        seed: which of a run's seeds; None takes the first.
        weights: "ema", the moving average of the parameters, or "raw", the parameters themselves;
            of a run.
        checkpoint: "newest", or "best" of those that were evaluated; of a run.

    Raises:
        FileNotFoundError: there is no such run, file or checkpoint.
        ValueError: the run has no such seed, or a file is damaged or was not written here.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected a run's folder, or an .npz made of one")
    if source.is_dir():
        return load_run(source, seed, weights, checkpoint)
    if seed is not None or (weights, checkpoint) != ("ema", "newest"):
        raise ValueError(f"{source} holds one model: no seed, weights or checkpoint to choose")
    return read(source)


def load_run(workdir: Path, seed: int | None, weights: str, checkpoint: str) -> Model:
    """The model of one seed of a run."""
    file = workdir / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: no run was made in this folder")
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r}: expected {' or '.join(get_args(Weights))}")
    described = read_json(file)
    config, dataset = described["config"], described["dataset"]
    seeds = config["seeds"]
    if seed is not None and seed not in seeds:
        raise ValueError(f"seed={seed}: {workdir} has the seeds {', '.join(map(str, seeds))}")
    s = 0 if seed is None else seeds.index(seed)
    _, dtype = compilation.PRECISIONS[config["precision"]]
    method = make_method(dataset, config["method"] | {"dtype": dtype})
    trained = workdir.parent / config["sample"]["model"] if config["sample"]["model"] else workdir
    tx = make_optimizer(OptimizerConfig(**config["optimizer"]))
    state = loop.restore(method, tx, trained, seeds=seeds, checkpoint=checkpoint)
    params = {"ema": state.ema, "raw": state.params}[weights]
    params, stats = jax.tree.map(lambda x: jnp.asarray(x[s]), (params, state.stats))
    about = {
        "seed": seeds[s],
        "step": int(state.step[s]),
        "weights": weights,
        "config": config,
        "dataset": dataset,
        "environment": described["environment"],
    }
    return Model(method, params, stats, config["sampler"], about)


def make_method(dataset: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> Method:
    """Return the method for the images of a data set."""
    shape, classes = tuple(dataset["shape"]), len(dataset["classes"])
    return methods.make(shape=shape, classes=classes, **hyper_parameters)


def save(model: Model, file: Path) -> None:
    """Write a model to an .npz file, parameters in float16: half the size, and rounded."""
    trees = flatten_dict({name: getattr(model, name) for name in TREES}, sep="/")
    with np.errstate(over="ignore"):  # refused with a message, below
        arrays = {name: np.asarray(x, np.float16) for name, x in trees.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} does not fit into float16: this model cannot be saved so")
    about = json.dumps({"options": model.options, "about": model.about})
    with atomic_write(file) as part, part.open("wb") as handle:
        np.savez(handle, about=about, **arrays)


def read(file: Path) -> Model:
    """What `save` wrote; ValueError if it is not."""
    arrays = npz.read(file)
    try:
        known = json.loads(str(arrays.pop("about")))
        about, sampler = known["about"], known["options"]
        method = make_method(about["dataset"], about["config"]["method"])
        trees = dict(zip(TREES, jax.eval_shape(method.init, random.key(0)), strict=True))
        shapes = {name: (x.shape, np.float16) for name, x in flatten_dict(trees, sep="/").items()}
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                raise ValueError(f"{name} is {found.get(name)}, expected {shapes.get(name)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: {error}: expected what `python -m bloodjax.model RUN FILE` writes"
        ) from None

    def filled(path: Sequence[Any], _: Any) -> jax.Array:
        return jnp.float32(arrays["/".join(key.key for key in path)])

    trees = jax.tree_util.tree_map_with_path(filled, trees)
    return Model(method, *(trees[name] for name in TREES), sampler, about)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bloodjax.model", description=__doc__)
    parser.add_argument("workdir", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, help="which of the run's seeds; default: the first")
    parser.add_argument("--weights", choices=get_args(Weights), default="ema")
    args = parser.parse_args(argv)
    try:
        save(load(args.workdir, args.seed, weights=args.weights), args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    console.print(f"{args.out}: {args.out.stat().st_size:,} bytes", markup=False)


if __name__ == "__main__":
    main()
