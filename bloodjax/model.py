"""A trained model to draw from: from a run, from one file, or the one that comes with bloodjax.

python -m bloodjax.model WORKDIR OUT.npz writes one file of a run's newest checkpoint.
"""

import argparse
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import Array, random

from bloodjax import methods
from bloodjax.methods import Method, Params, Stats
from bloodjax.runtime import command, compilation, devices, npz
from bloodjax.runtime.files import flatten
from bloodjax.runtime.progress import print_line
from bloodjax.sampling.draw import check_sampler, fetch_images, make_sampler, select_seed
from bloodjax.sampling.labels import make_labels, no_labels
from bloodjax.training import loop
from bloodjax.training.averages import Weights, check_weights
from bloodjax.training.step import OptimizerConfig, make_optimizer
from bloodjax.workdir import OLDER_DEFAULTS, read_config

SHIPPED = Path(__file__).parent / "pretrained" / "edm.npz"
TREES = ("params", "stats")
# Images per dispatch and device; on a CPU eight are as fast as hundreds, and the bar moves
CHUNK, CPU_CHUNK = 256, 8


class Model(NamedTuple):
    """A method with parameters and sampling options.

    Attributes:
        method: the trained method.
        params, stats: of one seed, float32.
        options: of the sampler, see the method's `sample`.
        origin: plain values: seed, step, data, ...
    """

    method: Method
    params: Params
    stats: Stats
    options: dict[str, Any]
    origin: dict[str, Any]

    def sample(
        self, count: int, seed: int | None = None, label: str | int | None = None, **options: Any
    ) -> np.ndarray:
        """Draw `count` images: uint8 [count, H, W, C].

        Image i is a function of (seed, i, its label): the first images do not depend on `count`.

        Args:
            seed: of the drawing, 0 to 2**32 - 1; None takes the training's: the images of the run.
            label: see `labels`.
            options: of the sampler, instead of the model's own.

        Raises:
            ValueError: a count, seed, label or option out of its range.
        """
        return np.concatenate([*self.sample_chunks(count, seed, label, **options)])

    def labels(self, count: int, label: str | int | None = None) -> np.ndarray:
        """Return the class of each of the first `count` images, int32 [count], or -1 without.

        `label` is the name or the number of a class; "data", with the frequencies of the data;
        "balanced", all classes in turn; None, as the run drew.

        Raises:
            ValueError: no such class, or the model is unconditional.
        """
        if not self.method.classes:
            if label is None:
                return no_labels(count)
            raise ValueError(
                f"class {str(label)!r}: this model draws from all classes together; choose none, "
                "or a model of --config=configs/edm.py"
            )
        dataset, sample = self.origin["dataset"], self.origin["config"]["sample"]
        choice = sample["labels"] if label is None else str(label)
        if choice == "data" and "counts" not in dataset:
            reason = "this model does not hold the frequencies of its data"
            raise ValueError(f"class 'data': {reason}; choose balanced or a class")
        return make_labels(dataset["classes"], dataset.get("counts", ()), choice, count)

    def sample_chunks(
        self, count: int, seed: int | None = None, label: str | int | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Draw the images of `sample` in chunks of a few; the arguments are checked now."""
        if count < 1 or count != int(count):
            raise ValueError(f"count={count}: expected at least 1, a whole number")
        seed = int(self.origin["seed"]) if seed is None else seed
        if not 0 <= seed < 2**32 or seed != int(seed):
            raise ValueError(f"seed={seed}: expected 0 to 2**32 - 1, a whole number")
        merged = self.options | options
        sampler = {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}
        check_sampler(self.method, sampler)
        draw = compile_sampler(self.method, **sampler)

        # Chunks of one size, as few as can be, none with more images than it needs.
        largest = CPU_CHUNK if jax.default_backend() == "cpu" else CHUNK
        chunks = -(-count // (largest * jax.device_count()))
        size = -(-count // (chunks * jax.device_count())) * jax.device_count()
        labels = self.labels(chunks * size, label)

        def draw_chunk(start: int) -> np.ndarray:
            rows = np.arange(start, start + size, dtype=np.int32)
            chunk = draw(self.params, self.stats, jnp.uint32(seed), rows, labels[rows])
            return fetch_images(chunk)[: count - start]

        return map(draw_chunk, range(0, count, size))


@functools.cache  # compiled once in a process
def compile_sampler(method: Method, **sampler: Any) -> Any:
    """Return the program of `make_sampler` for these options."""
    return make_sampler(method, sampler, "XLA")


def load(
    source: str | Path = SHIPPED,
    seed: int | None = None,
    *,
    weights: Weights | None = None,
    checkpoint: str | None = None,
) -> Model:
    """Load a model to draw from, and set up JAX in this process as the commands do.

    Args:
        source: a run's folder, or a file that `save` wrote; by default the one shipped, see
            pretrained/edm.md.
        seed: which of a run's seeds; None takes the first.
        weights, checkpoint: of a run, see `SampleConfig`; None: as the run drew.

    Raises:
        FileNotFoundError: there is no such run, file or checkpoint.
        ValueError: the run has no such seed, or a file is damaged or no model.
    """
    compilation.configure_jax(deterministic=False, precision="float32")
    devices.require_devices()
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: expected a run's folder, or an .npz made of one")
    if source.is_dir():
        return load_run(source, seed, weights=weights, checkpoint=checkpoint)
    if (seed, weights, checkpoint) != (None, None, None):
        raise ValueError(f"{source} holds one model: no seed, weights or checkpoint to choose")
    return read(source)


def load_run(workdir: Path, seed: int | None, **choice: str | None) -> Model:
    """Load the model of one seed of a run; `choice`: weights and checkpoint, see `load`."""
    run = read_config(workdir)
    config, dataset, seeds = run["config"], run["dataset"], run["config"]["seeds"]
    sample = config["sample"] | {name: value for name, value in choice.items() if value}
    ema_decay_long = (OLDER_DEFAULTS | flatten(config))["train.ema_decay_long"]
    check_weights(sample["weights"], ema_decay_long)
    if seed is not None and seed not in seeds:
        raise ValueError(f"seed={seed}: {workdir} has the seeds {', '.join(map(str, seeds))}")
    method = make_method(dataset, config)
    trained = workdir.absolute().parent / sample["model"] if sample["model"] else workdir
    tx = make_optimizer(OptimizerConfig(**config["optimizer"]), ema_decay_long=ema_decay_long)
    state = loop.restore(method, tx, trained, seeds=seeds, checkpoint=sample["checkpoint"])
    s = 0 if seed is None else seeds.index(seed)
    params, stats, _ = select_seed(state, s, sample["weights"])
    origin = {"seed": seeds[s], "step": int(state.step[s]), "weights": sample["weights"], **run}
    return Model(method, params, stats, config["sampler"], origin)


def make_method(dataset: Mapping[str, Any], config: Mapping[str, Any]) -> Method:
    """Return the method of a configuration for the images of a data set."""
    shape, classes = tuple(dataset["shape"]), len(dataset["classes"])
    _, dtype = compilation.PRECISIONS[config["precision"]]
    return methods.make(shape=shape, classes=classes, **config["method"] | {"dtype": dtype})


def save(model: Model, file: Path) -> None:
    """Write a model to an .npz file, parameters in float16: half the size, and rounded.

    Raises:
        ValueError: a parameter is too large for float16.
    """
    trees = flatten_dict({name: getattr(model, name) for name in TREES}, sep="/")
    with np.errstate(over="ignore"):  # refused with a message, below
        arrays = {name: np.asarray(x, np.float16) for name, x in trees.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} does not fit into float16: this model cannot be saved so")
    text = json.dumps({"options": model.options, "about": model.origin})
    npz.write(file, {"about": text, **arrays})


def read(file: Path) -> Model:
    """Read a file of `save`; ValueError for any other."""
    arrays = npz.read(file)
    try:
        text = json.loads(str(arrays.pop("about")))
        origin, options = text["about"], text["options"]
        method = make_method(origin["dataset"], origin["config"])
        trees: Any = dict(zip(TREES, jax.eval_shape(method.init, random.key(0)), strict=True))
        flat: Any = flatten_dict(trees, sep="/")
        expected = {name: (x.shape, np.float16) for name, x in flat.items()}
        actual = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        for name in sorted(expected.keys() | actual.keys()):
            if expected.get(name) != actual.get(name):
                raise ValueError(f"{name} is {actual.get(name)}, expected {expected.get(name)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: {error}: expected what `python -m bloodjax.model RUN FILE` writes"
        ) from None

    def fill(path: Sequence[Any], _: Any) -> Array:
        return jnp.float32(arrays["/".join(key.key for key in path)])

    trees = jax.tree_util.tree_map_with_path(fill, trees)
    return Model(method, trees["params"], trees["stats"], options, origin)


def main(argv: Sequence[str] | None = None) -> None:
    """Write one file of a run's newest checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m bloodjax.model", description=__doc__)
    parser.add_argument("workdir", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--seed", type=int, help="one of the run's seeds; default: the first")
    parser.add_argument("--weights", choices=get_args(Weights), help="default: as the run drew")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.out.suffix != ".npz":
            raise ValueError(f"{args.out}: expected a name that ends in .npz")
        command.check_output(args.out, args.overwrite)
        save(load(args.workdir, args.seed, weights=args.weights), args.out)
        print_line(f"{args.out}: {args.out.stat().st_size:,} bytes")

    command.run(work, owns_process=argv is None)


if __name__ == "__main__":
    main()
