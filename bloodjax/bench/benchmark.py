"""--mode=benchmark: bloodjax and its PyTorch twin, task by task, each in processes of its own."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from bloodjax import options
from bloodjax.bench import parity, tables, time_to_score
from bloodjax.bench.results import Row, add_ratios, blank_rows, make_row
from bloodjax.bench.tasks import MAIN_BATCH, Plan, Task, list_tasks
from bloodjax.bench.timing import start_all, time_in_turns
from bloodjax.data import Dataset
from bloodjax.options import Interval, PositiveInt
from bloodjax.report.figures import draw_speed
from bloodjax.runtime.environment import environment
from bloodjax.runtime.files import atomic_write, write_text
from bloodjax.runtime.progress import print_line, progress
from bloodjax.training.step import OptimizerConfig

WINDOW = {"cpu": 1.0, "gpu": 0.25}  # seconds; a GPU's steps take milliseconds
MEMORY = 3 << 30  # bytes for one contestant, of the device and of the host
ONLY_GPU = "not measured: no GPU here"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The group `bench`: options of --mode=benchmark.

    Attributes:
        torch_python: the interpreter of PyTorch; empty: the one that runs this.
        batches: images in a training step.
        repeats: windows of each contestant.
        quick: take batches of 128 only, and leave out what takes minutes.
    """

    torch_python: str = ""
    batches: tuple[PositiveInt, ...] = (32, 128, 512)
    repeats: Annotated[int, Interval(5)] = 5
    quick: bool = False

    def __post_init__(self) -> None:
        options.check(type(self), "bench", vars(self))
        if not self.batches:
            raise ValueError("bench.batches=(): expected at least one size, such as 128")
        if self.torch_python and not Path(self.torch_python).is_file():
            raise ValueError(
                f"bench.torch_python={self.torch_python}: no such file, expected a python"
            )


