"""Time to score: the whole quick job from the start of a process, by both frameworks."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bloodjax import methods, options
from bloodjax.bench.parity import adam_numbers, flatten
from bloodjax.bench.results import Row, make_row
from bloodjax.bench.tasks import Task
from bloodjax.bench.timing import Contestant, ContestantError, process_environment
from bloodjax.data import Dataset
from bloodjax.runtime.files import read_json
from bloodjax.sampling.draw import SampleConfig, dispatch_size
from bloodjax.sampling.samples import NAME, Samples, write_samples_file
from bloodjax.scoring.score import ScoreConfig, write_scores
from bloodjax.scoring.scores import Score
from bloodjax.training.step import OptimizerConfig, init_states, make_optimizer

VARIANT = "channels_last"  # tuned but not compiled, which takes longer than the job
SECONDS = 0.05  # between two looks for the samples


def compare(
    job: Sequence[str], torch_python: str, threads: int, dataset: Dataset, folder: Path
) -> list[Row]:
    """Run both quick jobs once; return a row for each.

    JAX's job is the command itself. PyTorch trains and samples with the same settings from the same
    initial weights. It has no program for scoring and the report; they count with the time that
    they take in JAX's job. The value "score" of a row is the score of its samples.

    Args:
        job: the command, without its --workdir.
        torch_python: an interpreter with torch.
        threads: of PyTorch.
        dataset: the real images of the score.
        folder: for the files; holds images.npy.
    """
    try:
        until_samples, total = run_jax_job(job, folder / "jax")
        config = read_json(folder / "jax" / "config.json")["config"]
        jax_score = read_json(folder / "jax" / "scores.json")["scores"][0]
        write_torch_job(config, dataset, threads, folder)
        module = "bloodjax.bench.torch_time_to_score"
        torch_seconds = run_command([torch_python, "-m", module, str(folder)])
    except (ContestantError, ValueError) as error:
        return [make_job_row(side, failure=str(error)) for side in ("jax", "torch")]
    images = np.load(folder / "samples.npy")
    torch_score = score_images(images, config, dataset, folder / "torch")
    return [
        make_job_row("jax", total, jax_score),
        make_job_row("torch", torch_seconds + total - until_samples, torch_score),
    ]


def run_jax_job(job: Sequence[str], workdir: Path) -> tuple[float, float]:
    """Run the command; return the seconds until the samples exist, and until it ends."""
    begin = time.perf_counter()
    process = subprocess.Popen([*job, f"--workdir={workdir}"], env=process_environment())
    while process.poll() is None and not (workdir / NAME).exists():
        time.sleep(SECONDS)
    until_samples = time.perf_counter() - begin
    if process.wait():
        raise ContestantError(f"{' '.join(job)} ended with exit code {process.returncode}")
    return until_samples, time.perf_counter() - begin


def write_torch_job(config: dict[str, Any], dataset: Dataset, threads: int, folder: Path) -> None:
    """Write the input of PyTorch's job: job.json, and the initial weights of the first seed."""
    train = config["train"]
    optimizer = options.build(OptimizerConfig, "optimizer", config["optimizer"])
    method = methods.make(shape=dataset.images.shape[1:], **config["method"])
    state = init_states(method, make_optimizer(optimizer), config["seeds"][:1])
    weights = flatten(jax.tree.map(lambda x: x[0], state))
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type] its stub has options only
    plan = {
        "twin": config["method"] | {"optimizer": adam_numbers(optimizer)},
        "ema_decay": train["ema_decay"],
        "threads": threads,
        "epochs": train["epochs"],
        "batch_size": train["batch_size"],
        "count": config["sample"]["count"],
        "chunk": dispatch_size(options.build(SampleConfig, "sample", config["sample"])),
        "sampler": config["sampler"],
    }
    (folder / "job.json").write_text(json.dumps(plan), "utf-8")


def run_command(command: Sequence[str]) -> float:
    """Run a command; return the seconds from the start of its process to the end."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=process_environment(), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
        raise ContestantError(f"{' '.join(command)}: {lines[-1]}")
    return time.perf_counter() - begin


def score_images(
    images: np.ndarray, config: dict[str, Any], dataset: Dataset, workdir: Path
) -> Score:
    """Return the score of PyTorch's samples, by the same program as JAX's."""
    workdir.mkdir()
    samples = Samples(
        images=images[None],
        labels=np.full((1, len(images)), -1, np.int32),
        seeds=np.zeros(1, np.uint32),
        step=0,
        trace=images[None, :0, None],
        trace_name="none",
    )
    write_samples_file(workdir, samples)
    score = options.build(ScoreConfig, "score", config["score"])
    return write_scores(workdir, dataset, score)["scores"][0]


def make_job_row(
    side: str, seconds: float | None = None, scores: Score | None = None, failure: str = ""
) -> Row:
    """Return a row; of a failed job one without a time, and the reason."""
    contestant = Contestant(side, {"jax": "launch.py", "torch": VARIANT}[side], {}, "")
    contestant.times = [] if seconds is None else [seconds]
    contestant.failure = failure
    row = make_row(Task("time to score", 0, "float32", []), contestant)
    unknown = dict.fromkeys(("compile_s", "peak_bytes"))
    return row | unknown | {"score": scores and {scores["name"]: scores["value"]}}
