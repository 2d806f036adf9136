"""The PyTorch side of the comparison; runs where there is no JAX."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bloodjax.bench import torch_parity
from bloodjax.bench.serve import Work, host_peak, serve
from bloodjax.bench.torch_training import Twin, set_precision

Job = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TUNED = {"channels_last": True, "fused": True}
# variant -> options of the twin, and what torch.compile is asked for
VARIANTS = {
    "eager": ({}, ""),
    "channels_last": (TUNED, ""),
    "compile": (TUNED, "default"),
    "cuda_graphs": (TUNED, "reduce-overhead"),
}


def twin(job: Job) -> Twin:
    """The twin in the state that `parity.write` left in a file, in the job's variant."""
    options, mode = VARIANTS[job["variant"]]
    own, _ = torch_parity.load(job["parity"], **options, device=DEVICE, precision=job["precision"])
    if mode:
        own.compile(mode)
    return own


def check(job: Job) -> Work:
    """A unit is the proof that the twin computes what bloodjax does."""
    options, mode = VARIANTS[job["variant"]]
    return repeated(lambda: torch_parity.check(job["parity"], mode=mode, **options, device=DEVICE))


def train(job: Job) -> Work:
    """A unit is a step of every seed."""
    images = np.load(job["images"])
    twins = [twin(job) for _ in range(job["seeds"])]
    for own in twins:
        own.hold(images)
    rows = epoch(len(images), job["batch"])

    def work(units: int) -> int:
        for unit in range(units):
            for own in twins:
                batch = own.batch(rows[unit % len(rows)])
                own.train_step(batch, own.noise(len(batch)))
        synchronize()
        return units

    return work


def epoch(count: int, batch: int) -> tuple[torch.Tensor, ...]:
    """A permutation in batches, the last one filled up from its start, as bloodjax does."""
    order = torch.randperm(count, device=DEVICE)
    return order[torch.arange(-(-count // batch) * batch, device=DEVICE) % count].split(batch)


def draw(job: Job) -> Work:
    """A unit is `count` images, in chunks."""
    own = twin(job)
    chunks = job["count"] // job["chunk"]
    return repeated(lambda: [own.sample(job["chunk"], **job["options"]) for _ in range(chunks)])


@functools.cache
def declare_operators() -> list[torch.library.Library]:
    """Let a torchvision for CUDA be imported beside a torch for CPUs, by declaring two operators
    that nothing here calls. torch forgets them when what this returns is collected.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return []  # what needs it says so
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return [library]
    return []


def features(job: Job) -> Work:
    """A unit is `count` images through pytorch-fid's network, in batches as it makes them."""
    declare_operators()
    from pytorch_fid import inception

    weights = {k: torch.from_numpy(v) for k, v in np.load(job["arrays"]).items()}
    inception.load_state_dict_from_url = lambda *_, **__: weights
    net = inception.InceptionV3([3]).eval().to(DEVICE)
    if job["variant"] == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    images = torch.from_numpy(np.load(job["images"])[: job["count"]]).permute(0, 3, 1, 2) / 255

    @torch.inference_mode()
    def once() -> None:
        for batch in images.to(DEVICE).split(50):
            net(batch)[0].cpu()

    return repeated(once)


def matmul(job: Job) -> Work:
    """A unit is a product of two square matrices."""
    kind = torch.bfloat16 if job["precision"] == "bfloat16" else torch.float32
    x = torch.ones(job["dims"], job["dims"], device=DEVICE, dtype=kind)
    return repeated(functools.partial(torch.matmul, x, x))


def repeated(once: Callable[[], Any]) -> Work:
    """The work of calling `once` so often and waiting for the device."""

    def work(units: int) -> int:
        for _ in range(units):
            once()
        synchronize()
        return units

    return work


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> int:
    """The most memory held so far, in bytes: the accelerator's, or this process's on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else host_peak()


TASKS = {
    "parity": check,
    "train": train,
    "sweep": train,
    "sample": draw,
    "features": features,
    "matmul": matmul,
}


def prepare(job: Job) -> tuple[Work, dict[str, Any]]:
    """The work of a job and the versions that do it."""
    torch.set_num_threads(job["threads"])
    # Its own: a compilation that a kill cut short would fail every later one.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["cache"]
    set_precision(job["precision"])
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    about = {"version": f"torch {torch.__version__}", "device": name, "peak": peak}
    return TASKS[job["task"]](job), about


if __name__ == "__main__":
    serve(prepare)