@dataclass
class Stopwatch:
    """The seconds that each part of a benchmark takes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        begin = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin


def run_benchmark(
    workdir: Path,
    dataset: Dataset,
    config: BenchConfig,
    method: Mapping[str, Any],
    optimizer: OptimizerConfig,
    ema_decay: float,
    sampler: Mapping[str, Any],
    job: Sequence[str],
) -> list[Row]:
    """Time everything and write speed.json, speed.md and speed.png to `workdir`.

    Args:
        workdir: the folder of the files.
        dataset: the images to train on.
        config: the group `bench`.
        method: the group of that name.
        optimizer: the group of that name.
        ema_decay: of the moving average of the parameters.
        sampler: the group of that name.
        job: the command of the whole quick job, without its --workdir.

    Raises:
        ValueError: the method or its optimizer has no PyTorch twin.
    """
    parity.check_twin(method)
    adam = parity.adam_numbers(optimizer)
    workdir.mkdir(parents=True, exist_ok=True)
    device = "gpu" if jax.default_backend() == "gpu" else "cpu"
    python = config.torch_python or sys.executable
    settings = {"method": dict(method), "optimizer": adam, "ema_decay": ema_decay}
    clock, rows = Stopwatch(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = settings | write_inputs(folder, dataset, settings)
        plan = Plan(values, dict(sampler), python, device, config.quick)

        # Which PyTorch variants compute the same?
        with clock.part("parity"):
            failures = prove(plan)

        # Tasks, as many at a time as there is memory for
        batches = [MAIN_BATCH] if config.quick else config.batches
        for tasks in group(list_tasks(plan, folder, batches), contestant_limit(device)):
            keep_out(tasks, failures)
            for task in measure(tasks, WINDOW[device], config.repeats, clock):
                rows += [make_row(task, contestant) for contestant in task.contestants]
                write_files(workdir, rows, clock.seconds)

        # The whole quick job
        if not config.quick and time_to_score.VARIANT not in failures:
            with clock.part("time to score"):
                rows += time_to_score.compare(job, python, count_cores(), dataset, folder)
    if device == "cpu":
        rows += list_unmeasured(rows)
    write_files(workdir, rows, clock.seconds)
    tables.print_table(workdir, rows, clock.seconds)
    return rows


def write_inputs(folder: Path, dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the inputs of all contestants to `folder`; return their paths, for jobs."""
    np.save(folder / "images.npy", dataset.images)
    parity.write(folder / "parity.npz", dataset.images[:8], **settings)
    return {
        "images": str(folder / "images.npy"),
        "parity": str(folder / "parity.npz"),
        "threads": count_cores(),
        "cache": str(folder / "inductor"),
    }


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def contestant_limit(device: str) -> int:
    """Return how many contestants have memory enough to be alive at once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device == "gpu":
        statistics = jax.local_devices()[0].memory_stats() or {}
        memory = min(memory, statistics.get("bytes_limit", memory))
    return max(1, memory // MEMORY)


def group(tasks: Iterable[Task], limit: int) -> Iterator[list[Task]]:
    """Yield tasks in groups of at most `limit` contestants; a larger task is a group by itself."""
    pending: list[Task] = []
    for task in tasks:
        if pending and sum(len(x.contestants) for x in [*pending, task]) > limit:
            yield pending
            pending = []
        pending.append(task)
    if pending:
        yield pending


def prove(plan: Plan) -> dict[str, str]:
    """Have every PyTorch variant repeat a step and some samples of JAX.

    Returns:
        variant -> why it cannot take part: it computes something else, or cannot run.
    """
    contestants = plan.enter("parity")
    with progress("parity", len(contestants)) as advance:
        start_all(contestants, count_cores(), advance)
    for contestant in contestants:
        contestant.end()
        result = f"does not take part: {contestant.failure}" if contestant.failure else "equal"
        print_line(f"PyTorch {contestant.variant}: {result}")
    return {x.variant: f"{x.failure} ({x.python})" for x in contestants if x.failure}


def keep_out(tasks: Sequence[Task], failures: Mapping[str, str]) -> None:
    """Mark PyTorch's contestants of the variants in `failures` as failed, for the reasons there."""
    for task in tasks:
        for contestant in task.contestants:
            if contestant.side == "torch":
                contestant.failure = failures.get(contestant.variant, "")


def measure(tasks: Sequence[Task], window: float, repeats: int, clock: Stopwatch) -> Iterator[Task]:
    """Start the contestants of all tasks side by side, then time task after task; yield each."""
    able = [x for task in tasks for x in task.contestants if not x.failure]
    with clock.part("start and compile"), progress("compile", len(able)) as advance:
        start_all(able, count_cores(), advance)
    try:
        for task in tasks:
            able = [x for x in task.contestants if not x.failure]
            with clock.part("timing"), progress(task.title, repeats * len(able)) as advance:
                time_in_turns(able, window, repeats, advance)
            yield task
    finally:
        for task in tasks:
            for contestant in task.contestants:
                contestant.end()


def list_unmeasured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that only a GPU can fill, empty."""
    both = [row for row in rows if row["task"] in ("matmul", "train", "sample")]
    return [
        row
        for precision in ("tf32", "bfloat16")
        for row in blank_rows(both, ONLY_GPU, precision=precision)
    ]


def write_files(workdir: Path, rows: list[Row], seconds: Mapping[str, float]) -> None:
    """Write speed.json, speed.md and speed.png.

    Args:
        workdir: the folder of the files.
        rows: all so far; this completes their ratios.
        seconds: part of the benchmark -> its duration.
    """
    content = {"environment": environment(), "seconds": dict(seconds), "rows": add_ratios(rows)}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(workdir / "speed.json", text + "\n")
    write_text(workdir / "speed.md", tables.format_markdown(rows, seconds))
    with atomic_write(workdir / "speed.png") as part:
        part.write_bytes(draw_speed(rows))
