"""Train, sample, score and report: python launch.py --config=configs/ddpm.py"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import config_flags

import bloodjax
from bloodjax import (
    compilation,
    data,
    doctor,
    evaluate,
    hosts,
    methods,
    report,
    sample,
    score,
    train,
    workdir,
)
from bloodjax.bench import speed
from bloodjax.data import Dataset
from bloodjax.interrupt import stop_at_once
from bloodjax.methods import Method
from bloodjax.progress import console

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


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # orbax tells its life at INFO
    if MODE.value == "doctor":
        doctor.run()
        return
    if CONFIG.value is None or argv[1:]:
        raise app.UsageError(f"expected --config=FILE; not understood: {argv[1:]}")
    config = CONFIG.value.to_dict()
    if MODE.value == "benchmark":  # leave the GPU's memory to the contestants
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    dtype = compilation.prepare(config["deterministic"], config["precision"])
    hosts.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    folder = Path(WORKDIR.value or Path("runs", config["name"]))
    dataset = hosts.main_first(lambda: data.load(**config["data"]))
    method = methods.make(shape=dataset.images.shape[1:], dtype=dtype, **config["method"])
    free = MODE.value if MODE.value in ("sample", "score") else ""
    train.check(seeds=config["seeds"], **config["train"])
    evaluate.check(config["train"]["evaluate"], config["sample"]["checkpoint"])
    sample.check(method, **sampler(config))
    what = {k: v for k, v in config.items() if k != "data"}  # where the data lies may differ
    hosts.same("configuration, data set or mode", [what, dataset.digest, MODE.value])
    if MODE.value == "report":  # of what there is, which another process may be writing
        workdir.compare(folder, config, dataset)
        if hosts.is_main():
            report.run(folder, dataset)
    elif MODE.value == "benchmark":
        benchmark(config, dataset, folder)
    else:
        scored = MODE.value in ("run", "score")
        spaces = score.check(**config["score"]) if scored else []  # may download weights
        with workdir.lock(folder):
            workdir.claim(folder, config, dataset, free)
            work(config, method, dataset, folder, spaces)
    hosts.barrier()  # all leave together


def sampler(config: dict[str, Any]) -> dict[str, Any]:
    """How to sample: the group but for what it is to be sampled from."""
    return {key: value for key, value in config["sample"].items() if key != "checkpoint"}


def work(
    config: dict[str, Any], method: Method, dataset: Dataset, folder: Path, spaces: list[str]
) -> None:
    """The stages that the mode asks for, one after the other; scores are of these `spaces`."""
    seeds, how, mode = config["seeds"], sampler(config), MODE.value
    if mode in ("run", "train"):
        judge = evaluate.evaluator(method, dataset, **how | {"count": config["train"]["evaluate"]})
        train.run(method, dataset, folder, seeds=seeds, **config["train"] | {"evaluate": judge})
    if mode in ("run", "sample"):
        which = config["sample"]["checkpoint"]
        state = train.restore(method, folder, seeds=seeds, checkpoint=which)
        sample.run(method, state, folder, **how)
    if mode in ("run", "score"):
        sample.check_made(folder, **how)
        score.run(folder, dataset, **config["score"] | {"features": spaces})
    if mode == "run" and hosts.is_main():
        report.run(folder, dataset)


def benchmark(config: dict[str, Any], dataset: Dataset, folder: Path) -> None:
    """Time the method's parts and its quick job beside PyTorch."""
    speed.check(**config["bench"])
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    job = [sys.executable, __file__, f"--config={file}:quick"]
    job += [f"--config.data.{key}={value}" for key, value in config["data"].items() if value]
    options = {k: v for k, v in sampler(config).items() if k not in ("count", "chunk")}
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
    stop_at_once()
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code
    except (ValueError, OSError, FloatingPointError) as error:
        source = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(bloodjax.__file__).parent in Path(source).parents
        if not ours and not isinstance(error, OSError):
            raise
        text = workdir.explain(error) if isinstance(error, OSError) else str(error)
        hosts.abandon(1, f"error: {text}")
        console.print(f"error: {text}", markup=False, soft_wrap=True)
        return 1
    except JaxRuntimeError as error:
        hosts.abandon(1, f"error: {error}; if another process has ended, start all of them again")
        raise


if __name__ == "__main__":
    app.run(start)
