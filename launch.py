"""Train, sample, score and report: python launch.py --config=configs/ddpm.py"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

import bloodjax
from bloodjax import data, doctor, methods, workdir
from bloodjax.data import Dataset
from bloodjax.methods import Method
from bloodjax.report import run as run_report
from bloodjax.report import study as study_report
from bloodjax.report import tensorboard
from bloodjax.runtime import compilation, files, processes
from bloodjax.runtime.progress import console
from bloodjax.runtime.signals import exit_on_signals
from bloodjax.sampling import export, sample
from bloodjax.sampling.samples import read_samples
from bloodjax.scoring import evaluate, score
from bloodjax.training import loop

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "what to do, e.g. configs/ddpm.py or configs/ddpm.py:quick"
)
MODE = flags.DEFINE_enum(
    "mode",
    "run",
    ["run", "train", "sample", "score", "report", "benchmark", "doctor"],
    "one stage or all of them; benchmark times it beside PyTorch; doctor says what is here",
)
WORKDIR = flags.DEFINE_string("workdir", None, "where the files go (default runs/<config name>)")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several hosts")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "on all hosts; 1: alone, ask nobody")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
# What two runs may differ in while one draws from the other's model.
NOT_OF_THE_MODEL = ("name", "sample", "score", "bench", "log")


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax tells its life at INFO
    if MODE.value == "doctor":
        doctor.print_table()
        return
    if CONFIG.value is None or argv[1:]:
        raise app.UsageError(f"expected --config=FILE; not understood: {argv[1:]}")
    config = CONFIG.value.to_dict()
    if MODE.value == "benchmark":  # leave the GPU's memory to the contestants
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    dtype = compilation.configure_jax(config["deterministic"], config["precision"])
    processes.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    folder = Path(WORKDIR.value or Path("runs", config["name"]))
    dataset = processes.main_first(lambda: data.load(**config["data"]))
    processes.require_equal("data set or mode", [dataset.digest, MODE.value])
    if "runs" in config:
        study(config, dataset, folder, dtype)
    else:
        one(config, dataset, folder, check(config, dataset, dtype))
    processes.barrier()  # all leave together


class Checked(NamedTuple):
    """What was made of a configuration: its method, and the feature spaces that can be had."""

    method: Method
    spaces: list[str]


def check(config: dict[str, Any], dataset: Dataset, dtype: str) -> Checked:
    """Refuse, before any work, what cannot be done; may download weights."""
    method = methods.make(shape=dataset.images.shape[1:], dtype=dtype, **config["method"])
    loop.check(seeds=config["seeds"], **config["train"])
    evaluate.check(config["train"]["evaluate"], config["sample"]["checkpoint"])
    sample.check(method, **sampler(config))
    export.check(config["sample"]["export"])
    tensorboard.check(**config["log"])
    what = {k: v for k, v in config.items() if k != "data"}  # where the data lies may differ
    processes.require_equal("configuration", what)
    scored = MODE.value in ("run", "score")
    return Checked(method, score.check(**config["score"]) if scored else [])


def sampler(config: dict[str, Any]) -> dict[str, Any]:
    """How to sample: the group but for what is sampled from, and what else is written."""
    others = ("checkpoint", "export", "model")
    return {key: value for key, value in config["sample"].items() if key not in others}


def one(config: dict[str, Any], dataset: Dataset, folder: Path, checked: Checked) -> None:
    """One run: what the mode asks for, in its folder."""
    if MODE.value == "report":  # of what there is, which another process may be writing
        workdir.check_same_run(folder, config, dataset)
        if processes.is_main():
            run_report.write_report(folder, dataset)
    elif MODE.value == "benchmark":
        benchmark(config, dataset, folder)
    else:
        free = [MODE.value] if MODE.value in ("sample", "score") else []
        with workdir.lock(folder):
            workdir.open_run(folder, config, dataset, free)
            work(config, dataset, folder, checked)


def study(config: dict[str, Any], dataset: Dataset, folder: Path, dtype: str) -> None:
    """Several runs, each in its folder in `folder`, and one report of all of them."""
    if MODE.value == "benchmark":
        raise app.UsageError("--mode=benchmark is of one method, e.g. --config=configs/ddpm.py")
    names = ",".join(config["order"]).split(",")  # a flag's "a,b" arrives as one name
    if unknown := [name for name in names if name not in config["runs"]]:
        known = ", ".join(config["runs"])
        raise ValueError(f"order={','.join(names)}: {unknown[0]!r} is none of its runs: {known}")
    runs = {folder / name: config["runs"][name] for name in names}
    checked = {where: check(own, dataset, dtype) for where, own in runs.items()}
    for where, own in runs.items():
        if MODE.value == "report" and not (where / "samples.npz").exists():
            continue  # its row says so
        console.rule(str(where))
        one(own, dataset, where, checked[where])
    if MODE.value in ("run", "report") and processes.is_main():
        study_report.write_study_report(config["title"], config["columns"], runs, dataset, folder)


def work(config: dict[str, Any], dataset: Dataset, folder: Path, checked: Checked) -> None:
    """The stages that the mode asks for, one after the other."""
    seeds, how, mode = config["seeds"], sampler(config), MODE.value
    method, model = checked.method, config["sample"]["model"]
    shown = config["log"]["tensorboard"] and processes.is_main()
    board = tensorboard.Board(folder, seeds, dataset) if shown else None
    if mode in ("run", "train") and not model:
        few = how | {"count": config["train"]["evaluate"], "show": board and board.draw}
        judge = evaluate.make_evaluator(method, dataset, **few)
        hooks = {"evaluate": judge, "watch": board and board.follow}
        loop.train(method, dataset, folder, seeds=seeds, **config["train"] | hooks)
        if board:
            board.follow()  # of a training that was over before it was asked for
    if mode in ("run", "sample"):
        if model:  # trained just as this configuration says
            workdir.check_same_run(folder.parent / model, config, dataset, NOT_OF_THE_MODEL)
        which, trained = config["sample"]["checkpoint"], folder.parent / model if model else folder
        state = loop.restore(method, trained, seeds=seeds, checkpoint=which)
        sample.write_samples(method, state, folder, **how)
        if processes.is_main():
            export.export_run(folder, config["sample"]["export"], dataset.classes)
        if board:
            board.show(read_samples(folder, dataset))
    if mode in ("run", "score"):
        sample.check_made(folder, **how)
        score.write_scores(folder, dataset, **config["score"] | {"features": checked.spaces})
    if mode == "run" and processes.is_main():
        run_report.write_report(folder, dataset)


def benchmark(config: dict[str, Any], dataset: Dataset, folder: Path) -> None:
    """Time the method's parts and its quick job beside PyTorch."""
    from bloodjax.bench import speed  # here: nothing else needs the comparison

    speed.check(**config["bench"])
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    job = [sys.executable, __file__, f"--config={file}:quick"]
    job += [f"--config.data.{key}={value}" for key, value in config["data"].items() if value]
    options = {k: v for k, v in sampler(config).items() if k not in ("count", "chunk", "weights")}
    if "steps" in options:
        options |= {"steps": 50, "eta": 0.0}  # DDIM: all 1000 take minutes an image on a CPU
    parts = {name: config[name] for name in ("method", "train")}
    with workdir.lock(folder):
        speed.run(folder, dataset, **parts, sampler=options, job=job, **config["bench"])


def start(argv: list[str]) -> int | None:
    """`main`, with what a user can mend said in one line; a traceback means a bug.

    Returns:
        The exit code. Returned, not raised: an error keeps what its frames hold, and JAX may crash
        when arrays outlive it.
    """
    exit_on_signals()
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code
    except (ValueError, OSError, FloatingPointError) as error:
        source = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(bloodjax.__file__).parent in Path(source).parents
        if not ours and not isinstance(error, OSError):
            raise
        text = files.explain_os_error(error) if isinstance(error, OSError) else str(error)
        processes.kill_process(1, f"error: {text}")
        console.print(f"error: {text}", markup=False, soft_wrap=True)
        return 1
    except JaxRuntimeError as error:
        processes.kill_process(
            1, f"error: {error}; if another process has ended, start all of them again"
        )
        raise


if __name__ == "__main__":
    app.run(start)
