"""The audit of a conditional run: are its samples useful for training, or copies of its data?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from bloodjax import features as spaces
from bloodjax.data import Dataset, join
from bloodjax.features.bloodnet import training
from bloodjax.images import to_float
from bloodjax.methods import Method, Params, Stats
from bloodjax.runtime import processes
from bloodjax.runtime.files import read_json, write_text
from bloodjax.runtime.progress import console, progress
from bloodjax.sampling.samples import Samples, read_samples
from bloodjax.scoring.embedding import embed, shuffled_rows
from bloodjax.scoring.neighbours import Manifold, nearest
from bloodjax.scoring.scores import mean_std

NAME = "audit.json"
EPOCHS = 10  # of the real training images; classifiers on other images take as many steps
CLASSIFIERS = 3  # seeds
MEMBERS = 1000  # images on each side of the membership attack
NOISES = 16  # fixed noises and noise levels that its loss is averaged over
CHUNK = 25  # images of the attack in one call

MeanStd = Mapping[str, float | None]


class Recognition(TypedDict):
    """Classifiers on the real test images: mean and population standard deviation over seeds."""

    accuracy: MeanStd
    macro_f1: MeanStd
    recall: dict[str, MeanStd]


class Audit(TypedDict):
    """The contents of audit.json, of the run's first seed.

    Attributes:
        samples_sha256: of the images of that seed.
        counts: the number of samples, of training images and of test images.
        steps: of each classifier.
        classifiers: by training images, "real", "samples" and "both".
        copies: shares of images that are nearer to an image of a set than every other image of the
            set is: samples and training images ("train"), samples and test images ("test"), test
            and training images ("real"), with as many training as test images.
        membership: area under the ROC curve of the attack by loss; 0.5 is chance.
    """

    samples_sha256: str
    counts: dict[str, int]
    steps: int
    classifiers: dict[str, Recognition]
    copies: dict[str, float]
    membership: float


def check_audit(split: str) -> None:
    """Refuse a run that was trained on the test images, and several processes: ValueError."""
    if processes.count() > 1:
        raise ValueError("--mode=audit runs in one process; start it without --num_processes")
    if split != "train":
        raise ValueError(
            f"data.split={split!r}: the audit needs test images that the model was not trained on; "
            "expected train; train another run with --config.data.split=train"
        )


def write_audit(
    workdir: Path,
    method: Method,
    model: tuple[Params, Stats],
    train: Dataset,
    test: Dataset,
) -> Audit:
    """Audit the samples of a run's first seed, and write audit.json.

    Args:
        workdir: the run's folder, with samples.npz.
        method: the method.
        model: the parameters and statistics of the first seed that drew the samples.
        train: the images that the model was trained on.
        test: images that it was not trained on.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: the samples have no labels, or the images are not those of BloodNet.
    """
    samples = read_samples(workdir, train)
    if samples.labels[0].min() < 0:
        raise ValueError(
            f"{workdir}: its samples have no labels; expected those of a conditional method, such "
            "as --config=configs/edm.py"
        )
    fake = join([(samples.images[0], samples.labels[0])], train.classes, "samples")
    training.check_cells(fake)
    audit: Audit = {
        "samples_sha256": samples.digest(0),
        "counts": {
            "samples": len(fake.images),
            "train": len(train.images),
            "test": len(test.images),
        },
        "steps": EPOCHS * max(1, len(train.images) // training.BATCH),
        "membership": attack_membership(method, model, train, test),
        "copies": count_copies(fake.images, train, test),
        "classifiers": {},
    }
    both = [(x.images, x.labels) for x in (train, fake)]
    sets = {"real": train, "samples": fake, "both": join(both, train.classes, "both")}
    for name, cells in sets.items():
        audit["classifiers"][name] = recognise(cells, test, audit["steps"])
    write_text(workdir / NAME, json.dumps(audit, indent=1, ensure_ascii=False) + "\n")
    return audit


def read_audit(workdir: Path, samples: Samples) -> Audit | None:
    """Return the audit of these samples; None if there is none."""
    file = workdir / NAME
    audit: Audit | None = read_json(file) if file.exists() else None
    return audit if audit and audit["samples_sha256"] == samples.digest(0) else None


# ---- usefulness ----


def recognise(cells: Dataset, test: Dataset, steps: int) -> Recognition:
    """Train BloodNet on `cells` from several seeds, and measure it on the real test images."""
    rows = []
    for seed in range(CLASSIFIERS):
        counts = training.confusion(training.train(cells, seed, steps), test)
        rows.append(measure_confusion(counts))
        console.print(f"classifier {seed} on {cells.name}: accuracy {rows[-1][0]:.1%}")
    accuracy, macro_f1, recalls = zip(*rows, strict=True)
    by_class = zip(test.classes, zip(*recalls, strict=True), strict=True)
    return {
        "accuracy": mean_std(accuracy),
        "macro_f1": mean_std(macro_f1),
        "recall": {name: mean_std(values) for name, values in by_class},
    }


def measure_confusion(counts: np.ndarray) -> tuple[float, float, Sequence[float | None]]:
    """Return accuracy, macro-F1 and the recall of each class.

    F1 is the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); macro-F1 is its mean
    over the classes that occur. The recall of a class without images is None.

    Args:
        counts: int [K, K], images by true and by predicted class.
    """
    right, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    occurs = true + predicted > 0
    f1 = 2 * right[occurs] / (true + predicted)[occurs]
    recall = [float(r / n) if n else None for r, n in zip(right, true, strict=True)]
    return float(right.sum() / true.sum()), float(f1.mean()), recall


# ---- copies ----


def count_copies(fake: np.ndarray, train: Dataset, test: Dataset) -> dict[str, float]:
    """Return the shares of copies among samples, uint8 [N, H, W, C], see `Audit`."""
    space, n = spaces.make("bloodnet"), min(len(train.images), len(test.images))
    images = [fake, *(x.images[shuffled_rows(x)[:n]] for x in (train, test))]
    with progress("embed", sum(map(len, images))) as advance:
        samples, members, others = (embed(space, x, advance) for x in images)
    manifold = Manifold.of(members, 1)
    return {
        "train": nearest(manifold, samples).memorised,
        "test": nearest(Manifold.of(others, 1), samples).memorised,
        "real": nearest(manifold, others).memorised,
    }


# ---- membership ----


def attack_membership(
    method: Method, model: tuple[Params, Stats], train: Dataset, test: Dataset
) -> float:
    """Return how well the loss tells training from test images, as `area_under_curve`."""
    sides = []
    for dataset in (train, test):
        rows = shuffled_rows(dataset)[:MEMBERS]
        losses = measure_losses(method, model, dataset.images[rows], dataset.labels[rows])
        sides.append(-losses)  # members have low losses
    return area_under_curve(*sides)


def measure_losses(
    method: Method, model: tuple[Params, Stats], images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the method's first loss of each image, a mean over fixed noises, float32 [N].

    Args:
        method: the method.
        model: parameters and statistics.
        images: uint8 [N, H, W, C].
        labels: int [N].
    """
    loss, keys = next(iter(method.losses.values())), random.split(random.key(0), NOISES)

    @jax.jit
    def measure(model: tuple[Params, Stats], images: Array, labels: Array) -> Array:
        def of_image(image: Array, label: Array) -> Array:
            batch = to_float(image)[None], label[None]
            return jax.vmap(lambda key: loss(*model, batch, key)[0])(keys).mean()

        return jax.vmap(of_image)(images, labels)

    losses = np.empty(len(images), np.float32)
    with progress("losses", len(images)) as advance:
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            losses[part] = measure(model, jnp.asarray(images[part]), jnp.asarray(labels[part]))
            advance(len(losses[part]))
    return losses


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive score exceeds a negative one, ties counting half.

    This is the area under the ROC curve, and the U of Mann and Whitney over the number of pairs.
    """
    counts = [np.searchsorted(np.sort(negative), positive, side) for side in ("left", "right")]
    return float(np.mean(counts) / len(negative))
