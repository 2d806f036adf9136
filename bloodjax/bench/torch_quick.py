"""The quick job by PyTorch: trains the twin from given weights and writes its samples."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bloodjax.bench.torch_side import DEVICE, TUNED, epoch
from bloodjax.bench.torch_twin import make
from bloodjax.runtime.malloc import keep_freed_memory


def main(folder: Path) -> None:
    """Do the job of `folder`/job.json: its images and first weights lie beside it."""
    keep_freed_memory()  # as bloodjax does for itself
    job = json.loads((folder / "job.json").read_text("utf-8"))
    images = np.load(folder / "images.npy")
    torch.set_num_threads(job["threads"])
    with np.load(folder / "weights.npz") as weights:
        twin = make(
            weights=dict(weights), shape=images.shape[1:], device=DEVICE, **TUNED, **job["twin"]
        )
    twin.hold(images)
    n, size = len(images), job["batch_size"]
    for _ in range(job["epochs"]):
        for rows in epoch(n, size):
            metrics = twin.train_step(twin.batch(rows), twin.noise(size))
    lost = {name: value.item() for name, value in metrics.items() if not value.isfinite()}
    if lost:
        raise FloatingPointError(f"the last step's {lost}")
    counts = [min(job["chunk"], job["count"] - i) for i in range(0, job["count"], job["chunk"])]
    samples = torch.cat([twin.sample(count, **job["options"]) for count in counts])
    np.save(folder / "samples.npy", samples.cpu().numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
