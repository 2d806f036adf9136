"""The format of scores.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import numpy as np

from bloodjax.runtime.files import read_json, write_text
from bloodjax.runtime.progress import print_line
from bloodjax.sampling.samples import Samples
from bloodjax.scoring import metrics

NAME = "scores.json"
Key = tuple[str, str]  # name and protocol: scores compare only if both agree


class Draws(TypedDict):
    """The spread of a Fréchet distance over draws of images, population σ.

    Summaries have no mean.
    """

    n: int
    mean: NotRequired[float]
    std: float


class Closest(TypedDict):
    """A sample and its nearest training image: their rows, distance and ratio."""

    sample: int
    train: int
    distance: float
    ratio: float | None


class Accuracy(TypedDict):
    """The shares of real and generated images that BloodNet assigns to their label.

    The label of a sample is the class that was asked for. A share of no images is None.
    """

    real: float | None
    fake: float | None


class ClassScore(TypedDict):
    """A class: its shares of the real and the generated images, and the distance between them.

    Labelled samples have an accuracy, of the images with the label of this class.
    """

    real: float
    fake: float
    distance: float | None
    accuracy: NotRequired[Accuracy]


class PairScore(TypedDict):
    """A set of images beside real images: Fréchet distance, counts, a further key per metric."""

    value: float
    n_real: int
    n_fake: int


class Score(PairScore):
    """One seed's samples in one feature space."""

    seed: int
    samples_sha256: str
    step: int
    features: str
    name: str
    protocol: str
    extractor_sha256: str
    extractor_weights: str
    dataset: str
    dataset_digest: str
    floor: float
    real: PairScore  # of other real images, as many as samples if there are enough
    draws: Draws  # of real images
    sampling: NotRequired[Draws]  # of samples, by score.sample_sets
    closest: list[Closest]
    classes: dict[str, ClassScore] | None
    accuracy: NotRequired[Accuracy]  # of labelled samples whose classes BloodNet knows


class Summary(TypedDict):
    """All seeds in one feature space; a further key per metric: {"mean", "std"}."""

    features: str
    name: str
    protocol: str
    seeds: int
    mean: float
    std: float
    draws: Draws
    floor: float


class Scores(TypedDict):
    """The contents of scores.json."""

    scores: list[Score]
    summary: list[Summary]


def score_key(score: Score | Summary) -> Key:
    """Return the name and the protocol of a score."""
    return score["name"], score["protocol"]


def summarize(scores: Sequence[Score]) -> list[Summary]:
    """Return mean and population standard deviation over seeds for each feature space."""
    groups: dict[Key, list[Score]] = {}
    for score in scores:
        groups.setdefault(score_key(score), []).append(score)
    summaries = []
    for group in groups.values():
        first, averaged = group[0], [m.key for m in metrics.METRICS if m.averaged]
        spread = float(np.mean([score["draws"]["std"] for score in group]))
        summary = {
            **{key: first[key] for key in ("features", "name", "protocol")},
            "seeds": len(group),
            **mean_std([score["value"] for score in group]),
            "draws": {"n": first["draws"]["n"], "std": spread},
            "floor": first["floor"],
            **{key: mean_std([score.get(key) for score in group]) for key in averaged},
        }
        summaries.append(cast(Summary, summary))  # a TypedDict cannot name the metrics
    return summaries


def mean_std(values: Sequence[object]) -> dict[str, float | None]:
    """Return mean and population standard deviation; None if a value is missing."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(numbers)), "std": float(np.std(numbers))}


def write_scores_file(workdir: Path, scores: Scores) -> None:
    """Write scores.json whole or not at all."""
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(Path(workdir) / NAME, text + "\n")


def read_scores(workdir: Path, samples: Samples) -> Scores | None:
    """Return the scores of these samples; None if they are not scored yet.

    Scores of other samples or of an older version are left out, with a line on the console.

    Raises:
        ValueError: the file is not JSON.
    """
    file = Path(workdir) / NAME
    if not file.exists():
        return None
    scores: Scores = read_json(file)
    digests = {(int(seed), samples.digest(s)) for s, seed in enumerate(samples.seeds)}
    for score in scores["scores"]:
        complete = Score.__required_keys__ <= score.keys()
        if not complete or (score["seed"], score["samples_sha256"]) not in digests:
            reason = "belongs to other samples" if complete else "comes from an older version"
            print_line(f"{file} {reason} and is left out: score again, --mode=score")
            return None
    return scores
