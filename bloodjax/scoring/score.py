"""The score stage: a run's samples against real images, in every feature space asked for."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bloodjax import features as spaces
from bloodjax import options
from bloodjax.data import Dataset
from bloodjax.features import Extractor
from bloodjax.options import Interval, Positive
from bloodjax.runtime import processes
from bloodjax.runtime.download import Unavailable
from bloodjax.runtime.files import write_text
from bloodjax.runtime.progress import console, progress
from bloodjax.sampling.samples import read_samples
from bloodjax.scoring.embedding import embed, embed_dataset, shuffled_rows
from bloodjax.scoring.measures import Real, score_classes, score_reals, score_samples
from bloodjax.scoring.tables import make_table

SUBSET_SEED = 0  # the real images drawn are the same for every run, so that runs compare
JUDGE = "bloodnet"  # the space whose classifier says which class an image is of
# what is averaged over seeds, value (the Fréchet distance) first
AVERAGED = "value infinity kid precision recall density coverage memorised".split()


def make_extractors(features: Sequence[str]) -> dict[str, Extractor]:
    """The feature spaces that can be had here, by name; the others are named on the console.

    Raises:
        ValueError: an unknown space, or none that can be had.
    """
    found = {}
    for name in features:
        try:
            found[name] = spaces.make(name)
        except Unavailable as error:
            console.print(f"scores go on without {name}: {error}", markup=False, soft_wrap=True)
    if not found:
        raise ValueError(f"score.features={','.join(features)}: none is available; add {JUDGE}")
    return found


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How to score.

    Attributes:
        features: feature spaces to compare in, "name" or "name:protocol".
        count: images per side; all images where there are fewer.
        draws: sets of real images to compare one model with, for the σ of their choice.
    """

    features: tuple[str, ...] = (JUDGE,)
    count: Annotated[int, Interval(2)] = 10_000  # a covariance needs two
    draws: Positive = 5

    def __post_init__(self) -> None:
        options.check(type(self), "score", vars(self))


def keep_available(config: ScoreConfig) -> ScoreConfig:
    """Return `config` with the feature spaces that every process can load; download weights."""
    extractors = processes.main_first(lambda: make_extractors(config.features))
    identity = [(e.name, e.sha256, e.protocol) for e in extractors.values()]
    processes.require_equal("feature spaces", identity)
    return replace(config, features=tuple(extractors))


def write_scores(
    workdir: Path,
    dataset: Dataset,
    config: ScoreConfig,
) -> dict[str, Any]:
    """Score each seed's samples against the data and write scores.json.

    Args:
        workdir: the run's folder, with samples.npz.
        dataset: the real images; `config.count` of them are drawn, the same ones for every run.
        config: how to score.

    Returns:
        What scores.json holds: {"scores": one object per seed and space, "summary": one per space};
        on other processes than 0, whose share are features only, nothing in both.
    """
    count, draws = config.count, config.draws
    samples = read_samples(workdir, dataset)
    fakes = samples.images[:, :count]
    # twice `count`, so that the floor is measured on sets as near as can be to the score's own size
    rows = shuffled_rows(dataset, SUBSET_SEED)[: 2 * count]
    extractors = list(make_extractors(config.features).values())
    judge = next((e for e in extractors if e.name == JUDGE), None) or spaces.make(JUDGE)
    judges = judge.classes == dataset.classes
    turns = len(extractors) + (judges and judge not in extractors)
    scores, seen, labels = [], {}, None
    with progress("score", turns * (len(rows) + fakes.shape[0] * fakes.shape[1])) as advance:
        if judges:
            train, sets = embed_all(judge, dataset, len(rows), fakes, advance)
            seen[JUDGE] = train, list(sets)
            labels = [judge.classify(x).argmax(axis=1) for x in (train[:count], *seen[JUDGE][1])]
        for extractor in extractors:
            train, sets = seen.get(extractor.name) or embed_all(
                extractor, dataset, len(rows), fakes, advance
            )
            if not processes.is_main():  # has computed its share of the features, and that is all
                deque(sets, maxlen=0)
                continue
            real = Real.of(train, count, draws)
            common = {"step": samples.step, **origin(extractor, dataset), **score_reals(real)}
            for s, (seed, fake) in enumerate(zip(samples.seeds.tolist(), sets, strict=True)):
                own = score_samples(real, fake, rows)
                own["classes"] = labels and score_classes(
                    dataset.classes, (real.features, labels[0]), (fake, labels[1 + s])
                )
                about = {"seed": seed, "samples_sha256": samples.digest(s)}
                scores.append(about | common | own)
    result = {"scores": scores, "summary": summarize(scores)}
    if processes.is_main():
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(Path(workdir) / "scores.json", text + "\n")
        console.print(make_table(result))
    return result


def embed_all(
    extractor: Extractor,
    dataset: Dataset,
    n: int,
    fakes: np.ndarray,
    advance: Callable[..., None],
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Features of the first `n` shuffled real images, and of each seed's fakes, when asked for."""
    train = embed_dataset(extractor, dataset, SUBSET_SEED, n, advance)
    return train, (embed(extractor.generated or extractor, images, advance) for images in fakes)


def origin(extractor: Extractor, dataset: Dataset) -> dict[str, str]:
    """What made the features that are compared, and of which real images."""
    return {
        "features": extractor.name,
        "name": extractor.distance,
        "protocol": extractor.protocol,
        "extractor_sha256": extractor.sha256,
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
    }


def summarize(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and population standard deviation over seeds, one object per space."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for score in scores:
        groups.setdefault((score["name"], score["protocol"]), []).append(score)
    return [
        {
            "features": group[0]["features"],
            "name": name,
            "protocol": protocol,
            "seeds": len(group),
            **mean_std([s["value"] for s in group]),
            "draws": {
                "n": group[0]["draws"]["n"],
                "std": float(np.mean([s["draws"]["std"] for s in group])),
            },
            "floor": group[0]["floor"],
            **{key: mean_std([s[key] for s in group]) for key in AVERAGED[1:]},
        }
        for (name, protocol), group in groups.items()
    ]


def mean_std(values: list[float | None]) -> dict[str, float | None]:
    """Mean and population standard deviation; None where a value is missing."""
    if None in values:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
