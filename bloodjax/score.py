"""The score stage: a run's samples against real images, in every feature space asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from bloodjax import features as spaces
from bloodjax.data import Dataset
from bloodjax.distance import Moments, floor, frechet
from bloodjax.features import Extractor
from bloodjax.progress import console, progress
from bloodjax.workdir import write_text

CHUNK = 512  # images per call of an extractor: how often the bar moves
SUBSET_SEED = 0  # the real images drawn are the same for every run, so that runs compare
TITLES = {"bloodnet": "BloodNet", "inception": "Inception"}


def class_shares(
    classify: Callable[[np.ndarray], np.ndarray],
    classes: tuple[str, ...],
    real: np.ndarray,
    fake: np.ndarray,
) -> dict[str, dict[str, float]]:
    """The share of images that a classifier puts in each class: {class: {"real", "fake"}}.

    The same classifier judges both, so that its own errors are on both sides. It must put
    everything somewhere: pictures of no cell at all count as the class they resemble most.

    Args:
        classify: float32 [n, d] features -> [n, K] probabilities.
        classes: the K class names.
        real, fake: features, float32 [n, d].
    """
    shares = [
        np.bincount(classify(x).argmax(axis=1), minlength=len(classes)) / len(x)
        for x in (real, fake)
    ]
    return {
        name: {"real": float(r), "fake": float(f)}
        for name, r, f in zip(classes, *shares, strict=True)
    }


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


def read_samples(workdir: Path, dataset: Dataset) -> Samples:
    """The samples of a run, checked against the data they are to be compared with.

    Raises:
        FileNotFoundError: the run has no samples yet.
        ValueError: images of another shape or type than the data set's.
    """
    path = Path(workdir) / "samples.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: make it with --mode=sample")
    with np.load(path, allow_pickle=False) as file:
        images, trace = file["images"], file["trace"]
        samples = Samples(images, file["seeds"], int(file["step"]), trace, str(file["trace_name"]))
    expected = dataset.images.shape[1:]
    if images.ndim != 5 or images.shape[2:] != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{path} holds {images.dtype} images {images.shape}: expected uint8 (seeds, n, "
            f"{', '.join(map(str, expected))}) as in {dataset.name}; sample again with this data"
        )
    return samples


def check(*, features: tuple[str, ...], count: int) -> None:
    """Refuse, before any work, what `run` could not do: ValueError naming the value."""
    for name in features:
        spaces.make(name)
    if count < 2:
        raise ValueError(f"score.count={count}: expected at least 2, a covariance needs as many")


def run(
    workdir: Path,
    dataset: Dataset,
    *,
    features: tuple[str, ...] = ("bloodnet",),
    count: int = 10_000,
) -> dict[str, Any]:
    """Score each seed's samples against the data and write scores.json.

    Args:
        workdir: the run's folder, with samples.npz.
        dataset: the real images; `count` of them are drawn, the same ones for every run.
        features: the feature spaces to compare in.
        count: images on each side; all there are where there are fewer (n_real, n_fake say so).

    Returns:
        What scores.json holds: {"scores": one object per seed and space, "summary": one per space}.
    """
    samples = read_samples(workdir, dataset)
    fakes = samples.images[:, :count]
    # twice `count`, so that the floor is measured on sets as near as can be to the score's own size
    pool = np.random.default_rng(SUBSET_SEED).permutation(len(dataset.images))[: 2 * count]
    scores = []
    total = len(features) * (len(pool) + fakes.shape[0] * fakes.shape[1])
    with progress("score", total) as advance:
        for name in features:
            extractor = spaces.make(name)
            real = embed(extractor, dataset.images[pool], advance)
            common = {
                "step": samples.step,
                "features": extractor.name,
                "name": f"fd_{extractor.name}",  # FID: the published Inception weights' alone
                "floor": floor(real, count, SUBSET_SEED),
                "floor_n": min(count, len(real) // 2),
                "protocol": extractor.protocol,
                "extractor_sha256": extractor.sha256,
                "dataset": dataset.name,
                "dataset_digest": dataset.digest,
            }
            judge = measures(extractor, dataset.classes, real[:count])
            for seed, images in zip(samples.seeds.tolist(), fakes, strict=True):
                scores.append({"seed": seed} | common | judge(embed(extractor, images, advance)))
    result = {"scores": scores, "summary": summarize(scores)}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(Path(workdir) / "scores.json", text + "\n")
    console.print(as_table(result))
    return result


def measures(
    extractor: Extractor, classes: tuple[str, ...], real: np.ndarray
) -> Callable[[np.ndarray], dict[str, Any]]:
    """Fake features, float32 [n, d] -> one seed's figures; a further measure is one entry more.

    Args:
        classes: the data's; shares are counted if the extractor tells the same ones apart.
        real: features, float32 [n, d].
    """
    moments = Moments.of(real)
    classify = extractor.classify if extractor.classes == classes else None
    return lambda fake: {
        "value": frechet(moments, Moments.of(fake)),
        "n_real": len(real),
        "n_fake": len(fake),
        "classes": classify and class_shares(classify, classes, real, fake),
    }


def embed(extractor: Extractor, images: np.ndarray, advance: Callable[..., None]) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, d], chunk by chunk."""
    parts = []
    for start in range(0, len(images), CHUNK):
        parts.append(extractor.features(images[start : start + CHUNK]))
        advance(len(parts[-1]), extractor.name)
    return np.concatenate(parts)


def summarize(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and population standard deviation over seeds, one object per measure."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        groups.setdefault(score["name"], []).append(score)
    return [
        {
            "features": group[0]["features"],
            "name": name,
            "seeds": len(group),
            "mean": float(np.mean([s["value"] for s in group])),
            "std": float(np.std([s["value"] for s in group])),
            "floor": group[0]["floor"],
        }
        for name, group in groups.items()
    ]


def title(name: str) -> str:
    """A measure's name for people: "fd_bloodnet" -> "FD-BloodNet"."""
    kind, _, space = name.partition("_")
    return "-".join(filter(None, (kind.upper(), TITLES.get(space, space))))


def show(value: float, like: float | None = None) -> str:
    """Four digits that matter, or as many decimals as `like` has; rounding below 0 shows as 0."""
    size = max(abs(value if like is None else like), 1e-3)
    return f"{max(value, 0):.{max(3 - int(np.floor(np.log10(size))), 0)}f}"


def spread(summary: dict[str, Any]) -> str:
    """Mean ± population standard deviation over seeds; one seed has no ±."""
    mean = show(summary["mean"])
    return f"{mean} ± {show(summary['std'], summary['mean'])}" if summary["seeds"] > 1 else mean


def as_table(result: dict[str, Any]) -> Table:
    """The scores for a terminal."""
    table = Table("seed", "measure", "value", "floor", "n real / fake", title="lower is better")
    for s in result["scores"]:
        row = title(s["name"]), show(s["value"]), show(s["floor"])
        table.add_row(str(s["seed"]), *row, f"{s['n_real']:,} / {s['n_fake']:,}")
    for s in (s for s in result["summary"] if s["seeds"] > 1):
        table.add_row("mean", title(s["name"]), spread(s), show(s["floor"]))
    return table
