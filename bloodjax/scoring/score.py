"""The score stage: a run's samples against real images, in several feature spaces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import numpy as np

from bloodjax import features as spaces
from bloodjax import options
from bloodjax.data import Dataset
from bloodjax.features import Extractor
from bloodjax.options import Interval, PositiveInt
from bloodjax.runtime import processes
from bloodjax.runtime.download import UnavailableError
from bloodjax.runtime.progress import console, print_line, progress
from bloodjax.sampling.samples import Samples, read_samples
from bloodjax.scoring.comparison import RealSet
from bloodjax.scoring.embedding import embed, embed_dataset, shuffled_rows
from bloodjax.scoring.measures import measure_accuracy, score_classes, score_reals, score_samples
from bloodjax.scoring.scores import Score, Scores, summarize, write_scores_file
from bloodjax.scoring.tables import make_table

CLASSIFIER = "bloodnet"  # the feature space that assigns classes to images


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The options of the score stage.

    Attributes:
        features: the feature spaces to compare in, "name" or "name:protocol".
        count: images on each side. Fewer are used where there are fewer: n_real, n_fake.
        draws: sets of real images that each model is compared with; their spread is σ of draws.
        sample_sets: sets of `count` samples of each model; the first one is scored. Several allow
            an estimate of σ of sampling, see `statistics.describe_components`; embedding takes that
            many times as long.
    """

    features: tuple[str, ...] = (CLASSIFIER,)
    count: Annotated[int, Interval(2)] = 10_000  # a covariance needs 2 images
    draws: PositiveInt = 5
    sample_sets: PositiveInt = 1

    def __post_init__(self) -> None:
        options.check(type(self), "score", vars(self))


class Embedded(NamedTuple):
    """Features of the training images, float32 [N, d], and of each seed's sets of samples.

    `others` are the training images, embedded as samples are.
    """

    train: np.ndarray
    others: np.ndarray
    fakes: list[list[np.ndarray]]


def make_extractors(features: Sequence[str]) -> dict[str, Extractor]:
    """Return the available feature spaces by name; the console names the other ones.

    Raises:
        ValueError: a space is unknown, or none is available.
    """
    available: dict[str, Extractor] = {}
    for name in features:
        try:
            extractor = spaces.make(name)
            keys = {(e.distance, e.protocol) for e in available.values()}
            if (extractor.distance, extractor.protocol) not in keys:  # inception:pytorch-fid
                available[name] = extractor
        except UnavailableError as error:
            print_line(f"scores go on without {name}: {error}")
    if not available:
        names = ",".join(features)
        raise ValueError(f"score.features={names}: none is available; add {CLASSIFIER}")
    return available


def keep_available(config: ScoreConfig) -> ScoreConfig:
    """Return `config` with the feature spaces that every process can load; download weights."""
    extractors = processes.main_first(lambda: make_extractors(config.features))
    identities = [(e.name, e.sha256, e.protocol) for e in extractors.values()]
    processes.require_equal("feature spaces", identities)
    return replace(config, features=tuple(extractors))


