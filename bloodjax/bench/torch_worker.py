"""PyTorch's contestants; runs where there is no JAX."""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bloodjax.bench import torch_parity
from bloodjax.bench.torch_training import Twin, set_precision
from bloodjax.bench.worker import Job, Work, host_peak, repeat, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TUNED = {"channels_last": True, "fused": True}
VARIANTS = {  # variant -> options of the twin, and the mode of torch.compile
    "eager": ({}, ""),
    "channels_last": (TUNED, ""),
    "compile": (TUNED, "default"),
    "cuda_graphs": (TUNED, "reduce-overhead"),
}


def make_twin(job: Job) -> Twin:
    """Return the twin in the job's variant, in the state that `parity.write` left in a file."""
    options, mode = VARIANTS[job["variant"]]
    twin, _ = torch_parity.load(job["parity"], **options, device=DEVICE, precision=job["precision"])
    if mode:
        twin.compile(mode)
    return twin


def check(job: Job) -> Work:
    """Prepare the parity check: a unit is the proof that the twin computes what JAX does."""
    options, mode = VARIANTS[job["variant"]]
    check = functools.partial(torch_parity.check, job["parity"], mode=mode, device=DEVICE)
    return repeat(functools.partial(check, **options), synchronize)


def train(job: Job) -> Work:
    """Prepare training steps: a unit is a step of every seed."""
    images = np.load(job["images"])
    twins = [make_twin(job) for _ in range(job["seeds"])]
    for twin in twins:
        twin.hold(images)
    batches = list(split_epoch(len(images), job["batch"]))

    def work(units: int) -> int:
        for unit in range(units):
            for twin in twins:
                batch = twin.batch(batches[unit % len(batches)])
                twin.train_step(batch, twin.noise(len(batch)))
        synchronize()
        return units

    return work


def split_epoch(count: int, batch: int) -> Iterator[Tensor]:
    """Yield a permutation in batches; the last one is filled up from its start, as in bloodjax."""
    order = torch.randperm(count, device=DEVICE)
    return iter(order[torch.arange(-(-count // batch) * batch, device=DEVICE) % count].split(batch))


def draw(job: Job) -> Work:
    """Prepare sampling: a unit is `count` images, in chunks."""
    twin, chunks = make_twin(job), job["count"] // job["chunk"]
    sample = functools.partial(twin.sample, job["chunk"], **job["options"])
    return repeat(lambda: [sample() for _ in range(chunks)], synchronize)


@functools.cache
def declare_operators() -> list[torch.library.Library]:
    """Declare two operators, so that a torchvision for CUDA imports beside a torch for CPUs.

    Nothing here calls them. torch forgets them when the returned library is collected.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return []  # the code that needs it raises the same
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return [library]
    return []


def features(job: Job) -> Work:
    """Prepare features: a unit is `count` images through pytorch-fid's network, in its batches."""
    declare_operators()
    from pytorch_fid import inception

    weights = {k: torch.from_numpy(v) for k, v in np.load(job["arrays"]).items()}
    inception.load_state_dict_from_url = lambda *_, **__: weights
    net = inception.InceptionV3([3]).eval().to(DEVICE)
    if job["variant"] == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    images = torch.from_numpy(np.load(job["images"])[: job["count"]]).permute(0, 3, 1, 2) / 255
    if job["variant"] == "eager":  # as pytorch-fid loads them
        images = images.contiguous()

    @torch.inference_mode()
    def embed() -> None:
        for batch in images.to(DEVICE).split(50):
            net(batch)[0].cpu()

    return repeat(embed, synchronize)


def matmul(job: Job) -> Work:
    """Prepare matrix products: a unit is one of two square matrices."""
    kind = torch.bfloat16 if job["precision"] == "bfloat16" else torch.float32
    x = torch.ones(job["dims"], job["dims"], device=DEVICE, dtype=kind)
    return repeat(functools.partial(torch.matmul, x, x), synchronize)


def synchronize(_: object = None) -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> int:
    """Return the peak memory in bytes: the accelerator's, or on a CPU this process's."""
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
    """Return the work of a job, and the versions of what does it."""
    torch.set_num_threads(job["threads"])
    # A folder of this benchmark: a compilation that a kill cut short would fail every later one.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["cache"]
    set_precision(job["precision"])
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    versions = {"version": f"torch {torch.__version__}", "device": name, "peak": peak}
    return TASKS[job["task"]](job), versions


if __name__ == "__main__":
    serve(prepare)
