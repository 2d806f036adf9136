"""Train, sample, score and report.

python launch.py --config=configs/ddpm.py
"""

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from absl import app, flags, logging
from ml_collections import config_flags

from bloodjax import data, doctor, methods, options, workdir
from bloodjax.data import Dataset
from bloodjax.methods import Method
from bloodjax.options import Seed
from bloodjax.report.run import write_report
from bloodjax.report.tensorboard import Board, LogConfig
from bloodjax.runtime import command, compilation, devices, processes
from bloodjax.runtime.files import flatten
from bloodjax.runtime.progress import console
from bloodjax.sampling import draw, export
from bloodjax.sampling.labels import make_labels, no_labels
from bloodjax.sampling.samples import check_same_samples, read_samples
from bloodjax.scoring.audit import check_audit, write_audit
from bloodjax.scoring.evaluate import make_evaluator
from bloodjax.scoring.score import ScoreConfig, check_sample_sets, keep_available, write_scores
from bloodjax.training.averages import check_weights
from bloodjax.training.loop import TrainConfig, restore, train
from bloodjax.training.step import OptimizerConfig, make_optimizer

MODES = ("run", "train", "sample", "score", "report", "audit", "benchmark", "doctor")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "what to do, such as configs/ddpm.py or configs/ddpm.py:quick"
)
MODE = flags.DEFINE_enum(
    "mode", "run", MODES, "one stage or all; benchmark: beside PyTorch; doctor: this machine"
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run (default runs/<config name>)")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several hosts")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "on all hosts; 1: this process alone")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "the number of this process, from 0")
# A run and the run whose model it samples may differ in these.
MAY_DIFFER = ("name", "sampler", "sample", "score", "bench", "log")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A checked configuration: the values that all groups share, and each group."""

    name: str
    deterministic: bool
    precision: Literal["float32", "tf32", "bfloat16"]
    seeds: tuple[Seed, ...]
    data: dict[str, Any]
    method: dict[str, Any]
    optimizer: OptimizerConfig
    train: TrainConfig
    sampler: dict[str, Any]
    sample: draw.SampleConfig
    score: ScoreConfig
    log: LogConfig
    bench: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: expected different integers, at least one")
        if self.sample.checkpoint == "best" and not self.train.evaluate_count:
            raise ValueError(
                "sample.checkpoint='best', but train.evaluate_count=0 evaluates none: expected "
                "images to evaluate by, such as --config.train.evaluate_count=1000, or "
                "sample.checkpoint=newest"
            )
        check_weights(self.sample.weights, self.train.ema_decay_long)
        check_sample_sets(self.score, self.sample.count)


def main(argv: list[str]) -> None:
    """Run what the flags ask for."""
    logging.set_verbosity(logging.WARNING)  # orbax logs each of its steps at INFO
    mode = MODE.value
    if mode == "doctor":
        devices.require_devices()
        doctor.print_report()
        return
    if CONFIG.value is None or argv[1:]:
        raise ValueError(
            f"expected --config=FILE, such as --config=configs/ddpm.py; not understood: {argv[1:]}"
        )
    config = CONFIG.value.to_dict()
    folder = Path(WORKDIR.value or Path("runs", config["name"]))
    if mode == "benchmark":
        benchmark(config, folder)
        return

    # The runs: one, or those of a study
    runs = {folder / name: run for name, run in select_runs(config).items()}
    parsed = {path: options.build(RunConfig, "", run) for path, run in runs.items()}
    dtype = compilation.configure_jax(config["deterministic"], config["precision"])
    processes.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    devices.require_devices()

    # Data, methods and weights, before any work
    if mode == "audit":
        check_audit(config["data"]["split"])
    dataset = processes.main_first(lambda: data.load(**config["data"]))
    processes.require_equal("data set or mode", [dataset.digest, mode])
    same = {k: v for k, v in flatten(config).items() if "data" not in k.split(".")}
    processes.require_equal("configuration", same)  # paths of data may differ
    models = {path: make_method(run, dataset, dtype) for path, run in parsed.items()}
    if mode in ("run", "score"):
        parsed = {path: replace(x, score=keep_available(x.score)) for path, x in parsed.items()}

    for path, run in parsed.items():
        if "runs" in config:
            if mode == "report" and not (path / "samples.npz").exists():
                continue  # the report of the study shows the run as not made yet
            console.rule(str(path))
        run_stages(mode, runs[path], run, models[path], dataset, path)
    if "runs" in config and mode in ("run", "score", "report") and processes.is_main():
        # Imports SciPy's statistics, a second that no other command needs
        from bloodjax.report.study import write_study_report

        write_study_report(config["title"], config["columns"], runs, dataset, folder)
    processes.barrier()  # all processes leave together


def select_runs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configurations of a study by the names of their folders, in order.

    A configuration of one run has the empty name.
    """
    if "runs" not in config:
        return {"": config}
    names = ",".join(config["order"]).split(",")  # a flag's "a,b" arrives as one name
    if unknown := [name for name in names if name not in config["runs"]]:
        runs = ", ".join(config["runs"])
        raise ValueError(f"order={','.join(names)}: {unknown[0]!r} is none of its runs: {runs}")
    return {name: config["runs"][name] for name in names}


