"""The score stage: a run's samples against real images, in every feature space asked for."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bloodjax import features as spaces
from bloodjax import hosts, npz
from bloodjax.data import Dataset
from bloodjax.download import Unavailable
from bloodjax.embedding import embed, embed_dataset, shuffled
from bloodjax.features import Extractor
from bloodjax.measures import Real, by_class, of_reals, of_samples
from bloodjax.progress import console, progress
from bloodjax.tables import as_table
from bloodjax.workdir import write_text

SUBSET_SEED = 0  # the real images drawn are the same for every run, so that runs compare
JUDGE = "bloodnet"  # the space whose classifier says which class an image is of
# what is averaged over seeds, value (the Fréchet distance) first
AVERAGED = "value infinity kid precision recall density coverage memorised".split()


class Samples(NamedTuple):
    """The contents of samples.npz: S seeds, N images each.

    Attributes:
        images: uint8 [S, N, H, W, C].
        seeds: uint32 [S].
        step: training steps done.
        trace: uint8 [S, R, K, H, W, C], K pictures on the way of each of R samples; R may be 0.
        trace_name: what the trace shows, e.g. "denoising".
    """

    images: np.ndarray
    seeds: np.ndarray
    step: int
    trace: np.ndarray
    trace_name: str

    def digest(self, s: int) -> str:
        """sha256 hex of the images of the s-th seed."""
        return hashlib.sha256(np.ascontiguousarray(self.images[s])).hexdigest()


def read_samples(workdir: Path, dataset: Dataset) -> Samples:
    """The samples of a run, checked against the data they are to be compared with.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: the file is damaged, or its images are of another shape or type than the data's.
    """
    path = Path(workdir) / "samples.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make it with --mode=sample")
    try:
        images, seeds, step, trace, name = npz.read(path, *Samples._fields).values()
        samples = Samples(images, seeds, int(step), trace, str(name))
    except ValueError as error:
        raise ValueError(f"{error}; move it away and sample again, --mode=sample") from None
    expected = dataset.images.shape[1:]
    if images.ndim != 5 or images.shape[2:] != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{path} holds {images.dtype} images {images.shape}: expected uint8 (seeds, n, "
            f"{', '.join(map(str, expected))}) as in {dataset.name}; sample again with this data"
        )
    return samples


def available(features: Sequence[str]) -> dict[str, Extractor]:
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
    found = hosts.main_first(lambda: available(features))
    what = [(e.name, e.sha256, e.protocol) for e in found.values()]
    hosts.same("feature spaces", what)
    return list(found)


def run(
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
    rows = shuffled(dataset, SUBSET_SEED)[: 2 * count]
    extractors = list(available(features).values())
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
            if not hosts.is_main():  # has computed its share of the features, and that is all
                deque(sets, maxlen=0)
                continue
            real = Real.of(train, count, draws)
            common = {"step": samples.step, **origin(extractor, dataset), **of_reals(real)}
            for s, (seed, fake) in enumerate(zip(samples.seeds.tolist(), sets, strict=True)):
                own = of_samples(real, fake, rows)
                own["classes"] = labels and by_class(
                    dataset.classes, (real.features, labels[0]), (fake, labels[1 + s])
                )
                about = {"seed": seed, "samples_sha256": samples.digest(s)}
                scores.append(about | common | own)
    result = {"scores": scores, "summary": summarize(scores)}
    if hosts.is_main():
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(Path(workdir) / "scores.json", text + "\n")
        console.print(as_table(result))
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
            **over([s["value"] for s in group]),
            "draws": {
                "n": group[0]["draws"]["n"],
                "std": float(np.mean([s["draws"]["std"] for s in group])),
            },
            "floor": group[0]["floor"],
            **{key: over([s[key] for s in group]) for key in AVERAGED[1:]},
        }
        for (name, protocol), group in groups.items()
    ]


def over(values: list[float | None]) -> dict[str, float | None]:
    """Mean and population standard deviation; None where a value is missing."""
    if None in values:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
