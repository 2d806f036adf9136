"""The score stage: a run's samples against real images, in every feature space asked for."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloodjax import features as spaces
from bloodjax.data import Dataset
from bloodjax.features import Extractor
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
    for name in ",".join(features).split(","):  # a flag's "a,b" arrives as one name
        try:
            found[name] = spaces.make(name)
        except Unavailable as error:
            console.print(f"scores go on without {name}: {error}", markup=False, soft_wrap=True)
    if not found:
        raise ValueError(f"score.features={','.join(features)}: none is available; add {JUDGE}")
    return found


def check(*, features: Sequence[str], count: int, draws: int) -> list[str]:
    """Refuse, before any work, what `run` could not do: ValueError naming the value.

    Returns:
        Those of `features` that can be had, on every process; weights are downloaded for it.
    """
    if count < 2:
        raise ValueError(f"score.count={count}: expected at least 2, a covariance needs as many")
    if draws < 1:
        raise ValueError(f"score.draws={draws}: expected at least 1")
    found = processes.main_first(lambda: make_extractors(features))
    what = [(e.name, e.sha256, e.protocol) for e in found.values()]
    processes.require_equal("feature spaces", what)
    return list(found)


def write_scores(
    workdir: Path,
    dataset: Dataset,
    *,
    features: Sequence[str] = (JUDGE,),
    count: int = 10_000,
    draws: int = 5,
) -> dict[str, Any]:
    """Score each seed's samples against the data and write scores.json.

    Args:
        workdir: the run's folder, with samples.npz.
        dataset: the real images; `count` of them are drawn, the same ones for every run.
        features: the feature spaces to compare in, "name" or "name:protocol".
        count: images on each side; all there are where there are fewer (n_real, n_fake say so).
        draws: sets of real images that one model is compared with, for the σ of that choice.

    Returns:
        What scores.json holds: {"scores": one object per seed and space, "summary": one per space};
        on other processes than 0, whose share are features only, nothing in both.
    """
    samples = read_samples(workdir, dataset)
    fakes = samples.images[:, :count]
    # twice `count`, so that the floor is measured on sets as near as can be to the score's own size
    rows = shuffled_rows(dataset, SUBSET_SEED)[: 2 * count]
    extractors = list(make_extractors(features).values())
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