def write_scores(workdir: Path, dataset: Dataset, config: ScoreConfig) -> Scores:
    """Score each seed's samples against real images, the same for every run; write scores.json.

    Returns:
        The contents of scores.json. Only process 0 scores: the others embed their share of the
        images and return empty lists.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: the samples do not fit the data, or there are too few images.
    """
    samples = read_samples(workdir, dataset)
    check_counts(samples, dataset, config)
    extractors = list(make_extractors(config.features).values())
    classifier = find_classifier(extractors, dataset)

    # Embed everything. Twice `count` real images, so that the floor compares as many.
    fakes = samples.images[:, : config.sample_sets * config.count]
    rows = shuffled_rows(dataset)[: 2 * config.count]
    used = dict.fromkeys(filter(None, (*extractors, classifier)))
    embedded: dict[Extractor, Embedded] = {}
    passes = [2 if extractor.generated else 1 for extractor in used]
    total = sum(passes) * len(rows) + len(used) * fakes.shape[0] * fakes.shape[1]
    with progress("embed", total) as advance:
        for extractor in used:
            sides = extractor, dataset, len(rows), fakes, config.sample_sets
            embedded[extractor] = embed_sides(*sides, advance)
    if not processes.is_main():
        return {"scores": [], "summary": []}

    # Classify the real images and each seed's samples.
    predicted, real_labels = None, dataset.labels[rows[: config.count]]
    if classifier and classifier.classify:
        train, _, seeds = embedded[classifier]
        sides = train[: config.count], *(sets[0] for sets in seeds)
        predicted = [classifier.classify(x).argmax(axis=1) for x in sides]

    # Score each seed in each feature space.
    scores: list[Score] = []
    with progress("score", len(extractors) * len(fakes)) as advance:
        for extractor in extractors:
            train, others, seeds = embedded[extractor]
            real = RealSet.draw(train, config.count, config.draws)
            floor = score_reals(real, others, len(seeds[0][0]))
            common = {"step": samples.step, **describe(extractor, dataset), **floor}
            for s, (fake, *others) in enumerate(seeds):
                source = {"seed": int(samples.seeds[s]), "samples_sha256": samples.digest(s)}
                score = source | common | score_samples(real, fake, rows, others)
                score |= {"classes": None}
                if predicted:
                    sides = (real.features, predicted[0]), (fake, predicted[1 + s])
                    labels = real_labels, samples.labels[s, : len(fake)]
                    score |= score_labelled(dataset.classes, *sides, labels)
                scores.append(cast(Score, score))
                advance(note=extractor.name)

    result: Scores = {"scores": scores, "summary": summarize(scores)}
    write_scores_file(workdir, result)
    console.print(make_table(result))
    return result


def embed_sides(
    extractor: Extractor,
    dataset: Dataset,
    n: int,
    fakes: np.ndarray,
    sample_sets: int,
    advance: Callable[..., None],
) -> Embedded:
    """Return the features of the first `n` real images, and of each seed's samples in sets.

    `fakes` are the samples, uint8 [seeds, N, H, W, C].
    """
    train = others = embed_dataset(extractor, dataset, n, advance)
    if extractor.generated:
        others = embed_dataset(extractor.generated, dataset, n, advance)
    generated = extractor.generated or extractor
    sets = [np.split(embed(generated, x, advance), sample_sets) for x in fakes]
    return Embedded(train, others, sets)


def score_labelled(
    classes: Sequence[str],
    real: tuple[np.ndarray, np.ndarray],
    fake: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
) -> dict[str, object]:
    """Return "classes" and, of labelled samples, "accuracy"; see `measures.score_classes`."""
    if labels[1].min() < 0:
        return {"classes": score_classes(classes, real, fake)}
    accuracy = measure_accuracy((labels[0], real[1]), (labels[1], fake[1]))
    return {"classes": score_classes(classes, real, fake, labels), "accuracy": accuracy}


def check_counts(samples: Samples, dataset: Dataset, config: ScoreConfig) -> None:
    """Refuse too few samples, and fewer than 4 real images, two for each side of the floor."""
    samples_count, count = samples.images.shape[1], len(dataset.images)
    if samples_count < 2:
        text = f"samples.npz holds {samples_count} image for each seed: expected at least 2"
        raise ValueError(f"{text}; sample more, e.g. --config.sample.count=1000")
    check_sample_sets(config, samples_count)
    if count < 4:
        raise ValueError(f"{dataset.name} holds {count} images: expected at least 4 to score")


def check_sample_sets(config: ScoreConfig, samples: int) -> None:
    """Refuse several sets with more images than there are `samples`: ValueError."""
    if config.sample_sets > 1 and config.sample_sets * config.count > samples:
        raise ValueError(
            f"score.sample_sets={config.sample_sets}: expected at most "
            f"{max(samples // config.count, 1)}, sets of {config.count} (score.count) among "
            f"{samples} samples; sample more, --config.sample.count="
            f"{config.sample_sets * config.count}"
        )


def find_classifier(extractors: Sequence[Extractor], dataset: Dataset) -> Extractor | None:
    """Return the feature space that knows the data's classes, or None."""
    by_name = {extractor.name: extractor for extractor in extractors}
    classifier = by_name.get(CLASSIFIER) or spaces.make(CLASSIFIER)
    return classifier if classifier.classes == dataset.classes else None


def describe(extractor: Extractor, dataset: Dataset) -> dict[str, str]:
    """Return the keys of a score that name the feature space and the data."""
    return {
        "features": extractor.name,
        "name": extractor.distance,
        "protocol": extractor.protocol,
        "extractor_sha256": extractor.sha256,
        "extractor_weights": extractor.weights,
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
    }