def make_method(run: RunConfig, dataset: Dataset, dtype: str) -> Method:
    """Build the method for the images of `dataset`, and check the options of its sampler."""
    shape, classes = dataset.images.shape[1:], len(dataset.classes)
    method = methods.make(shape=shape, classes=classes, dtype=dtype, **run.method)
    draw.check_sampler(method, run.sampler)
    if method.classes:
        make_labels(dataset.classes, dataset.counts, run.sample.labels, 1)  # or refuse the class
        if "png" in run.sample.export:
            export.check_class_names(dataset.classes)
    elif run.sample.labels != "data":
        reason = "expected data for a method that draws from all classes together"
        raise ValueError(f"sample.labels={run.sample.labels!r}: {reason}")
    return method


def run_stages(
    mode: str,
    config: dict[str, Any],
    run: RunConfig,
    method: Method,
    dataset: Dataset,
    folder: Path,
) -> None:
    """Run the stages of `mode`, one after the other, in the folder of the run."""
    made_with = draw.made_with(method, run.sample, run.sampler)
    if mode == "report":  # only reads, so another process may be writing
        workdir.check_same_run(folder, config, dataset)
        check_same_samples(folder, made_with)
        if processes.is_main():
            write_report(folder, dataset)
        return
    free = {"sample": ["sample", "sampler"], "score": ["score"]}.get(mode, [])
    with workdir.lock(folder):
        workdir.open_run(folder, config, dataset, free)
        shown = run.log.tensorboard and processes.is_main()
        board = Board(folder, run.seeds, dataset) if shown else None
        source = folder.absolute().parent / run.sample.model if run.sample.model else folder
        steps = run.train.epochs * -(-len(dataset.images) // run.train.batch_size)
        tx = make_optimizer(run.optimizer, steps, run.train.ema_decay_long)
        classes = dataset.classes, dataset.counts, run.sample.labels
        labels = partial(make_labels, *classes) if method.classes else no_labels
        which = {"seeds": run.seeds, "checkpoint": run.sample.checkpoint}

        if mode in ("run", "train") and source == folder:
            count, show = run.train.evaluate_count, board.show_evaluated if board else None
            evaluate = make_evaluator(method, dataset, count, run.sample, run.sampler, labels, show)
            on_written = board.update if board else None
            train(method, tx, dataset, folder, run.seeds, run.train, evaluate, on_written)
            if board:
                board.update()  # also shows a training that ended before TensorBoard was asked for

        if mode in ("run", "sample"):
            if source != folder:
                workdir.check_same_run(source, config, dataset, MAY_DIFFER)
            state = restore(method, tx, source, **which)
            draw.write_samples(method, state, folder, run.sample, run.sampler, labels)
            if processes.is_main():
                export.export_run(folder, run.sample.export, dataset.classes)
            if board:
                board.show_samples(read_samples(folder, dataset))

        if mode in ("run", "score", "audit"):
            check_same_samples(folder, made_with)
        if mode in ("run", "score"):
            write_scores(folder, dataset, run.score)
        if mode in ("run", "sample", "score"):
            workdir.update_config(folder, config, dataset)
        if mode == "audit":
            state = restore(method, tx, source, **which)
            check_same_samples(folder, {"step": int(state.step[0])})
            params, stats, _ = draw.select_seed(state, 0, run.sample.weights)
            test = data.load(**run.data | {"split": "test"})
            write_audit(folder, method, (params, stats), dataset, test)
        if mode in ("run", "score", "audit") and processes.is_main():
            write_report(folder, dataset)


def benchmark(config: dict[str, Any], folder: Path) -> None:
    """Time the parts of a method and its quick job beside PyTorch."""
    # A fifth of the package, which no other mode needs
    from bloodjax.bench.benchmark import BenchConfig, run_benchmark

    if "runs" in config:
        raise ValueError("--mode=benchmark takes one method, such as --config=configs/ddpm.py")
    run = options.build(RunConfig, "", config)
    bench = options.build(BenchConfig, "bench", run.bench)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leave the memory to the contestants
    compilation.configure_jax(run.deterministic, run.precision)
    dataset = data.load(**run.data)
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    job = [sys.executable, __file__, f"--config={file}:quick"]
    job += [f"--config.data.{key}={value}" for key, value in run.data.items() if value]
    many = run.sampler.get("steps", 0) > 50  # 1000 steps take minutes per image on a CPU
    sampler = run.sampler | ({"steps": 50, "eta": 0.0} if many else {})
    with workdir.lock(folder):
        values = run.method, run.optimizer, run.train.ema_decay, sampler
        run_benchmark(folder, dataset, bench, *values, job)


def cli(argv: list[str]) -> int | str | None:
    """Run `main` in the frame of a command; return the exit code."""
    return command.run_resumable(main, argv)


if __name__ == "__main__":
    app.run(cli, flags_parser=partial(command.parse_flags, flags.FLAGS))
