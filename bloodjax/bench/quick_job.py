"""Time to score: the whole quick job from the start of a process, by both frameworks."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bloodjax import methods, options
from bloodjax.bench import results
from bloodjax.bench.contest import ENVIRONMENT, Contestant, Failed
from bloodjax.bench.parity import flatten
from bloodjax.data import Dataset
from bloodjax.runtime.files import read_json
from bloodjax.sampling.samples import NAME, Samples, write_samples_file
from bloodjax.scoring import score
from bloodjax.scoring.score import ScoreConfig
from bloodjax.training.step import OptimizerConfig, init_states, make_optimizer

SECONDS = 0.05  # between two looks whether the samples are there


def compare(
    job: Sequence[str], torch_python: str, threads: int, dataset: Dataset, folder: Path
) -> list[results.Row]:
    """The rows of both frameworks, each job done once.

    JAX's is the command itself. PyTorch's trains and samples with the same settings from the same
    first weights, tuned but not compiled. What follows, scoring and the report, it has no program
    for: it counts for as long as in JAX's job. Each row's "score" is what its samples get.

    Args:
        job: the command, without its --workdir.
        torch_python: an interpreter with torch.
        threads: of PyTorch.
        dataset: what the samples are scored against.
        folder: for the files; holds images.npy.
    """
    try:
        own, whole = jax_job(job, folder / "jax")
        config = read_json(folder / "jax" / "config.json")["config"]
        scored = read_json(folder / "jax" / "scores.json")["scores"][0]
        prepare(config, dataset, threads, folder)
        theirs = timed([torch_python, "-m", "bloodjax.bench.torch_quick", str(folder)])
    except Failed as error:
        return [row(side, None, None, f"not measured: {error}") for side in ("jax", "torch")]
    images = np.load(folder / "samples.npy")
    rival = judged(images, config, dataset, folder / "torch")
    return [row("jax", whole, scored), row("torch", theirs + whole - own, rival)]


def jax_job(job: Sequence[str], workdir: Path) -> tuple[float, float]:
    """Seconds until the samples are there, and until the command ends."""
    begin = time.perf_counter()
    process = subprocess.Popen([*job, f"--workdir={workdir}"], env=os.environ | ENVIRONMENT)
    while process.poll() is None and not (workdir / NAME).exists():
        time.sleep(SECONDS)
    own = time.perf_counter() - begin
    if process.wait():
        raise Failed(f"{' '.join(job)} ended with exit code {process.returncode}")
    return own, time.perf_counter() - begin


def prepare(config: dict[str, Any], dataset: Dataset, threads: int, folder: Path) -> None:
    """Write what PyTorch's job reads: job.json and its first weights, those of seed 0."""
    train, adam = config["train"], config["optimizer"]
    method = methods.make(shape=dataset.images.shape[1:], **config["method"])
    state = init_states(method, make_optimizer(OptimizerConfig(**adam)), config["seeds"])
    np.savez(folder / "weights.npz", **flatten(jax.tree.map(lambda x: x[0], state)))
    plan = {
        "twin": config["method"] | adam | {"ema_decay": train["ema_decay"]},
        "threads": threads,
        **{name: train[name] for name in ("epochs", "batch_size")},
        **{name: config["sample"][name] for name in ("count", "chunk")},
        "options": config["sampler"],
    }
    (folder / "job.json").write_text(json.dumps(plan), "utf-8")


def timed(command: Sequence[str]) -> float:
    """Seconds from the start of a process to its end."""
    begin = time.perf_counter()
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - begin


def judged(
    images: np.ndarray, config: dict[str, Any], dataset: Dataset, workdir: Path
) -> dict[str, Any]:
    """The score of PyTorch's samples, by the same program as JAX's."""
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
    score_config = options.build(ScoreConfig, "score", config["score"])
    return score.write_scores(workdir, dataset, score_config)["scores"][0]


def row(
    side: str, seconds: float | None, scored: dict[str, Any] | None, note: str = ""
) -> results.Row:
    """A row; of a job that failed one without a time, and why."""
    contestant = Contestant(side, {"jax": "launch.py", "torch": "channels_last"}[side], {}, "")
    contestant.times = [] if seconds is None else [seconds]
    found = results.row("time to score", 0, "float32", contestant, 0.0, note)
    unknown = dict.fromkeys(("compile_s", "peak_bytes"))
    return found | unknown | {"score": scored and {scored["name"]: scored["value"]}}
