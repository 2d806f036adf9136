"""The quick job by PyTorch: train the twin from given weights and write its samples."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bloodjax.bench.torch_twin import make
from bloodjax.bench.torch_worker import DEVICE, TUNED, split_epoch
from bloodjax.runtime.malloc import keep_freed_memory


def main(folder: Path) -> None:
    """Do the job of `folder`/job.json, whose images and initial weights lie beside it."""
    # Read the job
    keep_freed_memory()  # as bloodjax does
    job = json.loads((folder / "job.json").read_text("utf-8"))
    images = np.load(folder / "images.npy")
    torch.set_num_threads(job["threads"])
    with np.load(folder / "weights.npz") as stored:
        weights = dict(stored)
    options = {"ema_decay": job["ema_decay"], "device": DEVICE, **TUNED, **job["twin"]}
    twin = make(shape=images.shape[1:], weights=weights, **options)
    twin.hold(images)

    # Train
    metrics = {}
    for _ in range(job["epochs"]):
        for rows in split_epoch(len(images), job["batch_size"]):
            metrics = twin.train_step(twin.batch(rows), twin.noise(job["batch_size"]))
    lost = {name: value.item() for name, value in metrics.items() if not value.isfinite()}
    if lost:
        raise FloatingPointError(f"the last step has {lost}")

    # Sample
    counts = [min(job["chunk"], job["count"] - i) for i in range(0, job["count"], job["chunk"])]
    samples = torch.cat([twin.sample(count, **job["sampler"]) for count in counts])
    np.save(folder / "samples.npy", samples.cpu().numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
