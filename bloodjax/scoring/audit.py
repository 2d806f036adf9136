"""The audit of a conditional run: are its samples useful for training, or copies of its data?"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from bloodjax import features as spaces
from bloodjax.data import Dataset, join
from bloodjax.features.bloodnet import training
from bloodjax.methods import Method, Params, Stats
from bloodjax.runtime import processes
from bloodjax.runtime.files import read_json, write_text
from bloodjax.runtime.progress import console, progress
from bloodjax.sampling.samples import Samples, read_samples
from bloodjax.scoring.embedding import embed, shuffled_rows
from bloodjax.scoring.membership import attack_membership
from bloodjax.scoring.neighbours import Manifold, nearest
from bloodjax.scoring.scores import mean_std

NAME = "audit.json"
PARTS = ".audit.json"  # what an interrupted audit has measured
EPOCHS = 10  # of the real training images; classifiers on other images take as many steps
CLASSIFIERS = 3  # seeds

MeanStd = Mapping[str, float | None]
Row = tuple[float, float, Sequence[float | None]]  # accuracy, macro-F1 and recall of each class


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

    An interrupted audit goes on after the part that it measured last, such as a classifier.

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
    origin = [samples.digest(0), train.digest, test.digest]
    remember = partial(remember_part, workdir / PARTS, origin)
    audit: Audit = {
        "samples_sha256": samples.digest(0),
        "counts": {
            "samples": len(fake.images),
            "train": len(train.images),
            "test": len(test.images),
        },
        "steps": EPOCHS * max(1, len(train.images) // training.BATCH),
        "membership": remember("membership", attack_membership, method, model, train, test),
        "copies": remember("copies", count_copies, fake.images, train, test),
        "classifiers": {},
    }
    both = [(x.images, x.labels) for x in (train, fake)]
    sets = {"real": train, "samples": fake, "both": join(both, train.classes, "both")}
    for name, cells in sets.items():
        rows = []
        for seed in range(CLASSIFIERS):
            arguments = cells, seed, audit["steps"], test
            counts = remember(f"{name} {seed}", count_confusion, *arguments)
            rows.append(measure_confusion(np.array(counts)))
            console.print(f"classifier {seed} on {cells.name}: accuracy {rows[-1][0]:.1%}")
        audit["classifiers"][name] = summarize(rows, test.classes)
    write_text(workdir / NAME, json.dumps(audit, indent=1, ensure_ascii=False) + "\n")
    (workdir / PARTS).unlink()
    return audit


def remember_part(
    file: Path, origin: list[str], name: str, measure: Callable[..., Any], *arguments: Any
) -> Any:
    """Return a part of the audit from `file`, or measure it and keep it there.

    Args:
        file: what an interrupted audit has measured, or no file.
        origin: the digests of samples and data; parts of another origin are dropped.
        name: of the part.
        measure: a function that returns a value for JSON.
        arguments: of the function.
    """
    parts = read_json(file) if file.exists() else {}
    if parts.get("origin") != origin:
        parts = {"origin": origin}
    if name not in parts:
        parts[name] = measure(*arguments)
        write_text(file, json.dumps(parts))
    return parts[name]


def read_audit(workdir: Path, samples: Samples) -> Audit | None:
    """Return the audit of these samples; None if there is none."""
    file = workdir / NAME
    audit: Audit | None = read_json(file) if file.exists() else None
    return audit if audit and audit["samples_sha256"] == samples.digest(0) else None


# ---- usefulness ----


def count_confusion(cells: Dataset, seed: int, steps: int, test: Dataset) -> list[list[int]]:
    """Train BloodNet on `cells`; return the counts of `measure_confusion` on the test images."""
    return training.confusion(training.train(cells, seed, steps), test).tolist()


def summarize(rows: Sequence[Row], classes: Sequence[str]) -> Recognition:
    """Return mean and population standard deviation over the classifiers of a set of images."""
    accuracy, macro_f1, recalls = zip(*rows, strict=True)
    by_class = zip(classes, zip(*recalls, strict=True), strict=True)
    return {
        "accuracy": mean_std(accuracy),
        "macro_f1": mean_std(macro_f1),
        "recall": {name: mean_std(values) for name, values in by_class},
    }


def measure_confusion(counts: np.ndarray) -> Row:
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
