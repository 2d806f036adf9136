"""A run's files, made up."""

import hashlib
import json

import numpy as np

from bloodjax.data import Dataset
from bloodjax.sampling.samples import Samples, write_samples_file

CLASSES = ("<script>alert(1)</script>", r"$\nope$ cells", "plain", "empty")


SCORE = {
    "step": 2680,
    "features": "bloodnet",
    "name": "fd_bloodnet",
    "floor": 0.25,
    "n_real": 10000,
    "n_fake": 9000,
    "protocol": "as is | or not",
    "extractor_sha256": "ef" * 32,
    "extractor_weights": "w.npz",
    "dataset": "bloodmnist",
    "dataset_digest": "cd" * 32,
    "classes": {
        name: {"real": 0.25, "fake": 0.5 * (i < 2), "distance": 31.0 if i < 2 else None}
        for i, name in enumerate(CLASSES)
    },
    "infinity": 11.5,
    "draws": {"n": 5, "mean": 12.6, "std": 0.125},
    "kid": 0.0456,
    "kid_std": 0.003,
    "precision": 0.75,
    "recall": 0.5,
    "density": 0.625,
    "coverage": 0.375,
    "memorised": 0.0625,
    "closest": [{"sample": i, "train": 59 - i, "distance": 1.0, "ratio": 0.5 + i} for i in (2, 7)],
    "real": {
        "value": 0.25,
        "kid": 0.0001,
        "kid_std": 0.0001,
        "precision": 0.9,
        "recall": 0.91,
        "density": 0.97,
        "coverage": 0.98,
        "memorised": 0.4375,
        "n_real": 8546,
        "n_fake": 8546,
    },
}


def a_line(seed, step):
    losses = {"loss": 1.0 / step, "kl": 2.0 + seed}
    return json.dumps({"seed": seed, "step": step, "epoch": 0, **losses, "images_per_s": 99.0})


CONFIG = {
    "config": {
        "name": "ddpm",
        "seeds": [3, 4],
        "method": {"name": "ddpm", "note": 'a "<b>" & c'},
        "train": {"epochs": 20},
    },
    "dataset": {"name": "bloodmnist", "digest": "cd" * 32, "n": 60, "shape": [28, 28, 3]},
    "environment": {"jax": "0.12.0", "git_commit": "abc123"},
}


SCORES = {
    "scores": [{"seed": 3, "value": 12.5} | SCORE, {"seed": 4, "value": 13.5} | SCORE],
    "summary": [
        {
            "features": "bloodnet",
            "name": "fd_bloodnet",
            "protocol": "as is | or not",
            "seeds": 2,
            "mean": 13.0,
            "std": 0.5,
            "draws": {"n": 5, "std": 0.125},
            "floor": 0.25,
            "infinity": {"mean": 11.5, "std": 0.1},
            **{
                key: {"mean": SCORE[key], "std": 0.1}
                for key in ("kid", "precision", "recall", "density", "coverage", "memorised")
            },
        }
    ],
}


def a_dataset(shape=(28, 28, 3), name="bloodmnist"):
    images = np.random.default_rng(1).integers(0, 256, (60, *shape), dtype=np.uint8)
    labels = np.arange(60, dtype=np.int32) % 3  # the last class has no images
    return Dataset(images, labels, CLASSES, name, "cd" * 32)


def put(
    folder,
    shape=(28, 28, 3),
    seeds=(3, 4),
    n=40,
    trace=(7, 5),
    config=CONFIG,
    scores=SCORES,
    labels=-1,
):
    images = np.random.default_rng(2).integers(0, 256, (len(seeds), n, *shape), dtype=np.uint8)
    samples = Samples(
        images=images,
        labels=np.broadcast_to(np.int32(labels), (len(seeds), n)),
        seeds=np.array(seeds, np.uint32),
        step=2680,
        trace=np.zeros((len(seeds), *trace, *shape), np.uint8),
        trace_name="denoising",
    )
    write_samples_file(folder, samples)
    lines = [a_line(seed, step) for step in range(1, 101) for seed in seeds]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps(config))
    if scores:
        of_each = dict(zip(seeds, (hashlib.sha256(x).hexdigest() for x in images), strict=True))
        own = [s | {"samples_sha256": of_each.get(s["seed"])} for s in scores["scores"]]
        (folder / "scores.json").write_text(json.dumps(scores | {"scores": own}))
